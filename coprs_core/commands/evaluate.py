"""`evaluate`: measure a model on a data set."""

import json
import sys
from argparse import ArgumentParser, Namespace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from coprs_core.commands.options import (
    add_model_options,
    non_negative_int,
    parse_load_options,
    pick_fields,
    positive_int,
    process_device,
)
from coprs_core.datasets import DATASETS
from coprs_core.errors import CoPRSError, did_you_mean

if TYPE_CHECKING:
    from coprs_core.evaluation.run import RunSettings

SUMMARY = "measure a model on a data set"
DESCRIPTION = """\
Answer the items of a data set and print the scores: gIoU and cIoU of mask and prior
with 95 % intervals, overall, by group, by size and number of targets, by length of
instruction and thought. --protocol says how regions to ignore, empty masks and
failed replies count; nothing is skipped.

With --out every item is a line of a file as soon as it is answered: a run that was
stopped goes on, and --shard 1/4 … 4/4, or several processes of torchrun, share one.
The folder then holds report.html, which needs no network. `compare` holds two runs
against each other.

scenes      drawn as they are needed; --split test, test-several, test-unknown …
folder      photos and masks, with an items.jsonl or texts beside them
refcoco, refcoco+, refcocog
            refs(…).p with instances.json, or the tables of jxu124 or lmms-lab
grefcoco    grefs(…).json with instances.json: several targets, or none
reasonseg   LISA's folders, or the tables of Ricky06662

examples:
  coprs evaluate --model mini --data scenes --limit 1000 --out runs/mini
  coprs evaluate --model qwen3-vl-2b --data reasonseg --root ReasonSeg \\
      --split val --protocol lisa --out runs/reasonseg
  torchrun --nproc_per_node 2 -m coprs_core evaluate --out runs/mini
"""
DEFAULT_SCENES = 1000
"""How many drawn scenes by default: there are as many as one wants."""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", default="scenes", metavar="NAME", help=f"{', '.join(DATASETS)} (default scenes)")
    add("--root", type=Path, metavar="DIR", help="the folder of a data set that lies on a disk")
    add("--split", metavar="NAME", help="a split of the data set (default: its usual one)")
    add(
        "--start",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="number of the first item (default 0)",
    )
    add(
        "--limit",
        type=positive_int,
        metavar="N",
        help=f"how many items (default: all; {DEFAULT_SCENES:,} scenes)",
    )
    add("--shard", default="1/1", metavar="I/N", help="only every N-th item, from the I-th on")
    add(
        "--protocol",
        default="coprs",
        metavar="NAME",
        help="coprs, lisa, seg-zero or visionreasoner (default coprs)",
    )
    add(
        "--at-once",
        type=positive_int,
        default=32,
        metavar="N",
        help="replies that are written together (default 32); 1: one by one",
    )
    add(
        "--judge",
        metavar="NAME",
        help="score thoughts: rule (scenes; default there), openai:NAME@URL, or none",
    )
    add("--max-new-tokens", type=positive_int, metavar="N", help="bound of a reply")
    add("--out", type=Path, metavar="DIR", help="rows, report.json and report.html; resumable")
    add("--json", action="store_true", help="print all scores, and every row, as JSON")
    add_model_options(parser)


def run(options: Namespace) -> int:
    from tempfile import TemporaryDirectory

    if options.out:
        return _run(options, options.out)
    with TemporaryDirectory() as folder:
        return _run(options, Path(folder))


