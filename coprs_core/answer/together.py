"""Many examples at once: their photos are read one after the other, their replies written
together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from coprs_core.answer.results import Result
from coprs_core.answer.updates import Update
from coprs_core.errors import CoPRSError, first_line
from coprs_core.example import Example

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine

AT_ONCE = 16


def answer_many(
    engine: Engine,
    examples: Iterable[Example],
    at_once: int = AT_ONCE,
    max_new_tokens: int | None = None,
) -> Iterator[tuple[Example, Result | CoPRSError]]:
    """Answers in the order in which they end, `at_once` of them on the way.

    An example that cannot be answered comes back with its `CoPRSError`; the others go on. Memory is
    that of `at_once` photos, however many there are.
    """
    waiting, under_way = iter(examples), []
    while True:
        while len(under_way) < at_once and (example := next(waiting, None)):
            under_way.append((example, _stream(engine, example, max_new_tokens)))
        if not under_way:
            return
        for pair in list(under_way):
            ended = _next_update(pair[1])
            if ended is not None:
                under_way.remove(pair)
                yield pair[0], ended


def _stream(engine: Engine, example: Example, max_new_tokens: int | None) -> Iterator[Update]:
    yield from engine.stream(example.opened(), example.instruction, max_new_tokens)


def _next_update(stream: Iterator[Update]) -> Result | CoPRSError | None:
    """One update further: the answer, where that was the last."""
    try:
        return next(stream).result
    except CoPRSError as problem:
        return problem
    except Exception as problem:  # one example must not take all others with it
        why = f"{type(problem).__name__}: {first_line(problem)}"
        return CoPRSError(
            "The answer ended in an error that is none of yours ({why}): report it.", why=why
        )
