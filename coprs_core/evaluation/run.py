"""A run over a data set: a line an item in a folder, so that it goes on where it was stopped, and
several processes or machines can share it."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprs_core.answer.results import Result
from coprs_core.datasets.dataset import Dataset
from coprs_core.errors import CoPRSError
from coprs_core.evaluation.cases import save_case
from coprs_core.evaluation.judges import Judge
from coprs_core.evaluation.protocols import PROTOCOLS, ScoringProtocol
from coprs_core.evaluation.rows import Measurement, answer_and_measure
from coprs_core.example import Example
from coprs_core.export.archive import make_writable_folder
from coprs_core.machine import package_versions
from coprs_core.parsing import parse_json
from coprs_core.run_settings import PATH_ERRORS, check_settings, write_settings

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine

RUN_FILE, ROWS_FILE, CASES_FOLDER = "run.json", "rows-{}-of-{}.jsonl", "cases"
NUM_CASES = 8
"""Pictures of each: the best, the worst, and some at random."""


@dataclass(frozen=True)
class RunSettings:
    """What a run measures; a folder holds one run alone.

    Attributes:
        model, data, split: by name; `about`: what was read of the data.
        protocol: by name; `judge`: of thoughts, by name.
        start, limit: number of the first item, and how many; None: all.
        at_once: replies that are written together: it changes how sums are rounded.
        max_new_tokens: bound of a reply; None: the model's own.
        dtype, quantization, sam, detail: how the model is loaded (see `LoadOptions`).
    """

    model: str
    data: str
    split: str
    about: str
    protocol: str
    judge: str
    start: int
    limit: int | None
    at_once: int
    max_new_tokens: int | None = None
    dtype: str = "auto"
    quantization: str = "auto"
    sam: str = "auto"
    detail: str = "auto"

    @property
    def counting_protocol(self) -> ScoringProtocol:
        """The protocol."""
        return PROTOCOLS[self.protocol]


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count` of a run: every `count`-th item."""

    number: int = 1
    count: int = 1

    def split(self, number: int, count: int) -> Shard:
        """Of this part the part `number`, from 0, of `count`."""
        return Shard(self.number + self.count * number, self.count * count)


def parse_shard(text: str) -> Shard:
    """ "2/4" as a `Shard`; raises `CoPRSError` for anything else."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise CoPRSError(f"{text!r} is no shard: write i/n, such as 1/4 for the first of four.")
    return Shard(int(found[1]), int(found[2]))


def item_numbers(dataset: Dataset, settings: RunSettings, shard: Shard) -> range:
    """The items of a part of a run, by number; raises `CoPRSError` where the run has none."""
    end = settings.start + (settings.limit or dataset.num_items or 0)
    if dataset.num_items is not None:
        end = min(end, dataset.num_items)
    if end <= settings.start:
        raise CoPRSError(
            f"{settings.about} has no item {settings.start}: start at a lower one, or set a limit."
        )
    # every count-th item, not a block: shards of a sorted data set then take as long as each other
    first = settings.start + (shard.number - 1 - settings.start) % shard.count
    return range(first, end, shard.count)


def run_evaluation(
    engine: Engine,
    dataset: Dataset,
    settings: RunSettings,
    folder: Path,
    shard: Shard = Shard(),  # noqa: B008
    judge: Judge | None = None,
) -> Iterator[Measurement]:
    """Answer what is left of a run, and write it.

    Yields the rows as they are written; an item that cannot be read is one, too. Memory stays that
    of the replies under way. Raises `CoPRSError` where the folder holds another run.
    """
    open_run(folder, settings, engine, dataset)
    path = folder / ROWS_FILE.format(shard.number, shard.count)
    done = _repair_and_list_answered(folder, path)
    left = (n for n in item_numbers(dataset, settings, shard) if n not in done)
    examples = (example for n in left if (example := dataset.try_read(n)))
    cases = _CaseSelection(folder / CASES_FOLDER, path)
    counting, at_once = settings.counting_protocol, settings.at_once
    with path.open("a", encoding="utf-8", errors=PATH_ERRORS) as file:
        for row, example, result in answer_and_measure(
            engine, examples, counting, at_once, settings.max_new_tokens
        ):
            if result is not None:
                row = row if judge is None else judge.score_thought(row, example, result)
                cases.consider(row, example, result)
            file.write(json.dumps(row.to_dict(), ensure_ascii=False) + "\n")
            # a line an item, at once: a killed run has lost the replies under way and no more
            file.flush()
            yield row


def open_run(folder: Path, settings: RunSettings, engine: Engine, dataset: Dataset) -> None:
    """Write what a folder's run is; raises `CoPRSError` where it holds another."""
    path = make_writable_folder(folder) / RUN_FILE
    values = asdict(settings)
    engine_now = {"name": engine.name, **engine.settings}
    if path.is_file():
        stored = read_run(folder)
        check_settings(folder, asdict(RunSettings(**stored["settings"])), values)
        _check_same_engine(folder, stored["engine"], engine_now)
        return
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    stored = {"settings": values, "began": began, "engine": engine_now, "groups": dataset.groups}
    stored["versions"] = package_versions()
    write_settings(path, stored)


