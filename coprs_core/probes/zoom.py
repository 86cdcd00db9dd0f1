"""Zoom in: read the surroundings of an answer once more, at higher resolution, and draw it again.

For tiny targets, the paper's first failure. With a focus token the language model sees the crop and
reads its own reply again, so that its focus token looks at the crop; the logits of that look and of
the first one, cut to the crop, are averaged. A model that writes coordinates is asked the same
instruction about the crop, shown at normal detail whatever the photo was shown at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from coprs_core.answer.results import Region, Result, check_photo_size
from coprs_core.photos.photo import Photo, PhotoLike, open_photo
from coprs_core.probes.finding import NotApplicable, ResultFinding
from coprs_core.probes.rereading import check_model, reread_answer, with_memory_guard

if TYPE_CHECKING:
    import torch

    from coprs_core.answer.engine import Engine
    from coprs_core.model.focus_token import FocusTokenSegmenter
    from coprs_core.model.segmenter import PhotoFeatures

PRIOR_MARGIN = 3.5
"""Side of the crop, as a multiple of the extent (four standard deviations) of the prior's mass;
chosen on validation scenes."""
MIN_CROP_SHARE, MAX_CROP_SHARE = 0.25, 0.9
"""Of the photo's shorter side: what a crop has at least, and at most to be worth it."""
BOX_MARGIN = 2.0
"""Side of the crop, as a multiple of what the written boxes and the masks take."""
_STEM = "zoomed"


@dataclass(frozen=True)
class Crop:
    """A square of the photo, in pixels: its left upper corner and its side."""

    top: int
    left: int
    side: int

    def region_to_photo(self, region: Region, prior: np.ndarray) -> Region:
        """A region of the crop as one of the photo, whose prior float32 [H, W] stays outside."""
        prior, mask = prior.copy(), np.zeros(prior.shape, bool)
        self.crop(prior)[:], self.crop(mask)[:] = region.prior, region.mask
        box = None
        if region.box:
            x0, y0, x1, y1 = region.box
            box = x0 + self.left, y0 + self.top, x1 + self.left, y1 + self.top
        points = tuple((x + self.left, y + self.top) for x, y in region.points)
        return Region(prior, mask, box, points, region.label)

    def crop(self, array: np.ndarray) -> np.ndarray:
        """The part of an array [H, W, …] that lies inside; a view, so that it can be written to."""
        return array[self.top : self.top + self.side, self.left : self.left + self.side]


@dataclass(frozen=True, eq=False)
class ZoomedAnswer(ResultFinding):
    """The same answer with prior and mask read again inside a crop.

    Outside the crop the prior stays as it was and the mask is empty. A model that writes
    coordinates may see closer that nothing fits.
    """

    crop: Crop

    def stem(self) -> str:
        return _STEM

    def extra_fields(self) -> dict:
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
    return _square_crop(centre, PRIOR_MARGIN * 4 * max(spread), prior.shape)


def _square_crop(centre: Sequence[float], side: float, photo_size: tuple[int, int]) -> Crop:
    """A square around (y, x), moved and cut to lie inside the photo; a quarter of its shorter side
    at least."""
    height, width = photo_size
    smallest = MIN_CROP_SHARE * min(height, width)
    side = int(np.ceil(min(max(side, smallest), height, width)))
    top, left = (
        int(np.clip(c - side / 2, 0, n - side))
        for c, n in zip(centre, (height, width), strict=True)
    )
    return Crop(top, left, side)


def crop_around_boxes(result: Result) -> Crop:
    """The square around everything that an answer found, twice its size, inside the photo."""
    corners = _found_corners(result)
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    centre = (low + high)[::-1] / 2
    return _square_crop(centre, BOX_MARGIN * float(max(high - low)), result.photo_size)


def _found_corners(result: Result) -> list[Any]:
    """Of everything that an answer found: (x, y) of its mask's extent, its boxes and points."""
    y, x = np.nonzero(result.mask)
    corners: list[Any] = [(x.min(), y.min()), (x.max() + 1, y.max() + 1)] if len(y) else []
    for region in result.regions:
        corners += [region.box[:2], region.box[2:]] if region.box else []
        corners += region.points
    return corners


@with_memory_guard
def run(engine: Engine, image: PhotoLike, result: Result) -> ZoomedAnswer:
    """The answer with prior and mask read again around the prior's mass, or around the boxes that
    the model wrote, and the crop in pixels.

    Raises:
        NotApplicable: nothing was found, or it fills so much of the photo that a crop would be all
            of it.
    """
    photo, prior = open_photo(image), result.prior
    check_photo_size(result.photo_size, photo.size)
    check_model(engine, result)
    if prior is None or not (prior.any() if engine.has_focus_token else _found_corners(result)):
        raise NotApplicable(
            "This answer found nothing, so there is nothing to zoom into: "
            "ask for something it finds.",
            _STEM,
        )
    if engine.has_focus_token and len(result.regions) > 1:
        raise NotApplicable(
            "This answer found several things: ask for one of them to look closer.", _STEM
        )
    crop = crop_around(prior) if engine.has_focus_token else crop_around_boxes(result)
    if crop.side > MAX_CROP_SHARE * min(photo.size):
        raise NotApplicable(
            "This thing is not small: zooming in would show the whole picture again.", _STEM
        )
    closer = open_photo(crop.crop(np.asarray(photo.image)))
    if engine.has_focus_token:
        zoomed = _refocus(engine, photo, closer, result, crop)
    else:
        features = engine.segmenter.encode_photo(closer, "normal")
        zoomed = engine.answer_with_features(closer, features, result.instruction)
    regions = tuple(crop.region_to_photo(r, prior) for r in zoomed.regions)
    zoomed = replace(
        zoomed,
        regions=regions,
        photo_size=photo.size,
        full_size=result.full_size,
        orientation=result.orientation,
        stretched=result.stretched,
        reason=f"{zoomed.reason} Zoomed in.",
    )
    return ZoomedAnswer(zoomed, crop)


def _refocus(engine: Engine, photo: Photo, closer: Photo, result: Result, crop: Crop) -> Result:
    """The answer with its region in the crop's pixels."""
    focus, ids = engine.focus, list(result.reply_ids)
    _, features, session = reread_answer(engine, photo, result)
    first = focus.compute_prior_logits(session.feed(ids)[-1:], features)
    features_closer = engine.read(closer)
    second = focus.start_session(result.instruction, features_closer).feed(ids)[-1:]
    prior_logits = focus.compute_prior_logits(second, features_closer)
    # logits, not priors: a sure look outweighs an unsure one, which a mean of priors would hide
    prior_logits = (prior_logits + _crop_logits(focus, first, features, crop)) / 2
    prior = focus.compute_prior(prior_logits, closer.size)
    return replace(
        result, regions=(Region(prior, focus.decode_mask(prior_logits, features_closer)),)
    )


def _crop_logits(
    focus: FocusTokenSegmenter, prior_logits: torch.Tensor, features: PhotoFeatures, crop: Crop
) -> torch.Tensor:
    """The first look's logits inside the crop, in the crop's own prior frame; a square has no
    padding."""
    import torch
    import torch.nn.functional as F

    whole = focus.resize_to_photo(prior_logits, features.photo_size)[0]
    inside = torch.from_numpy(np.ascontiguousarray(crop.crop(whole)))[None, None].to(prior_logits)
    size = prior_logits.shape[-2:]
    return F.interpolate(inside, size=size, mode="bilinear", align_corners=False)
