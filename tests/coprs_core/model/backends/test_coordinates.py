"""Models that write coordinates: what they write, read from a table; the image size rule undone exactly;
a tiny model end to end."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam3ImageProcessor,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
)

from coprs_core import CoPRSError, load
from coprs_core.answer.flags import find_flags
from coprs_core.answer.results import Region, Result
from coprs_core.answer.verdict import restated_question
from coprs_core.checkpoints.hugging_face import load_image_processor
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.checkpoints.sam_models import load_sam
from coprs_core.geometry import to_square
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends.boxes import (
    MAX_OBJECTS,
    coordinate_token_indices,
    is_coordinate_list_cut_off,
    parse_coordinates,
)
from coprs_core.model.backends.coordinates import MAX_VISUAL_TOKENS, QWEN2_5_PROMPT, SEG_ZERO_PROMPT
from coprs_core.model.backends.decoding import ContinuousBatch
from coprs_core.model.backends.json_in_text import JsonInText
from coprs_core.model.segmenter import Step
from coprs_core.photos.photo import open_photo
from coprs_core.probes import attention, heads, sentences, words, zoom
from coprs_core.probes.finding import NotApplicable
from coprs_core.probes.reply_attention import compute_reply_attention
from coprs_core.prompts import format_score, is_well_formed, parse_reply, replace_sentence
from coprs_core.prompts import split_sentences as sentences_of
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
    ("a list that breaks off", f'```json\n[{BOX}, {{"bbox_2d": [0, 0, 10, 10], "label": "a"}}, {{"bbox_2d": [1, 2, 3', [*ONE, ((0, 0, 40, 20), ())]),
    ("bare boxes that break off", "[[10, 20, 50, 60], [0, 0, 10, 10], [3, 4", [((40, 40, 200, 120), ()), ((0, 0, 40, 20), ())]),
    ("a line each", f'{BOX}\n{{"bbox_2d": [0, 0, 10, 10]}}', [*ONE, ((0, 0, 40, 20), ())]),
    ("a block each", f'```json\n{BOX}\n```\nand\n```json\n{{"bbox_2d": [0, 0, 10, 10]}}\n```', [*ONE, ((0, 0, 40, 20), ())]),
    ("one written twice", f"{BOX}, that is {BOX}", ONE),
    ("a second list is not another answer", f"[{BOX}] or [[0, 0, 10, 10]]", ONE),
    ("thin", '[{"bbox_2d": [10, 20, 10, 60]}]', [((38, 40, 42, 120), ())]),
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
    answer = parse_coordinates(reply, SEEN, PHOTO)
    assert [(o.box, o.points) for o in answer.objects] == expected and answer.is_readable


@pytest.mark.parametrize("reply", NOTHING)
def test_an_empty_list_means_nothing(reply):
    answer = parse_coordinates(reply, SEEN, PHOTO)
    assert answer.is_readable and not answer.objects


@pytest.mark.parametrize("reply", UNREADABLE, ids=range(len(UNREADABLE)))
def test_what_cannot_be_read_is_said_and_never_raised(reply):
    answer = parse_coordinates(reply, SEEN, PHOTO)
    assert not answer.is_readable and not answer.objects and answer.problem.endswith(".")


PIECES = [
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    '"',
    "'",
    "\\",
    " ",
    "\n",
    "1",
    "-",
    "0.5e3",
    "NaN",
    "true",
    "null",
    "x",
    "é",
]
PIECES += ['"bbox_2d"', "'bbox_2d'", "[1, 2, 3, 4]", '"a[b"', r'"\u00e9"', r'"\q"', '{"a": [1]}', "01", "Infinity", "\t"]  # fmt: skip


def test_json_in_text_is_what_json_reads():
    """At each bracket of texts made of pieces of JSON."""
    random, decoder, whole = np.random.default_rng(5), json.JSONDecoder(), 0
    for _ in range(3000):
        text = "".join(random.choice(PIECES, random.integers(1, 25)))
        ours = JsonInText(text)
        for place in (i for i, c in enumerate(text) if c in "[{"):
            try:
                expected = decoder.raw_decode(text, place)
            except ValueError:
                expected = None
            assert repr(ours.parse_at(place)) == repr(expected), text
            whole += expected is not None
    assert whole > 1000


HOSTILE = [
    "[", "{", "[[1,2", '{"a":', '[{"bbox_2d":', '[{"bbox_2d": [1, 2, 3, 4]},', "[]", "{}", '["', "['", '"', "'", "'[", "1",
    "[1", "[1.", "[-", "[NaN,", "[Infinity,", "[1e999,", '[{"bbox_2d": [1, 2, 3, 4], "label": "a"}] ', '{"bbox_2d": [1, 2, 3, 4]} ',
    "<think>", "</think>", "<think></think>", "<answer>", "```", "```json\n[", "\\", "[\\", '["\\', "[ ", "[\n", "a. ", "a.", "。", "\n", "ab ",
    "[1, 2, 3, 4], ", "[1, 2], ", '"[1,",', '{"a": "[", ', "the red hat ", "\u00e9[", "<REF_POS>", "no such ",
]  # fmt: skip
"""Repeated, and once more with other numbers in each, they were read in time that grows with the
square of their length, or may be one day."""


def _numbered(piece: str, characters: int) -> str:
    count = characters // len(piece + "00000") + 1
    return "".join(f"{piece}{i}" for i in range(count))[:characters]


READERS = {
    "parse_coordinates": lambda text: parse_coordinates(text, SEEN, PHOTO),
    "is_coordinate_list_cut_off": is_coordinate_list_cut_off,
    "coordinate_token_indices": lambda text: coordinate_token_indices(tuple(text), 4),
    "parse_reply": parse_reply,
    "form": lambda text: (format_score(text), is_well_formed(text), format_score(text, 2)),
    "sentences": lambda text: replace_sentence(f"{text} a", len(sentences_of(text)) // 2, "b"),
    "understanding": lambda text: restated_question(replied(text)),
    "flags": lambda text: find_flags(replied(text)),
}


def replied(text: str) -> Result:
    """An answer of one pixel with such a reply."""
    one = np.ones((1, 1), np.float32)
    return Result(
        *("found", "", text[:2000], parse_reply(text).reasoning, text, (Region(one, one > 0),), (1, 1)),
        *({}, 0, False, "m", {}, "attention"),
    )  # fmt: skip


def seconds(read, text: str) -> float:
    """Of this thread; the best of three."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        read(text)
        took.append(time.thread_time() - began)
    return min(took)


