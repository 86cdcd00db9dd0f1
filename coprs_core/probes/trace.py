"""A thought's trace: where the model looks at points of its reply.

Made by the probes, saved with an answer, and opened again without a model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coprs_core.answer.pictures import (
    downscale_mask,
    downscale_prior,
    downscaled_size,
    prior_overlay,
    thumbnail,
)
from coprs_core.masks import encode_prior, encode_rle
from coprs_core.metrics import PRIOR_THRESHOLD, iou
from coprs_core.photos.photo import Photo, PhotoLike
from coprs_core.probes.finding import Finding
from coprs_core.prompts import (
    FOCUS_TOKEN_PRIOR,
    MAX_GIVEN_THOUGHT_CHARACTERS,
    PRIOR_KINDS,
    PriorKind,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MIN_SETTLED_IOU, MAX_SENTENCES = 0.5, 64
SAVED_SIDE, FIGURE_SIDE = 1024, 640
"""Priors and masks in the files and pictures in the figure are at most this long a side, in
pixels."""
MASKS_FILE = "sentences_masks.npy"
MAX_SAVED_PIXELS = 32_000_000
"""Of a saved trace that is opened, all its sentences together: 64 MB of priors in 16 bits."""


@dataclass(frozen=True, eq=False)
class FocusView:
    """Where the model looks at one point of its reply.

    Attributes:
        text: the sentence or the word that was read last.
        prior: float32 [H, W] in [0, 1]; `mask`: bool [H, W], what the decoder makes of it, or the
            answer's own where the prior is attention; both at the photo's size.
        iou: of the prior (≥ 0.5) with the answer's mask.
        spread: entropy of the prior, as a share of the highest possible: 0 for one point, 1 for
            everywhere alike.
        trained: True where the focus token itself was read; the query head was trained for no
            other.
        prior_kind: "focus token", or "attention" in a model that writes coordinates.
        share: of its attention that went to the picture, in [0, 1]; None for a focus token's look.
    """

    text: str
    prior: np.ndarray = field(repr=False)
    mask: np.ndarray = field(repr=False)
    iou: float
    spread: float
    trained: bool = True
    prior_kind: PriorKind = FOCUS_TOKEN_PRIOR
    share: float | None = None

    def to_dict(self, with_pixels: bool = False) -> dict:
        """Its numbers; `with_pixels` adds the prior as a PNG and the mask as COCO RLE."""
        values = {
            "text": self.text,
            "iou": self.iou,
            "spread": self.spread,
            "trained": self.trained,
            "prior_kind": self.prior_kind,
        }
        if self.share is not None:
            values["share"] = self.share
        if with_pixels:
            values |= {"prior": encode_prior(self.prior), "mask": encode_rle(self.mask)}
        return values


@dataclass(frozen=True, eq=False)
class SentenceTrace(Finding):
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
        return find_settling(self.views)

    @property
    def has_moved(self) -> tuple[bool, ...]:
        """Of each sentence: whether the focus after it is elsewhere than after the one before, an
        IoU of the two priors (≥ 0.5) below 0.5; the first has nothing before it."""
        places = [view.prior >= PRIOR_THRESHOLD for view in self.views]
        pairs = zip(places, places[1:], strict=False)
        return (False, *(iou(before, after) < MIN_SETTLED_IOU for before, after in pairs))

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
        return np.stack(
            [downscale_prior(v.prior, SAVED_SIDE).astype(np.float16) for v in self.views]
        )

    def save(self, folder: Path | str, photo: PhotoLike) -> list[Path]:
        written = super().save(folder, photo)
        masks = np.stack([downscale_mask(v.mask, SAVED_SIDE) for v in self.views])
        np.save(Path(folder) / MASKS_FILE, masks)
        return [*written, Path(folder) / MASKS_FILE]

    def figure(self, photo: Photo) -> Figure:
        return trace_figure(np.asarray(photo.image), self.views, self.settles_at)


def find_settling(views: tuple[FocusView, ...]) -> int | None:
    """See `SentenceTrace.settles_at`."""
    settled = None
    for i in reversed(range(len(views))):
        last, this = (v.prior >= PRIOR_THRESHOLD for v in (views[-1], views[i]))
        if iou(this, last) < MIN_SETTLED_IOU:
            break
        settled = i
    return settled


def parse_trace(
    values: dict, priors: np.ndarray, masks: np.ndarray, photo_size: tuple[int, int]
) -> SentenceTrace:
    """The trace that `SentenceTrace.save` wrote: its JSON, float16 [sentences, h, w], bool of the
    same shape; priors and masks stay at that size. Raises `ValueError` for anything else."""
    entries = values["sentences"]
    side = min(max(masks.shape[1:], default=0), SAVED_SIDE)
    shape = (len(entries), *downscaled_size(photo_size, side))
    if not 1 <= len(entries) <= MAX_SENTENCES + 1:
        raise ValueError(f"{len(entries)} sentences")
    for array, kind in ((priors, np.float16), (masks, np.bool_)):
        if array.shape != shape or array.dtype != kind:
            raise ValueError(f"{array.dtype} {array.shape} of a trace of {shape}")
    if not (priors.min() >= 0 and priors.max() <= 1):
        raise ValueError("a prior outside 0 to 1")
    views = []
    for entry, prior, mask in zip(entries, priors, masks, strict=True):
        text, kind, share = entry["text"], entry["prior_kind"], entry.get("share")
        if (
            not isinstance(text, str)
            or len(text) > MAX_GIVEN_THOUGHT_CHARACTERS
            or kind not in PRIOR_KINDS
        ):
            raise ValueError("a sentence that is none")
        text.encode("utf-8")  # a lone surrogate cannot be printed or sent
        shares = [
            float(entry["iou"]),
            float(entry["spread"]),
            *([] if share is None else [float(share)]),
        ]
        if not all(0 <= value <= 1 for value in shares):
            raise ValueError("a figure outside 0 to 1")
        numbers = shares[0], shares[1], bool(entry["trained"])
        share = None if share is None else shares[2]
        views.append(FocusView(text, prior.astype(np.float32), mask, *numbers, kind, share))
    return SentenceTrace(tuple(views))


def trace_figure(
    photo: np.ndarray, views: tuple[FocusView, ...] | list[FocusView], settled: int | None
) -> Figure:
    """Each view as a picture over the photo uint8 [H, W, 3]; IoU and spread as lines below."""
    size = (3.4 * max(3, len(views)), 6.2)
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    small = thumbnail(photo, FIGURE_SIDE)
    halves: Any = figure.subfigures(2, 1, height_ratios=(3.4, 2))
    above, below = halves
    axes = np.atleast_1d(above.subplots(1, len(views)))
    for i, (ax, view) in enumerate(zip(axes, views, strict=True)):
        ax.imshow(prior_overlay(small, downscale_prior(view.prior, FIGURE_SIDE)))
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


def normalized_entropy(prior: np.ndarray) -> float:
    """Entropy of a prior [H, W] as a share of that of an even one: 0 for one point, 1 for
    everywhere alike."""
    if prior.size < 2:
        return 0.0
    shares = prior.astype(np.float64).ravel() / max(float(prior.sum(dtype=np.float64)), 1e-12)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(prior.size))
