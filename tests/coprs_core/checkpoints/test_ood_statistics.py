"""A model that knows some pictures alone says so of all others."""

import json
import shutil
from pathlib import Path

import gradio
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from coprs_core import CoPRSError, Result, load
from coprs_core.__main__ import main
from coprs_core.answer.flags import find_flags
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.checkpoints.ood_statistics import (
    STATISTICS_FILE,
    load_ood_statistics,
    save_ood_statistics,
)
from coprs_core.mini.world.questions import draw_examples
from coprs_core.model.backends.ood import fit_ood_statistics
from coprs_core.photos.photo import open_photo
from tests import tiny
from tests.record_photos import DESCRIPTIONS, weights

PACKAGED = [  # photographs that come with what is installed anyway
    *(
        Path(gradio.__file__).parent / "media_assets" / "images" / name
        for name in ("cheetah.jpg", "cheetah1.jpg", "lion.jpg", "tower.jpg", "groot.jpeg")
    ),
    Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
]


def distance(engine, image) -> float:
    segmenter = engine.segmenter
    return segmenter.ood_statistics.distance(segmenter.photo_statistics(open_photo(image)))


def test_the_border_is_of_the_same_kinds_as_the_middle():
    """Pictures come in the order of their names, by kind."""
    kinds = torch.randn(2, 400, 4, generator=torch.Generator().manual_seed(0))
    kinds[1] += 8
    learnt = fit_ood_statistics(kinds.flatten(0, 1))
    assert learnt.distance(torch.tensor([6.0, -6.0, 0, 0])) > 1
    assert sorted(map(learnt.distance, kinds.flatten(0, 1)))[790] < 1


def test_only_a_checkpoint_folder_learns_what_is_familiar(tmp_path, capsys):
    for name in ("mini", str(tmp_path)):
        assert main(["familiar", name, "--data", "scenes"]) == 2
        assert "is no CoPRS checkpoint folder" in capsys.readouterr().err


def test_at_most_one_validation_scene_in_a_hundred_is_unfamiliar(mini):
    scenes = (scene.image for scene, _ in draw_examples("validation", 0, 1000))
    flagged = sum(distance(mini, image) > 1 for image in scenes)
    print(f"{flagged} of 1000 validation scenes are unfamiliar")
    assert flagged <= 10


def test_every_recorded_photograph_is_unfamiliar(mini):
    recorded = np.load(DESCRIPTIONS)
    assert recorded["weights"] == weights(), "run `python -m tests.record_photos` again"
    distances = {
        str(name): mini.segmenter.ood_statistics.distance(torch.tensor(description))
        for name, description in zip(recorded["names"], recorded["descriptions"], strict=True)
    }
    print({name: round(d, 2) for name, d in distances.items()})
    assert len(distances) >= 12 and min(distances.values()) > 1


@pytest.mark.parametrize("path", PACKAGED, ids=lambda p: p.name)
def test_every_photograph_at_hand_is_unfamiliar_upright_and_turned(mini, path):
    photo = Image.open(path).convert("RGB")
    assert distance(mini, photo) > 1
    assert distance(mini, photo.rotate(90, expand=True)) > 1


# --- with every answer


def test_the_answer_carries_it_from_the_reading_on(fresh, found):
    scene, question, _ = found
    updates = list(fresh.stream(scene.image, question.instruction))
    assert updates[0].stage == updates[1].stage == "reading"
    assert updates[0].unfamiliar is None and updates[1].unfamiliar is False
    result = updates[-1].result
    assert 0 < result.distance < 1 and result.unfamiliar is False
    assert updates[1].distance == result.distance


@pytest.mark.parametrize("instruction", ["the cat", "the largest thing"])
def test_an_answer_about_a_photograph_says_so(mini, instruction):
    result = mini.segment(PACKAGED[0], instruction)
    assert result.unfamiliar and find_flags(result)[0] == "unfamiliar"
    told = result.to_dict(with_priors=True)
    assert told["unfamiliar"] is True and told["distance"] > 1
    again = Result.from_dict(json.loads(json.dumps(told)))
    assert again.distance == pytest.approx(result.distance, abs=1e-4)
    for odd in ("far", -1, float("inf"), True and [1]):
        with pytest.raises(CoPRSError, match="broken"):
            Result.from_dict(told | {"distance": odd})
    del told["distance"]  # an answer of an earlier version
    assert Result.from_dict(told).unfamiliar is None


def test_the_command_line_says_so(capsys):
    main(["segment", str(PACKAGED[0]), "the cat", "--device", "cpu"])
    assert "warning: The picture is unlike nearly all" in capsys.readouterr().out


# --- learnt, written, read


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny random checkpoint, and 700 pictures of its kind."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    tiny.save_checkpoint_by_hand(folder, tiny.coprs(tiny.qwen()))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(700):
        ground = rng.integers(0, 200, (1, 1, 3)) + rng.integers(0, 55, (24, 24, 3))
        Image.fromarray(ground.astype(np.uint8)).save(pictures / f"{i:03}.png")
    return folder, pictures


def test_a_checkpoint_learns_its_pictures_by_a_command(checkpoint, capsys):
    folder, pictures = checkpoint
    assert load(str(folder), device="cpu").segment(pictures / "000.png", "it", 2).unfamiliar is None
    ask = ["familiar", str(folder), "--pictures", str(pictures), "--note", "coloured noise"]
    assert main([*ask, "--device", "cpu", "--count", "400"]) == 2
    assert "this model needs at least 640" in capsys.readouterr().err
    assert not (folder / STATISTICS_FILE).exists()
    assert main([*ask, "--device", "cpu"]) == 0
    engine = load(str(folder), device="cpu")
    assert engine.segmenter.note == "coloured noise"
    unfamiliar = [engine.segment(p, "it", 2).unfamiliar for p in sorted(pictures.iterdir())[:50]]
    assert sum(unfamiliar) <= 5
    board = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((3, 3)))[..., None] * [255, 255, 255]
    assert engine.segment(board.astype(np.uint8), "it", 2).unfamiliar


def test_half_of_the_pictures_decides_what_is_near_and_the_other_how_near():
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=rng)
    known = torch.randn(4000, 6, generator=rng) @ mixed + 5
    familiar = fit_ood_statistics(known)
    fresh = torch.randn(4000, 6, generator=rng) @ mixed + 5
    far = sum(familiar.distance(x) > 1 for x in fresh[:2000]) / 2000
    assert 0.004 < far < 0.018
    assert familiar.distance(known.mean(0)) < 0.1
    direction = torch.randn(6, generator=rng) @ mixed
    assert familiar.distance(known.mean(0) + 9 * direction) > 2


@pytest.mark.parametrize("damage", ["cut", "other", "nan", "border"])
def test_a_broken_file_is_one_sentence(tmp_path, damage):
    shutil.copytree(MINIATURE_FOLDER, tmp_path / "mini")
    familiar = load_ood_statistics(MINIATURE_FOLDER, 96)
    if damage == "cut":
        (tmp_path / "mini" / STATISTICS_FILE).write_bytes(
            (MINIATURE_FOLDER / STATISTICS_FILE).read_bytes()[:5000]
        )
    else:
        tensors = familiar.to_tensors()
        change = {
            "other": {"mean": torch.zeros(8)},
            "nan": {"mean": tensors["mean"] * float("nan")},
            "border": {"border": torch.zeros(1)},
        }[damage]
        save_ood_statistics(tmp_path / "mini", type(familiar)(**tensors | change))
    with pytest.raises(CoPRSError, match=STATISTICS_FILE):
        load(str(tmp_path / "mini"), device="cpu")
