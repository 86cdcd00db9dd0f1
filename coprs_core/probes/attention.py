"""Attention: where the words of a thought looked in the picture, whatever kind of model wrote them.

This is the language model's own attention, by the few of its heads that tell a place
(`model.attention.Looks`). It is not the focus token's look: nothing was trained for it, and a
model that writes coordinates has it too. The reply is read once more, a few words at a time.
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
from coprs_core.probes.focus import check_reply_ids, out_of_memory_guarded
from coprs_core.probes.looks import observe_reply, visible_text
from coprs_core.probes.sentences import sentences_of
from coprs_core.probes.trace import MAX_SENTENCES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from coprs_core.answer.engine import Engine

SHOWN_SIDE = 640
"""Pictures and saved maps are at most this long a side, in pixels."""


@dataclass(frozen=True, eq=False)
class SentenceLook:
    """Where the words of one sentence looked.

    Attributes:
        text: the sentence.
        seen: float32 [h, w] in [0, 1], at most 640 pixels a side, its brightest place 1.
        share: how much of these heads' attention went to the picture at all, in [0, 1].
    """

    text: str
    seen: np.ndarray = field(repr=False)
    share: float


@dataclass(frozen=True, eq=False)
class Attention(Finding):
    """One look a sentence of the thought, then one of what follows it; `heads` that were asked, of
    `of_heads`."""

    looks: tuple[SentenceLook, ...] = field(repr=False)
    heads: tuple[int, ...]
    of_heads: int

    def stem(self) -> str:
        return "attention"

    def to_dict(self) -> dict:
        looks = [{"text": look.text, "share": look.share} for look in self.looks]
        return {"heads": list(self.heads), "of_heads": self.of_heads, "sentences": looks}

    def summary(self) -> str:
        lines = [f"  {100 * look.share:.0f} %  {look.text}" for look in self.looks]
        return "\n".join(
            ["share of attention on the picture by its heads that tell a place", *lines]
        )

    def payloads(self) -> Iterator[Any]:
        for look in self.looks:
            yield {"text": look.text, "share": look.share, "map": encode_prior(look.seen)}

    def pictures(self, photo: Photo) -> list[Picture]:
        small = thumbnail(np.asarray(photo.image), SHOWN_SIDE)
        return [
            Picture(
                "looked",
                {"text": look.text, "share": f"{100 * look.share:.0f}"},
                prior_overlay(small, look.seen),
            )
            for look in self.looks
        ]

    def figure(self, photo: Photo) -> Figure:
        """Each picture under its sentence."""
        shown = self.pictures(photo)
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.4 * len(shown), 4.4), layout="constrained", facecolor="white")
        for ax, picture in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
            ax.imshow(picture.pixels)
            ax.set_axis_off()
            text = textwrap.fill(picture.values["text"], 38, max_lines=5, placeholder=" …")
            share = f"{picture.values['share']} % on the picture"
            ax.set_title(f"{text}\n{share}", fontsize=9, parse_math=False)
        return figure

    def array(self) -> np.ndarray:
        """float16 [sentences, h, w]."""
        return np.stack([look.seen.astype(np.float16) for look in self.looks])


@out_of_memory_guarded
def run(engine: Engine, image: PhotoLike, result: Result) -> Attention:
    """Where the words of each sentence looked, and those behind the thought.

    Raises:
        CoPRSError: the photo or the model is not the one of the answer, or runs elsewhere.
    """
    from coprs_core.model.backends.attention import as_prior

    check_reply_ids(engine, result)
    language, ids = engine.local.language, list(result.reply_ids)
    sentences = sentences_of(language, ids, engine.local.ends)
    if len(sentences) > MAX_SENTENCES:
        raise NotApplicable(
            "This thought has {count} sentences and at most {most} are looked into: ask for "
            "a shorter one.",
            "attention",
            count=len(sentences),
            most=MAX_SENTENCES,
        )
    reply = observe_reply(engine, image, result, "attention")
    photo = reply.photo
    if (read := sentences[-1][0] if sentences else 0) < len(ids):
        sentences.append((len(ids), visible_text(language, ids[read:])))
    first, found = 0, []
    small = downscaled_size(photo.size, SHOWN_SIDE)
    for end, text in sentences:
        seen = reply.seen(range(first, end))
        found.append(SentenceLook(text, as_prior(seen, small), float(seen.sum())))
        first = end
    return Attention(tuple(found), tuple(reply.heads), reply.looks.heads_in_all)
