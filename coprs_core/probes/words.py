"""Word by word: the reply's tokens, and where any of them looks.

With a focus token it is where the word's own hidden state looks. Only the focus token's was trained
for the query head, so a word's look is a probe, not an explanation. In a model that writes
coordinates it is the word's attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from coprs_core.answer.engine import Engine
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.photos import Photo, PhotoLike
from coprs_core.probes.finding import Finding
from coprs_core.probes.focus import FocusView, check_reply_ids, guarded, reread, view_at
from coprs_core.probes.looks import observed
from coprs_core.probes.sentences import trace_figure

MAX_WORD_CHARACTERS = 200


@dataclass(frozen=True, eq=False)
class Words(Finding):
    """The reply token by token, as text; `at` takes an index into it."""

    words: list[str]

    def stem(self) -> str:
        return "words"

    def to_dict(self) -> dict:
        return {"words": self.words}

    def summary(self) -> str:
        return f"{len(self.words)} words, numbered from 0"


@dataclass(frozen=True, eq=False)
class WordFocus(Finding):
    """Where one token of the reply looks; `number` counts the tokens from 0."""

    number: int
    view: FocusView

    def stem(self) -> str:
        return f"word_{self.number}"

    def to_dict(self) -> dict:
        return self.view.to_dict() | {"number": self.number}

    def summary(self) -> str:
        return f"{self.view.text!r}, IoU {self.view.iou:.2f}, spread {self.view.spread:.2f}"

    def payloads(self) -> Iterator[Any]:
        yield self.view.to_dict(with_pixels=True) | {"number": self.number}

    def array(self) -> np.ndarray:
        return self.view.prior

    def figure(self, photo: Photo) -> Figure:
        return trace_figure(np.asarray(photo.image), [self.view], None)


def ask(engine: Engine, image: PhotoLike, result: Result) -> Words:
    """The words of the reply, numbered from 0."""
    check_reply_ids(engine, result)
    return Words(engine.local.language.pieces_of(result.reply_ids))


@guarded
def at(engine: Engine, image: PhotoLike, result: Result, word: str | int) -> WordFocus:
    """Where one token's own hidden state looks when it is taken for the focus embedding; in a model
    that writes coordinates, what the token attends to.

    `word` is the number of a token, or a text of the reply: the place where it is written last.
    """
    number = word if isinstance(word, int) else number_of(engine, result, word)
    count = len(result.reply_ids)
    if not 0 <= number < count:
        raise CoPRSError(
            f"The reply has {count} tokens and number {number} was asked for: count from 0."
        )
    text = engine.local.language.pieces_of(result.reply_ids)[number]
    if not engine.has_focus_token:
        reply = observed(engine, image, result, f"word_{number}")
        return WordFocus(number, reply.view([number], text))
    _, features, reading = reread(engine, image, result)
    embedding = reading.feed(list(result.reply_ids[: number + 1]))[-1:]
    trained = result.reply_ids[number] == engine.focus.focus_id
    return WordFocus(number, view_at(engine, embedding, features, result, text, trained))


def number_of(engine: Engine, result: Result, word: str) -> int:
    """The number of a token: a number as it stands, or where a text of the reply is written
    last."""
    if not isinstance(word, str) or len(word) > MAX_WORD_CHARACTERS:
        raise CoPRSError(
            f"{str(word)[:40]!r} is not a word of the reply: give one, or a number from words.json."
        )
    if word.isdecimal() and len(word) < 10:
        return int(word)
    pieces = ask(engine, None, result).words
    place = "".join(pieces).rfind(word)
    if not word or place < 0:
        raise CoPRSError(
            f"The reply does not hold {word!r}: give a word of it, or a number from words.json."
        )
    ends = accumulate(map(len, pieces))
    return next(n for n, end in enumerate(ends) if end >= place + len(word))
