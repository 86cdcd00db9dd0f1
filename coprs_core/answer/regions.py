"""One thing that was found: its prior, its mask, and the coordinates that the model wrote."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from coprs_core.answer.validation import as_finite, as_text
from coprs_core.masks import decode_rle, encode_prior, encode_rle
from coprs_core.metrics import prior_mask_iou
from coprs_core.photos.orientation import (
    to_stored_array,
    to_stored_point,
    to_stored_size,
    to_upright_array,
    to_upright_point,
)


@dataclass(frozen=True, eq=False)
class Region:
    """One answer in the picture: `prior` float32 [H, W] in [0, 1] and `mask` bool [H, W], both at
    the photo's size.

    Where the model wrote coordinates: `box` XYXY or None, `points` XY, in pixels of the photo, and
    its `label`.
    """

    prior: np.ndarray = field(repr=False)
    mask: np.ndarray = field(repr=False)
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    label: str = ""

    @property
    def prior_iou(self) -> float:
        """IoU of the prior, where it is at least 0.5, with the mask; 0 where nothing is drawn."""
        return prior_mask_iou(self.prior, self.mask)


def max_prior(priors: Iterable[np.ndarray]) -> np.ndarray:
    """The highest of priors [H, W] of one size; no more than one further is in memory."""
    first, *others = priors
    highest = first.copy()
    for other in others:
        np.maximum(highest, other, out=highest)
    return highest


def region_to_dict(region: Region, orientation: int = 1, with_prior: bool = False) -> dict:
    """A region in plain values, as `results` says; in the frame of pixels that are stored in EXIF's
    `orientation` (1: upright)."""
    values = {
        "mask": encode_rle(to_stored_array(region.mask, orientation)),
        "area": int(region.mask.sum()),
        "prior_iou": region.prior_iou,
        "prior_max": float(region.prior.max()),
    }
    if region.box or region.points or region.label:
        own = region
        if orientation != 1:
            own = _transform_region(region, to_stored_point, region.mask.shape, orientation)
        values |= {"box": own.box, "points": own.points, "label": own.label}
    if with_prior:
        values["prior"] = encode_prior(to_stored_array(region.prior, orientation))
    return values


def _transform_region(
    region: Region, transform: Callable, size: tuple[int, int], orientation: int
) -> Region:
    """A region with its box and points mapped by `transform(point, size, orientation)`; `size` is
    that of the upright photo."""
    points, box = tuple(transform(point, size, orientation) for point in region.points), region.box
    if box:
        (a, b), (c, d) = (transform(corner, size, orientation) for corner in (box[:2], box[2:]))
        # a turn or a mirror swaps which corner is the upper left one
        box = min(a, c), min(b, d), max(a, c), max(b, d)
    return replace(region, box=box, points=points)


def region_from_dict(
    values: dict, prior: np.ndarray, size: tuple[int, int], orientation: int
) -> Region:
    """The region, upright, that `region_to_dict` wrote about a photo of `size`; raises `ValueError`
    or `KeyError` for anything else."""
    mask, own_size = decode_rle(values["mask"]), to_stored_size(size, orientation)
    if mask.shape != own_size or prior.shape != own_size or prior.dtype != np.float32:
        raise ValueError(
            f"mask {mask.shape} and prior {prior.dtype} {prior.shape} of a photo {own_size}"
        )
    if not (prior.min() >= 0 and prior.max() <= 1):
        raise ValueError("a prior outside 0 to 1")
    box = None
    if values.get("box"):
        left, top, right, bottom = (as_finite(v) for v in values["box"])
        box = left, top, right, bottom
    points = tuple((as_finite(x), as_finite(y)) for x, y in values.get("points", ()))
    region = Region(prior, mask, box, points, as_text(values.get("label", "")))
    if orientation == 1:
        return region
    region = _transform_region(region, to_upright_point, size, orientation)
    return replace(
        region, prior=to_upright_array(prior, orientation), mask=to_upright_array(mask, orientation)
    )
