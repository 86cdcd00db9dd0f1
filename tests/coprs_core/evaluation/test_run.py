"""Runs over data sets: protocols by hand counts, resuming, shards, reports, comparisons, judges."""

import gc
import json
import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from coprs_core.__main__ import main
from coprs_core.answer.results import Region, Result
from coprs_core.datasets import open_dataset, scenes
from coprs_core.datasets.dataset import Dataset
from coprs_core.errors import CoPRSError
from coprs_core.evaluation import run as runs
from coprs_core.evaluation.compare import compare_runs, paired_difference
from coprs_core.evaluation.judges import open_judge, parse_score
from coprs_core.evaluation.page import write_page
from coprs_core.evaluation.protocols import PROTOCOLS
from coprs_core.evaluation.report import compute_scores, fit_regression, format_table
from coprs_core.evaluation.rows import Measurement, measure
from coprs_core.evaluation.run import (
    RunSettings,
    Shard,
    count_answered,
    count_missing,
    parse_shard,
    read_rows,
    read_run,
    run_evaluation,
)
from coprs_core.example import Example
from coprs_core.mini.world.questions import draw_examples as drawn
from tests import ROOT

SIZE = 4, 5


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


NONE, LEFT, TOP = box(0, 0, 0, 0), box(0, 4, 0, 2), box(0, 2, 0, 5)
"""LEFT has 8 pixels and TOP 10; they share 4."""


def result(mask: np.ndarray, outcome: str = "found", prior: np.ndarray | None = None) -> Result:
    prior = mask.astype(np.float32) if prior is None else prior
    regions = (Region(prior, mask),) if mask.any() else ()
    reply = "<think>It is so.</think>Here: <REF_POS>" if mask.any() else "<think>a</think>No."
    return Result(outcome, "why", "x", "It is so.", reply, regions, SIZE, {"thinking": 1.0}, 3, False, "hand", {})  # fmt: skip


def example(index: int, truth: np.ndarray, ignore: np.ndarray | None = None) -> Example:
    masks = (truth,) if truth.any() else ()
    photo = Image.new("RGB", SIZE[::-1], (index % 255, 9, 9))
    return Example(photo, f"thing {index}", masks, SIZE, index=index, ignore=ignore)


# --- protocols, counted by hand


@pytest.mark.parametrize(
    "protocol, found, truth, ignore, outcome, iou",
    [
        ("coprs", LEFT, TOP, None, "found", 4 / 14),
        ("coprs", LEFT, LEFT, TOP, "found", 8 / 14),  # what is to be ignored counts as target
        ("lisa", LEFT, LEFT, TOP, "found", 1.0),  # left out of both
        ("lisa", TOP, LEFT, TOP, "found", 0.0),  # 0 of the 4 that are left
        ("seg-zero", LEFT, LEFT, TOP, "found", 8 / 14),
        ("coprs", NONE, NONE, None, "nothing found", 1.0),
        ("lisa", NONE, NONE, None, "nothing found", 1.0),
        ("seg-zero", NONE, NONE, None, "nothing found", 1.0),
        ("visionreasoner", NONE, NONE, None, "nothing found", 0.0),
        ("coprs", NONE, NONE, None, "unfinished", 1.0),  # an empty mask
        ("seg-zero", NONE, NONE, None, "unfinished", 0.0),
        ("coprs", NONE, LEFT, None, "nothing found", 0.0),
        ("coprs", LEFT, NONE, None, "found", 0.0),
        ("lisa", LEFT, NONE, LEFT, "found", 1.0),  # only where it does not count
    ],
)
def test_protocols_by_hand(protocol, found, truth, ignore, outcome, iou):
    row = measure(example(0, truth, ignore), result(found, outcome), PROTOCOLS[protocol])
    assert row.mask_iou == pytest.approx(iou) and row.prior_iou == pytest.approx(iou)
    assert protocol in str(PROTOCOLS[protocol])


