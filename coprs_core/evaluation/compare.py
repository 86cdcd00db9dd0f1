"""Two runs on the same items, side by side, with a paired test."""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from coprs_core.errors import CoPRSError
from coprs_core.evaluation.report import (
    BOOTSTRAP_SEED,
    CONFIDENCE,
    NUM_RESAMPLES,
    compute_averages,
    format_number,
    group_rows,
)
from coprs_core.evaluation.rows import Measurement
from coprs_core.evaluation.run import read_rows, read_run

NUM_FLIPS = 10_000
"""Random signs of the permutation test."""
_MUST_MATCH = ("data", "split", "about", "protocol")


@dataclass(frozen=True)
class PairedDifference:
    """One measure of B less that of A, over the same items.

    Attributes:
        a, b: the means; `low`, `high`: the 95 % interval of b − a, by bootstrap over items.
        p: of a two-sided sign-flip permutation test of the paired differences (10,000 flips).
        better, worse: how many items B is better at, and worse at.
    """

    a: float
    b: float
    low: float
    high: float
    p: float
    better: int
    worse: int


def paired_difference(a: np.ndarray, b: np.ndarray) -> PairedDifference:
    """The difference between two measures [N] of the same N items."""
    rng, differences = np.random.default_rng(BOOTSTRAP_SEED), b - a
    low, high = bootstrap_interval(differences, rng)
    nonzero = differences[differences != 0]
    beyond = 0
    for _ in range(NUM_FLIPS if len(nonzero) else 0):
        flipped = rng.integers(0, 2, len(nonzero)) * 2 - 1
        beyond += abs(float(flipped @ nonzero)) >= abs(float(nonzero.sum())) - 1e-12
    # the one that was observed counts among the flips: p is never 0
    p = (beyond + 1) / (NUM_FLIPS + 1) if len(nonzero) else 1.0
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return PairedDifference(float(a.mean()), float(b.mean()), low, high, p, better, worse)


def bootstrap_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The 95 % interval of the mean of values [N], by bootstrap."""
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(NUM_RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two runs over the same items.

    Attributes:
        names: of A and B.
        differences: by measure, over the items that both have.
        rows: of these items, of A and of B.
        groups: of the data set, as in `Dataset`.
        num_unshared: items that one run alone has; they are left out.
        num_unreadable: items that could not be read in one run or both; they are left out.
    """

    names: tuple[str, str]
    differences: dict[str, PairedDifference]
    rows: tuple[list[Measurement], list[Measurement]]
    groups: dict
    num_unshared: int
    num_unreadable: int = 0

    def to_text(self) -> str:
        """As text for a terminal."""
        names, count = self.names, len(self.rows[0])
        lines = [f"A {names[0]}", f"B {names[1]}", f"{count:,} items that both answered"]
        failed = [sum(bool(row.problem) for row in rows) for rows in self.rows]
        if any(failed):
            lines[-1] = (
                f"{count:,} items that both have; not answered, which counts as 0: "
                f"A {failed[0]:,}, B {failed[1]:,}"
            )
        if self.num_unshared:
            lines.append(f"{self.num_unshared:,} items that only one answered are left out")
        if self.num_unreadable:
            lines.append(f"{self.num_unreadable:,} items that could not be read are left out")
        lines.append(
            f"{'':14}{'A':>8}{'B':>8}{'B − A':>9}{'95 %':>18}{'p':>8}{'better':>8}{'worse':>7}"
        )
        for name, d in self.differences.items():
            between = f"[{d.low:+.3f}, {d.high:+.3f}]"
            lines.append(
                f"{name:14}{d.a:8.3f}{d.b:8.3f}{d.b - d.a:+9.3f}{between:>18}{d.p:8.4f}"
                f"{d.better:8}{d.worse:7}"
            )
        lines.append(f"{'mask gIoU by group':28}{'count':>7}{'A':>8}{'B':>8}{'B − A':>9}")
        first, second = (group_rows(rows, self.groups) for rows in self.rows)
        for name, group in first.items():
            if name.startswith("thought") or not group:  # the two thought differently
                continue
            a, b = (compute_averages(g)["mask_giou"] for g in (group, second[name]))
            gap = "" if a is None or b is None else f"{b - a:+9.3f}"
            lines.append(f"{name:28}{len(group):7}{format_number(a):>8}{format_number(b):>8}{gap}")
        return "\n".join(lines)

    def to_html(self) -> str:
        """The table as a page."""
        title = escape(f"{self.names[0]} and {self.names[1]}")
        return (
            f"<!doctype html><meta charset=utf-8><title>{title}</title><style>:root{{color-scheme:"
            "light dark}body{font:14px system-ui;max-width:60rem;margin:2rem auto}</style>"
            f"<h1>{title}</h1><pre>{escape(self.to_text())}</pre>"
        )


def compare_runs(first: Path, second: Path) -> Comparison:
    """Two folders that `coprs evaluate` wrote.

    Raises `CoPRSError` where one holds no run, they are not of the same data and protocol, or they
    share no item.
    """
    runs = [read_run(folder) for folder in (first, second)]
    settings = [run["settings"] for run in runs]
    for name in _MUST_MATCH:
        a, b = (s[name] for s in settings)
        if a != b:
            raise CoPRSError(
                f"{first} has {name} {a!r} and {second} {b!r}: compare runs of one {name}."
            )
    rows_by_index = [{row.index: row for row in read_rows(folder)} for folder in (first, second)]
    shared = sorted(rows_by_index[0].keys() & rows_by_index[1].keys())
    unread = {row.index for rows in rows_by_index for row in rows.values() if row.unread}
    shared = [i for i in shared if i not in unread]
    # the same numbers may hold other items, where the data set was changed in between
    shared = [
        i for i in shared if rows_by_index[0][i].instruction == rows_by_index[1][i].instruction
    ]
    if len(shared) < 2:
        raise CoPRSError(f"{first} and {second} share {len(shared)} items: two are needed.")
    a, b = ([rows[index] for index in shared] for rows in rows_by_index)
    measures = {
        "mask gIoU": [[r.mask_iou for r in rows] for rows in (a, b)],
        "mask > 0.5": [[r.mask_iou > 0.5 for r in rows] for rows in (a, b)],
        "prior gIoU": [[r.prior_iou for r in rows] for rows in (a, b)],
        "well-formed": [[r.well_formed for r in rows] for rows in (a, b)],
        "tokens": [[r.tokens for r in rows] for rows in (a, b)],
    }
    differences = {
        n: paired_difference(*(np.array(v, float) for v in pair)) for n, pair in measures.items()
    }
    a_name, b_name = (f"{s['model']} ({f})" for s, f in zip(settings, (first, second), strict=True))
    alone = len((rows_by_index[0].keys() | rows_by_index[1].keys()) - unread) - len(shared)
    groups = runs[0]["groups"]
    return Comparison((a_name, b_name), differences, (a, b), groups, alone, len(unread))
