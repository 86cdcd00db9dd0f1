"""Zoom in: read the surroundings of the prior's mass once more, focus and draw again, paste back.

For tiny targets, the paper's first failure. The language model sees the crop and reads its own
reply again, so that its focus token looks at the crop; the logits of that look and of the first
one, cut to the crop, are averaged.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from coprs_core.answer.engine import Engine
from coprs_core.answer.results import Region, Result
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.model.segmenter import PhotoFeatures
from coprs_core.photos import PhotoLike, open_photo
from coprs_core.probes.finding import NotApplicable, OtherResult
from coprs_core.probes.focus import guarded, reread

MARGIN = 3.5
"""Side of the crop, as a multiple of the extent (four standard deviations) of the prior's mass;
chosen on validation scenes."""
MIN_SHARE, MAX_SHARE = 0.25, 0.9
"""Of the photo's shorter side: what a crop has at least, and at most to be worth it."""
_STEM = "zoomed"


@dataclass(frozen=True)
class Crop:
    """A square of the photo, in pixels: its left upper corner and its side."""

    top: int
    left: int
    side: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part of an array [H, W, …] that lies inside; a view."""
        return array[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True, eq=False)
class Zoomed(OtherResult):
    """The same answer with prior and mask read again inside a crop.

    Outside the crop the prior stays as it was and the mask is empty.
    """

    crop: Crop

    def stem(self) -> str:
        return _STEM

    def facts(self) -> dict:
        return {"crop": asdict(self.crop)}


def crop_around(prior: np.ndarray) -> Crop:
    """The square around a prior's mass (where it is at least half its highest), inside the photo;
    prior float [H, W]."""
    height, width = prior.shape
    y, x = np.nonzero(prior >= prior.max() / 2)
    weights = prior[y, x].astype(np.float64)
    centre = [np.average(v, weights=weights) for v in (y, x)]
    spread = [
        np.sqrt(np.average((v - c) ** 2, weights=weights))
        for v, c in zip((y, x), centre, strict=True)
    ]
    least = MIN_SHARE * min(height, width)
    side = int(np.ceil(min(max(MARGIN * 4 * max(spread), least), height, width)))
    top, left = (
        int(np.clip(c - side / 2, 0, n - side))
        for c, n in zip(centre, (height, width), strict=True)
    )
    return Crop(top, left, side)


@guarded
def ask(engine: Engine, image: PhotoLike, result: Result) -> Zoomed:
    """The answer with prior and mask read again around the prior's mass, and the crop in pixels.

    Raises:
        NotApplicable: nothing was found, or it fills so much of the photo that a crop would be all
            of it.
    """
    focus = engine.focus
    photo, features, reading = reread(engine, image, result)
    if result.prior is None or not result.prior.any():
        raise NotApplicable(
            "This answer found nothing, so there is nothing to zoom into: "
            "ask for something it finds.",
            _STEM,
        )
    crop = crop_around(result.prior)
    if crop.side > MAX_SHARE * min(photo.size):
        raise NotApplicable(
            "This thing is not small: zooming in would show the whole picture again.", _STEM
        )
    ids = list(result.reply_ids)
    first = focus.prior_logits(reading.feed(ids)[-1:], features)
    closer = engine.read(open_photo(crop.of(np.asarray(photo.image))))
    second = focus.reading(result.instruction, closer).feed(ids)[-1:]
    prior_logits = focus.prior_logits(second, closer)
    prior_logits = (prior_logits + _cut(focus, first, features, crop)) / 2
    prior, mask = result.prior.copy(), np.zeros(photo.size, bool)
    crop.of(prior)[:] = focus.prior(prior_logits, closer.photo_size)
    crop.of(mask)[:] = focus.mask(prior_logits, closer)
    regions = (Region(prior, mask),)
    return Zoomed(replace(result, regions=regions, reason=f"{result.reason} Zoomed in."), crop)


def _cut(
    focus: FocusTokenSegmenter, prior_logits: torch.Tensor, features: PhotoFeatures, crop: Crop
) -> torch.Tensor:
    """The first look's logits inside the crop, in the crop's own prior frame; a square has no
    padding."""
    whole = focus.at_photo_size(prior_logits, features.photo_size)[0]
    inside = torch.from_numpy(np.ascontiguousarray(crop.of(whole)))[None, None].to(prior_logits)
    size = prior_logits.shape[-2:]
    return F.interpolate(inside, size=size, mode="bilinear", align_corners=False)
