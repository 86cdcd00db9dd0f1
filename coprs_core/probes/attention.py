"""Attention: where the words of a thought looked in the picture, whatever kind of model wrote them.

This is the language model's own attention, by its few localization heads (see
`model.backends.attention`). It is not the focus token's look: nothing was trained for it, and a
model that writes coordinates has it too. The reply is read once more, a few tokens at a time.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from coprs_core.answer.pictures import downscaled_size, prior_overlay, thumbnail
from coprs_core.answer.results import Result
from coprs_core.masks import encode_prior
from coprs_core.photos.photo import Photo, PhotoLike
from coprs_core.probes.finding import Finding, NotApplicable, Picture
from coprs_core.probes.reply_attention import compute_reply_attention, visible_text
from coprs_core.probes.rereading import check_reply_ids, with_memory_guard
from coprs_core.probes.sentences import sentence_token_ends
from coprs_core.probes.trace import MAX_SENTENCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from coprs_core.answer.engine import Engine

PICTURE_SIDE = 640
"""Pictures and saved maps are at most this long a side, in pixels."""


@dataclass(frozen=True, eq=False)
class SentenceAttention:
    """Where the words of one sentence looked.

    Attributes:
        text: the sentence.
        attention_map: float32 [h, w] in [0, 1], at most 640 pixels a side, its brightest place 1.
        share: how much of these heads' attention went to the picture at all, in [0, 1].
    """

    text: str
    attention_map: np.ndarray = field(repr=False)
    share: float


@dataclass(frozen=True, eq=False)
class AttentionFinding(Finding):
    """Attention of each sentence of the thought, then of what follows it; `heads`: the localization
    heads used, of the model's `num_heads`."""

    sentences: tuple[SentenceAttention, ...] = field(repr=False)
    heads: tuple[int, ...]
    num_heads: int

    def stem(self) -> str:
        return "attention"

    def to_dict(self) -> dict:
        sentences = [{"text": s.text, "share": s.share} for s in self.sentences]
        return {"heads": list(self.heads), "of_heads": self.num_heads, "sentences": sentences}

    def summary(self) -> str:
        lines = [f"  {100 * s.share:.0f} %  {s.text}" for s in self.sentences]
        return "\n".join(
            ["share of attention on the picture by its heads that tell a place", *lines]
        )

    def payloads(self) -> Iterator[Any]:
        for s in self.sentences:
            yield {"text": s.text, "share": s.share, "map": encode_prior(s.attention_map)}

    def pictures(self, photo: Photo) -> list[Picture]:
        small = thumbnail(np.asarray(photo.image), PICTURE_SIDE)
        return [
            Picture(
                "looked",
                {"text": s.text, "share": f"{100 * s.share:.0f}"},
                prior_overlay(small, s.attention_map),
            )
            for s in self.sentences
        ]

    def figure(self, photo: Photo) -> Figure:
        """Each picture under its sentence."""
        pictures = self.pictures(photo)
        from matplotlib.figure import Figure

        size = (3.4 * len(pictures), 4.4)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = np.atleast_1d(figure.subplots(1, len(pictures)))
        for ax, picture in zip(axes, pictures, strict=True):
            ax.imshow(picture.pixels)
            ax.set_axis_off()
            text = textwrap.fill(picture.values["text"], 38, max_lines=5, placeholder=" …")
            share = f"{picture.values['share']} % on the picture"
            ax.set_title(f"{text}\n{share}", fontsize=9, parse_math=False)
        return figure

    def array(self) -> np.ndarray:
        """float16 [sentences, h, w]."""
        return np.stack([s.attention_map.astype(np.float16) for s in self.sentences])


@with_memory_guard
def run(engine: Engine, image: PhotoLike, result: Result) -> AttentionFinding:
    """Where the words of each sentence looked, and those behind the thought.

    Raises:
        CoPRSError: the photo or the model is not the one of the answer, or runs elsewhere.
    """
    from coprs_core.model.backends.attention import attention_to_prior

    check_reply_ids(engine, result)
    language, ids = engine.local_segmenter.language, list(result.reply_ids)
    sentences = sentence_token_ends(language, ids, engine.local_segmenter.thought_stop_ids)
    if len(sentences) > MAX_SENTENCES:
        raise NotApplicable(
            "This thought has {count} sentences and at most {most} are looked into: ask for "
            "a shorter one.",
            "attention",
            count=len(sentences),
            most=MAX_SENTENCES,
        )
    reply = compute_reply_attention(engine, image, result, "attention")
    photo = reply.photo
    # the answer behind the thought counts as one more sentence
    if (thought_end := sentences[-1][0] if sentences else 0) < len(ids):
        sentences.append((len(ids), visible_text(language, ids[thought_end:])))
    first, measured = 0, []
    small = downscaled_size(photo.size, PICTURE_SIDE)
    for end, text in sentences:
        shares = reply.attention_map(range(first, end))
        measured.append(
            SentenceAttention(text, attention_to_prior(shares, small), float(shares.sum()))
        )
        first = end
    return AttentionFinding(tuple(measured), tuple(reply.heads), reply.trace.num_heads)
