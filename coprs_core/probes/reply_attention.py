"""The attention of a reply's tokens, recorded while the reply is read once more."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coprs_core.answer.results import Result, check_photo_size
from coprs_core.metrics import prior_mask_iou
from coprs_core.model.backends.boxes import coordinate_token_indices
from coprs_core.photos.photo import Photo, PhotoLike, open_photo
from coprs_core.probes.finding import NotApplicable
from coprs_core.probes.rereading import check_reply_ids, check_reply_text
from coprs_core.probes.trace import FocusView, normalized_entropy
from coprs_core.prompts import ATTENTION_PRIOR

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine
    from coprs_core.model.backends.attention import AttentionTrace
    from coprs_core.model.backends.language import LanguageModel

MAX_REPLY_TOKENS = 2048
_TAGS = re.compile(r"</?(?:think|answer)>")


@dataclass(frozen=True, eq=False)
class ReplyAttention:
    """A reply about a photo, the `trace` of its tokens' attention, and the localization `heads`."""

    photo: Photo
    result: Result
    trace: AttentionTrace = field(repr=False)
    heads: list[int]

    def attention_map(self, tokens: Iterable[int]) -> np.ndarray:
        """Where tokens of the reply look, by their index: float32 [rows, columns], the share of
        their attention that each cell of the picture gets, averaged over tokens and heads."""
        return self.trace.attention_map(tokens, self.heads)

    def focus_view(self, tokens: Iterable[int], text: str) -> FocusView:
        """Where tokens look as a prior, compared with the answer's own mask."""
        shares = self.attention_map(tokens)
        from coprs_core.model.backends.attention import attention_to_prior

        prior = attention_to_prior(shares, self.photo.size)
        mask = self.result.mask
        return FocusView(
            *(text, prior, mask, prior_mask_iou(prior, mask), normalized_entropy(prior), False),
            prior_kind=ATTENTION_PRIOR,
            share=float(shares.sum()),
        )


def compute_reply_attention(
    engine: Engine, image: PhotoLike, result: Result, stem: str
) -> ReplyAttention:
    """Read an answer's reply once more and record its attention.

    Raises:
        CoPRSError: the photo or the model is not the one of the answer, or runs elsewhere.
        NotApplicable: the reply is too long; `stem` begins the names of the probe's files.
    """
    from coprs_core.model.backends.attention import MAX_RECORDED_QUERIES, AttentionTrace

    segmenter, photo = engine.local_segmenter, open_photo(image)
    check_photo_size(result.photo_size, photo.size)
    check_reply_ids(engine, result)
    ids = list(result.reply_ids)
    if len(ids) > MAX_REPLY_TOKENS:
        raise NotApplicable(
            "This reply has {count:,} tokens and at most {most:,} are looked into: ask for a "
            "shorter one.",
            stem,
            count=len(ids),
            most=MAX_REPLY_TOKENS,
        )
    check_reply_text(engine, result)
    features = engine.read(photo)

    def read_again(attention: AttentionTrace) -> AttentionTrace:
        session = segmenter.start_session(result.instruction, features)
        for start in range(0, len(ids), MAX_RECORDED_QUERIES):
            attention.feed(session, ids[start : start + MAX_RECORDED_QUERIES])
        return attention

    attention = read_again(segmenter.language.new_attention_trace(features.visual))
    heads = attention.localization_heads()
    if attention.is_truncated:
        # all heads of all tokens take too much memory: read again, with the chosen heads alone
        attention = read_again(AttentionTrace(attention.grid, kept_heads=heads))
    return ReplyAttention(photo, result, attention, heads)


def pointing_tokens(engine: Engine, result: Result) -> list[int]:
    """The tokens of a reply that point at something: the focus token, or those that wrote the
    numbers."""
    if engine.has_focus_token:
        return [len(result.reply_ids) - 1]
    pieces = tuple(engine.local_segmenter.language.token_texts(result.reply_ids))
    per_region = coordinate_token_indices(pieces, len(result.regions))
    return sorted({token for tokens in per_region for token in tokens})


def visible_text(language: LanguageModel, ids: list[int]) -> str:
    """A piece of a reply as users see it, without stop tokens and tags."""
    text = language.decode_ids([i for i in ids if i not in language.stop_ids])
    return _TAGS.sub("", text).strip()
