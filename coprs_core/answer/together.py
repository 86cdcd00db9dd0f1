"""Many questions at once: their photos are read one after the other, their replies written
together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coprs_core.answer.results import Result
from coprs_core.answer.updates import Update
from coprs_core.errors import CoPRSError
from coprs_core.photos import PhotoLike

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine

AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Question:
    """A photo and an instruction; `about`: whatever the one who asks wants to know it by."""

    photo: PhotoLike = field(repr=False)
    instruction: str
    about: Any = None


def answer_together(
    engine: Engine,
    questions: Iterable[Question],
    at_once: int = AT_ONCE,
    max_new_tokens: int | None = None,
) -> Iterator[tuple[Question, Result | CoPRSError]]:
    """Answers in the order in which they end, `at_once` questions on the way.

    A question that cannot be answered comes back with its `CoPRSError`; the others go on. Memory is
    that of `at_once` photos, however many there are.
    """
    waiting, under_way = iter(questions), []
    while True:
        while len(under_way) < at_once and (question := next(waiting, None)):
            stream = engine.stream(question.photo, question.instruction, max_new_tokens)
            under_way.append((question, stream))
        if not under_way:
            return
        for pair in list(under_way):
            ended = _further(*pair)
            if ended is not None:
                under_way.remove(pair)
                yield pair[0], ended


def _further(question: Question, stream: Iterator[Update]) -> Result | CoPRSError | None:
    """One update further: the answer, where that was the last."""
    try:
        return next(stream).result
    except CoPRSError as problem:
        return problem
