"""The command line as a person runs it: files, exit codes, one sentence for every mistake."""

import json
import shutil
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from PIL import Image

from coprs_core.__main__ import build_parser, main
from coprs_core.batch import BatchOptions, find_examples, segment_photos
from coprs_core.checkpoints import load
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.errors import CoPRSError
from coprs_core.export.archive import open_answer, save_zip
from coprs_core.masks import decode_rle
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.photos.photo import open_photo
from tests import ROOT


@pytest.fixture
def photo(tmp_path, found):
    path = tmp_path / "photo.png"
    Image.fromarray(found[0].image).save(path)
    return str(path)


def test_segment_streams_the_thought_and_writes_every_file(photo, found, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert main(["segment", photo, found[1].instruction, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "<think>I see" in told and "found. " in told and "IoU of prior and mask" in told
    assert {p.name for p in out.iterdir()} == {
        "result.json",
        "photo.png",
        "chain.png",
        "chain.pdf",
        "cutout.png",
        "prior_overlay.png",
        "prior.npy",
        "prior.png",
        "mask.png",
        "overlay.png",
    }
    result = json.loads((out / "result.json").read_text())
    prior, mask = np.load(out / "prior.npy"), np.asarray(Image.open(out / "mask.png"))
    assert prior.dtype == np.float32 and prior.shape == (256, 256) and mask.dtype == bool
    assert np.array_equal(decode_rle(result["regions"][0]["mask"]), mask)
    assert Image.open(out / "mask.png").mode == "1" and Image.open(out / "chain.png").width > 1000


def test_json_prints_the_result_alone(photo, found, capsys):
    assert main(["segment", photo, found[1].instruction, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "found"


def test_exit_codes_of_the_other_outcomes(tmp_path, nothing_found, capsys):
    scene, question, _ = nothing_found
    path = tmp_path / "p.png"
    Image.fromarray(scene.image).save(path)
    out = tmp_path / "out"
    assert main(["segment", str(path), question.instruction, "--out", str(out)]) == 3
    assert {p.name for p in out.iterdir()} == {"result.json", "photo.png", "chain.png", "chain.pdf"}
    assert main(["segment", str(path), "x", "--max-new-tokens", "3"]) == 4
    assert "3 tokens" in capsys.readouterr().out


MISTAKES = [
    (["segment", "no/such.png", "x"], "There is no file"),
    (["segment", "PHOTO", ""], "empty"),
    (["segment", "PHOTO", "x" * 2001], "2,001 characters"),
    (["segment", "PHOTO", "x", "--model", "nowhere"], "no checkpoint"),
    (["segment", "PHOTO", "x", "--device", "abacus"], "not known"),
    (["segment", "PHOTO", "x", "--max-new-tokens", "0"], "whole number"),
    (["segment", "PHOTO", "x", "--out", "/proc/nothing/here"], "cannot be made"),
    (["segment", __file__, "x"], "cannot be read as a picture"),
]


@pytest.mark.parametrize("arguments, words", MISTAKES)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(arguments, words, photo, capsys):
    assert main([photo if a == "PHOTO" else a for a in arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and words in told


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["segment"],
        ["scenes", "--count", "0", "--out", "x"],
        ["evaluate", "--limit", "many"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


@pytest.mark.parametrize("command", ["segment", "scenes", "evaluate", "compare", "train"])
def test_help_reads_like_a_page(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args([command, "--help"])
    page = capsys.readouterr().out
    assert stop.value.code == 0 and "example" in page and f"coprs {command}" in page


def test_scenes_writes_pictures_masks_and_facts(tmp_path):
    for name in ("a", "b"):
        assert (
            main(
                [
                    "scenes",
                    "--seed",
                    "7",
                    "--count",
                    "4",
                    "--split",
                    "test",
                    "--out",
                    str(tmp_path / name),
                ]
            )
            == 0
        )
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(
        f"{i:05d}{tail}" for i in range(4) for tail in (".json", ".png", "_mask.png")
    )
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names
    )
    facts = json.loads((tmp_path / "a" / "00001.json").read_text())
    scene = draw_scene(8, "test")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / "00001.png")), scene.image)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "a" / "00001_mask.png")), scene.mask(*facts["targets"])
    )
    assert len(facts["things"]) == len(scene.objects) and {"instruction", "reply"} <= facts.keys()


def test_evaluate_prints_a_table_and_json(capsys):
    assert main(["evaluate", "--split", "validation", "--limit", "3"]) == 0
    table = capsys.readouterr().out
    assert "mask gIoU" in table and "two steps" in table and "precision" in table
    assert main(["evaluate", "--split", "validation", "--limit", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["all"]["count"] == 3 and len(report["rows"]) == 3


def test_as_a_process_with_a_closed_pipe_and_from_any_folder(photo, tmp_path):
    run = subprocess.run(
        f"{sys.executable} -m coprs_core segment {photo} 'the largest thing' | head -c 5",
        shell=True, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.stdout == "<thin" and "Traceback" not in run.stderr


def test_probes_write_their_files(tmp_path, capsys):
    example = ROOT / "assets" / "examples" / "rain.png"
    code = main(["segment", str(example), "the thing that keeps the rain off", "--out", str(tmp_path), "--probe", "sentences,heads"])  # fmt: skip
    assert code == 0
    told = json.loads((tmp_path / "sentences.json").read_text())
    priors, heads = np.load(tmp_path / "sentences.npy"), np.load(tmp_path / "heads.npy")
    assert len(told["sentences"]) == len(priors) >= 2 and 0 <= told["settles_at"] < len(priors)
    assert heads.shape[0] == 4 and heads.shape[1:] == priors.shape[1:]
    for name in ("sentences.png", "heads.png"):
        assert min(Image.open(tmp_path / name).size) > 200
    with pytest.raises(SystemExit):
        main(["segment", str(example), "x", "--out", str(tmp_path), "--probe", "dreams"])
    assert "'dreams' is not known" in capsys.readouterr().err
    assert main(["segment", str(example), "x", "--probe", "heads"]) == 2


def test_further_questions_write_their_files(tmp_path, capsys):
    example, out = ROOT / "assets" / "examples" / "rain.png", tmp_path / "out"
    truth = np.zeros((256, 256), np.uint8)
    truth[20:80, 100:160] = 255
    Image.fromarray(truth).save(tmp_path / "truth.png")
    asked = [
        "--word",
        "umbrella",
        "--thought",
        "It is the fish.",
        "--again",
        "the largest thing",
        "--truth",
    ]
    code = main(["segment", str(example), "the thing that keeps the rain off", "--out", str(out), "--probe", "words,zoom",
                 *asked, str(tmp_path / "truth.png")])  # fmt: skip
    assert code == 0
    told = {p.stem: json.loads(p.read_text()) for p in out.glob("*.json")}
    words = told["words"]["words"]
    number = next(int(n.removeprefix("word_")) for n in told if n.startswith("word_"))
    written_last = "".join(words[: number + 1])
    assert written_last.endswith("umbrella") and "umbrella" not in "".join(words[number + 1 :])
    assert told[f"word_{number}"]["text"] == words[number]
    assert told[f"word_{number}"]["trained"] is False
    assert (
        told["again"]["result"]["instruction"] == "the largest thing"
        and 0 <= told["again"]["mask_iou"] <= 1
    )
    assert told["focus_again"]["result"]["reasoning"] == "It is the fish."
    assert (
        told["truth"]["best_iou"] == pytest.approx(max(told["truth"]["prior_curve"]), abs=1e-6)
        and {"crop", "problem"} & told["zoomed"].keys()
    )
    assert main(["segment", str(example), "x", "--out", str(out), "--word", "zebra"]) == 2
    assert "does not hold 'zebra'" in capsys.readouterr().err
    small = tmp_path / "small.png"
    Image.fromarray(truth[:9, :8]).save(small)
    assert main(["segment", str(example), "x", "--out", str(out), "--truth", str(small)]) == 2
    assert "8×9 pixels and the photo 256×256" in capsys.readouterr().err


def test_two_models_are_asked_about_one_photo(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(MINIATURE_FOLDER, other)
    example, out = ROOT / "assets" / "examples" / "rain.png", tmp_path / "out"
    asked = [
        "segment",
        str(example),
        "the thing that keeps the rain off",
        "--out",
        str(out),
        "--again-model",
        str(other),
    ]
    assert main(asked) == 0
    told = json.loads((out / "again.json").read_text())
    assert told["result"]["model"] == str(other) and told["mask_iou"] == told["prior_iou"] == 1


def test_a_folder_is_gone_through_past_a_bad_file_and_can_be_resumed(tmp_path, capsys, monkeypatch):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(draw_scene(i, "test").image).save(photos / f"{i}.png")
    (photos / "1.png").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("no picture either, and not asked for")
    asked = ["segment", str(photos), "the largest thing", "--out", str(out)]
    assert main(asked) == 1
    told = capsys.readouterr()
    assert (
        "1.png: This file cannot be read as a picture" in told.err
        and "1 of 3 photos failed" in told.err
    )
    assert sorted(p.name for p in out.iterdir()) == ["0.png", "2.png"]
    before = (out / "0.png" / "result.json").stat().st_mtime_ns
    (out / "2.png" / "result.json").unlink()  # as if stopped in the middle of it
    Image.fromarray(draw_scene(1, "test").image).save(photos / "1.png")
    assert main(asked) == 0
    assert "100%" in capsys.readouterr().err
    assert all((out / f"{i}.png" / "result.json").exists() for i in range(3))
    assert (out / "0.png" / "result.json").stat().st_mtime_ns == before
    monkeypatch.setattr(
        load, "load_checkpoint", lambda *_: pytest.fail("everything is there: no model is needed")
    )
    assert main(["segment", str(photos / "*.png"), "the largest thing", "--out", str(out)]) == 0


@pytest.mark.parametrize(
    "given, words", [("empty", "no picture files"), ("*.xyz", "No file matches")]
)
def test_no_photos_is_one_sentence(tmp_path, capsys, given, words):
    (tmp_path / "empty").mkdir()
    assert main(["segment", str(tmp_path / given), "x", "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_the_trace_of_a_saved_answer_is_told_and_replayed_without_torch(tmp_path):
    replay = tmp_path / "replay.webp"
    code = (
        "import sys; from coprs_core.__main__ import main; "
        f"print(main(['open', 'assets/examples/recorded.zip', '--replay', {str(replay)!r}]), "
        "'torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.endswith("0 False\n") and not told.stderr
    assert "(settles here)  Nearest to it is the fish in the middle" in told.stdout
    with Image.open(replay) as picture:
        assert picture.is_animated


def test_what_was_saved_without_its_trace_cannot_be_replayed(photo, tmp_path, capsys):
    out = tmp_path / "a"
    assert main(["segment", photo, "the largest thing", "--out", str(out)]) in (0, 3)
    assert main(["open", str(out), "--replay", str(tmp_path / "r.webp")]) == 2
    assert "saved without the trace of its thought" in capsys.readouterr().err


def test_a_saved_answer_opens_without_a_model(tmp_path, capsys, monkeypatch):
    example, out = ROOT / "assets" / "examples" / "rain.png", tmp_path / "out"
    assert (
        main(["segment", str(example), "the thing that keeps the rain off", "--out", str(out)]) == 0
    )
    capsys.readouterr()
    monkeypatch.setattr(load, "load_checkpoint", lambda *_: pytest.fail("no model is needed"))
    assert main(["open", str(out), "--out", str(tmp_path / "again")]) == 0
    assert "the umbrella" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in out.iterdir()}
    assert (tmp_path / "again" / "prior.npy").read_bytes() == (out / "prior.npy").read_bytes()
    assert main(["open", str(tmp_path / "nowhere")]) == 2


def test_photos_of_one_name_in_two_folders_have_two_answers(tmp_path):
    for i, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        Image.fromarray(draw_scene(i, "test").image).save(tmp_path / name / "photo.png")
    out = tmp_path / "out"
    assert (
        main(["segment", str(tmp_path / "*" / "photo.png"), "the largest thing", "--out", str(out)])
        == 0
    )
    assert (out / "a" / "photo.png" / "result.json").exists() and (
        out / "b" / "photo.png" / "result.json"
    ).exists()
    assert main(["open", str(out / "a")]) == 2 and main(["open", str(out / "a" / "photo.png")]) == 0


def test_a_further_question_is_asked_when_a_folder_is_gone_through_again(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.fromarray(draw_scene(0, "test").image).save(photos / "0.png")
    asked = ["segment", str(photos), "the largest thing", "--out", str(out)]
    assert main([*asked, "--word", "zebra"]) == 1  # the reply holds no such word
    assert (
        out / "0.png" / "result.json"
    ).exists() and "does not hold 'zebra'" in capsys.readouterr().err
    assert main([*asked, "--thought", "It is the other one."]) == 0
    assert (out / "0.png" / "focus_again.json").exists()
    assert main(asked) == 0 and not (out / "0.png" / "focus_again.json").exists()


def test_a_probe_that_does_not_apply_says_why_in_its_file(photo, tmp_path):
    out = tmp_path / "out"
    asked = ["segment", photo, "x", "--out", str(out), "--max-new-tokens", "1"]
    assert main([*asked, "--probe", "sentences,heads"]) == 4
    assert "no thought" in json.loads((out / "sentences.json").read_text())["problem"]
    assert (out / "heads.json").exists()


def test_no_photos_are_no_answers(tmp_path):
    options = BatchOptions("mini")
    assert (
        list(
            segment_photos([], options, tmp_path, engine=lambda: pytest.fail("no model is needed"))
        )
        == []
    )


def test_what_has_no_examples_is_null_in_json(capsys):
    assert main(["evaluate", "--limit", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: 1 / 0)
    assert None in [g["mask_giou"] for g in told["groups"].values()]


MORE_MISTAKES = [
    (["segment", "PHOTO", "x", "--model", "~nosuch/x"], "no checkpoint"),
    (["segment", "STRIP", "x"], "over 100 times as long as wide"),
    (["segment", "PHOTO", "x", "--out", "/proc"], "cannot be made or written to"),
    (["segment", "p" * 300, "x"], "too long"),
    (["segment", "PHOTO", "x", "--model", "m" * 300], "is not a model"),
    (["segment", "PHOTO", "x", "--out", "OUT", "--again", ""], "instruction is empty"),
    (["segment", "PHOTO", "x", "--out", "OUT", "--thought", ""], "thought is empty"),
    (["segment", "PHOTO", "x", "--out", "OUT", "--thought", "\udcff"], "an invalid character"),
    (["segment", "PHOTO", "x", "--out", "OUT", "--word", "9" * 5000], "not a word of the reply"),
    (["segment", "PHOTO", "x", "--out", "OUT", "--truth", "JSON"], "cannot be read"),
]


@pytest.mark.parametrize(
    "arguments, words", MORE_MISTAKES, ids=[str(i) for i in range(len(MORE_MISTAKES))]
)
def test_further_mistakes_are_one_sentence(arguments, words, photo, tmp_path, capsys):
    Image.new("RGB", (300, 1)).save(tmp_path / "strip.png")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    names = {"PHOTO": photo, "STRIP": str(tmp_path / "strip.png"), "OUT": str(tmp_path / "out"), "JSON": str(tmp_path / "deep.json")}  # fmt: skip
    assert main([names.get(a, a) for a in arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and told.count("\n") == 0 and words in told


def test_a_photo_of_one_pixel_is_traced_in_real_numbers(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    code = main(
        [
            "segment",
            str(tmp_path / "one.png"),
            "the fish",
            "--out",
            str(tmp_path / "out"),
            "--probe",
            "sentences",
        ]
    )
    assert code in (0, 3, 4) and "NaN" not in (tmp_path / "out" / "sentences.json").read_text()


def test_near_names_are_suggested(capsys):
    with pytest.raises(SystemExit):
        main(["segmnt", "x"])
    assert "no command 'segmnt', did you mean segment?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["segment", "x", "y", "--probe", "sentence"])
    assert "'sentence' is not known, did you mean sentences?" in capsys.readouterr().err
    assert (
        main(
            [
                "segment",
                str(ROOT / "assets" / "examples" / "rain.png"),
                "it",
                "--model",
                "qwen3-vl-2",
                "--device",
                "cpu",
            ]
        )
        == 2
    )
    assert "'qwen3-vl-2', did you mean qwen3-vl-2b?" in capsys.readouterr().err


def test_the_chain_and_the_figures_of_probes_are_printed(capsys, tmp_path):
    asked = [
        "segment",
        str(ROOT / "assets" / "examples" / "rain.png"),
        "the thing that keeps the rain off",
        "--device",
        "cpu",
    ]
    asked += ["--out", str(tmp_path), "--probe", "sentences", "--probe", "heads,zoom"]
    assert main([*asked, "--word", "umbrella", "--thought", "It is the fish."]) == 0
    printed = capsys.readouterr().out
    assert (
        "✓ It looked at one place." in printed
        and "It understood: “You ask for something by its use: the umbrella.”" in printed
    )
    assert "(settles here)  That is the umbrella at the top, the blue one." in printed
    assert "heads: 1: " in printed and "' umbrella', IoU" in printed
    assert "focus_again: found." in printed and "zoomed: found." in printed
    assert (tmp_path / "sentences.json").is_file() and (tmp_path / "heads.json").is_file()


def test_a_manifest_asks_of_each_photo_its_own(tmp_path, capsys):
    """Photos may come again; names do not leave the folder; a bad line is one sentence."""
    for i in range(2):
        Image.fromarray(draw_scene(i, "test").image).save(tmp_path / f"{i}.png")
    lines = [
        {"photo": "0.png", "instruction": "the largest thing"},
        {"photo": "0.png", "instruction": "the smallest thing"},
        {"photo": "1.png", "name": "../../else/where"},
        {"photo": "gone.png", "instruction": "x"},
    ]
    manifest, out = tmp_path / "asked.jsonl", tmp_path / "out"
    manifest.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    asked = ["segment", str(manifest), "the leftmost thing", "--out", str(out)]
    assert main(asked) == 1 and "1 of 4 photos failed" in capsys.readouterr().err
    found = {
        p.parent.relative_to(out).as_posix(): json.loads(p.read_text())
        for p in out.rglob("result.json")
    }
    assert {name: told["instruction"] for name, told in found.items()} == {
        "0.png": "the largest thing",
        "0.png-2": "the smallest thing",
        "else/where": "the leftmost thing",
    }
    assert not list(out.rglob("chain.*")) and len(list(out.rglob("mask.png"))) >= 2
    saved = open_answer(out / "0.png")
    assert saved.result.instruction == "the largest thing"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert main(asked) == 1  # done once
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == before
    assert main([*asked, "--figures"]) == 1 and len(list(out.rglob("chain.png"))) == 3
    assert main(asked) == 1 and len(list(out.rglob("chain.png"))) == 3  # more is enough
    capsys.readouterr()
    for wrong in (
        "{",
        '{"photo": 1}',
        '{"instruction": "x"}',
        "[]",
        '{"photo": "0.png", "name": ".."}',
        "[" * 9999,
    ):
        manifest.write_text(wrong)
        assert main(asked) == 2
        assert "Line 1 of" in capsys.readouterr().err
    manifest.write_text("")
    assert main(asked) == 2 and "holds no items" in capsys.readouterr().err
    assert main(["segment", str(tmp_path), "--out", str(out)]) == 2
    assert "Nothing is asked about" in capsys.readouterr().err


def test_photos_elsewhere_are_named_from_the_folder_that_they_share():
    photos = fsspec.filesystem("memory")
    for name in ("b/a.png", "b/c/a.png"):
        photos.pipe(f"/shared/{name}", b"")
    assert [item.name for item in find_examples("memory://shared/**/*.png", "it")] == [
        "a.png",
        "c/a.png",
    ]
    assert [item.name for item in find_examples("https://x.org/d/a.png", "it")] == ["a.png"]


def test_another_photo_of_the_same_name_is_asked_about(tmp_path):
    """A folder of answers is not taken for that of other photos, or of one that was replaced."""
    out, photos = tmp_path / "out", {}
    for seed, name in enumerate(("first", "second")):
        (tmp_path / name).mkdir()
        photos[name] = tmp_path / name / "a.png"
        Image.fromarray(draw_scene(seed, "test").image).save(photos[name])

    def answered(name) -> np.ndarray:
        assert main(["segment", str(tmp_path / name), "the largest thing", "--out", str(out)]) == 0
        return np.asarray(Image.open(out / "a.png" / "photo.png"))

    for name in ("first", "second"):
        assert np.array_equal(answered(name), np.asarray(Image.open(photos[name])))
    shutil.copy(photos["first"], photos["second"])  # it was replaced
    assert np.array_equal(answered("second"), np.asarray(Image.open(photos["first"])))


def test_no_two_lines_of_a_manifest_share_a_folder(tmp_path):
    """Also where a name looks like the second of another."""
    for name in ("x", "x-2"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}", format="PNG")
    rows = [{"photo": name, "instruction": "it"} for name in ("x", "x", "x-2", "x", "x-2")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items = find_examples(str(tmp_path / "a.jsonl"), None)
    assert [item.name for item in items] == ["x", "x-2", "x-2-2", "x-3", "x-2-3"]


@pytest.mark.parametrize("row", [{"photo": "a\0.png"}, {"photo": "a.png", "name": "a\0"}])
def test_a_name_with_an_end_in_it_is_told_before_any_work(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps({"photo": "a.png"}) + "\n" + json.dumps(row))
    with pytest.raises(CoPRSError, match="Line 2 of .* is no item"):
        find_examples(str(tmp_path / "a.jsonl"), "it")


def turned_photo(path, orientation=6, seed=3):
    """A scene's photo, wider than high as it is shown, whose file stores it turned."""
    exif, scene = Image.Exif(), Image.fromarray(draw_scene(seed, "test").image[28:228])
    exif[0x0112] = orientation
    back = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180}[orientation]
    scene.transpose(back).save(path, exif=exif)


def test_masks_fit_the_photo_as_shown_or_its_file_as_stored(tmp_path, capsys):
    photo = tmp_path / "photo.png"
    turned_photo(photo)
    asked = ["segment", str(photo), "the largest thing"]
    assert main([*asked, "--out", str(tmp_path / "shown")]) == 0
    told = capsys.readouterr().out
    assert "as it is shown, turned by its EXIF orientation 6" in told and "--stored-pixels" in told
    assert main([*asked, "--out", str(tmp_path / "stored"), "--stored-pixels"]) == 0
    assert "for the file as stored" in capsys.readouterr().out
    results = {
        n: json.loads((tmp_path / n / "result.json").read_text()) for n in ("shown", "stored")
    }
    assert results["shown"]["frame"] == "upright" and results["stored"]["frame"] == "stored"
    assert all(told["full_size"] == [200, 256] for told in results.values())
    masks = {n: np.asarray(Image.open(tmp_path / n / "mask.png")) for n in results}
    assert masks["shown"].shape == (200, 256) and masks["stored"].any()
    assert np.array_equal(np.rot90(masks["shown"]), masks["stored"])
    assert main([*asked, "--json", "--stored-pixels"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["regions"][0]["mask"]["size"] == [256, 200]
    assert main(["open", str(tmp_path / "stored"), "--out", str(tmp_path / "again")]) == 0
    again = np.asarray(Image.open(tmp_path / "again" / "mask.png"))
    assert np.array_equal(again, masks["shown"])
    asked = ["open", str(tmp_path / "shown"), "--out", str(tmp_path / "back"), "--stored-pixels"]
    assert main(asked) == 0
    back = np.asarray(Image.open(tmp_path / "back" / "mask.png"))
    assert np.array_equal(back, masks["stored"])


def test_many_photos_are_written_for_their_stored_pixels_too(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    turned_photo(photos / "a.png", 6)
    turned_photo(photos / "b.png", 3)
    asked = ["segment", str(photos), "the largest thing", "--out", str(out)]

    def masks():
        return [np.asarray(Image.open(out / name / "mask.png")) for name in ("a.png", "b.png")]

    assert main(asked) == 0
    shown, before = masks(), (out / "a.png" / "result.json").stat().st_mtime_ns
    for folder in out.iterdir():  # as an older version wrote it
        told = json.loads((folder / "asked.json").read_text())
        del told["stored_pixels"]
        (folder / "asked.json").write_text(json.dumps(told))
    assert main(asked) == 0 and (out / "a.png" / "result.json").stat().st_mtime_ns == before
    assert main([*asked, "--stored-pixels", "--figures"]) == 0
    stored = masks()
    assert np.array_equal(stored[0], np.rot90(shown[0]))
    assert np.array_equal(stored[1], np.rot90(shown[1], 2))
    with Image.open(out / "a.png" / "cutout.png") as cut:
        assert cut.size == (200, 256)


def test_a_photo_of_few_levels_is_warned_of_wherever_it_is_answered(tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    grey = np.asarray(Image.fromarray(draw_scene(3, "test").image).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 16).save(photos / "dim.png")
    dim = ["segment", str(photos / "dim.png"), "the largest thing", "--out", str(tmp_path / "one")]
    main(dim)
    assert "warning: The photo's values fill only a part" in capsys.readouterr().out
    told = json.loads((tmp_path / "one" / "result.json").read_text())
    assert told["stretched"] == [16.0 * grey.min(), 16.0 * grey.max()]
    assert main(["segment", str(photos), "the largest thing", "--out", str(out)]) == 0
    assert "dim.png: " in (said := capsys.readouterr().out) and "were stretched" in said
    main(["open", str(out / "dim.png")])
    assert "warning: The photo's values fill only a part" in capsys.readouterr().out


def test_a_phones_photos_in_a_folder_are_named_and_not_passed_over(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    (photos / "b.NEF").write_bytes(b"MM\0*" + bytes(99))
    Image.fromarray(draw_scene(3, "test").image).save(photos / "a.png")
    asked = ["segment", str(photos), "the largest thing", "--out", str(tmp_path / "out")]
    assert main(asked) == 1
    told = capsys.readouterr().err
    assert "IMG_1.HEIC: " in told and "HEIC" in told and "b.NEF: " in told and "RAW file" in told
    assert "2 of 3 photos failed" in told


def test_the_mask_of_a_photo_that_was_brought_down_is_written_at_its_full_size(
    mini, tmp_path, capsys
):
    large = Image.fromarray(draw_scene(3, "test").image).resize((1000, 1000))
    photo = open_photo(large, max_pixels=65536)
    result = mini.segment(photo, "the largest thing")
    archive = save_zip(tmp_path / "a.zip", photo, result)
    out = tmp_path / "out"
    assert main(["open", str(archive), "--full-size", "--out", str(out)]) == 0
    with Image.open(out / "mask_full_size.png") as mask:
        assert mask.mode == "1" and mask.size == (1000, 1000)
        assert np.array_equal(np.asarray(mask), result.mask_at((1000, 1000)))
    assert main(["open", str(archive), "--out", str(out)]) == 0
    assert not (out / "mask_full_size.png").exists()
    assert main(["open", str(archive), "--full-size"]) == 2
    assert "add --out DIR" in capsys.readouterr().err