def test_the_figures_of_a_few_rows_by_hand():
    rows = [
        measure(example(0, LEFT), result(LEFT)),
        measure(example(1, TOP), result(LEFT)),
        measure(example(2, NONE), result(NONE, "nothing found")),
        measure(example(3, LEFT), result(NONE, "nothing found")),
        measure(example(4, LEFT), result(NONE, "unfinished")),
    ]
    told = compute_scores(rows)
    every = told["all"]
    assert every["mask_giou"] == pytest.approx((1 + 4 / 14 + 1 + 0 + 0) / 5)
    assert every["mask_ciou"] == pytest.approx((8 + 4) / (8 + 14 + 0 + 8 + 8))
    assert every["mask@0.5"] == 2 / 5 and every["well_formed"] == 1
    assert told["nothing_there"] == {"precision": 0.5, "recall": 1.0}
    assert told["failed"] == {"unfinished or unreadable": 1, "not answered": 0}
    low, high = told["intervals"]["mask_giou"]
    assert 0 <= low < every["mask_giou"] < high <= 1
    assert compute_scores(rows)["intervals"] == told["intervals"]  # the same every time
    assert told["groups"]["1 target"]["count"] == 4 and told["groups"]["no target"]["count"] == 1
    assert told["groups"]["target over 8 %"]["count"] == 4


def test_the_line_through_prior_and_mask():
    rows = []
    for i in range(40):
        row = measure(example(i, LEFT), result(LEFT))
        rows.append(replace(row, prior_iou=i / 40, mask_iou=0.1 + 0.9 * i / 40))
    line = fit_regression(rows)
    assert line.slope == pytest.approx(0.9) and line.intercept == pytest.approx(0.1)
    assert line.r == pytest.approx(1) and line.above == 1 and max(line.band) < 1e-6
    assert fit_regression(rows[:2]) is None
    noisy = [replace(r, mask_iou=r.mask_iou + 0.1 * (-1) ** i) for i, r in enumerate(rows)]
    assert (
        fit_regression(noisy).band[0] > fit_regression(noisy).band[10] > 0.01
    )  # widest at the ends


def test_intervals_cover_as_often_as_they_say():
    """Of 200 samples of coin flips, about 95 % hold the truth."""
    rng, inside = np.random.default_rng(1), 0
    row = measure(example(0, LEFT), result(LEFT))
    for _ in range(60):
        rows = [replace(row, mask_iou=float(v)) for v in rng.integers(0, 2, 100)]
        low, high = compute_scores(rows)["intervals"]["mask_giou"]
        inside += low <= 0.5 <= high
    assert 52 <= inside <= 60


# --- runs


class Stub:
    """An engine that answers at once: LEFT."""

    name, settings = "stub", {"device": "none"}

    def __init__(self, fails: tuple[int, ...] = ()):
        self.asked: list[str] = []
        self.fails = fails

    def stream(self, photo, instruction, max_new_tokens=None):
        self.asked.append(instruction)
        if int(instruction.split()[1]) in self.fails:
            raise CoPRSError("This answer needs more memory: ask again.")
        yield SimpleNamespace(result=None)
        yield SimpleNamespace(result=result(LEFT))


def dataset_of(count: int) -> Dataset:
    return Dataset("hand", count, lambda i: example(i, LEFT if i % 3 else TOP), {})


def settings(**changes) -> RunSettings:
    told = dict(model="stub", data="hand", split="all", about="hand", protocol="coprs", judge="none", start=0, limit=None, at_once=4)  # fmt: skip
    return RunSettings(**told | changes)


