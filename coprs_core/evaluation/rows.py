"""One item: what was asked, and how the answer compares with the truth."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from coprs_core.answer.concurrent import DEFAULT_AT_ONCE, answer_many
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError, first_line
from coprs_core.evaluation.protocols import DEFAULT_PROTOCOL, ScoringProtocol
from coprs_core.example import Example, Tag
from coprs_core.metrics import PRIOR_THRESHOLD, PRIOR_THRESHOLDS
from coprs_core.prompts import (
    FOCUS_TOKEN_PRIOR,
    FOUND,
    NOTHING_FOUND,
    UNFINISHED,
    is_well_formed,
)

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine

_CURVE_SLICE = slice(5, 100, 5)
"""Of `metrics.PRIOR_THRESHOLDS`: 0.05, 0.1 … 0.95, where the prior's IoU is kept."""
CURVE_THRESHOLDS = tuple(round(float(t), 2) for t in PRIOR_THRESHOLDS[_CURVE_SLICE])


@dataclass(frozen=True, slots=True)
class Measurement:
    """One example measured: what was asked and how the answer compares with the truth; a line of a
    run's file.

    Attributes:
        index, tags: of the example.
        instruction: as it was asked; `things`: how many it means.
        size: the target's share of the picture; None where nothing fits.
        outcome: of the answer; "failed" with `problem` where the item could not be answered at all.
        unread: whether the item itself could not be read: what it asks and means is not known.
        left_out: polygons of the true masks that could not be drawn, and are not in them.
        reason: of the outcome, in a sentence.
        well_formed: whether the reply keeps to the form, or its coordinates can be read.
        scores: further measures that the data set knows, each where it applies.
        thought: how good a judge finds the thought, from 0 to 10; None without one.
        mask, prior: pixels of (intersection, union) with the truth, of the union of all regions;
            the prior where it is at least 0.5.
        mask_iou, prior_iou: IoU as the protocol counts it.
        curve: the prior's IoU at each of `CURVE_THRESHOLDS`.
        thought_words: length of the thought.
        tokens: of the reply.
        seconds: since the measurement before, so that those of a run add up to its time; several
            answers are on the way at once.
    """

    index: int
    tags: dict[str, Tag]
    instruction: str
    things: int
    size: float | None
    outcome: str
    reason: str
    well_formed: bool
    scores: dict[str, bool | float]
    mask: tuple[int, int]
    prior: tuple[int, int]
    mask_iou: float
    prior_iou: float
    curve: tuple[float, ...] = ()
    thought_words: int = 0
    thought: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    problem: str = field(default="")
    unread: bool = False
    left_out: int = 0

    @property
    def has_no_target(self) -> bool:
        """Whether it is known that nothing fits."""
        return self.size is None and not self.unread

    @property
    def says_nothing_found(self) -> bool:
        """Whether the outcome is "nothing found"."""
        return self.outcome == NOTHING_FOUND

    @property
    def has_target_and_mask(self) -> bool:
        """Whether something is there and something was found."""
        return self.size is not None and self.outcome == FOUND

    @property
    def is_failed(self) -> bool:
        """Whether there is no answer: unfinished, unreadable, or not even asked."""
        return self.outcome in (UNFINISHED, FAILED)

    def to_dict(self) -> dict[str, Any]:
        """The measurement in plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measurement:
        """A measurement that `to_dict` wrote; raises `TypeError` or `LookupError` where it is
        none."""
        fields: dict[str, Any] = dict(values)
        for name in ("mask", "prior", "curve"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


FAILED = "failed"


def measure(
    example: Example, result: Result, protocol: ScoringProtocol = DEFAULT_PROTOCOL
) -> Measurement:
    """Compare one answer with the truth; raises `CoPRSError` where the data set's mask is not of
    its photo's size."""
    truth, ignore = example.truth, example.ignore
    if truth.shape != result.photo_size:
        raise CoPRSError(
            f"The true mask of example {example.index} is {list(truth.shape)} and its photo "
            f"{list(result.photo_size)}: correct the data set."
        )
    prior = np.zeros(truth.shape, np.float32) if result.prior is None else result.prior
    mask = protocol.intersection_and_union(result.mask, truth, ignore)
    looked_at = protocol.intersection_and_union(prior >= PRIOR_THRESHOLD, truth, ignore)
    is_failed = result.outcome == UNFINISHED
    return replace(
        _base_measurement(example, truth),
        outcome=result.outcome,
        reason=result.reason,
        well_formed=_is_usable_reply(result, example),
        scores=example.score(result) if example.score else {},
        mask=mask,
        prior=looked_at,
        mask_iou=protocol.iou(mask, is_failed),
        prior_iou=protocol.iou(looked_at, is_failed),
        curve=tuple(
            np.round(protocol.curve(prior, truth, ignore, is_failed)[_CURVE_SLICE], 3).tolist()
        ),
        thought_words=len(result.reasoning.split()),
        tokens=result.tokens,
    )


