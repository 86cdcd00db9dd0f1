"""Answers to and from files; flags; an answer against another and against the truth."""

import dataclasses
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageOps

from coprs_core import CoPRSError, Region, Result
from coprs_core.answer.compare import (
    compare_answers,
    compare_with_truth,
    describe_move,
    name_position,
    read_truth,
)
from coprs_core.answer.flags import FLAG_TEXTS, count_components, find_flags, thought_finds_nothing
from coprs_core.answer.pictures import (
    MASK_COLOUR,
    chain_figure,
    cut_out,
    difference_overlay,
    mask_overlay,
)
from coprs_core.export.archive import open_answer, save_answer, save_zip
from coprs_core.export.replay import save_replay
from coprs_core.masks import decode_prior, decode_rle, encode_prior, encode_rle
from coprs_core.metrics import PRIOR_THRESHOLDS, iou, iou_curve
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.photos.photo import open_photo
from coprs_core.probes import sentences
from coprs_core.prompts import FOUND


def result_of(mask, prior=None, reasoning="It is the umbrella.", regions=None):
    prior = mask.astype(np.float32) if prior is None else prior
    return Result(FOUND, "It is so.", "the thing", reasoning, "<think>…", regions or (Region(prior, mask),), mask.shape,
                  {"reading": 0.1}, 9, False, "mini", {"device": "cpu"}, reply_ids=(1, 2, 3))  # fmt: skip


def square(size=(100, 120), top=40, left=50, side=20):
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


# --- to and from files


def test_a_result_comes_back_from_its_dictionary_and_json(found):
    result = found[2]
    again = Result.from_dict(json.loads(result.to_json()), [r.prior for r in result.regions])
    assert again.to_dict() == result.to_dict() and np.array_equal(again.mask, result.mask)
    assert np.array_equal(again.prior, result.prior) and again.versions["torch"]


def test_a_prior_comes_back_from_its_png_within_a_step(found):
    prior = found[2].prior
    again = decode_prior(encode_prior(prior), prior.shape)
    assert again.dtype == np.float32 and np.abs(again - prior).max() <= 1 / 200 + 1e-6
    assert np.array_equal(decode_prior(encode_prior(again), prior.shape), again)
    via_dict = Result.from_dict(found[2].to_dict(with_priors=True))
    assert np.array_equal(via_dict.prior, again)


BROKEN = [
    ([], "schema version 1"),
    ({"schema_version": 7}, "schema version 1"),
    ({"outcome": "lost"}, "lost"),
    ({"regions": []}, "broken"),
    ({"outcome": "nothing found"}, "with 1 regions"),
    ({"photo_size": [0, 9]}, "pixels"),
    ({"photo_size": [10**9, 9]}, "pixels"),
    ({"reply_ids": ["a"]}, "broken"),
    ({"instruction": 3}, "in the place of a text"),
    ({"seconds": None}, "broken"),
]


@pytest.mark.parametrize("change, words", BROKEN)
def test_a_broken_answer_is_one_sentence(found, change, words):
    values = found[2].to_dict()
    values = values | change if isinstance(change, dict) else change
    with pytest.raises(CoPRSError, match=words):
        Result.from_dict(values, [r.prior for r in found[2].regions])


@pytest.mark.parametrize("mask", [square(), ~square(), np.zeros((3, 5), bool), np.ones((4, 4), bool), np.eye(6, dtype=bool)])  # fmt: skip
def test_run_lengths_come_back(mask):
    assert np.array_equal(decode_rle(encode_rle(mask)), mask)


BY_PYCOCOTOOLS = [
    (square(), "`m4d0`20000000000000000000000000000000000000Pk4"),
    (~square(), "0`m4d0PUK0000000000000000000000000000000000000Pk4"),
    (np.eye(6, dtype=bool), "016000000000"),
    (np.zeros((3, 5), bool), "?"),
]


@pytest.mark.parametrize("mask, counts", BY_PYCOCOTOOLS)
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(mask, counts):
    assert np.array_equal(decode_rle({"size": list(mask.shape), "counts": counts}), mask)


