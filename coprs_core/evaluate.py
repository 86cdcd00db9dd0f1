"""How good a checkpoint is: one row an example, then the table."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from coprs_core.answer.engine import Engine
from coprs_core.answer.results import Result
from coprs_core.datasets.example import Example, Tag
from coprs_core.errors import CoPRSError
from coprs_core.metrics import PRIOR_THRESHOLD, correlation, iou
from coprs_core.prompts import NOTHING_FOUND, is_well_formed

SIZES = (
    ("under 1 %", 0, 0.01),
    ("1 to 3 %", 0.01, 0.03),
    ("3 to 8 %", 0.03, 0.08),
    ("over 8 %", 0.08, 1),
)


@dataclass(frozen=True)
class Row:
    """One example: what was asked and how the answer compares with the truth.

    Attributes:
        index, tags: of the example.
        size: the target's share of the picture; None where nothing fits.
        well_formed: whether the reply keeps to the form.
        is_nothing_found: whether the outcome is "nothing found".
        scores: further measures that the data set knows, each where it applies.
        mask_iou, prior_iou: of the union of all regions, against the true mask; both empty counts
            1.
        seconds: that the answer took.
    """

    index: int
    tags: dict[str, Tag]
    size: float | None
    well_formed: bool
    is_nothing_found: bool
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
            "is_nothing_found": self.is_nothing_found,
            **self.scores,
            "mask_iou": self.mask_iou,
            "prior_iou": self.prior_iou,
            "seconds": self.seconds,
        }


def judge(example: Example, result: Result) -> Row:
    """Compare one answer with the truth."""
    truth = example.truth
    if truth.shape != result.photo_size:
        raise CoPRSError(
            f"The true mask of example {example.index} is {list(truth.shape)} and its photo "
            f"{list(result.photo_size)}: correct the data set."
        )
    if result.prior is None:
        prior = np.zeros_like(truth)
    else:
        prior = result.prior >= PRIOR_THRESHOLD
    return Row(
        index=example.index,
        tags=example.tags,
        size=float(truth.mean()) if truth.any() else None,
        well_formed=is_well_formed(result.reply, max(1, len(example.masks))),
        is_nothing_found=result.outcome == NOTHING_FOUND,
        scores=example.score(result) if example.score else {},
        mask_iou=iou(result.mask, truth),
        prior_iou=iou(prior, truth),
        seconds=sum(result.seconds.values()),
    )


def evaluate(engine: Engine, examples: Iterable[Example]) -> Iterator[Row]:
    """Answer examples, one row each."""
    for example in examples:
        yield judge(example, engine.segment(example.photo, example.instruction))


def averages(rows: list[Row]) -> dict[str, float | None]:
    """The measures of a group of rows: `count`, `seconds` (a mean), and the rest in [0, 1].

    Each of the data set's own `scores` is averaged over the rows that have it; None without any.
    """
    own = {name: None for row in rows for name in row.scores}  # in order, each once
    return {
        "count": len(rows),
        "well_formed": _mean(r.well_formed for r in rows),
        **{name: _mean(r.scores[name] for r in rows if name in r.scores) for name in own},
        "mask_giou": _mean(r.mask_iou for r in rows),
        "prior_giou": _mean(r.prior_iou for r in rows),
        "seconds": _mean(r.seconds for r in rows),
    }


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def report(rows: list[Row], groups: dict[str, tuple[str, Tag]] | None = None) -> dict:
    """All measures: overall, by the data set's groups, and by target size.

    `groups` are those of `Dataset`: name → (tag, value).
    """
    nothing = [r for r in rows if r.size is None]
    silent = [r for r in rows if r.is_nothing_found]
    # of the rows where something is there and was found
    masked = [r for r in rows if r.size is not None and not r.is_nothing_found]
    agreement = correlation([r.prior_iou for r in masked], [r.mask_iou for r in masked])
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
            "recall": _mean(r.is_nothing_found for r in nothing),
        },
        "prior_mask_correlation": None if math.isnan(agreement) else agreement,
        "groups": {n: averages([r for r in rows if is_in(r)]) for n, is_in in members.items()},
        "rows": [r.to_dict() for r in rows],
    }


def table(scores: dict) -> str:
    """A report as text for a terminal."""
    columns = list(scores["all"])
    heads = [name.replace("_", " ").replace("giou", "gIoU") for name in columns]
    lines = [f"{'':18}" + "".join(f"  {head:>9}" for head in heads)]
    for name, group in {"all": scores["all"], **scores["groups"]}.items():
        cells = (
            f"  {_in_digits(group.get(column)):>{max(9, len(head))}}"
            for column, head in zip(columns, heads, strict=True)
        )
        lines.append(f"{name:18}" + "".join(cells))
    nothing = {name: _in_digits(value) for name, value in scores["nothing_there"].items()}
    lines.append("“nothing there”: precision {precision}, recall {recall}".format(**nothing))
    lines.append(f"R(prior IoU, mask IoU) = {_in_digits(scores['prior_mask_correlation'])}")
    return "\n".join(lines)


def _in_digits(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