def _is_usable_reply(result: Result, example: Example) -> bool:
    """Whether a reply keeps to the method's form; of a model that writes coordinates, whether they,
    or that there are none, can be read."""
    if result.prior_kind == FOCUS_TOKEN_PRIOR:
        return is_well_formed(result.reply, max(1, len(example.masks)))
    return result.outcome != UNFINISHED


def failed_measurement(
    example: Example, problem: str, protocol: ScoringProtocol = DEFAULT_PROTOCOL
) -> Measurement:
    """The measurement of an item that could not be answered, or not even read: it counts, with
    its reason."""
    if example.problem:
        return _unreadable_measurement(example.index, problem)
    truth = example.truth
    areas = protocol.intersection_and_union(np.zeros_like(truth), truth, example.ignore)
    return replace(
        _base_measurement(example, truth), reason=problem, problem=problem, mask=areas, prior=areas
    )


def _unreadable_measurement(index: int, problem: str) -> Measurement:
    empty = _base_measurement(Example(None, "", index=index), np.zeros((1, 1), bool))
    return replace(empty, reason=problem, problem=problem, unread=True)


def _base_measurement(example: Example, truth: np.ndarray) -> Measurement:
    """What every measurement says of its example."""
    return Measurement(
        index=example.index,
        tags=example.tags,
        instruction=example.instruction,
        things=len(example.masks),
        size=float(truth.mean()) if truth.any() else None,
        outcome=FAILED,
        reason="",
        well_formed=False,
        scores={},
        mask=(0, 0),
        prior=(0, 0),
        mask_iou=0.0,
        prior_iou=0.0,
        left_out=example.left_out,
    )


def answer_and_measure(
    engine: Engine,
    examples: Iterable[Example],
    protocol: ScoringProtocol = DEFAULT_PROTOCOL,
    at_once: int = DEFAULT_AT_ONCE,
    max_new_tokens: int | None = None,
) -> Iterator[tuple[Measurement, Example, Result | None]]:
    """Answer examples, `at_once` together: a measurement each, in the order in which they end.
    Nothing is skipped: what cannot be read or answered is measured, too."""
    last = time.perf_counter()
    for example, answer in answer_many(engine, examples, at_once, max_new_tokens):
        now = time.perf_counter()
        measurement, result = _measure_answer(example, answer, protocol)
        yield replace(measurement, seconds=round(now - last, 4)), example, result
        last = now


def _measure_answer(
    example: Example, answer: Result | CoPRSError, protocol: ScoringProtocol
) -> tuple[Measurement, Result | None]:
    """The measurement of an answer, and the answer where there is one that can be measured."""
    try:
        if isinstance(answer, Result):
            return measure(example, answer, protocol), answer
        return failed_measurement(example, str(answer), protocol), None
    except Exception as problem:  # masks of a data set that do not go together
        why = f"Item {example.index} cannot be measured ({first_line(problem)}): correct it."
        message = str(problem) if isinstance(problem, CoPRSError) else why
        return _unreadable_measurement(example.index, message), None


def evaluate(
    engine: Engine,
    examples: Iterable[Example],
    protocol: ScoringProtocol = DEFAULT_PROTOCOL,
    at_once: int = DEFAULT_AT_ONCE,
) -> Iterator[Measurement]:
    """Answer examples, one measurement each, in the order in which they end."""
    for measurement, _, _ in answer_and_measure(engine, examples, protocol, at_once):
        yield measurement