@pytest.mark.parametrize("reader", READERS)
def test_a_reply_is_read_in_time_that_grows_with_its_length(reader):
    """Four times the text takes less than eight times the time; what grows with the square takes
    sixteen."""
    read = READERS[reader]
    for piece in HOSTILE:
        for written in (lambda n, p=piece: (p * n)[:n], lambda n, p=piece: _numbered(p, n)):
            short, long = seconds(read, written(10_000)), seconds(read, written(40_000))
            assert long < 8 * short + 0.02, f"{piece!r}: {short:.4f} and {long:.4f} s"


@pytest.mark.parametrize("piece", ["[", "{", '{"bbox_2d": ['])
def test_what_stands_behind_brackets_without_end_is_read(piece):
    answer = parse_coordinates(f"{piece * 5000} So: [{BOX}]", SEEN, PHOTO)
    assert [(o.box, o.points) for o in answer.objects] == ONE


def test_a_label_that_is_no_text_is_as_long_as_it_may_be():
    deep = "[" * 40 + "]" * 40
    reply = '[{"bbox_2d": [10, 20, 50, 60], "label": %s}]'
    (one,) = parse_coordinates(reply % deep, SEEN, PHOTO).objects
    assert one.label == deep
    deeper = "[" * 900 + "]" * 900  # as a whole it is none; inside is nothing
    assert parse_coordinates(reply % deeper, SEEN, PHOTO).is_readable


