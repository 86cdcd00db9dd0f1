"""Zoom in: read the surroundings of the prior's mass once more at full resolution, focus and draw again, paste back.

For tiny targets, the paper's first failure. The language model sees the crop and reads its own reply again, so that its
focus token looks at the crop; the logits of that look and of the first one, cut to the crop, are averaged.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from coprs_core.answer.engine import Engine, PhotoFeatures
from coprs_core.errors import CoPRSError
from coprs_core.model.mllm import Reading
from coprs_core.photos import Photo, open_photo
from coprs_core.probes import again
from coprs_core.answer.results import FOUND, Region, Result

MARGIN = 3.5
"""Side of the crop, as a multiple of the extent (four standard deviations) of the prior's mass; chosen on validation scenes."""
LEAST_SHARE = 0.25
MOST_SHARE = 0.9


@dataclass(frozen=True)
class Crop:
    """A square of the photo, in pixels: its left upper corner and its side."""

    top: int
    left: int
    side: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part of an array [H, W, …] that lies inside; a view."""
        return array[self.top : self.top + self.side, self.left : self.left + self.side]


def crop_around(prior: np.ndarray) -> Crop:
    """The square around a prior's mass (where it is at least half its highest), inside the photo; prior float [H, W]."""
    height, width = prior.shape
    y, x = np.nonzero(prior >= prior.max() / 2)
    weights = prior[y, x].astype(np.float64)
    centre = [np.average(v, weights=weights) for v in (y, x)]
    spread = [np.sqrt(np.average((v - c) ** 2, weights=weights)) for v, c in zip((y, x), centre, strict=True)]
    least = LEAST_SHARE * min(height, width)
    side = int(np.ceil(min(max(MARGIN * 4 * max(spread), least), height, width)))
    top, left = (int(np.clip(c - side / 2, 0, n - side)) for c, n in zip(centre, (height, width), strict=True))
    return Crop(top, left, side)


def zoom_in(engine: Engine, image, result: Result) -> tuple[Result, Crop]:
    """The same answer with its prior and mask read again inside a crop, and that crop.

    Outside the crop the prior stays as it was and the mask is empty. Raises `CoPRSError` where the answer found nothing or
    fills so much of the photo that a crop would be all of it.
    """
    with engine.within_memory():
        photo, features, reading = again(engine, image, result)
        if result.outcome != FOUND:
            raise CoPRSError("This answer found nothing, so there is nothing to zoom into: ask for something it finds.")
        crop = crop_around(result.prior)
        if crop.side > MOST_SHARE * min(photo.size):
            raise CoPRSError("This thing is not small: zooming in would show the whole picture again.")
        first = engine.prior_logits(reading.feed(list(result.reply_ids))[-1:], features, photo.size)
        closer = open_photo(crop.of(np.asarray(photo.image)))
        seen = engine.read(closer)
        prior_logits = (_look(engine, closer, seen, result) + _cut(engine, first, photo, crop)) / 2
        prior, mask = result.prior.copy(), np.zeros(photo.size, bool)
        crop.of(prior)[:] = engine.prior_of(prior_logits, closer.size)
        crop.of(mask)[:] = engine.mask_of(prior_logits, seen, closer.size)
        return replace(result, regions=(Region(prior, mask),), reason=f"{result.reason} Zoomed in."), crop


def _look(engine: Engine, closer: Photo, seen: PhotoFeatures, result: Result) -> torch.Tensor:
    """Prior logits [1, 1, p, p] of the focus token over the crop, the reply read with the crop in sight."""
    reading = Reading(engine.model.mllm, engine.prompt(result.instruction, seen.visual), seen.visual)
    return engine.prior_logits(reading.feed(list(result.reply_ids))[-1:], seen, closer.size)


def _cut(engine: Engine, prior_logits: torch.Tensor, photo: Photo, crop: Crop) -> torch.Tensor:
    """The first look's logits inside the crop, in the crop's own prior frame; a square crop has no padding there."""
    whole = engine.at_photo_size(prior_logits, photo.size)[0]
    inside = torch.from_numpy(np.ascontiguousarray(crop.of(whole)))[None, None].to(prior_logits)
    return F.interpolate(inside, size=prior_logits.shape[-2:], mode="bilinear", align_corners=False)