def test_a_zip_and_a_folder_come_back_bit_for_bit(found, tmp_path):
    scene, _, result = found
    photo = open_photo(scene.image)
    written = save_answer(tmp_path / "a", photo, result)
    archive = save_zip(tmp_path / "a.zip", photo, result)
    assert {p.name for p in written} == set(zipfile.ZipFile(archive).namelist())
    assert {"photo.png", "mask.png", "cutout.png", "prior.npy", "prior.png", "overlay.png", "chain.png", "chain.pdf",
            "result.json"} <= {p.name for p in written}  # fmt: skip
    for place in (tmp_path / "a", archive):
        saved = open_answer(place)
        assert saved.photo.key == photo.key and saved.result.to_dict() == result.to_dict()
        assert np.array_equal(saved.result.prior, result.prior) and np.array_equal(
            saved.result.mask, result.mask
        )
    assert Image.open(tmp_path / "a" / "mask.png").mode == "1"
    assert (tmp_path / "a" / "chain.pdf").read_bytes().startswith(b"%PDF")


def test_several_regions_and_none_come_back_too(nothing_found, tmp_path):
    scene, _, nothing = nothing_found
    two = result_of(square((256, 256)), regions=tuple(
        Region(m.astype(np.float32) * 0.9, m, (1.0, 2.0, 3.0, 4.0), ((5.0, 6.0),), "a cup")
        for m in (square((256, 256)), square((256, 256), 100, 100))))  # fmt: skip
    for name, result in (("none", nothing), ("two", two)):
        saved = open_answer(save_zip(tmp_path / f"{name}.zip", open_photo(scene.image), result))
        assert saved.result.to_dict() == json.loads(result.to_json()) | {
            "regions": saved.result.to_dict()["regions"]
        }
        assert len(saved.result.regions) == len(result.regions)
        assert all(np.array_equal(a.mask, b.mask) and a.points == b.points and a.label == b.label
                   for a, b in zip(saved.result.regions, result.regions, strict=True))  # fmt: skip


# --- in which frame, at which size


def turned(orientation, size=(60, 90)):
    """A photo whose file is turned, and an answer about it, of two regions with coordinates."""
    rng = np.random.default_rng(orientation)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    photo, corner = open_photo(file.getvalue()), square(size=open_photo(file.getvalue()).size)
    regions = tuple(
        Region(
            rng.random(photo.size, np.float32), mask, (1.0, 2.0, 30.5, 40.0), ((5.0, 6.0),), "it"
        )
        for mask in (corner, np.roll(corner, 9, 1))
    )
    told = {"full_size": photo.size, "orientation": photo.orientation}
    return pixels, photo, dataclasses.replace(result_of(corner, regions=regions), **told)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_for_the_stored_pixels_fit_them_and_open_upright(tmp_path, orientation):
    pixels, photo, result = turned(orientation)
    for folder, frame in (("shown", "upright"), ("as stored", "stored")):
        save_answer(tmp_path / folder, photo, result, frame=frame)
    shown, stored = tmp_path / "shown", tmp_path / "as stored"
    cut = np.asarray(Image.open(stored / "cutout.png"))
    assert np.array_equal(cut[..., :3], pixels)  # nothing is interpolated
    for name in ("mask.png", "mask_2.png", "prior.png", "cutout.png"):
        with Image.open(stored / name) as image:
            image.getexif()[0x0112] = orientation
            back = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(back, np.asarray(Image.open(shown / name))), name
    assert np.load(stored / "prior_1.npy").shape == (60, 90)
    for name in ("photo.png", "overlay.png", "prior_overlay.png"):
        assert (stored / name).read_bytes() == (shown / name).read_bytes()
    told = json.loads((stored / "result.json").read_text())
    assert told["frame"] == "stored" and told["orientation"] == orientation
    assert told["photo_size"] == list(photo.size)
    mask = decode_rle(told["regions"][0]["mask"])
    assert np.array_equal(mask, np.asarray(Image.open(stored / "mask_1.png")))
    left, top, right, bottom = told["regions"][0]["box"]
    assert (right - left, bottom - top) == ((29.5, 38) if orientation < 5 else (38, 29.5))
    if orientation == 6:  # shown, its left edge is the stored bottom
        assert (left, top, right, bottom) == (2.0, 60 - 30.5, 40.0, 60 - 1.0)
    again = open_answer(stored)
    assert again.result.to_dict() == result.to_dict() == open_answer(shown).result.to_dict()
    assert all(
        np.array_equal(a.prior, b.prior) and a.box == b.box and a.points == b.points
        for a, b in zip(again.result.regions, result.regions, strict=True)
    )
    assert again.photo.orientation == orientation