def test_the_label_comes_along_and_too_many_things_are_said():
    assert (
        parse_coordinates('[{"bbox_2d": [10, 20, 50, 60], "label": "dog"}]', SEEN, PHOTO)
        .objects[0]
        .label
        == "dog"
    )
    many = parse_coordinates(json.dumps([{"bbox_2d": [1, 1, 9, 9]}] * 40), SEEN, PHOTO)
    assert len(many.objects) == MAX_OBJECTS and "40 things" in many.problem
    large = parse_coordinates(json.dumps([{"bbox_2d": [1, 1, 9, 9]}] * 40), SEEN, (3000, 4000))
    assert len(large.objects) == 8 and "40 things, the first 8 are shown" in large.problem


def test_a_list_that_breaks_off_is_told(pointing, monkeypatch):
    boxes = ", ".join(f'{{"bbox_2d": [{i}, 0, {i + 9}, 10]}}' for i in range(3))
    writes(monkeypatch, pointing, f"<answer>[{boxes}, {{", finished=False)
    result = pointing.segment(draw_scene(1).image, "it")
    assert len(result.regions) == 3 and "there may be more" in result.reason
    assert "cut off" in find_flags(result)
    writes(monkeypatch, pointing, f"<answer>[{boxes}]</answer>")
    result = pointing.segment(draw_scene(1).image, "it")
    assert len(result.regions) == 3 and "more" not in result.reason
    assert "cut off" not in find_flags(result)


@pytest.mark.parametrize("prompt", [QWEN2_5_PROMPT, SEG_ZERO_PROMPT], ids=["stock", "840"])
@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 1200), (1500, 300), (1333, 2000)])
def test_the_size_rule_is_undone_exactly(prompt, size):
    """A white target on black is given to the model's own processor; its box is read off the pixels
    that the tower gets, written in whole numbers as a model would, and must come back to the drawn
    place within one pixel of that rounding."""
    height, width = size
    true = (round(width * 0.31), round(height * 0.22), round(width * 0.67), round(height * 0.58))
    picture = np.zeros((height, width, 3), np.uint8)
    picture[true[1] : true[3], true[0] : true[2]] = 255
    processor = load_image_processor(MINIATURE_FOLDER / "mllm")
    processor.size = {"shortest_edge": 3136, "longest_edge": MAX_VISUAL_TOKENS["normal"] * 28 * 28}
    photo = Image.fromarray(picture)
    inputs = processor(
        images=[to_square(photo, prompt.square_side) if prompt.square_side else photo],
        return_tensors="pt",
    )
    seen = as_picture(inputs["pixel_values"], inputs["image_grid_thw"][0])
    assert prompt.square_side is None or seen.shape == (840, 840)
    white = seen > (seen.min() + seen.max()) / 2
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    written = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    located = parse_coordinates(json.dumps([{"bbox_2d": written}]), seen.shape, size).objects[0]
    one_pixel = width / seen.shape[1], height / seen.shape[0]
    for i, value in enumerate(located.box):
        assert abs(value - true[i]) <= max(1.0, one_pixel[i % 2])


def as_picture(pixels: torch.Tensor, grid: torch.Tensor) -> np.ndarray:
    """The tower's flattened patches back as one grey picture [h, w] (merge size 2, two equal
    frames)."""
    _, rows, columns = grid.tolist()
    patches = pixels.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 14, 14)[..., 0, 0, :, :]
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows * 14, columns * 14).numpy()