def _run(options: Namespace, folder: Path) -> int:
    from tqdm import tqdm

    from coprs_core.answer.updates import check_max_new_tokens
    from coprs_core.datasets import open_dataset
    from coprs_core.evaluation.judges import open_judge
    from coprs_core.evaluation.protocols import PROTOCOLS
    from coprs_core.evaluation.run import (
        RunSettings,
        count_answered,
        count_missing,
        item_numbers,
        parse_shard,
    )
    from coprs_core.evaluation.run import run_evaluation as measure_all
    from coprs_core.machine import rank_and_world_size

    if options.protocol not in PROTOCOLS:
        near = did_you_mean(options.protocol, tuple(PROTOCOLS))
        raise CoPRSError(
            f"There is no protocol {options.protocol!r}{near}: choose {', '.join(PROTOCOLS)}."
        )
    if options.max_new_tokens is not None:
        check_max_new_tokens(options.max_new_tokens)
    whole_shard, (rank, processes) = parse_shard(options.shard), rank_and_world_size()
    if processes > 1 and not options.out:
        raise CoPRSError(
            f"{processes} processes share a run by the folder that they write to: give it, --out "
            "DIR."
        )
    dataset = open_dataset(options.data, options.root, options.split, is_lenient=True)
    if dataset.has_merged_ignore and not PROTOCOLS[options.protocol].ignore_is_target:
        raise CoPRSError(
            f"In these tables regions to ignore count as target already, and {options.protocol} "
            "leaves them out: give LISA's own folder, or another --protocol."
        )
    limit = options.limit or (DEFAULT_SCENES if dataset.num_items is None else None)
    judge_name, judge = open_judge(options.judge, dataset.has_grades)
    found = {"split": dataset.split, "about": dataset.about, "limit": limit, "judge": judge_name}
    settings = pick_fields(RunSettings, options, **found)
    shard = whole_shard.split(rank, processes)
    numbers = item_numbers(dataset, settings, shard)

    # after all checks: it loads torch, which takes seconds
    from coprs_core.answer.engine import Engine
    from coprs_core.checkpoints.load import load_checkpoint

    options.device = process_device(options.device)
    engine = Engine(load_checkpoint(options.model, parse_load_options(options)))
    rows = measure_all(engine, dataset, settings, folder, shard, judge)
    before, whole = count_answered(folder, numbers), len(numbers)
    with tqdm(total=whole, initial=before, unit="item", file=sys.stderr, disable=rank > 0) as bar:
        for _ in rows:
            bar.update()
    if processes > 1:
        _wait_for_all()
    if rank > 0:
        return 0
    own = item_numbers(dataset, settings, whole_shard)
    return _write_report(options, folder, settings, count_missing(folder, dataset, settings, own))


def _wait_for_all() -> None:
    """Wait until every process has answered its part; the usual timeout of 10 minutes is too short
    where one of them takes days longer."""
    from accelerate import PartialState

    PartialState(timeout=timedelta(days=30)).wait_for_everyone()


def _write_report(options: Namespace, folder: Path, settings: "RunSettings", left: int) -> int:
    """Write and print the scores of all rows in the folder; `left` items are still to come."""
    from coprs_core.evaluation.page import write_page
    from coprs_core.evaluation.report import compute_scores, format_table
    from coprs_core.evaluation.run import read_rows, read_run

    rows, run_info = read_rows(folder), read_run(folder)
    scores: dict = compute_scores(rows, run_info["groups"], settings.counting_protocol) | {
        "left": left
    }
    if options.out:
        (folder / "report.json").write_text(json.dumps(scores, indent=1) + "\n")
        page = write_page(folder, rows, run_info, scores)
    scores["rows"] = [row.to_dict() for row in rows]
    print(json.dumps(scores, indent=1) if options.json else format_table(scores))
    if options.out and not options.json:
        print(f"written: {page}")
    if left:
        print(
            f"{len(rows):,} of {len(rows) + left:,} items so far: other parts hold the rest.",
            file=sys.stderr,
        )
    if not_answered := scores["failed"]["not answered"]:
        first = next(row for row in rows if row.problem)
        print(
            f"{not_answered:,} items were not answered, which counts as 0 (item {first.index}: "
            f"{first.problem}) The same command with --out asks them anew.",
            file=sys.stderr,
        )
    return 0
