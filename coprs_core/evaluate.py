"""How good a checkpoint is: one row an example, then the table."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from coprs_core.answer.engine import Engine
from coprs_core.answer.results import Result
from coprs_core.datasets.example import Example, Tag
from coprs_core.metrics import PRIOR_THRESHOLD, correlation, iou
from coprs_core.prompts import NOTHING_FOUND, is_well_formed

SIZES = (
    ("under 1 %", 0, 0.01),
    ("1 to 3 %", 0.01, 0.03),
    ("3 to 8 %", 0.03, 0.08),
    ("over 8 %", 0.08, 1),
)
COLUMNS = {
    "count": "count",
    "well_formed": "formed",
    "hit": "hit",
    "named": "named",
    "mask_giou": "mask gIoU",
    "prior_giou": "prior gIoU",
    "mask_giou_if_named": "if named",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class Row:
    """One example: what was asked and how the answer compares with the truth.

    Attributes:
        index, tags: of the example.
        size: the target's share of the picture; None where nothing fits.
        well_formed: whether the reply keeps to the form.
        said_nothing: whether the outcome is "nothing found".
        scores: further measures that the data set knows, such as `named` and `hit`.
        mask_iou, prior_iou: of the union of all regions, against the true mask; both empty counts
            1.
        seconds: that the answer took.
    """

    index: int
    tags: dict[str, Tag]
    size: float | None
    well_formed: bool
    said_nothing: bool
    scores: dict[str, bool | float]
    mask_iou: float
    prior_iou: float
    seconds: float

    def to_dict(self) -> dict:
        """The row in plain values, tags and scores among the others."""
        return {
            "index": self.index,
            **self.tags,
            "size": self.size,
            "well_formed": self.well_formed,
            "said_nothing": self.said_nothing,
            **self.scores,
            "mask_iou": self.mask_iou,
            "prior_iou": self.prior_iou,
            "seconds": self.seconds,
        }


def judge(example: Example, result: Result) -> Row:
    """Compare one answer with the truth."""
    truth = example.truth
    if result.prior is None:
        prior = np.zeros_like(truth)
    else:
        prior = result.prior >= PRIOR_THRESHOLD
    return Row(
        index=example.index,
        tags=example.tags,
        size=float(truth.mean()) if truth.any() else None,
        well_formed=is_well_formed(result.reply),
        said_nothing=result.outcome == NOTHING_FOUND,
        scores=example.score(result) if example.score else {},
        mask_iou=iou(result.mask, truth),
        prior_iou=iou(prior, truth),
        seconds=sum(result.seconds.values()),
    )


def evaluate(engine: Engine, examples: Iterable[Example]) -> Iterator[Row]:
    """Answer examples, one row each."""
    for example in examples:
        yield judge(example, engine.segment(example.photo, example.instruction))


def averages(rows: list[Row]) -> dict[str, float]:
    """The measures of a group of rows, each in [0, 1] but `count` and `seconds` (a mean); nan
    without any."""
    named = [r for r in rows if r.scores.get("named") and r.size is not None]
    return {
        "count": len(rows),
        "well_formed": _mean(r.well_formed for r in rows),
        "hit": _mean(r.scores["hit"] for r in rows if "hit" in r.scores),
        "named": _mean(r.scores["named"] for r in rows if "named" in r.scores),
        "mask_giou": _mean(r.mask_iou for r in rows),
        "prior_giou": _mean(r.prior_iou for r in rows),
        "mask_giou_if_named": _mean(r.mask_iou for r in named),
        "seconds": _mean(r.seconds for r in rows),
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else float("nan")


def report(rows: list[Row], groups: dict[str, tuple[str, Tag]] | None = None) -> dict:
    """All measures: overall, by the data set's groups, and by target size.

    `groups` are those of `Dataset`: name → (tag, value).
    """
    nothing = [r for r in rows if r.size is None]
    silent = [r for r in rows if r.said_nothing]
    masked = [r for r in rows if r.size is not None and not r.said_nothing]
    members: dict[str, Callable[[Row], bool]] = {}
    for name, (tag, value) in (groups or {}).items():
        members[name] = lambda r, tag=tag, value=value: r.tags.get(tag) == value
    for name, low, high in SIZES:
        members[f"target {name}"] = lambda r, low=low, high=high: (
            r.size is not None and low <= r.size < high
        )
    return {
        "all": averages(rows),
        "nothing_there": {
            "precision": _mean(r.size is None for r in silent),
            "recall": _mean(r.said_nothing for r in nothing),
        },
        "prior_mask_correlation": correlation(
            [r.prior_iou for r in masked], [r.mask_iou for r in masked]
        ),
        "groups": {n: averages([r for r in rows if is_in(r)]) for n, is_in in members.items()},
        "rows": [r.to_dict() for r in rows],
    }


def table(scores: dict) -> str:
    """A report as text for a terminal."""
    lines = [f"{'':18}" + "".join(f"{head:>11}" for head in COLUMNS.values())]
    for name, group in {"all": scores["all"], **scores["groups"]}.items():
        cells = [f"{group['count']:>11d}"]
        cells += [f"{group[c]:>11.3f}" for c in COLUMNS if c != "count"]
        lines.append(f"{name:18}" + "".join(cells).replace("nan", "  –"))
    nothing = scores["nothing_there"]
    precision, recall = nothing["precision"], nothing["recall"]
    lines.append(f"“nothing there”: precision {precision:.3f}, recall {recall:.3f}")
    lines.append(f"R(prior IoU, mask IoU) = {scores['prior_mask_correlation']:.3f}")
    return "\n".join(lines)
