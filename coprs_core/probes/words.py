"""Words: where each token of the reply looks.

With a focus token it is where the word's own hidden state looks. Only the focus token's was trained
for the query head, so a word's look is a probe, not an explanation. In a model that writes
coordinates it is the word's attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from coprs_core.answer.pictures import downscaled_size
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.masks import encode_prior
from coprs_core.photos.photo import Photo, PhotoLike
from coprs_core.probes.finding import Finding, NotApplicable
from coprs_core.probes.reply_attention import compute_reply_attention
from coprs_core.probes.rereading import (
    check_reply_ids,
    check_reply_text,
    focus_view,
    reread_answer,
    with_memory_guard,
)
from coprs_core.probes.trace import FocusView, trace_figure
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR, PriorKind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from coprs_core.answer.engine import Engine

MAX_WORD_CHARACTERS = 200
MAX_WORDS, MAP_SIDE = 512, 64
"""How many tokens are looked into together, and how long a side their maps are at most, in pixels:
512 maps of 64 × 64 take 8 MB."""


@dataclass(frozen=True, eq=False)
class WordMaps(Finding):
    """The reply token by token, and where each looks; `focus_of_word` takes an index into it.

    Attributes:
        words: the tokens as text.
        maps: float32 [tokens, h, w] in [0, 1], at most 64 pixels a side: each one's prior, or
            attention whose brightest place is 1.
        highest: of each prior as it is, or the share of attention that went to the picture.
        trained: of each: whether it is the focus token itself.
        prior_kind: "focus token", or "attention" in a model that writes coordinates.
    """

    words: list[str]
    maps: np.ndarray = field(repr=False)
    highest: list[float]
    trained: list[bool]
    prior_kind: PriorKind = FOCUS_TOKEN_PRIOR

    def stem(self) -> str:
        return "words"

    def to_dict(self) -> dict:
        rounded = [round(value, 4) for value in self.highest]
        return {"words": self.words, "highest": rounded, "prior_kind": self.prior_kind}

    def payloads(self) -> Iterator[Any]:
        yield self.to_dict() | {"maps": [encode_prior(one) for one in self.maps]}

    def array(self) -> np.ndarray:
        return self.maps.astype(np.float16)

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


@with_memory_guard
def run(engine: Engine, image: PhotoLike, result: Result) -> WordMaps:
    """Where each word of the reply looks, numbered from 0, in one forward pass."""
    words = reply_tokens_as_text(engine, result)
    if len(words) > MAX_WORDS:
        raise NotApplicable(
            "This reply has {count:,} tokens and at most {most} are looked into together: "
            "ask for one word.",
            "words",
            count=len(words),
            most=MAX_WORDS,
        )
    if not engine.has_focus_token:
        return _run_attention(engine, image, result, words)
    focus = engine.focus
    photo, features, session = reread_answer(engine, image, result)
    states, small = session.feed(list(result.reply_ids)), downscaled_size(photo.size, MAP_SIDE)
    maps = np.stack(
        [focus.compute_prior(focus.compute_prior_logits(s[None], features), small) for s in states]
    )
    trained = [token == focus.focus_id for token in result.reply_ids]
    return WordMaps(words, maps, [float(one.max()) for one in maps], trained)


def _run_attention(engine: Engine, image: PhotoLike, result: Result, words: list[str]) -> WordMaps:
    from coprs_core.model.backends.attention import attention_to_prior

    reply = compute_reply_attention(engine, image, result, "words")
    grids = [reply.attention_map([number]) for number in range(len(words))]
    small = downscaled_size(reply.photo.size, MAP_SIDE)
    maps = np.stack([attention_to_prior(grid, small) for grid in grids])
    shares = [float(grid.sum()) for grid in grids]
    return WordMaps(words, maps, shares, [False] * len(words), ATTENTION_PRIOR)


def reply_tokens_as_text(engine: Engine, result: Result) -> list[str]:
    """The reply's tokens as text; raises `CoPRSError` where this model did not write it."""
    check_reply_ids(engine, result)
    check_reply_text(engine, result)
    return engine.local_segmenter.language.token_texts(result.reply_ids)


@with_memory_guard
def focus_of_word(engine: Engine, image: PhotoLike, result: Result, word: str | int) -> WordFocus:
    """Where one token's own hidden state looks when it is taken for the focus embedding; in a model
    that writes coordinates, what the token attends to.

    `word` is the number of a token, or a text of the reply: the place where it is written last.
    """
    number = word if isinstance(word, int) else find_token(engine, result, word)
    count = len(result.reply_ids)
    if not 0 <= number < count:
        raise CoPRSError(
            "The reply has {count} tokens and number {number} was asked for: count from 0.",
            count=count,
            number=number,
        )
    text = reply_tokens_as_text(engine, result)[number]
    if not engine.has_focus_token:
        reply = compute_reply_attention(engine, image, result, f"word_{number}")
        return WordFocus(number, reply.focus_view([number], text))
    _, features, session = reread_answer(engine, image, result)
    embedding = session.feed(list(result.reply_ids[: number + 1]))[-1:]
    focus_id, mask = engine.focus.focus_id, result.mask
    trained = result.reply_ids[number] == focus_id
    index = result.reply_ids[:number].count(focus_id)
    if trained and index < len(result.regions):  # compared with its own object, not with all
        mask = result.regions[index].mask
    return WordFocus(number, focus_view(engine, embedding, features, mask, text, trained))


def find_token(engine: Engine, result: Result, word: str) -> int:
    """The number of a token: a number as it stands, or where a text of the reply is written
    last."""
    if not isinstance(word, str) or len(word) > MAX_WORD_CHARACTERS:
        raise CoPRSError(
            "{word!r} is not a word of the reply: give one, or a number from words.json.",
            word=str(word)[:40],
        )
    if word.isdecimal() and len(word) < 10:
        return int(word)
    texts = reply_tokens_as_text(engine, result)
    place = "".join(texts).rfind(word)
    if not word or place < 0:
        raise CoPRSError(
            "The reply does not hold {word!r}: give a word of it, or a number from words.json.",
            word=word,
        )
    ends = accumulate(map(len, texts))
    return next(n for n, end in enumerate(ends) if end >= place + len(word))
