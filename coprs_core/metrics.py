"""Measures of the field on boolean masks [H, W]."""

from collections.abc import Iterable

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union in [0, 1] of two bool masks of one shape; two empty masks agree
    fully: 1."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0


PRIOR_THRESHOLD = 0.5
"""From here on a pixel belongs to the prior as a region: for its IoU, its flags and its outline."""
PRIOR_THRESHOLDS = np.arange(101, dtype=np.float32) / 100
"""0, 0.01 … 1: where `iou_curve` is measured."""


def prior_mask_iou(prior: np.ndarray, mask: np.ndarray) -> float:
    """IoU in [0, 1] of a prior float32, where it is at least `PRIOR_THRESHOLD`, with a mask bool,
    both [H, W]; 0 where nothing is drawn."""
    return iou(prior >= PRIOR_THRESHOLD, mask) if mask.any() else 0.0


def iou_curve(prior: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """IoU of `prior >= t` with a mask at each of `PRIOR_THRESHOLDS`: float64 [101]. `prior`
    float32, `mask` bool, both [H, W]."""
    # one histogram of the thresholds reached, in place of 101 comparisons of all pixels
    flat = prior.ravel().astype(np.float32, copy=False)
    highest = (flat * 100).astype(np.uint8)  # the last threshold reached, but for rounding
    highest += (highest < 100) & (flat >= PRIOR_THRESHOLDS[np.minimum(highest + 1, 100)])
    highest -= flat < PRIOR_THRESHOLDS[highest]
    inside, chosen = _count_reaching(highest[mask.ravel()]), _count_reaching(highest)
    union = chosen + int(mask.sum()) - inside
    return np.where(union > 0, inside / np.maximum(union, 1), 1.0)


def _count_reaching(highest: np.ndarray) -> np.ndarray:
    """How many pixels reach each threshold, from the number of the highest that each reaches."""
    return np.bincount(highest, minlength=101)[::-1].cumsum()[::-1]


def correlation(x: Iterable[float], y: Iterable[float]) -> float:
    """Pearson's R in [−1, 1]; nan where either side does not vary."""
    x, y = np.asarray(list(x), float), np.asarray(list(y), float)
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() and y.std() else float("nan")