def test_priors_in_the_stored_frame_come_back_from_their_pngs():
    _, _, result = turned(6)
    again = Result.from_dict(result.to_dict(with_priors=True, frame="stored"))
    assert np.abs(again.prior - result.prior).max() <= 1 / 200 + 1e-6
    assert np.array_equal(again.mask, result.mask)


def test_an_answer_of_an_older_version_opens_and_tells_what_it_lacks(found, tmp_path):
    photo = open_photo(found[0].image)
    save_answer(tmp_path / "a", photo, found[2])
    values = json.loads((tmp_path / "a" / "result.json").read_text())
    for name in ("full_size", "orientation", "frame", "stretched"):
        del values[name]
    (tmp_path / "a" / "result.json").write_text(json.dumps(values))
    saved = open_answer(tmp_path / "a")
    assert np.array_equal(saved.result.mask, found[2].mask) and saved.photo.full_size is None
    assert saved.result.to_dict()["full_size"] is None is saved.result.orientation
    with pytest.raises(CoPRSError, match="does not tell its photo's full size"):
        saved.result.mask_at()
    with pytest.raises(CoPRSError, match="does not tell how its photo was turned"):
        save_answer(tmp_path / "b", saved.photo, saved.result, frame="stored")
    assert not (tmp_path / "b").exists()
    assert saved.result.mask_at((512, 512)).shape == (512, 512)


@pytest.mark.parametrize(
    "change",
    [
        {"full_size": [9, 9]},
        {"full_size": [10**9, 10**9]},
        {"full_size": "large"},
        {"orientation": 9},
        {"orientation": 0},
        {"orientation": "6"},
        {"frame": "sideways"},
        {"frame": ["stored"]},
        {"frame": "stored", "orientation": None},
        {"frame": "stored", "orientation": 6, "photo_size": [256, 255]},
        {"stretched": [0]},
        {"stretched": ["a", 1]},
    ],
)
def test_a_frame_or_a_size_that_cannot_be_is_refused(found, change):
    with pytest.raises(CoPRSError, match="broken"):
        Result.from_dict(found[2].to_dict() | change, [r.prior for r in found[2].regions])


def test_a_saved_answer_knows_the_full_size_of_a_photo_that_was_brought_down(mini, tmp_path):
    large = Image.fromarray(draw_scene(3).image).resize((640, 480), Image.Resampling.BICUBIC)
    photo = open_photo(large, max_pixels=160 * 120)
    assert photo.full_size == (480, 640)
    result = mini.segment(photo, "the largest thing")
    told = open_answer(save_zip(tmp_path / "a.zip", photo, result))
    assert told.photo.full_size == told.result.full_size == (480, 640)
    assert told.result.mask_at().shape == (480, 640)
    small = open_photo(photo.image)
    whole = open_answer(
        save_zip(tmp_path / "b.zip", small, mini.segment(small, "the largest thing"))
    )
    assert whole.photo.full_size is None and whole.result.full_size == small.size


def disk(size, scale):
    """A disk and a bar, drawn at a scale: what is true at any size."""
    y, x = (np.mgrid[: size[0], : size[1]] + 0.5) / scale
    return (np.hypot(y - 50.3, x - 60.7) < 31.4) | ((abs(x - y - 8) < 5) & (y < 90))