def test_a_run_goes_on_where_it_was_killed(tmp_path):
    dataset, engine = dataset_of(30), Stub()
    begun = run_evaluation(engine, dataset, settings(), tmp_path)
    first = [next(begun).index for _ in range(11)]
    begun.close()
    path = tmp_path / "rows-1-of-1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"index": 29, "instr')  # killed while it wrote
    assert count_answered(tmp_path, range(30)) == 11 > count_answered(tmp_path, range(10))
    again = Stub()
    rest = [row.index for row in run_evaluation(again, dataset, settings(), tmp_path)]
    assert sorted(first + rest) == list(range(30)) and len(again.asked) == len(rest) == 19
    assert [row.index for row in read_rows(tmp_path)] == list(range(30))
    assert list(run_evaluation(Stub(), dataset, settings(), tmp_path)) == []
    assert len(path.read_text().splitlines()) == 30


def test_shards_share_a_run_and_a_different_split_loses_nothing(tmp_path):
    dataset = dataset_of(20)
    parts = [
        [r.index for r in run_evaluation(Stub(), dataset, settings(), tmp_path, Shard(i, 3))]
        for i in (1, 2)
    ]
    assert parts == [list(range(0, 20, 3)), list(range(1, 20, 3))] or sum(map(len, parts)) == 14
    rest = {
        r.index for r in run_evaluation(Stub(), dataset, settings(), tmp_path)
    }  # the others, by one process
    assert rest == set(range(2, 20, 3)) and len(read_rows(tmp_path)) == 20
    assert parse_shard("2/4") == Shard(2, 4)
    for wrong in ("0/4", "5/4", "x", "1/0", "1"):
        with pytest.raises(CoPRSError, match="no shard: write i/n"):
            parse_shard(wrong)


def test_an_item_that_cannot_be_answered_counts_with_its_reason(tmp_path):
    rows = list(run_evaluation(Stub(fails=(2,)), dataset_of(5), settings(), tmp_path))
    (failed,) = [row for row in rows if row.problem]
    assert failed.index == 2 and failed.mask_iou == 0 and "more memory" in failed.reason
    told = compute_scores(read_rows(tmp_path))
    assert told["all"]["count"] == 5 and told["failed"]["not answered"] == 1
    (again,) = run_evaluation(
        Stub(), dataset_of(5), settings(), tmp_path
    )  # what was in its way may have gone
    assert again.index == 2 and not again.problem
    told = compute_scores(read_rows(tmp_path))
    assert told["all"]["count"] == 5 and told["failed"]["not answered"] == 0


def faulty(problems: dict[int, Exception], count: int = 9) -> Dataset:
    """Items some of which cannot be read."""

    def item(number: int) -> Example:
        if number in problems:
            raise problems[number]
        return example(number, LEFT)

    return Dataset("hand", count, item, {"nothing there": ("things", "none")})


PROBLEMS = {
    1: CoPRSError("The picture a.jpg is not there: copy the data set again, or its part."),
    2: KeyError("segmentation"),
    4: PermissionError(13, "Permission denied", "b.jpg"),
    5: MemoryError(),
    8: ValueError("cannot reshape\nan array"),
}


def test_what_cannot_be_read_is_a_row_that_failed_and_the_rest_goes_on(tmp_path):
    rows = list(run_evaluation(Stub(), faulty(PROBLEMS), settings(), tmp_path))
    assert sorted(row.index for row in rows) == list(range(9))
    failed = {row.index: row for row in read_rows(tmp_path) if row.unread}
    assert failed.keys() == PROBLEMS.keys() == {row.index for row in rows if row.problem}
    assert failed[1].problem == str(PROBLEMS[1]) == failed[1].reason
    assert "Permission denied (b.jpg): check the path" in failed[4].problem
    for index in (2, 5, 8):
        assert re.fullmatch(
            rf"Item {index} cannot be read \(.+\): correct it\.", failed[index].problem
        )
    told = compute_scores(read_rows(tmp_path), read_run(tmp_path)["groups"])
    assert told["all"]["count"] == 9 and told["all"]["mask_giou"] == pytest.approx(4 / 9)
    assert told["failed"]["not answered"] == told["unread"] == 5
    assert told["nothing_there"] == {
        "precision": None,
        "recall": None,
    }  # nobody knows what is there
    groups = told["groups"]
    assert groups["1 target"]["count"] == 4 and "no target" not in groups
    assert (
        groups["instruction 1 to 3 words"]["count"]
        == 4
        == groups["thought up to 20 words"]["count"]
    )
    assert told["problems"][0] == {"item": 1, "problem": str(PROBLEMS[1])}
    printed, page = (
        format_table(told),
        write_page(tmp_path, read_rows(tmp_path), read_run(tmp_path), told),
    )
    assert "5 not answered" in printed and "5 items could not be read: each counts 0" in printed
    shown = page.read_text()
    assert "5 items could not be read" in shown and "item 1: The picture a.jpg is not" in shown


