"""What the probes of attention share: a reply read once more, while it is observed where its words
look."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coprs_core.answer.results import Result, check_photo_size
from coprs_core.metrics import prior_mask_iou
from coprs_core.model.backends.boxes import words_of_numbers
from coprs_core.photos.photo import Photo, PhotoLike, open_photo
from coprs_core.probes.finding import NotApplicable
from coprs_core.probes.focus import check_reply, check_reply_ids
from coprs_core.probes.trace import FocusView, normalized_entropy
from coprs_core.prompts import ATTENTION_PRIOR

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine
    from coprs_core.model.backends.attention import Looks
    from coprs_core.model.backends.language import LanguageModel

MAX_WORDS = 2048
_TAGS = re.compile(r"</?(?:think|answer)>")


@dataclass(frozen=True, eq=False)
class ObservedReply:
    """A reply about a photo, what its words attend to, and the `heads` that tell a place."""

    photo: Photo
    result: Result
    looks: Looks = field(repr=False)
    heads: list[int]

    def seen(self, words: Iterable[int]) -> np.ndarray:
        """Where tokens of the reply look, by their index: float32 [rows, columns], the share of
        attention that each cell of the picture gets."""
        return self.looks.map(words, self.heads)

    def view(self, words: Iterable[int], text: str) -> FocusView:
        """The same as a prior beside the answer's own mask."""
        seen = self.seen(words)
        from coprs_core.model.backends.attention import as_prior

        prior = as_prior(seen, self.photo.size)
        mask = self.result.mask
        return FocusView(
            *(text, prior, mask, prior_mask_iou(prior, mask), normalized_entropy(prior), False),
            prior_kind=ATTENTION_PRIOR,
            share=float(seen.sum()),
        )


def observe_reply(engine: Engine, image: PhotoLike, result: Result, stem: str) -> ObservedReply:
    """An answer's reply, read once more.

    Raises:
        CoPRSError: the photo or the model is not the one of the answer, or runs elsewhere.
        NotApplicable: the reply is too long; `stem` begins the names of the probe's files.
    """
    from coprs_core.model.backends.attention import MOST_QUERIES, Looks

    segmenter, photo = engine.local, open_photo(image)
    check_photo_size(result.photo_size, photo.size)
    check_reply_ids(engine, result)
    ids = list(result.reply_ids)
    if len(ids) > MAX_WORDS:
        raise NotApplicable(
            "This reply has {count:,} tokens and at most {most:,} are looked into: ask for a "
            "shorter one.",
            stem,
            count=len(ids),
            most=MAX_WORDS,
        )
    check_reply(engine, result)
    features = engine.read(photo)

    def read_again(looks: Looks) -> Looks:
        reading = segmenter.reading(result.instruction, features)
        for start in range(0, len(ids), MOST_QUERIES):
            looks.feed(reading, ids[start : start + MOST_QUERIES])
        return looks

    looks = read_again(segmenter.language.looks(features.visual))
    heads = looks.heads()
    if looks.is_cut:  # all heads of all words are too many: once more, by those that were chosen
        looks = read_again(Looks(looks.grid, only=heads))
    return ObservedReply(photo, result, looks, heads)


def pointing_words(engine: Engine, result: Result) -> list[int]:
    """The tokens of a reply that point at something: the focus token, or those that wrote the
    numbers."""
    if engine.has_focus_token:
        return [len(result.reply_ids) - 1]
    pieces = tuple(engine.local.language.pieces_of(result.reply_ids))
    written = words_of_numbers(pieces, len(result.regions))
    return sorted({word for one in written for word in one})


def visible_text(language: LanguageModel, ids: list[int]) -> str:
    """A piece of a reply as it is shown: without its end, and the tags around thought and
    answer."""
    text = language.text_of([i for i in ids if i not in language.stop_ids])
    return _TAGS.sub("", text).strip()
