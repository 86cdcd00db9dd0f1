"""Many questions at once: their photos are read one after the other, their replies written
together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coprs_core.answer.results import Result
from coprs_core.answer.updates import Update
from coprs_core.errors import CoPRSError, first_line
from coprs_core.photos.photo import Photo, PhotoLike

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine

AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Question:
    """A photo, or one that is being opened, and an instruction; `about`: whatever the one who asks
    wants to know it by."""

    photo: PhotoLike | Future[Photo] = field(repr=False)
    instruction: str
    about: Any = None

    def opened(self) -> PhotoLike:
        """The photo, waited for; raises `CoPRSError` where it cannot be opened."""
        return self.photo.result() if isinstance(self.photo, Future) else self.photo


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
            under_way.append((question, _stream(engine, question, max_new_tokens)))
        if not under_way:
            return
        for pair in list(under_way):
            ended = _further(*pair)
            if ended is not None:
                under_way.remove(pair)
                yield pair[0], ended


def _stream(engine: Engine, question: Question, max_new_tokens: int | None) -> Iterator[Update]:
    yield from engine.stream(question.opened(), question.instruction, max_new_tokens)


def _further(question: Question, stream: Iterator[Update]) -> Result | CoPRSError | None:
    """One update further: the answer, where that was the last."""
    try:
        return next(stream).result
    except CoPRSError as problem:
        return problem
    except Exception as problem:  # one question must not take all others with it
        why = f"{type(problem).__name__}: {first_line(problem)}"
        return CoPRSError(
            "The answer ended in an error that is none of yours ({why}): report it.", why=why
        )