@pytest.mark.parametrize("reply, count, expected", [
    ('<think>[1, 2, 3, 4]</think>[{"bbox_2d": [5, 6, 7, 8]}]', 1, ["[5, 6, 7, 8]"]),
    ('</think>[{"bbox_2d": [5, 6, 7, 8]}, {"bbox_2d": [1.5, 2, 3, 4]}]', 2, ["[5, 6, 7, 8]", "[1.5, 2, 3, 4]"]),
    ('[{"bbox_2d": [5, 6, 7, 8]}, {"bbox_2d": [0, 0, 0, 0]}]', 1, ['[5, 6, 7, 8]}, {"bbox_2d": [0, 0, 0, 0]']),
    ('[{"point_2d": [5, 6]}]', 1, ["[5, 6]"]),
    ("</think>nothing of the kind", 1, ["</think>nothing of the kind"]),
])  # fmt: skip
def test_the_words_that_wrote_the_numbers_are_found(reply, count, expected):
    pieces = tuple(reply)  # a token a character
    words = coordinate_token_indices(pieces, count)
    assert ["".join(pieces[i] for i in w).rstrip("]") for w in words] == [
        e.rstrip("]") for e in expected
    ]


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

    def write(batch, session, focus_id, stop_ids, max_new_tokens, trace=None):
        """Those words, really read by the model one after the other."""
        for token in ids:
            yield Step(token)
            if token not in stop_ids:
                trace.feed(session, [token])

    monkeypatch.setattr(ContinuousBatch, "generate", write)


def test_a_folder_of_qwen_answers_with_boxes_and_where_it_looked(pointing, monkeypatch):
    writes(monkeypatch, pointing, '<think>two</think><answer>[{"bbox_2d": [28, 28, 112, 84], "point_2d": [56, 56], "label": "a"}, {"bbox_2d": [140, 140, 224, 224]}]</answer>')  # fmt: skip
    updates = list(pointing.stream(draw_scene(1).image, "both of them"))
    result = updates[-1].result
    assert [u.stage for u in updates if u.stage != "thinking"] == [
        *("reading", "reading", "focus", "done")
    ]
    assert (
        result.outcome == "found" and result.prior_kind == "attention" and len(result.regions) == 2
    )
    assert result.reasoning == "two" and "2 things" in result.reason
    first, second = result.regions
    assert first.label == "a" and first.points and not second.points
    assert not np.array_equal(first.mask, second.mask)
    assert np.array_equal(result.mask, first.mask | second.mask)
    np.testing.assert_array_equal(updates[-2].prior, np.maximum(first.prior, second.prior))
    for region in result.regions:  # each by the words of its own numbers
        assert region.prior.dtype == np.float32 and 0.9 < region.prior.max() <= 1
        assert region.prior.min() >= 0
    assert not np.array_equal(first.prior, second.prior)
    told = result.to_dict()
    assert told["prior_kind"] == "attention" and told["regions"][0]["box"] == first.box
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
    own = pointing.model.sam
    sam = Sam(own.image_encoder, own.decoder.prompt_encoder, own.decoder.mask_decoder)
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
    assert result.tokens <= 5 and result.prior_kind == "attention"


def test_other_architectures_are_refused_for_coordinates(folders, tmp_path):
    llava = tiny.save_mllm(tmp_path / "llava", tiny.llava())
    with pytest.raises(
        CoPRSError, match="'llava' and coordinates are read from qwen2_5_vl, qwen3_vl"
    ):
        load(str(llava), device="cpu", sam=str(folders[1]))
    with pytest.raises(CoPRSError, match="no SAM file"):
        load(str(folders[0]), device="cpu", sam="vit_x")


# --- Qwen3-VL with SAM 2.1


@pytest.fixture(scope="module")
def qwen3_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3")
    mllm = tiny.save_mllm(folder / "qwen3", tiny.qwen3())
    (mllm / "chat_template.jinja").write_text(tiny.CHAT)
    return mllm, tiny.save_sam2(folder / "sam2")


@pytest.fixture(scope="module")
def qwen3(qwen3_folders):
    return load(str(qwen3_folders[0]), device="cpu", sam=str(qwen3_folders[1]))