@pytest.mark.parametrize("scale", [2, 3.5, 8])
def test_a_mask_at_full_size_is_nearer_the_truth_than_one_of_stairs(scale):
    small, size = disk((100, 120), 1), (int(100 * scale), int(120 * scale))
    truth = disk(size, scale)
    mask = dataclasses.replace(result_of(small), full_size=size).mask_at()
    stairs = np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.NEAREST))
    shares = torch.nn.functional.interpolate(
        torch.from_numpy(small)[None, None].float(), size, mode="bilinear", align_corners=False
    )
    assert mask.shape == size and iou(mask, (shares[0, 0] >= 0.5).numpy()) > 0.995
    assert iou(mask, truth) >= iou(stairs, truth) and iou(mask, truth) > 0.975
    assert scale == 2 or iou(mask, truth) > iou(stairs, truth) + 0.002
    assert np.array_equal(result_of(small).mask_at((100, 120)), small)
    with pytest.raises(CoPRSError, match="1 to 8,192 a side"):
        result_of(small).mask_at((0, 9))


def test_what_is_no_saved_answer_is_one_sentence(found, tmp_path):
    archive = save_zip(tmp_path / "a.zip", open_photo(found[0].image), found[2])

    def without(name, **replaced):
        path = tmp_path / f"without-{name}.zip"
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
            for item in old.namelist():
                if item != name:
                    new.writestr(item, replaced.get(item.replace(".", "_"), old.read(item)))
        return path

    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:2000])
    other = np.zeros((9, 9), np.float32)
    np.save(tmp_path / "other.npy", other)
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    cases = {
        tmp_path / "nowhere.zip": "no file",
        tmp_path / "text.zip": "cannot be read as a saved answer",
        tmp_path / "cut.zip": "cannot be read as a saved answer",
        without("result.json"): "result.json",
        without("prior.npy"): "prior.npy",
        without("x1", prior_npy=(tmp_path / "other.npy").read_bytes()): "broken",
        without("x2", prior_npy=(tmp_path / "pickled.npy").read_bytes()): "cannot be read",
        without("x3", photo_png=b"no picture"): "cannot be read as a picture",
        without("x4", result_json=b"{"): "cannot be read",
    }
    for path, words in cases.items():
        with pytest.raises(CoPRSError, match=words):
            open_answer(path)


# --- flags


def test_flags_hold_where_they_should():
    good = square()
    assert find_flags(result_of(good)) == ()
    far = np.zeros_like(good, np.float32)
    far[:10, :10] = 1
    assert find_flags(result_of(good, far)) == ("disagree",)
    assert find_flags(result_of(square(top=0))) == ("border",)
    assert find_flags(result_of(square(side=3))) == ("tiny",)
    assert find_flags(result_of(square() | square(top=5, left=5))) == ("scattered",)
    assert find_flags(result_of(good, reasoning="I see a dog. So nothing here fits.")) == (
        "contradiction",
    )
    nothing = np.zeros_like(good)
    assert find_flags(result_of(nothing, nothing.astype(np.float32))) == ("empty",)
    dim = dataclasses.replace(result_of(good), stretched=(0, 4095))
    assert find_flags(dim) == ("stretched",)
    assert find_flags(dataclasses.replace(dim, outcome="nothing found", regions=())) == (
        "stretched",
    )
    strange = dataclasses.replace(result_of(good), distance=1.5)
    assert find_flags(strange) == ("unfamiliar",)
    assert find_flags(dataclasses.replace(strange, distance=0.9)) == ()
    by_attention = {"prior_kind": "attention"}
    assert find_flags(dataclasses.replace(result_of(good, far), **by_attention)) == ("elsewhere",)
    assert find_flags(dataclasses.replace(result_of(good), **by_attention)) == ()
    missed = dataclasses.replace(result_of(good), settings={"is_proven": False})
    assert find_flags(missed) == ("unproven",)
    assert set(FLAG_TEXTS) == {
        *(
            "unfamiliar",
            "unproven",
            "stretched",
            "empty",
            "disagree",
            "elsewhere",
            "border",
            "tiny",
            "scattered",
            "cut off",
            "many",
        ),
        "contradiction",
    }
    two = (
        Region(good.astype(np.float32), good),
        Region(good.astype(np.float32), square(top=5, left=5)),
    )
    assert "scattered" not in find_flags(
        result_of(good, regions=two)
    )  # two answers, each in one piece


def test_nothing_found_has_no_flags(nothing_found):
    assert find_flags(nothing_found[2]) == () and thought_finds_nothing(nothing_found[2].reasoning)