def test_what_could_not_be_read_is_read_again_at_a_restart(tmp_path):
    list(run_evaluation(Stub(), faulty(PROBLEMS), settings(), tmp_path))
    again = Stub()
    rows = list(run_evaluation(again, faulty(PROBLEMS), settings(), tmp_path))  # nothing was mended
    assert {row.index for row in rows} == PROBLEMS.keys() and again.asked == []
    assert [row.index for row in read_rows(tmp_path)] == list(range(9))
    rows = list(run_evaluation(Stub(), faulty({8: PROBLEMS[8]}), settings(), tmp_path))
    assert len(rows) == 5 and [row.index for row in read_rows(tmp_path) if row.problem] == [8]
    part = replace(settings(), start=0)
    assert count_missing(tmp_path, faulty({8: PROBLEMS[8]}), part, range(0)) == 0


def test_shards_go_past_what_cannot_be_read(tmp_path):
    for number in (1, 2):
        list(run_evaluation(Stub(), faulty(PROBLEMS), settings(), tmp_path, Shard(number, 2)))
        left = count_missing(tmp_path, faulty(PROBLEMS), settings(), range(0))
        assert left == (4 if number == 1 else 0)
    assert len(read_rows(tmp_path)) == 9


def test_an_item_whose_masks_do_not_go_together_is_a_row_that_failed(tmp_path):
    def item(number: int) -> Example:
        good = example(number, LEFT)
        if number == 1:
            return replace(good, masks=(np.ones((9, 9), bool),))
        return replace(good, ignore=np.ones((9, 9), bool)) if number == 2 else good

    rows = list(run_evaluation(Stub(), Dataset("hand", 4, item, {}), settings(), tmp_path))
    assert sorted(row.index for row in rows if row.problem) == [1, 2] and len(rows) == 4
    list(run_evaluation(Stub(fails=(1,)), Dataset("hand", 4, item, {}), settings(), tmp_path / "b"))
    assert len(read_rows(tmp_path / "b")) == 4


def test_an_answer_that_ends_in_an_error_of_a_library_does_not_end_the_run(tmp_path):
    class Broken(Stub):
        def stream(self, photo, instruction, max_new_tokens=None):
            if instruction == "thing 2":
                raise IndexError("index out of range\nin self")
            yield from super().stream(photo, instruction, max_new_tokens)

    rows = list(run_evaluation(Broken(), dataset_of(5), settings(), tmp_path))
    (failed,) = [row for row in rows if row.problem]
    assert len(rows) == 5 and failed.index == 2 and not failed.unread
    assert "IndexError: index out of range" in failed.problem and "\n" not in failed.problem


def test_polygons_that_were_left_out_are_counted(tmp_path):
    dataset = Dataset("hand", 3, lambda i: replace(example(i, LEFT), left_out=2 * (i == 1)), {})
    list(run_evaluation(Stub(), dataset, settings(), tmp_path))
    told = compute_scores(read_rows(tmp_path))
    assert told["left_out"] == {"polygons": 2, "items": 1}
    said = "2 polygons of 1 items could not be drawn: they are left out of the true masks."
    page = write_page(tmp_path, read_rows(tmp_path), read_run(tmp_path), told)
    assert said in format_table(told) and said in page.read_text()


