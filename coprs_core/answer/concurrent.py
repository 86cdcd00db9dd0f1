"""Answer many examples concurrently: photos are read one after the other, replies are decoded
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

DEFAULT_AT_ONCE = 16


def answer_many(
    engine: Engine,
    examples: Iterable[Example],
    at_once: int = DEFAULT_AT_ONCE,
    max_new_tokens: int | None = None,
) -> Iterator[tuple[Example, Result | CoPRSError]]:
    """Yield (example, answer) in the order in which they end, `at_once` of them under way.

    An example that cannot be answered comes back with its `CoPRSError`; the others go on. Memory is
    that of `at_once` photos, however many there are.
    """
    pending, active = iter(examples), []
    while True:
        while len(active) < at_once and (example := next(pending, None)):
            active.append((example, _stream_example(engine, example, max_new_tokens)))
        if not active:
            return
        # one step of each in turn: the engine decodes all replies that are under way as one batch
        for pair in list(active):
            answer = _next_update(pair[1])
            if answer is not None:
                active.remove(pair)
                yield pair[0], answer


def _stream_example(
    engine: Engine, example: Example, max_new_tokens: int | None
) -> Iterator[Update]:
    yield from engine.stream(example.load_photo(), example.instruction, max_new_tokens)


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