@pytest.mark.parametrize("thought, nothing", [("There is no umbrella.", True), ("图中没有雨伞。", True), ("Nothing is red. It is the cup.", False), ("", False)])  # fmt: skip
def test_a_thought_that_ends_in_nothing(thought, nothing):
    assert thought_finds_nothing(thought) == nothing


def test_specks_are_no_pieces():
    mask = square(side=40)
    mask[0, 0] = True
    assert count_components(mask) == 1 and count_components(np.zeros((5, 5), bool)) == 0


# --- against another, against the truth


def test_the_curve_is_the_iou_at_each_threshold(found):
    prior, mask = found[2].prior, found[2].mask
    curve = iou_curve(prior, mask)
    for t in (0, 13, 29, 50, 57, 99, 100):
        assert curve[t] == pytest.approx(iou(prior >= PRIOR_THRESHOLDS[t], mask), abs=1e-12)
    assert (iou_curve(prior * 0, mask * False) == [0] + [1] * 100).all()


def test_against_the_truth(found):
    result = found[2]
    same = compare_with_truth(result, result.mask)
    assert same.mask_iou == 1 and same.prior_iou == pytest.approx(result.prior_iou)
    assert same.best_iou == same.prior_curve.max() >= same.prior_iou
    with pytest.raises(CoPRSError, match="9×8 pixels and the photo 256×256"):
        compare_with_truth(result, np.zeros((8, 9), bool))


def test_truth_is_read_from_what_people_bring(tmp_path):
    mask = square()
    grey = mask.astype(np.uint8) * 255
    greys = Image.fromarray(mask.astype(np.uint8) * 255).quantize(2)  # its index 0 may be white
    palette = Image.fromarray(mask.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 10, 0, 0] + [0] * 762)
    pictures = {"white.png": Image.fromarray(grey), "bit.png": Image.fromarray(mask), "ones.png": Image.fromarray(grey // 255),
                "rgb.png": Image.fromarray(grey).convert("RGB"), "rgba.png": Image.fromarray(grey).convert("RGBA"),
                "palette.png": palette, "greys.png": greys}  # fmt: skip
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
    (tmp_path / "rle.json").write_text(json.dumps(encode_rle(mask)))
    (tmp_path / "coco.json").write_text(
        json.dumps({"segmentation": {"size": [100, 120], "counts": BY_PYCOCOTOOLS[0][1]}})
    )
    for name in (*pictures, "rle.json", "coco.json"):
        assert np.array_equal(read_truth(tmp_path / name, (100, 120)), mask), name
    assert not read_truth(np.zeros((100, 120), np.uint8), (100, 120)).any()


TRUTH_MISTAKES = [
    ("a.png", b"no picture", "cannot be read"),
    ("a.json", b"[1, 2]", "no JSON object"),
    ("a.json", b'{"size": [100, 120], "counts": [1, 2]}', "do not add up to 100×120"),
    ("a.json", b'{"size": [100, 120], "counts": "\xc3\xa4"}', "cannot be read"),
    ("a.json", b'{"segmentation": [[1, 2, 3, 4]]}', "no RLE"),
    ("a.json", b'{"size": [99999999, 99999999], "counts": []}', "cannot be read"),
    ("a.json", b'{"size": [10, 12], "counts": [120]}', "12×10 pixels and the photo 120×100"),
]


@pytest.mark.parametrize("name, content, words", TRUTH_MISTAKES)
def test_a_wrong_truth_is_one_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CoPRSError, match=words):
        read_truth(tmp_path / name, (100, 120))


def test_two_answers():
    a, b = result_of(square()), result_of(square(left=60))
    both = compare_answers(a, b)
    assert both.mask_iou == both.prior_iou == pytest.approx(1 / 3)
    with pytest.raises(CoPRSError, match="different photos"):
        compare_answers(a, result_of(square((50, 60), 5, 5)))


# --- pictures