def test_thousandths_are_undone_whatever_the_model_saw(qwen3, monkeypatch):
    writes(monkeypatch, qwen3, 'so</think><answer>[{"bbox_2d": [100, 250, 500, 750], "label": "a"}]</answer>')  # fmt: skip
    photo = np.zeros((200, 640, 3), np.uint8)
    region = qwen3.segment(photo, "it").regions[0]
    assert region.box == (64, 50, 320, 150) and region.label == "a"


def test_the_prompt_is_the_checkpoints_own_chat_template(qwen3, pointing):
    template = qwen3.segmenter.template
    head = "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>Find what the"
    assert template.startswith(head) and "{instruction}" in template and "thousandths" in template
    assert template.endswith("<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert pointing.segmenter.template.startswith("<|im_start|>system\nYou are a helpful")
    for segmenter in (qwen3.segmenter, pointing.segmenter):
        features = segmenter.encode_photo(open_photo(draw_scene(1).image))
        ids = segmenter.language.encode_prompt(
            segmenter.template, "<|im_end|>{image}", features.visual
        )
        image_id = segmenter.language.mllm.config.image_token_id
        assert ids.count(image_id) == len(features.visual.features)


@pytest.mark.parametrize("chat", ["{{ messages[0].role }}", "{% for", "{{ 1 / 0 }}", "{{ x.y.z }}"])
def test_a_chat_template_that_cannot_be_used_is_one_sentence(qwen3_folders, tmp_path, chat):
    folder = tmp_path / "odd"
    shutil.copytree(qwen3_folders[0], folder)
    (folder / "chat_template.jinja").write_text(chat)
    with pytest.raises(CoPRSError, match="The chat template in .* cannot be used"):
        load(str(folder), device="cpu", sam=str(qwen3_folders[1]))


def test_a_thought_that_the_template_opened_is_read(qwen3, monkeypatch):
    reply = 'I see [{"bbox_2d": [0, 0, 9, 9]}]? No.</think>\n```json\n[{"bbox_2d": [100, 250, 500, 750]}]\n```'
    writes(monkeypatch, qwen3, reply)
    result = qwen3.segment(np.zeros((100, 100, 3), np.uint8), "it")
    assert result.reasoning.endswith("No.") and result.regions[0].box == (10, 25, 50, 75)


@pytest.mark.parametrize("written", ['"bbox_2d": [100, 250, 500, 750]', '"point_2d": [300, 500]', '"bbox_2d": [100, 250, 500, 750], "point_2d": [300, 500]'])  # fmt: skip
def test_the_mask_is_what_transformers_own_sam2_processor_draws(
    qwen3, qwen3_folders, monkeypatch, written
):
    photo = draw_scene(1).image[:200]
    writes(monkeypatch, qwen3, f"</think>[{{{written}}}]")
    region = qwen3.segment(photo, "it").regions[0]
    model = Sam2Model.from_pretrained(qwen3_folders[1])
    processor = Sam2Processor(Sam2ImageProcessor.from_pretrained(qwen3_folders[1]), target_size=128)
    prompts = {}
    if region.box:
        prompts["input_boxes"] = [[list(region.box)]]
    if region.points:
        prompts["input_points"] = [[[list(p) for p in region.points]]]
    inputs = processor(images=Image.fromarray(photo), return_tensors="pt", **prompts)
    with torch.no_grad():
        drawn = model(**inputs, multimask_output=False).pred_masks
    [mask] = processor.post_process_masks(drawn, inputs["original_sizes"])
    assert np.array_equal(mask[0, 0].numpy(), region.mask) and 0 < region.mask.mean() < 1


@pytest.mark.parametrize("model_type", ["sam3_tracker", "sam3_tracker_video"])
def test_the_sam3_tracker_draws_what_transformers_own_processor_does(
    qwen3_folders, tmp_path, monkeypatch, model_type
):
    folder = tiny.save_sam3(tmp_path / "sam3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    engine = load(str(qwen3_folders[0]), device="cpu", sam=str(folder))
    photo = draw_scene(1).image[:200]
    writes(
        monkeypatch, engine, '</think>[{"bbox_2d": [100, 250, 500, 750], "point_2d": [300, 500]}]'
    )
    region = engine.segment(photo, "it").regions[0]
    model = Sam3TrackerModel.from_pretrained(folder)
    processor = Sam3TrackerProcessor(Sam3ImageProcessor.from_pretrained(folder), target_size=112)
    inputs = processor(
        images=Image.fromarray(photo),
        input_boxes=[[list(region.box)]],
        input_points=[[[list(p) for p in region.points]]],
        return_tensors="pt",
    )
    with torch.no_grad():
        drawn = model(**inputs, multimask_output=False).pred_masks
    [mask] = processor.post_process_masks(drawn, inputs["original_sizes"])
    assert np.array_equal(mask[0, 0].numpy(), region.mask) and 0 < region.mask.mean() < 1


def test_a_folder_of_another_kind_is_no_sam(qwen3_folders):
    with pytest.raises(CoPRSError, match="is of type 'qwen3_vl' and a SAM of type sam2, "):
        load(str(qwen3_folders[0]), device="cpu", sam=str(qwen3_folders[0]))


def test_coordinates_reach_sam2_unrounded_in_any_precision(qwen3_folders):
    """On a side of 1,024 pixels, where bfloat16 has steps of four."""
    box = torch.tensor([[[900.3, 914.6, 950.2, 1001.7]]])
    encoded = []
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load_sam(str(qwen3_folders[1]), torch.device("cpu"), dtype)
        assert loaded.dtype == dtype
        encoder = loaded.model.prompt_encoder
        encoder.input_image_size = 1024
        encoded.append(encoder(None, None, box, None)[0])
        photo, size = Image.fromarray(draw_scene(1).image), (256, 256)
        assert (
            loaded.predict_mask(loaded.embed(photo), (10, 20, 90, 80), ((30, 40),), size).shape
            == size
        )
    assert encoded[1].dtype == torch.bfloat16
    torch.testing.assert_close(encoded[1].float(), encoded[0], rtol=0.01, atol=0.02)


def test_the_attention_probe_works_for_it_too(qwen3, monkeypatch):
    writes(monkeypatch, qwen3, 'I see two. It is the left one.</think>[{"bbox_2d": [100, 250, 500, 750]}]')  # fmt: skip
    photo = draw_scene(1).image
    result = qwen3.segment(photo, "it")
    texts = [look.text for look in attention.run(qwen3, photo, result).sentences]
    assert texts[:2] == ["I see two.", "It is the left one."] and "bbox_2d" in texts[2]


def test_all_but_the_instruction_is_read_with_the_photo(qwen3, pointing):
    for engine in (qwen3, pointing):
        features = engine.read(open_photo(draw_scene(1).image))
        ids = engine.segmenter.language.encode_prompt(
            engine.segmenter.template, "the umbrella", features.visual
        )
        rest = engine.segmenter.language.decode_ids(ids[len(features.prefix.ids) :])
        assert rest.startswith("Instruction: the umbrella<|im_end|>")


@pytest.mark.parametrize("detail, most", [("low", 300), ("normal", 1280), ("high", 2560)])
def test_detail_bounds_what_is_seen_and_the_answer_says_how_much(
    qwen3_folders, monkeypatch, detail, most
):
    engine = load(str(qwen3_folders[0]), device="cpu", sam=str(qwen3_folders[1]), detail=detail)
    unit = 2 * 14
    photo = np.zeros((64 * unit, 48 * unit, 3), np.uint8)  # 3,072 tokens as it is
    features = engine.read(open_photo(photo))
    count = len(features.visual.features)
    assert 0.85 * most <= count <= most and features.nbytes > 0
    writes(monkeypatch, engine, "</think>[]")
    result = engine.segment(photo, "it")
    assert result.seen_size[0] * result.seen_size[1] == count * unit**2
    assert result.seen_pixel_share == count / 3072 and result.to_dict()["seen_size"]
    with pytest.raises(CoPRSError, match="Detail 'all' is not known: choose auto, low, normal"):
        load(str(qwen3_folders[0]), device="cpu", sam=str(qwen3_folders[1]), detail="all")


def with_mask(result, area):
    """The answer with another mask: that of a SAM of random weights may be anywhere."""
    mask = np.zeros(result.photo_size, bool)
    mask[area] = True
    regions = (dataclasses.replace(result.regions[0], mask=mask),)
    return dataclasses.replace(result, regions=regions)


def test_zooming_in_asks_again_about_the_surroundings_of_the_box(qwen3, monkeypatch):
    photo = np.random.default_rng(0).integers(0, 255, (800, 1200, 3), np.uint8)
    writes(monkeypatch, qwen3, '</think>[{"bbox_2d": [500, 500, 550, 550], "label": "it"}]')
    result = with_mask(qwen3.segment(photo, "it"), (slice(400, 440), slice(600, 650)))
    asked, seen = [], type(qwen3.segmenter).encode_photo
    monkeypatch.setattr(
        type(qwen3.segmenter), "encode_photo", lambda *a: asked.append(a[1:]) or seen(*a)
    )
    zoomed = zoom.run(qwen3, photo, result)
    crop = zoomed.crop
    [(closer, detail)] = asked
    assert closer.size == (crop.side, crop.side) and detail == "normal"
    assert (crop.top, crop.left, crop.side) == (320, 530, 200)  # a box of 60×40 pixels
    region = zoomed.result.regions[0]
    corner = crop.left + crop.side / 2, crop.top + crop.side / 2
    assert region.box[:2] == pytest.approx(corner) and region.label == "it"
    outside = np.ones(result.photo_size, bool)
    crop.crop(outside)[:] = False
    assert not region.mask[outside].any()
    assert np.array_equal(region.prior[outside], result.prior[outside])
    assert zoomed.result.reason.endswith("Zoomed in.") and zoomed.result.photo_size == (800, 1200)


def test_zooming_in_may_see_that_nothing_fits(qwen3, monkeypatch):
    photo = np.zeros((800, 1200, 3), np.uint8)
    writes(monkeypatch, qwen3, '</think>[{"point_2d": [500, 500]}]')
    result = with_mask(qwen3.segment(photo, "it"), (slice(0), slice(0)))
    writes(monkeypatch, qwen3, "</think>[]")
    zoomed = zoom.run(qwen3, photo, result)
    assert zoomed.result.outcome == "nothing found" and not zoomed.result.regions
    with pytest.raises(NotApplicable, match="nothing to zoom into"):
        zoom.run(qwen3, photo, zoomed.result)


REPLY = 'I see two. It is the left one.</think>[{"bbox_2d": [100, 250, 500, 750]}]'


def test_sentence_by_sentence_it_is_where_their_words_looked(qwen3, monkeypatch):
    writes(monkeypatch, qwen3, REPLY)
    photo = draw_scene(1).image
    result = qwen3.segment(photo, "it")
    found = sentences.run(qwen3, photo, result)
    assert [v.text for v in found.views[:2]] == ["I see two.", "It is the left one."]
    assert found.views[-1].text == '[{"bbox_2d": [100, 250, 500, 750]}]'
    trace = attention.run(qwen3, photo, result).sentences
    for view, look in zip(found.views, trace, strict=True):
        assert view.prior_kind == "attention" and not view.trained
        assert view.share == look.share and np.array_equal(view.mask, result.mask)
        assert view.prior.shape == result.photo_size and view.prior.max() <= 1
    assert np.array_equal(found.views[-1].prior, result.prior)
    assert found.views[-1].iou == result.prior_iou
    assert found.to_dict()["sentences"][0]["share"] == trace[0].share


def test_a_words_look_is_its_attention(qwen3, monkeypatch):
    writes(monkeypatch, qwen3, REPLY)
    photo = draw_scene(1).image
    result = qwen3.segment(photo, "it")
    pieces = words.reply_tokens_as_text(qwen3, result)
    assert "".join(pieces) == f"{REPLY}<|im_end|>"
    number = words.find_token(qwen3, result, "left")
    view = words.focus_of_word(qwen3, photo, result, "left").view
    assert view.text == pieces[number] and view.prior_kind == "attention" and 0 < view.share <= 1
    other = words.focus_of_word(qwen3, photo, result, 0).view
    assert not np.array_equal(view.prior, other.prior)
    trace = compute_reply_attention(qwen3, photo, result, "x").trace
    assert view.share == pytest.approx(
        float(trace.attention_map([number], trace.localization_heads()).sum())
    )


def test_its_heads_are_those_that_tell_a_place_and_make_the_prior(qwen3, monkeypatch):
    writes(monkeypatch, qwen3, REPLY)
    photo = draw_scene(1).image
    result = qwen3.segment(photo, "it")
    found = heads.run(qwen3, photo, result)
    assert found.maps.shape == (8, *result.photo_size) and len(set(found.names)) == 8
    assert all(" of layer " in name for name in found.names)
    together = found.maps.mean(0)
    assert np.allclose(together / together.max(), result.prior, atol=0.05)
    assert len(found.pictures(open_photo(photo))) == 9 and found.figure(open_photo(photo))
    writes(monkeypatch, qwen3, "I see none.</think>[]")
    nothing = qwen3.segment(photo, "it")
    with pytest.raises(NotApplicable, match="no heads to show"):
        heads.run(qwen3, photo, nothing)


def test_a_broken_sam2_is_one_sentence(qwen3_folders, tmp_path):
    for name, content in (("config.json", b"{"), ("model.safetensors", b"xx")):
        folder = tmp_path / name
        shutil.copytree(qwen3_folders[1], folder)
        (folder / name).write_bytes(content)
        with pytest.raises(CoPRSError, match="The SAM in|broken"):
            load(str(qwen3_folders[0]), device="cpu", sam=str(folder))
    state = load_file(qwen3_folders[1] / "model.safetensors")
    state.pop("no_memory_embedding")
    folder = tmp_path / "lacks"
    shutil.copytree(qwen3_folders[1], folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CoPRSError, match="lacks no_memory_embedding"):
        load(str(qwen3_folders[0]), device="cpu", sam=str(folder))


# --- the same words as transformers' own generate


@pytest.mark.parametrize("make", [tiny.qwen, tiny.qwen3], ids=["qwen2.5", "qwen3"])
@pytest.mark.parametrize("size", [(96, 96), (80, 200), (300, 60), (250, 333), (29, 31)])
@torch.no_grad()
def test_greedy_decoding_is_the_librarys_own_token_by_token(make, size, tmp_path_factory, folders):
    """The picture goes through the processor's whole path there: its chat template, its
    placeholders, its patches."""
    folder = tmp_path_factory.mktemp("same") / "model"
    (tiny.save_mllm(folder, make()) / "chat_template.jinja").write_text(tiny.CHAT)
    segmenter = load(str(folder), device="cpu", sam=str(folders[1])).segmenter
    picture = np.random.default_rng(3).integers(0, 255, (*size, 3), np.uint8)
    features = segmenter.encode_photo(open_photo(picture))
    ours = [s.token for s in segmenter.generate("the odd one", features, 24)]
    question = segmenter.prompt.question.replace("{instruction}", "the odd one")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    size = dict(processor.image_processor.size) | {"longest_edge": MAX_VISUAL_TOKENS["low"] * 28**2}
    processor.image_processor.size = size
    inputs = processor(text=[text], images=[Image.fromarray(picture)], return_tensors="pt")
    model = make()
    model.generation_config.eos_token_id = tiny.TOKENIZER.eos_token_id
    theirs = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert ours == theirs[0, inputs["input_ids"].shape[1] :].tolist()
    assert len(set(ours)) > 1
