"""What the rows of a run add up to: figures with their intervals, overall and by group."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np

from coprs_core.evaluation.protocols import DEFAULT_PROTOCOL, ScoringProtocol
from coprs_core.evaluation.rows import CURVE_THRESHOLDS, Measurement
from coprs_core.example import Tag
from coprs_core.metrics import correlation

_TARGET_SIZES = (
    ("under 1 %", 0, 0.01),
    ("1 to 3 %", 0.01, 0.03),
    ("3 to 8 %", 0.03, 0.08),
    ("over 8 %", 0.08, math.inf),
)
_INSTRUCTION_LENGTHS = (
    ("1 to 3 words", 0, 4),
    ("4 to 8 words", 4, 9),
    ("9 and more words", 9, math.inf),
)
_THOUGHT_LENGTHS = (
    ("up to 20 words", 0, 21),
    ("21 to 50 words", 21, 51),
    ("over 50 words", 51, math.inf),
)
_TARGET_COUNTS = (("no target", 0, 1), ("1 target", 1, 2), ("2 and more targets", 2, math.inf))
NUM_RESAMPLES, CONFIDENCE, BOOTSTRAP_SEED = 1000, 0.95, 0
"""Of the bootstrap (Efron 1979; percentiles)."""
IOU_LEVELS = (0.5, 0.7, 0.9)
MAX_PROBLEMS = 20
"""Items that were not answered, of which a report says why; their rows say it of all."""


@dataclass(frozen=True)
class Regression:
    """Least squares of mask IoU on prior IoU (paper, figure 3).

    Attributes:
        slope, intercept: of the line; `r`: Pearson's R; `count`: of items where something is there
            and was found.
        above: the share of them whose mask is better than their prior.
        band: half the width of the line's 95 % confidence band at prior IoU 0, 0.05 … 1.
    """

    slope: float
    intercept: float
    r: float
    count: int
    above: float
    band: tuple[float, ...]


def fit_regression(rows: list[Measurement]) -> Regression | None:
    """The line through a run; None where there is none to draw."""
    pairs = np.array([(r.prior_iou, r.mask_iou) for r in rows if r.has_target_and_mask])
    if len(pairs) < 3 or pairs[:, 0].std() == 0:
        return None
    x, y = pairs.T
    slope, intercept = np.polyfit(x, y, 1)
    error = math.sqrt(float(((y - slope * x - intercept) ** 2).sum()) / (len(x) - 2))
    at = np.linspace(0, 1, 21)
    spread = np.sqrt(1 / len(x) + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    band = tuple((1.96 * error * spread).tolist())
    r = correlation(x, y)
    return Regression(float(slope), float(intercept), r, len(x), float((y > x).mean()), band)


def compute_averages(rows: list[Measurement]) -> dict[str, float | None]:
    """The measures of a group of rows: `count`, `seconds` and `tokens` (means), `thought` from 0 to
    10, and the rest in [0, 1].

    gIoU is the mean of the items' IoU, cIoU the sum of their intersections over that of their
    unions, mask@0.5 the share of items whose IoU is above 0.5. Each of the data set's own `scores`
    is averaged over the rows that have it; None without any.
    """
    own = {name: None for row in rows for name in row.scores}  # in order, each once
    return {
        "count": len(rows),
        "well_formed": _mean(r.well_formed for r in rows),
        **{name: _mean(r.scores[name] for r in rows if name in r.scores) for name in own},
        "mask_giou": _mean(r.mask_iou for r in rows),
        "mask_ciou": _ratio(r.mask for r in rows),
        **{f"mask@{at}": _mean(r.mask_iou > at for r in rows) for at in IOU_LEVELS},
        "prior_giou": _mean(r.prior_iou for r in rows),
        "prior_ciou": _ratio(r.prior for r in rows),
        **{f"prior@{at}": _mean(r.prior_iou > at for r in rows) for at in IOU_LEVELS},
        "thought": _mean(r.thought for r in rows if r.thought is not None),
        "tokens": _mean(r.tokens for r in rows),
        "seconds": _mean(r.seconds for r in rows),
    }


def bootstrap_intervals(rows: list[Measurement]) -> dict[str, tuple[float, float]]:
    """95 % intervals of the means, by bootstrap over items: 1,000 resamples of a fixed seed."""
    if len(rows) < 2:
        return {}
    columns = {
        "well_formed": [r.well_formed for r in rows],
        "mask_giou": [r.mask_iou for r in rows],
        "prior_giou": [r.prior_iou for r in rows],
        **{f"mask@{at}": [r.mask_iou > at for r in rows] for at in IOU_LEVELS},
        **{f"prior@{at}": [r.prior_iou > at for r in rows] for at in IOU_LEVELS},
    }
    own = {name for row in rows for name in row.scores}
    columns |= {n: [r.scores[n] for r in rows] for n in own if all(n in r.scores for r in rows)}
    areas = np.array([(*r.mask, *r.prior) for r in rows], float)
    values = np.array(list(columns.values()), float).T
    means, sums = [], []
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    for _ in range(NUM_RESAMPLES):
        # how often each item was drawn: a product with these weights needs no copy of the rows
        chosen = np.bincount(rng.integers(0, len(rows), len(rows)), minlength=len(rows))
        means.append(chosen @ values / len(rows))
        sums.append(chosen @ areas)
    ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
    low, high = np.quantile(means, ends, axis=0)
    intervals = {name: (float(a), float(b)) for name, a, b in zip(columns, low, high, strict=True)}
    both = np.array(sums)
    for name, inside, union in (("mask_ciou", 0, 1), ("prior_ciou", 2, 3)):
        ratio = both[:, inside] / np.maximum(both[:, union], 1)
        intervals[name] = tuple(np.quantile(ratio, ends).tolist())
    return intervals


def compute_scores(
    rows: list[Measurement],
    groups: dict[str, tuple[str, Tag]] | None = None,
    protocol: ScoringProtocol = DEFAULT_PROTOCOL,
) -> dict:
    """All measures: overall with intervals, what failed and why, what was wrong with the data, by
    the data set's groups, by size and number of targets, by length of instruction and thought.

    `groups` are those of `Dataset`: name → (tag, value).
    """
    line = fit_regression(rows)
    without_target = [r for r in rows if r.has_no_target]
    says_nothing = [r for r in rows if r.says_nothing_found]
    thoughts = [r for r in rows if r.thought is not None and r.has_target_and_mask]
    thought_scores = [r.thought or 0.0 for r in thoughts]
    curves = np.array([r.curve for r in rows if r.curve and r.size is not None])
    return {
        "protocol": str(protocol),
        "all": compute_averages(rows),
        "intervals": bootstrap_intervals(rows),
        "failed": {
            "unfinished or unreadable": sum(r.is_failed and not r.problem for r in rows),
            "not answered": sum(bool(r.problem) for r in rows),
        },
        "unread": sum(r.unread for r in rows),
        "problems": [{"item": r.index, "problem": r.problem} for r in rows if r.problem][
            :MAX_PROBLEMS
        ],
        "left_out": {
            "polygons": sum(r.left_out for r in rows),
            "items": sum(bool(r.left_out) for r in rows),
        },
        "nothing_there": {
            "precision": _mean(r.has_no_target for r in says_nothing),
            "recall": _mean(r.says_nothing_found for r in without_target),
        },
        "line": line and asdict(line),
        "prior_mask_correlation": None if line is None else _nan_to_none(line.r),
        "masks_better_than_priors": None if line is None else line.above,
        "thought_prior_correlation": _nan_to_none(
            correlation(thought_scores, [r.prior_iou for r in thoughts])
        ),
        "thought_mask_correlation": _nan_to_none(
            correlation(thought_scores, [r.mask_iou for r in thoughts])
        ),
        "prior_curve": dict(zip(CURVE_THRESHOLDS, curves.mean(0).tolist(), strict=True))
        if len(curves)
        else {},
        "groups": {
            name: compute_averages(group) for name, group in group_rows(rows, groups or {}).items()
        },
    }


def group_rows(
    rows: list[Measurement], groups: dict[str, tuple[str, Tag]]
) -> dict[str, list[Measurement]]:
    """Rows by the data set's groups, then by what every data set has; empty groups of the latter
    are left out."""
    members: dict[str, Callable[[Measurement], bool]] = {}
    for name, (tag, value) in groups.items():
        members[name] = lambda r, tag=tag, value=value: r.tags.get(tag) == value
    groups_of_rows = {name: [r for r in rows if is_in(r)] for name, is_in in members.items()}
    measured: tuple[tuple[str, tuple, Callable[[Measurement], float | None]], ...] = (
        ("target", _TARGET_SIZES, lambda r: r.size),
        ("", _TARGET_COUNTS, lambda r: None if r.unread else r.things),
        ("instruction", _INSTRUCTION_LENGTHS, lambda r: len(r.instruction.split()) or None),
        ("thought", _THOUGHT_LENGTHS, lambda r: None if r.unread else r.thought_words),
    )
    for prefix, steps, value in measured:
        for name, low, high in steps:
            inside = [r for r in rows if (v := value(r)) is not None and low <= v < high]
            if inside:
                groups_of_rows[f"{prefix} {name}".strip()] = inside
    return groups_of_rows


def format_table(scores: dict) -> str:
    """A report as text for a terminal: a measure a column."""
    columns = [
        name
        for name in scores["all"]
        if "@" not in name and not (name == "thought" and scores["all"][name] is None)
    ]
    heads = [
        name.replace("_", " ").replace("giou", "gIoU").replace("ciou", "cIoU") for name in columns
    ]
    lines = [f"{'':24}" + "".join(f"  {head:>9}" for head in heads)]
    for name, group in {"all": scores["all"], **scores["groups"]}.items():
        cells = (
            f"  {format_number(group.get(column)):>{max(9, len(head))}}"
            for column, head in zip(columns, heads, strict=True)
        )
        lines.append(f"{name:24}" + "".join(cells))
    for side in ("mask", "prior"):
        parts = [f"IoU > {at}: {format_number(scores['all'][f'{side}@{at}'])}" for at in IOU_LEVELS]
        for name in (f"{side}_giou", f"{side}_ciou"):
            if name in scores["intervals"]:
                low, high = scores["intervals"][name]
                parts.append(f"{name[-4:].replace('iou', 'IoU')} 95 % [{low:.3f}, {high:.3f}]")
        lines.append(f"{side}: " + " · ".join(parts))
    nothing = {name: format_number(value) for name, value in scores["nothing_there"].items()}
    lines.append("“nothing there”: precision {precision}, recall {recall}".format(**nothing))
    lines.append(f"R(prior IoU, mask IoU) = {format_number(scores['prior_mask_correlation'])}")
    failed = " · ".join(f"{count} {what}" for what, count in scores["failed"].items())
    lines.append(f"{failed} · {scores['protocol']}")
    lines += describe_data_problems(scores)
    return "\n".join(lines)


def describe_data_problems(scores: dict) -> list[str]:
    """What was wrong with the data, a sentence each; none where nothing was."""
    unread, left_out = scores["unread"], scores["left_out"]
    sentences = []
    if unread:
        sentences.append(f"{unread:,} items could not be read: each counts 0.")
    if left_out["polygons"]:
        sentences.append(
            f"{left_out['polygons']:,} polygons of {left_out['items']:,} items could not be drawn: "
            "they are left out of the true masks."
        )
    return sentences


def format_number(value: float | None) -> str:
    """A measure as it is shown."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _ratio(areas: Iterable[tuple[int, int]]) -> float | None:
    inside, union = np.sum([*areas, (0, 0)], axis=0)
    return float(inside / union) if union else None


def _nan_to_none(value: float) -> float | None:
    return None if math.isnan(value) else value