def test_pictures_show_what_they_say():
    photo = np.full((100, 120, 3), 200, np.uint8)
    a, b = square(), square(left=60)
    cut = cut_out(photo, a)
    assert cut.shape == (100, 120, 4) and (cut[..., 3] > 0).sum() == a.sum()
    overlay = mask_overlay(photo, a)
    assert (
        tuple(overlay[50, 60]) == tuple(np.uint8(100 + c / 2) for c in MASK_COLOUR)
        and tuple(overlay[0, 0]) == (144,) * 3
    )
    shown = difference_overlay(photo, a, b)
    colours = {tuple(shown[50, x]) for x in (55, 65, 75)}
    assert len(colours) == 3


# --- strangers' files


HOSTILE_RLES = [
    {
        "size": [2, 3],
        "counts": [2**63 - 1, 2**63 - 1, 2 * 3 + 2],
    },  # adds up to 6 where sums wrap around
    {"size": [2, 3], "counts": [2**64, 6]},
    {"size": [2, 3], "counts": "o" * 100_000 + "0"},
    {"size": [2, 3], "counts": [-6, 12]},
    {"size": [10**6, 10**6], "counts": [10**12]},
]


@pytest.mark.parametrize("rle", HOSTILE_RLES)
def test_run_lengths_that_lie_are_refused_at_once(rle):
    with pytest.raises((ValueError, OverflowError)):
        decode_rle(rle)


HOSTILE_VALUES = [
    {"reasoning": "a \ud800 b"},
    {"settings": {"x": float("nan")}},
    {"prior_kind": "xyz"},
    {"tokens": 10**400},
    {"reply_ids": [-1]},
    {"reply_ids": [10**30]},
    {"seconds": {"reading": float("inf")}},
    {"seconds": {"reading": "nan"}},
]


@pytest.mark.parametrize("change", HOSTILE_VALUES)
def test_values_that_would_fail_later_are_refused_at_once(found, change):
    with pytest.raises(CoPRSError, match="broken"):
        Result.from_dict(found[2].to_dict() | change, [r.prior for r in found[2].regions])


def test_more_regions_than_any_answer_has_are_refused_before_they_take_memory(found):
    values = found[2].to_dict(with_priors=True)
    with pytest.raises(CoPRSError, match="300 regions"):
        Result.from_dict(values | {"regions": values["regions"] * 300})
    with pytest.raises(CoPRSError, match="regions of 8192"):
        Result.from_dict(values | {"photo_size": [8192, 8192], "regions": values["regions"] * 16})


def test_an_answer_takes_the_place_of_an_earlier_one_whole(found, nothing_found, tmp_path):
    photo = open_photo(found[0].image)
    save_answer(tmp_path, photo, found[2])
    (tmp_path / "sentences.json").write_text("{}")
    (tmp_path / "mine.txt").write_text("not ours")
    save_answer(tmp_path, open_photo(nothing_found[0].image), nothing_found[2])
    assert {p.name for p in tmp_path.iterdir()} == {
        "result.json",
        "photo.png",
        "chain.png",
        "chain.pdf",
        "mine.txt",
    }


def test_a_damaged_zip_is_one_sentence_wherever_the_damage_is(found, tmp_path):
    whole = save_zip(tmp_path / "a.zip", open_photo(found[0].image), found[2]).read_bytes()
    rng = np.random.default_rng(0)
    for i in range(60):
        broken = bytearray(whole)
        place = int(rng.integers(len(whole)))
        broken[place : place + 8] = rng.bytes(8)
        (tmp_path / "b.zip").write_bytes(broken)
        try:
            open_answer(tmp_path / "b.zip")
        except CoPRSError as problem:
            assert "\n" not in str(problem), i


