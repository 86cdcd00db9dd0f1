"""The coordinates prior: what models write, read from a table; the image size rule undone exactly;
a tiny model end to end."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from coprs_core import CoPRSError, load
from coprs_core.checkpoints.hugging_face import load_image_processor
from coprs_core.checkpoints.load import MINIATURE
from coprs_core.geometry import to_square
from coprs_core.model import language as language_module
from coprs_core.model.coordinates import (
    MAX_OBJECTS,
    SEG_ZERO,
    STOCK,
    WrittenObject,
    coordinates_prior,
    read_answer,
)
from coprs_core.model.mllm import Step
from coprs_core.world.scenes import draw_scene
from tests import tiny

SEEN, PHOTO = (100, 200), (200, 800)  # both are (height, width): scales are 4 across and 2 down
BOX = '{"bbox_2d": [10, 20, 50, 60], "point_2d": [30, 40]}'
ONE = [((40, 40, 200, 120), ((120, 80),))]

READABLE = [
    ("as asked", f"<think>so</think> <answer>[{BOX}]</answer>", ONE),
    ("fenced", f"<think>so</think>\n```json\n[{BOX}]\n```", ONE),
    ("fenced inside the answer", f"<think>so</think><answer>```json\n[{BOX}]```</answer>", ONE),
    ("an open fence", f"```json\n[{BOX}]", ONE),
    ("text before and behind", f"<think>so</think> Here it is: [{BOX}]. I hope that helps [1].", ONE),
    ("a reference in brackets first", f"<think>so</think> As [1] says: [{BOX}]", ONE),
    ("no list around", f"<answer>{BOX}</answer>", ONE),
    ("an answer that was not closed", f"</think><answer>[{BOX}]", ONE),
    ("no answer tags", f"<think>so</think>[{BOX}]", ONE),
    ("coordinates in the thought do not count", f'<think>[{{"bbox_2d": [0, 0, 9, 9]}}]</think>[{BOX}]', ONE),
    ("missing point", '<answer>[{"bbox_2d": [10, 20, 50, 60]}]</answer>', [((40, 40, 200, 120), ())]),
    ("missing box", '<answer>[{"point_2d": [30, 40]}]</answer>', [(None, ((120, 80),))]),
    ("floats", '[{"bbox_2d": [10.5, 20.0, 50.5, 6e1], "point_2d": [30.25, 40]}]', [((42, 40, 202, 120), ((121, 80),))]),
    ("swapped corners", '[{"bbox_2d": [50, 60, 10, 20], "point_2d": [30, 40]}]', ONE),
    ("one corner out of range", '[{"bbox_2d": [-10, 20, 5000, 60]}]', [((0, 40, 800, 120), ())]),
    ("a point out of range", '[{"bbox_2d": [10, 20, 50, 60], "point_2d": [300, 40]}]', [((40, 40, 200, 120), ())]),
    ("one of two outside", f'[{BOX}, {{"bbox_2d": [900, 900, 950, 950]}}]', ONE),
    ("one of two not numbers", f'[{BOX}, {{"bbox_2d": ["a", null, true, {{}}]}}]', ONE),
    ("NaN and a huge number beside a good one", f'[{{"bbox_2d": [NaN, 1, 2, 3]}}, {{"bbox_2d": [1{"0" * 400}, 1, 2, 3]}}, {BOX}]', ONE),
    ("several", f'[{BOX}, {{"bbox_2d": [0, 0, 10, 10]}}]', [*ONE, ((0, 0, 40, 20), ())]),
    ("several points", '{"bbox": [10, 20, 50, 60], "points_1": [30, 40], "points_2": [20, 30]}', [((40, 40, 200, 120), ((120, 80), (80, 60)))]),
    ("a list of points", '[{"bbox_2d": [10, 20, 50, 60], "points": [[30, 40], [20, 30]]}]', [((40, 40, 200, 120), ((120, 80), (80, 60)))]),
    ("a bare box", "<answer>[10, 20, 50, 60]</answer>", [((40, 40, 200, 120), ())]),
    ("bare boxes", "[[10, 20, 50, 60], [0, 0, 10, 10]]", [((40, 40, 200, 120), ()), ((0, 0, 40, 20), ())]),
    ("wrapped", f'{{"objects": [{BOX}]}}', ONE),
    ("single quotes", "{'bbox_2d': [10, 20, 50, 60], 'point_2d': [30, 40]}", ONE),
]  # fmt: skip

NOTHING = [
    "<think>no</think><answer>[]</answer>",
    "```json\n[]\n```",
    "</think>[]",
    "<answer> [ ] </answer>",
]

UNREADABLE = [
    "", "   ", "<think>I think", "<think>so</think>", "<think>so</think> It is the red one.", "<answer></answer>",
    "<answer>[{]</answer>", '<answer>[{"bbox_2d": [1, 2, 3', '[{"bbox_2d": [900, 900, 950, 950]}]', "[1, 2]", '"text"',
    '[{"bbox_2d": [5, 5, 5, 5]}]', '[{"bbox_2d": "10, 20, 50, 60"}]', '[{"colour": "red"}]', "[" * 5000,
    "__import__('os').system('touch /tmp/coprs-eval')",
]  # fmt: skip


@pytest.mark.parametrize(
    "reply, expected", [row[1:] for row in READABLE], ids=[row[0] for row in READABLE]
)
def test_what_models_write_is_read(reply, expected):
    answer = read_answer(reply, SEEN, PHOTO)
    assert [(o.box, o.points) for o in answer.objects] == expected and answer.readable


@pytest.mark.parametrize("reply", NOTHING)
def test_an_empty_list_means_nothing(reply):
    answer = read_answer(reply, SEEN, PHOTO)
    assert answer.readable and not answer.objects


@pytest.mark.parametrize("reply", UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_cannot_be_read_is_said_and_never_raised(reply):
    answer = read_answer(reply, SEEN, PHOTO)
    assert not answer.readable and not answer.objects and answer.problem.endswith(".")


def test_the_label_comes_along_and_too_many_things_are_said():
    assert (
        read_answer('[{"bbox_2d": [10, 20, 50, 60], "label": "dog"}]', SEEN, PHOTO).objects[0].label
        == "dog"
    )
    many = read_answer(json.dumps([{"bbox_2d": [1, 1, 9, 9]}] * 40), SEEN, PHOTO)
    assert len(many.objects) == MAX_OBJECTS and "40 things" in many.problem


@pytest.mark.parametrize("prompt", [STOCK, SEG_ZERO], ids=["stock", "840"])
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 1200), (1500, 300), (1333, 2000)])
def test_the_size_rule_is_undone_exactly(prompt, size):
    """A white target on black is given to the model's own processor; its box is read off the pixels
    that the tower gets, written in whole numbers as a model would, and must come back to the drawn
    place within one pixel of that rounding."""
    height, width = size
    true = (round(width * 0.31), round(height * 0.22), round(width * 0.67), round(height * 0.58))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[true[1] : true[3], true[0] : true[2]] = 255
    processor = load_image_processor(MINIATURE / "mllm")
    processor.size = {"shortest_edge": 3136, "longest_edge": prompt.max_pixels}
    photo = Image.fromarray(picture)
    inputs = processor(
        images=[to_square(photo, prompt.square) if prompt.square else photo], return_tensors="pt"
    )
    seen = as_picture(inputs["pixel_values"], inputs["image_grid_thw"][0])
    assert prompt.square is None or seen.shape == (840, 840)
    white = seen > (seen.min() + seen.max()) / 2
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    written = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    located = read_answer(json.dumps([{"bbox_2d": written}]), seen.shape, size).objects[0]
    one_pixel = width / seen.shape[1], height / seen.shape[0]
    for i, value in enumerate(located.box):
        assert abs(value - true[i]) <= max(1.0, one_pixel[i % 2])


def as_picture(pixels: torch.Tensor, grid: torch.Tensor) -> np.ndarray:
    """The tower's flattened patches back as one grey picture [h, w] (merge size 2, two equal
    frames)."""
    _, rows, columns = grid.tolist()
    patches = pixels.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[..., 0, 0, :, :]
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows * 14, columns * 14).numpy()


def test_the_prior_peaks_at_the_point_and_ends_at_the_box():
    prior = coordinates_prior(WrittenObject((100, 50, 300, 150), ((150, 100),)), (200, 400))
    assert (
        prior.shape == (200, 400)
        and prior.dtype == np.float32
        and prior.min() >= 0
        and prior.max() <= 1
    )
    assert np.unravel_index(prior.argmax(), prior.shape) in [
        (y, x) for y in (99, 100) for x in (149, 150)
    ]
    assert prior.max() > 0.99
    for y, x in ((100, 100), (100, 299), (50, 150), (149, 150)):
        assert prior[y, x] == pytest.approx(0.5, abs=0.02)
    assert prior[100, 98] == prior[100, 301] == prior[48, 150] == prior[151, 150] == 0
    ys, xs = np.nonzero(prior >= 0.5)
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (100, 300, 50, 150)


@pytest.mark.parametrize("located", [
    WrittenObject(None, ((5, 5),)), WrittenObject((0, 0, 1, 1)), WrittenObject((0, 0, 400, 200), ((0, 0),)),
    WrittenObject((10, 10, 20, 20), ((390, 190),)),
])  # fmt: skip
def test_the_prior_of_odd_places_is_a_prior(located):
    prior = coordinates_prior(located, (200, 400))
    assert np.isfinite(prior).all() and 0.9 < prior.max() <= 1


# --- a whole model: Qwen2.5-VL and SAM, tiny and random; what it writes is given


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pointing")
    mllm = tiny.qwen()
    return tiny.save_mllm(folder / "qwen", mllm), tiny.save_sam(
        folder / "sam.pth", tiny.coprs(mllm)
    )


@pytest.fixture(scope="module")
def pointing(folders):
    return load(str(folders[0]), device="cpu", sam=str(folders[1]))


def writes(monkeypatch, engine, reply: str, finished: bool = True) -> None:
    ids = engine.segmenter.language.tokenizer(reply, add_special_tokens=False).input_ids
    ids = [*ids, engine.segmenter.language.tokenizer.eos_token_id] if finished else ids
    monkeypatch.setattr(language_module, "generate", lambda *a, **k: (Step(t) for t in ids))


def test_a_folder_of_qwen_answers_with_a_coordinates_prior(pointing, monkeypatch):
    writes(monkeypatch, pointing, '<think>two</think><answer>[{"bbox_2d": [28, 28, 112, 84], "point_2d": [56, 56], "label": "a"}, {"bbox_2d": [140, 140, 224, 224]}]</answer>')  # fmt: skip
    updates = list(pointing.stream(draw_scene(1).image, "both of them"))
    result = updates[-1].result
    assert [u.stage for u in updates if u.stage != "thinking"] == ["reading", "focus", "done"]
    assert (
        result.outcome == "found"
        and result.prior_kind == "coordinates"
        and len(result.regions) == 2
    )
    assert result.reasoning == "two" and "2 things" in result.reason
    first, second = result.regions
    assert first.label == "a" and first.points and not second.points
    assert not np.array_equal(first.mask, second.mask)
    assert np.array_equal(result.mask, first.mask | second.mask)
    np.testing.assert_array_equal(updates[-2].prior, np.maximum(first.prior, second.prior))
    told = result.to_dict()
    assert told["prior_kind"] == "coordinates" and told["regions"][0]["box"] == first.box
    json.dumps(told)


def test_the_mask_is_what_segment_anythings_own_predictor_draws(pointing, folders, monkeypatch):
    """Same box and point to SamPredictor on the same weights: the same mask."""
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

    photo = draw_scene(1).image[:200]
    writes(
        monkeypatch,
        pointing,
        '<answer>[{"bbox_2d": [28, 28, 112, 84], "point_2d": [56, 56]}]</answer>',
    )
    region = pointing.segment(photo, "it").regions[0]
    model = pointing.model
    sam = Sam(model.image_encoder, model.decoder.prompt_encoder, model.decoder.mask_decoder)
    predictor = SamPredictor(sam)
    predictor.set_image(photo)
    mask, _, _ = predictor.predict(
        np.array(region.points), np.ones(1), np.array(region.box), multimask_output=False
    )
    assert np.array_equal(mask[0], region.mask) and 0 < region.mask.mean() < 1


def test_nothing_unreadable_and_unfinished_are_three_different_things(pointing, monkeypatch):
    outcomes = []
    for reply, finished in (
        ("<answer>[]</answer>", True),
        ("I cannot tell.", True),
        ("<think>well", False),
    ):
        writes(monkeypatch, pointing, reply, finished)
        result = pointing.segment(draw_scene(1).image, "it")
        outcomes.append((result.outcome, result.reason))
        assert not result.regions and not result.mask.any()
    assert [o for o, _ in outcomes] == ["nothing found", "unfinished", "unfinished"]
    assert len({r for _, r in outcomes}) == 3


def test_the_random_model_itself_runs_to_its_limit(pointing):
    result = pointing.segment(draw_scene(1).image, "it", 5)
    assert result.tokens <= 5 and result.prior_kind == "coordinates"


def test_other_architectures_are_refused_for_coordinates(folders, tmp_path):
    llava = tiny.save_mllm(tmp_path / "llava", tiny.llava())
    with pytest.raises(CoPRSError, match="'llava' and coordinates are read from qwen2_5_vl"):
        load(str(llava), device="cpu", sam=str(folders[1]))
    with pytest.raises(CoPRSError, match="no SAM file"):
        load(str(folders[0]), device="cpu", sam="vit_x")
