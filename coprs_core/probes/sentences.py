"""Sentence by sentence: the thought is cut after each sentence, closed, and the model focuses
there.

The model really reads the shortened thought and its focus token. The cache is kept from sentence to
sentence, so that the whole trace costs less than one more answer. A model that writes coordinates
has no focus token: there it is where the words of each sentence looked.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from coprs_core.answer.engine import Engine
from coprs_core.answer.pictures import prior_overlay, small_prior, thumbnail
from coprs_core.answer.results import Result
from coprs_core.metrics import PRIOR_THRESHOLD, iou
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.model.language import LanguageModel
from coprs_core.photos import Photo, PhotoLike
from coprs_core.probes.finding import Finding, NotApplicable
from coprs_core.probes.focus import FocusView, check_reply_ids, guarded, reread, spread, view_at
from coprs_core.probes.looks import observed, shown
from coprs_core.prompts import SENTENCE_END

SETTLED_IOU, MAX_SENTENCES = 0.5, 64
SAVED_SIDE, FIGURE_SIDE = 1024, 640
"""Priors in the file and pictures in the figure are at most this long a side, in pixels."""


@dataclass(frozen=True, eq=False)
class Sentences(Finding):
    """One `FocusView` a sentence; where the answer found something the last is the answer's own.

    In a model that writes coordinates the words behind the thought are one more.
    """

    views: tuple[FocusView, ...] = field(repr=False)

    def stem(self) -> str:
        return "sentences"

    @property
    def settles_at(self) -> int | None:
        """Index of the sentence after which the focus stays where it ends; None without any.

        From there on this prior, and every later one, has an IoU of at least 0.5 with the last.
        """
        return settles_at(self.views)

    def to_dict(self) -> dict:
        sentences = [view.to_dict() for view in self.views]
        return {"settles_at": self.settles_at, "sentences": sentences}

    def summary(self) -> str:
        settled = self.settles_at
        lines = [
            f"  {i}. IoU {v.iou:.2f}{' (settles here)' if i - 1 == settled else ''}  {v.text}"
            for i, v in enumerate(self.views, start=1)
        ]
        return "\n".join(["IoU of the prior with the answer's mask after each", *lines])

    def payloads(self) -> Iterator[Any]:
        settled = self.settles_at
        for i, view in enumerate(self.views):
            yield view.to_dict(with_pixels=True) | {"settled": i == settled}

    def array(self) -> np.ndarray:
        """float16 [sentences, h, w], at most 1,024 pixels a side."""
        return np.stack([small_prior(v.prior, SAVED_SIDE).astype(np.float16) for v in self.views])

    def figure(self, photo: Photo) -> Figure:
        return trace_figure(np.asarray(photo.image), self.views, self.settles_at)


@guarded
def ask(engine: Engine, image: PhotoLike, result: Result) -> Sentences:
    """Where the model would have focused after each sentence of its thought, one after the
    other; in a model that writes coordinates, where each sentence looked."""
    if not engine.has_focus_token:
        return _attended(engine, image, result)
    _, features, reading = reread(engine, image, result)
    ids, views, read = list(result.reply_ids), [], 0
    closing = _closing(engine.focus, ids)
    for end, sentence in _thought_of(engine, ids):
        if end > read:
            reading.feed(ids[read:end])
            read = end
        embedding = reading.feed(closing)[-1:]
        reading.forget(len(closing))
        views.append(view_at(engine, embedding, features, result, sentence))
    return Sentences(tuple(views))


def _thought_of(engine: Engine, ids: list[int]) -> list[tuple[int, str]]:
    """`sentences_of` a reply; raises `NotApplicable` where there are none, or too many."""
    sentences = sentences_of(engine.local.language, ids, engine.local.ends)
    if len(sentences) > MAX_SENTENCES:
        raise NotApplicable(
            f"This thought has {len(sentences)} sentences and at most {MAX_SENTENCES} are traced: "
            "ask for a shorter one.",
            "sentences",
        )
    if not sentences:
        raise NotApplicable(
            "This answer holds no thought to trace: ask again with more tokens.", "sentences"
        )
    return sentences


def _attended(engine: Engine, image: PhotoLike, result: Result) -> Sentences:
    check_reply_ids(engine, result)
    language, ids = engine.local.language, list(result.reply_ids)
    sentences, first, views = _thought_of(engine, ids), 0, []
    reply = observed(engine, image, result, "sentences")
    for end, text in sentences:
        views.append(reply.view(range(first, end), text))
        first = end
    if first < len(ids) and (text := shown(language, ids[first:])):
        last = reply.view(range(first, len(ids)), text)
        if result.prior is not None:  # the numbers alone made it
            agreement = iou(result.prior >= PRIOR_THRESHOLD, result.mask)
            last = replace(last, prior=result.prior, iou=agreement, spread=spread(result.prior))
        views.append(last)
    return Sentences(tuple(views))


def settles_at(views: tuple[FocusView, ...]) -> int | None:
    """See `Sentences.settles_at`."""
    settled = None
    for i in reversed(range(len(views))):
        last, this = (v.prior >= PRIOR_THRESHOLD for v in (views[-1], views[i]))
        if iou(this, last) < SETTLED_IOU:
            break
        settled = i
    return settled


def trace_figure(
    photo: np.ndarray, views: tuple[FocusView, ...] | list[FocusView], settled: int | None
) -> Figure:
    """Each view as a picture over the photo uint8 [H, W, 3]; IoU and spread as lines below."""
    size = (3.4 * max(3, len(views)), 6.2)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    small = thumbnail(photo, FIGURE_SIDE)
    halves: Any = figure.subfigures(2, 1, height_ratios=(3.4, 2))
    above, below = halves
    axes = np.atleast_1d(above.subplots(1, len(views)))
    for i, (ax, view) in enumerate(zip(axes, views, strict=True)):
        ax.imshow(prior_overlay(small, small_prior(view.prior, FIGURE_SIDE)))
        ax.set_axis_off()
        mark = " (the focus has settled)" if i == settled else ""
        title = textwrap.fill(f"{i + 1}. {view.text}", 38, max_lines=5, placeholder=" …")
        ax.set_title(f"{title}\nIoU {view.iou:.2f}{mark}", fontsize=9, parse_math=False)
    ax = below.subplots()
    numbers = range(1, len(views) + 1)
    iou_label = "IoU of prior and the answer's mask"
    ax.plot(numbers, [v.iou for v in views], "o-", color="#5b1a6b", label=iou_label)
    spreads = [v.spread for v in views]
    ax.plot(numbers, spreads, "s--", color="#b8420f", label="spread of the prior")
    ax.set(xticks=list(numbers), ylim=(0, 1.02), xlabel="sentence")
    ax.legend(fontsize=8, frameon=False)
    return figure


def sentences_of(language: LanguageModel, ids: list[int], ends: set[int]) -> list[tuple[int, str]]:
    """(number of reply tokens, text) at the end of each sentence of a thought, which a closing tag
    or one of the tokens `ends` ends."""
    pieces = language.pieces_of(ids)[: _thought_end(language, ids, ends)]
    lengths, text = list(accumulate(map(len, pieces))), "".join(pieces)
    start = text.find("<think>") + len("<think>") if "<think>" in text else 0
    found = []
    for end in [*(m.end() for m in SENTENCE_END.finditer(text, start)), len(text)]:
        if sentence := text[start:end].strip():
            tokens = 1 + next(n for n, length in enumerate(lengths) if length >= end)
            found.append((tokens, sentence))
            start = end
    return found


def _thought_end(language: LanguageModel, ids: list[int], ends: set[int]) -> int:
    """Index of a thought's closing tag, else of the token that ends it, else its length."""
    tag = language.ids_of("</think>")
    is_end = (ids[i] in ends or ids[i : i + len(tag)] == tag for i in range(len(ids)))
    return next((i for i, ends_here in enumerate(is_end) if ends_here), len(ids))


def _closing(focus: FocusTokenSegmenter, ids: list[int]) -> list[int]:
    """What ends a thought and focuses: as the reply itself did, else closing tag and focus
    token."""
    if ids[-1:] == [focus.focus_id]:
        return ids[_thought_end(focus.language, ids, focus.ends) :]
    return [*focus.language.ids_of("</think>"), focus.focus_id]