def _check_same_engine(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `CoPRSError` where `auto` means something else here than where a run began."""
    for name in ("name", "device", "dtype", "quantization"):
        was, is_now = (str(told.get(name, "")).partition(":")[0] for told in (before, now))
        if name in before and was != is_now:
            raise CoPRSError(
                f"{folder} holds a run whose model has {name} {was}, and here it has {is_now}: "
                "say the same (--device, --dtype, --quantize), or choose another --out."
            )


def read_run(folder: Path) -> dict[str, Any]:
    """What a folder's run is; raises `CoPRSError` where it holds none."""
    try:
        values = parse_json((folder / RUN_FILE).read_text(encoding="utf-8"))
        RunSettings(**values["settings"])
        dict(values["groups"]), dict(values["engine"]), dict(values["versions"])
    except (OSError, ValueError, TypeError, LookupError) as problem:
        raise CoPRSError(f"{folder} holds no run: give the --out of `coprs evaluate`.") from problem
    return values


def read_rows(folder: Path) -> list[Measurement]:
    """All rows of a folder's run, by number, each once; raises `CoPRSError` where there are none.

    A last line that a kill cut short is not one.
    """
    rows: dict[int, Measurement] = {}
    for row in _all_rows(folder):
        if row.index not in rows or rows[row.index].problem:  # it was asked anew
            rows[row.index] = row
    if not rows:
        raise CoPRSError(f"{folder} holds no rows yet: run `coprs evaluate` first.")
    return [rows[index] for index in sorted(rows)]


def _read_rows_file(path: Path) -> Iterator[Measurement]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield Measurement.from_dict(parse_json(line))
            except (ValueError, TypeError, LookupError):
                if line.endswith("\n"):
                    raise CoPRSError(
                        f"{path} has a line that is no row: delete the line, or the folder."
                    ) from None


def count_missing(folder: Path, dataset: Dataset, settings: RunSettings, own: range) -> int:
    """How many items of a run beside the `own` ones are not there yet."""
    present = {row.index for row in _all_rows(folder)}.union(own)
    left = [n for n in item_numbers(dataset, settings, Shard()) if n not in present]
    return len(left) if any(dataset.try_read(n) for n in left) else 0  # else they are passed over


def count_answered(folder: Path, numbers: range) -> int:
    """How many of these items a folder holds already, whichever part wrote them."""
    return len(_answered_numbers(folder).intersection(numbers))


def _repair_and_list_answered(folder: Path, own: Path) -> set[int]:
    """The numbers that a folder holds; what a kill cut short is taken off the own file."""
    if own.is_file():
        with own.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    return _answered_numbers(folder)


def _answered_numbers(folder: Path) -> set[int]:
    """The numbers of the items that were answered; others are asked anew."""
    return {row.index for row in _all_rows(folder) if not row.problem}


def _all_rows(folder: Path) -> Iterator[Measurement]:
    return (
        row
        for path in sorted(folder.glob(ROWS_FILE.format("*", "*")))
        for row in _read_rows_file(path)
    )


class _CaseSelection:
    """The pictures that a run keeps: of the best, the worst, and some at random, on the disk."""

    def __init__(self, folder: Path, rows: Path):
        self._folder = folder
        self._heaps: dict[str, list[tuple[float, int]]] = {"best": [], "worst": [], "random": []}
        for row in _read_rows_file(rows) if rows.is_file() else ():
            if self._path(row.index).is_file():
                self._wanted(row)

    def consider(self, row: Measurement, example: Example, result: Result) -> None:
        """Keep a picture of an item where it is among those; let go of what no longer is."""
        before = self._kept()
        if self._wanted(row):
            self._folder.mkdir(parents=True, exist_ok=True)
            save_case(self._path(row.index), example, result)
        for index in before - self._kept():
            self._path(index).unlink(missing_ok=True)
            self._path(index).with_suffix(".txt").unlink(missing_ok=True)

    def _wanted(self, row: Measurement) -> bool:
        # by hash, not by a generator: a resumed run chooses the same ones
        chance = int.from_bytes(hashlib.sha256(str(row.index).encode()).digest()[:4], "big")
        keys = {"best": row.mask_iou, "worst": -row.mask_iou, "random": float(chance)}
        if row.size is None:  # a picture of nothing where nothing is tells little
            del keys["best"]
        for name, key in keys.items():
            heapq.heappush(self._heaps[name], (key, -row.index))  # of equals the first stay
            if len(self._heaps[name]) > NUM_CASES:
                heapq.heappop(self._heaps[name])
        return row.index in self._kept()

    def _kept(self) -> set[int]:
        return {-index for heap in self._heaps.values() for _, index in heap}

    def _path(self, index: int) -> Path:
        return self._folder / f"{index}.webp"