def test_a_run_over_a_folder_goes_past_every_kind_of_wrong_item(tmp_path, capsys):
    """Of the command itself: the listing, the photos, the masks and the texts."""
    root = tmp_path / "data"
    root.mkdir()
    Image.new("RGB", (64, 48)).save(root / "a.png")
    Image.new("1", (64, 48), 1).save(root / "a_mask.png")
    Image.new("1", (9, 9), 1).save(root / "small.png")
    Image.new("1", (64, 48)).save(root / "empty.png")
    (root / "broken.png").write_bytes(b"no picture")
    good = {"photo": "a.png", "instruction": "the cat", "masks": ["a_mask.png"]}
    wrong = (
        *({"photo": "gone.png"}, {"photo": "broken.png"}, {"masks": ["small.png"]}),
        *({"masks": ["empty.png"]}, {"masks": ["gone.png"]}, {"instruction": " "}),
    )
    lines = [json.dumps(good | change) for change in ({}, *wrong, {})]
    (root / "items.jsonl").write_text("\n".join(["{", *lines]))
    out, data = tmp_path / "out", ["--data", "folder", "--root", str(root), "--device", "cpu"]
    for _ in range(2):  # and again at a restart
        assert main(["evaluate", *data, "--out", str(out)]) == 0
        told = capsys.readouterr()
        assert "7 items could not be read" in told.out and "7 items were not answered" in told.err
        assert "Line 1 of" in told.err
    scores = json.loads((out / "report.json").read_text())
    assert scores["all"]["count"] == 9 and scores["unread"] == 7 == len(scores["problems"])
    (root / "items.jsonl").write_text("{")
    assert main(["evaluate", *data]) == 2 and "Line 1 of" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
def test_names_that_are_no_utf_8_are_written_and_read_again(tmp_path, capsys):
    """As an old zip from another country unpacks them."""
    root = tmp_path / os.fsdecode("数据".encode("gbk"))
    root.mkdir()
    Image.new("RGB", (64, 48)).save(root / "a.png")
    (root / "a.txt").write_text("the cat")
    (root / os.fsdecode("雨".encode("gbk") + b".txt")).write_text("the rain")
    asked = ["evaluate", "--data", "folder", "--root", str(root), "--device", "cpu"]
    for _ in range(2):
        assert main([*asked, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
    (failed,) = [row for row in read_rows(tmp_path / "out") if row.problem]
    assert "has no photo beside it" in failed.problem
    assert "has no photo beside it" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_does_not_go_on_with_what_auto_means_elsewhere(tmp_path):
    ours, other = Stub(), Stub()
    ours.settings = {"device": "cpu", "dtype": "bfloat16"}
    other.settings = {"device": "cuda:1", "dtype": "bfloat16"}
    list(run_evaluation(ours, dataset_of(3), settings(), tmp_path))
    with pytest.raises(CoPRSError, match="has device cpu, and here it has cuda: say the same"):
        list(run_evaluation(other, dataset_of(3), settings(), tmp_path))


def test_a_part_of_a_run_is_told_as_one(tmp_path, capsys):
    asked = ["evaluate", "--limit", "4", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*asked, "--shard", "1/2"]) == 0
    assert "2 of 4 items so far" in capsys.readouterr().err
    assert "2 more are still to come" in (tmp_path / "report.html").read_text()
    assert main(asked) == 0
    assert "so far" not in capsys.readouterr().err
    assert "Nothing is skipped" in (tmp_path / "report.html").read_text()


def test_a_folder_holds_one_run_alone(tmp_path):
    list(run_evaluation(Stub(), dataset_of(3), settings(), tmp_path))
    with pytest.raises(
        CoPRSError, match="holds a run with protocol 'coprs', and 'lisa' is asked for"
    ):
        list(run_evaluation(Stub(), dataset_of(3), settings(protocol="lisa"), tmp_path))
    with pytest.raises(CoPRSError, match="quantization 'auto', and 'nf4' is asked for"):
        list(run_evaluation(Stub(), dataset_of(3), settings(quantization="nf4"), tmp_path))
    with pytest.raises(CoPRSError, match="holds no run"):
        read_run(tmp_path / "gone")
    (tmp_path / "rows-1-of-1.jsonl").write_text("nonsense\n")
    with pytest.raises(CoPRSError, match="has a line that is no row"):
        read_rows(tmp_path)
    (tmp_path / "rows-1-of-1.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(CoPRSError, match="has a line that is no row"):
        read_rows(tmp_path)
    told = json.loads((tmp_path / "run.json").read_text())
    for missing in ("settings", "groups", "engine", "versions"):
        cut = {name: value for name, value in told.items() if name != missing}
        (tmp_path / "run.json").write_text(json.dumps(cut))
        with pytest.raises(CoPRSError, match="holds no run"):
            read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(told))
    (tmp_path / "rows-1-of-1.jsonl").unlink()
    with pytest.raises(CoPRSError, match="holds no rows yet"):
        read_rows(tmp_path)
    with pytest.raises(CoPRSError, match="has no item 7"):
        list(run_evaluation(Stub(), dataset_of(3), settings(start=7), tmp_path / "b"))


def test_the_best_the_worst_and_some_cases_are_kept_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "NUM_CASES", 2)
    begun = run_evaluation(Stub(), dataset_of(40), settings(), tmp_path)
    [next(begun) for _ in range(20)]
    begun.close()
    list(run_evaluation(Stub(), dataset_of(40), settings(), tmp_path))
    kept = list((tmp_path / "cases").glob("*.webp"))
    assert 3 <= len(kept) <= 6 and all(p.with_suffix(".txt").is_file() for p in kept)
    rows = {row.index: row for row in read_rows(tmp_path)}
    found = [rows[int(p.stem)].mask_iou for p in kept]
    assert max(found) == 1 and min(found) == pytest.approx(4 / 14)