@pytest.mark.parametrize(
    "header",
    [b"{'descr': ('", b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"],
)
def test_an_array_that_lies_about_itself_is_one_sentence(found, tmp_path, header):
    source = save_zip(tmp_path / "a.zip", open_photo(found[0].image), found[2])
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
        for item in old.namelist():
            new.writestr(item, npy if item == "prior.npy" else old.read(item))
    with pytest.raises(CoPRSError, match="cannot be read as a saved answer"):
        open_answer(tmp_path / "b.zip")


@pytest.fixture(scope="module")
def traced(mini, found):
    return sentences.run(mini, found[0].image, found[2])


def test_the_trace_comes_back_with_the_answer_without_a_model(found, traced, tmp_path):
    save_zip(tmp_path / "a.zip", open_photo(found[0].image), found[2], [traced])
    back = open_answer(tmp_path / "a.zip").sentences
    assert back.to_dict() == traced.to_dict() and back.has_moved == traced.has_moved
    for ours, theirs in zip(traced.views, back.views, strict=True):
        np.testing.assert_allclose(ours.prior, theirs.prior, atol=1e-3)
        assert np.array_equal(ours.mask, theirs.mask)


@pytest.mark.parametrize(
    "damage", ["shape", "kind", "values", "count", "figure", "half a character", "text"]
)
def test_a_trace_that_is_none_is_one_sentence(found, traced, tmp_path, damage):
    save_answer(tmp_path, open_photo(found[0].image), found[2], [traced])
    priors = np.load(tmp_path / "sentences.npy")
    values = json.loads((tmp_path / "sentences.json").read_text())
    if damage == "shape":
        priors = priors[:, :100]
    elif damage == "kind":
        priors = priors.astype(np.float64)
    elif damage == "values":
        priors = priors * 0 + np.float16(2)
    elif damage == "count":
        values["sentences"] *= 40
    elif damage == "figure":
        values["sentences"][0]["iou"] = float("nan")
    elif damage == "half a character":
        values["sentences"][0]["text"] = "\ud800"
    else:
        values["sentences"][0]["text"] = ["<b>"]
    np.save(tmp_path / "sentences.npy", priors)
    (tmp_path / "sentences.json").write_text(json.dumps(values))
    with pytest.raises(CoPRSError, match="cannot be read as a saved answer"):
        open_answer(tmp_path)


@pytest.mark.parametrize("name", ["replay.webp", "replay.gif"])
def test_the_replay_is_an_animated_picture(found, traced, tmp_path, name):
    save_replay(tmp_path / name, open_photo(found[0].image), found[2], traced)
    with Image.open(tmp_path / name) as picture:
        assert picture.is_animated and picture.n_frames > 2 * len(traced.views)
    with pytest.raises(CoPRSError, match=r"name it \.webp or \.gif"):
        save_replay(tmp_path / "replay.mp4", open_photo(found[0].image), found[2], traced)


def test_the_replay_of_a_long_thought_is_short(found, traced, tmp_path):
    long = replace(traced.views[0], text="a word and another " * 420)
    thought = replace(traced, views=(long,) * 16)
    save_replay(tmp_path / "long.webp", open_photo(found[0].image), found[2], thought)
    with Image.open(tmp_path / "long.webp") as picture:
        assert picture.n_frames <= 5 * 16 + 1  # however many words there are


@pytest.mark.parametrize("size", [(256, 256), (128, 256), (256, 128)])
@pytest.mark.parametrize("instruction", ["the cat", "the long words of an instruction " * 5])
def test_nothing_of_the_chain_figure_is_cut(found, size, instruction):
    region = Region(np.zeros(size, np.float32), np.zeros(size, bool))
    result = replace(found[2], instruction=instruction, regions=(region,), photo_size=size)
    figure = chain_figure(np.zeros((*size, 3), np.uint8), result)
    FigureCanvasAgg(figure).draw()
    for ax in figure.axes:
        extent = ax.title.get_window_extent()
        assert extent.y1 <= figure.bbox.height and extent.x0 >= 0


def test_what_became_of_an_answer_in_another(found):
    result, region = found[2], found[2].regions[0]
    away = np.zeros_like(region.mask)
    away[:20, :20] = True
    other = dataclasses.replace(result, regions=(Region(region.prior, away),))
    none = dataclasses.replace(result, regions=())
    assert describe_move(result, result).move == "stayed"
    there = describe_move(result, other)
    assert there.move == "moved" and there.after == "top left" and there.mask_iou < 0.2
    assert (describe_move(result, none).move, describe_move(none, result).move) == (
        "vanished",
        "appeared",
    )
    assert describe_move(none, none).move == "neither"
    middle = np.zeros((90, 90), bool)
    middle[40:50, 40:50] = True
    assert name_position(middle) == "middle" and name_position(np.roll(middle, 40, 1)) == "right"