def test_memory_stays_flat_and_the_report_small(tmp_path, monkeypatch):
    """20,000 items; the stub answers at once."""
    monkeypatch.setattr(runs, "save_case", lambda path, *_: path.write_bytes(b""))
    engine = Stub()
    rows = run_evaluation(engine, dataset_of(20_000), settings(at_once=16), tmp_path)
    [next(rows) for _ in range(2_000)]
    engine.asked = SimpleNamespace(append=lambda _: None)
    tracemalloc.start()
    [next(rows) for _ in range(1_000)]
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    count = sum(1 for _ in rows)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 17_000 and after - before < 1e6, (before, after)
    found, told = read_rows(tmp_path), read_run(tmp_path)
    page = write_page(tmp_path, found, told, compute_scores(found, told["groups"]))
    assert len(found) == 20_000 and page.stat().st_size < 5e6


# --- the command, on the real miniature


def test_a_report_of_the_miniature(tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        main(["evaluate", "--limit", "12", "--start", "40", "--out", str(out), "--at-once", "6"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "report.html" in printed and "95 %" in printed and "both empty counts 1" in printed
    page = (out / "report.html").read_text()
    assert not re.search(r"(src|href)=.?https?:", page) and "data:image/webp" in page
    assert "mini on drawn scenes" in page and "IoU of the prior" in page and len(page) < 5e6
    told = json.loads((out / "report.json").read_text())
    assert told["all"]["count"] == 12 and 0 <= told["all"]["thought"] <= 10
    rows = read_rows(out)
    assert [row.index for row in rows] == list(range(40, 52)) and rows[0].tokens > 5
    assert sum(row.seconds for row in rows) > 0.1
    other = tmp_path / "other"
    asked = ["evaluate", "--limit", "12", "--start", "40", "--out", str(other), "--at-once", "1"]
    assert main([*asked, "--judge", "none"]) == 0
    capsys.readouterr()
    page = tmp_path / "compare.html"
    assert main(["compare", str(out), str(other), "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "12 items that both answered" in printed and "mask gIoU" in printed and page.is_file()
    # one by one and together: the same outcomes
    assert [r.outcome for r in read_rows(other)] == [r.outcome for r in rows]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--protocol", "lisaa"], "There is no protocol 'lisaa', did you mean lisa"),
        (["--shard", "3/2"], "no shard"),
        (["--judge", "gpt"], "There is no judge 'gpt'"),
        (["--data", "refcoco"], "give its folder with --root"),
        (["--data", "reasonseg", "--root", "/nowhere"], "no ReasonSeg, split val"),
        (["--split", "nope"], "has no split 'nope'"),
        (["--max-new-tokens", "99999"], "whole number from 1 to 4096"),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, capsys):
    assert main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and "\n" not in err


@pytest.mark.slow
def test_several_processes_need_a_folder_to_share(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "0")
    assert main(["evaluate", "--limit", "2"]) == 2
    assert "2 processes share a run by the folder" in capsys.readouterr().err


def test_two_processes_share_a_run(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
               "coprs_core", "evaluate", "--limit", "9", "--out", str(out), "--device", "cpu"]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in out.glob("rows*")) == ["rows-1-of-2.jsonl", "rows-2-of-2.jsonl"]
    assert [row.index for row in read_rows(out)] == list(range(9))
    assert json.loads((out / "report.json").read_text())["all"]["count"] == 9


# --- two runs side by side


def written(folder: Path, ious: list[float], **changes) -> Path:
    list(run_evaluation(Stub(), dataset_of(len(ious)), settings(**changes), folder))
    rows = [replace(row, mask_iou=v) for row, v in zip(read_rows(folder), ious, strict=True)]
    told = "".join(json.dumps(row.to_dict()) + "\n" for row in rows)
    (folder / "rows-1-of-1.jsonl").write_text(told)
    return folder


def test_a_real_difference_is_told_from_chance(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.random(60) * 0.5
    first = written(tmp_path / "a", a.tolist())
    better = written(
        tmp_path / "b", (a + 0.1 + 0.05 * rng.standard_normal(60)).tolist(), model="other"
    )
    same = written(tmp_path / "c", rng.permutation(a).tolist())
    found = compare_runs(first, better).differences["mask gIoU"]
    assert found.p < 0.001 and 0.08 < found.low < found.high < 0.12 and found.better > 50
    assert compare_runs(first, same).differences["mask gIoU"].p > 0.05
    alike = compare_runs(first, first).differences["mask gIoU"]
    assert alike.p == 1 and alike.low == alike.high == 0 == alike.better
    elsewhere = written(tmp_path / "e", a.tolist(), about="another folder")
    with pytest.raises(CoPRSError, match="compare runs of one about"):
        compare_runs(first, elsewhere)
    fewer = tmp_path / "d"
    list(run_evaluation(Stub(), dataset_of(60), settings(limit=30), fewer))
    assert "30 items that only one answered are left out" in compare_runs(first, fewer).to_text()


def test_items_that_failed_do_not_end_a_comparison(tmp_path):
    """Of two runs: one item could not be read in the first, another not be answered in the
    second."""
    first, second = tmp_path / "a", tmp_path / "b"
    list(run_evaluation(Stub(), faulty({1: CoPRSError("Gone.")}), settings(), first))
    list(run_evaluation(Stub(fails=(3,)), faulty({}), settings(), second))
    for a, b in ((first, second), (second, first), (first, first)):
        told = compare_runs(a, b)
        assert [row.index for row in told.rows[0]] == [0, 2, 3, 4, 5, 6, 7, 8]
        assert told.num_unreadable == 1 and told.num_unshared == 0
        assert "1 items that could not be read are left out" in told.to_text()
    said = compare_runs(first, second).to_text()
    assert "8 items that both have; not answered, which counts as 0: A 0, B 1" in said
    everything = {i: CoPRSError("Gone.") for i in range(9)}
    list(run_evaluation(Stub(), faulty(everything), settings(), tmp_path / "c"))
    with pytest.raises(CoPRSError, match="share 0 items: two are needed"):
        compare_runs(first, tmp_path / "c")


def test_the_permutation_test_by_hand():
    """Three pairs that all go one way: a quarter of the eight flips goes as far."""
    found = paired_difference(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert found.p == pytest.approx(0.25, abs=0.02) and (found.better, found.worse) == (3, 0)


def test_runs_that_cannot_be_compared(tmp_path, capsys):
    first = written(tmp_path / "a", [0.1, 0.2])
    second = written(tmp_path / "b", [0.1, 0.2], protocol="lisa")
    assert main(["compare", str(first), str(second)]) == 2
    assert "compare runs of one protocol" in capsys.readouterr().err
    list(run_evaluation(Stub(), dataset_of(9), settings(start=5), tmp_path / "c"))
    with pytest.raises(CoPRSError, match="share 0 items"):
        compare_runs(first, tmp_path / "c")


# --- judges


def test_thoughts_about_scenes_are_counted():
    dataset = open_dataset("scenes")
    assert dataset.has_grades and open_judge(None, True)[0] == "rule"
    scene, question = next(drawn("test", 0, 1))
    told = scenes.to_example(0, scene, question)
    size = scene.image.shape[:2]
    answer = replace(result(LEFT), photo_size=size, regions=())
    perfect = question.reply.split("</think>")[0].removeprefix("<think>")
    assert told.grade(replace(answer, reasoning=perfect)) == 10
    sentences = perfect.split(". ")
    wrong = ". ".join(["I see top left a purple nothing", *sentences[1:]])
    assert told.grade(replace(answer, reasoning=wrong)) == 4  # the conclusion alone
    unreasoned = ". ".join([*sentences[:-1], "It is nothing."])
    assert told.grade(replace(answer, reasoning=unreasoned)) == 6  # what is there alone
    assert told.grade(replace(answer, reasoning="")) == 0


@pytest.mark.parametrize(
    "reply, score",
    [
        ("Score: 7", 7.0),
        ("It is good.\nSCORE: 8.5", 8.5),
        ("<think>Score: 2</think>Score: 9", 9.0),
        ("**Score**: 10", 10.0),
        ("Score: 11", None),
        ("Score: 4 + 2 + 4 = 10", 10),
        ("Score (0-10): 8", 8),
        ("Score: 100", None),
        ("The score is 7 out of 10.", 7),
        ("**Score: 6.5/10**", 6.5),
        ("good", None),
        ("", None),
    ],
)
def test_a_judges_reply_is_read(reply, score):
    assert parse_score(reply) == score


class JudgeServer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for delta, finish in (({"content": "Fair. Score: 6"}, None), ({}, "stop")):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            told = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "j", "choices": [choice]}  # fmt: skip
            self.wfile.write(f"data: {json.dumps(told)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def test_a_model_judges_over_the_network(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeServer)
    server.asked = []
    Thread(target=server.serve_forever, daemon=True).start()
    name = f"openai:judge@http://127.0.0.1:{server.server_port}/v1"
    told, judge = open_judge(name, knows_truth=False)
    rows = list(run_evaluation(Stub(), dataset_of(3), settings(judge=told), tmp_path, judge=judge))
    server.shutdown()
    assert [row.thought for row in rows] == [6.0] * 3 and isinstance(rows[0], Measurement)
    picture, question = server.asked[0]["messages"][0]["content"]
    assert (
        picture["image_url"]["url"].startswith("data:image/jpeg")
        and "It is so." in question["text"]
    )
    assert (
        "Rate the thought from 0 to 10" in question["text"] and server.asked[0]["temperature"] == 0
    )
    with pytest.raises(CoPRSError, match="knows our scenes alone"):
        open_judge("rule", knows_truth=False)
    assert open_judge(None, knows_truth=False) == ("none", None)
