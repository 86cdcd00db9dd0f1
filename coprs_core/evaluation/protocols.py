"""How the groups of the field count the same mask differently; a figure means nothing without it.

Read from their code: what becomes of regions that the data set says to ignore, of an empty mask
where nothing is there, and of a reply from which nothing can be read.
"""

from dataclasses import dataclass

import numpy as np

from coprs_core.metrics import iou_curve


@dataclass(frozen=True)
class ScoringProtocol:
    """A way of counting.

    Attributes:
        name: of the work that counts so.
        ignore_is_target: whether regions to ignore count as target; else they are left out of both
            sides.
        both_empty: the IoU where nothing is there and nothing was drawn.
        failed_is_zero: whether a reply from which nothing can be read has IoU 0 in any case; else
            it is an empty mask.
    """

    name: str
    ignore_is_target: bool
    both_empty: float
    failed_is_zero: bool

    def __str__(self) -> str:
        """What it does, in one line."""
        ignore = "count as target" if self.ignore_is_target else "are left out"
        failed = "counts 0" if self.failed_is_zero else "is an empty mask"
        return (
            f"{self.name}: regions to ignore {ignore}; both empty counts {self.both_empty:g}; a "
            f"reply without an answer {failed}"
        )

    def intersection_and_union(
        self, predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None
    ) -> tuple[int, int]:
        """Pixels of intersection and union of two bool masks [H, W]."""
        if ignore is not None and self.ignore_is_target:
            truth = truth | ignore
        intersection, union = predicted & truth, predicted | truth
        if ignore is not None and not self.ignore_is_target:
            intersection, union = intersection & ~ignore, union & ~ignore
        return int(intersection.sum()), int(union.sum())

    def curve(
        self, prior: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None, is_failed: bool
    ) -> np.ndarray:
        """IoU of a prior float32 [H, W] with the truth: float64 [101], at each of
        `PRIOR_THRESHOLDS`."""
        if ignore is not None and self.ignore_is_target:
            truth = truth | ignore
        elif ignore is not None:
            prior, truth = prior[~ignore], truth[~ignore]
        ious = iou_curve(prior, truth)
        if is_failed and self.failed_is_zero:
            return np.zeros_like(ious)
        return ious if truth.any() else np.where(ious > 0, self.both_empty, 0.0)

    def iou(self, areas: tuple[int, int], is_failed: bool) -> float:
        """IoU in [0, 1] of an item."""
        if is_failed and self.failed_is_zero:
            return 0.0
        return areas[0] / areas[1] if areas[1] else self.both_empty


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        ScoringProtocol("coprs", True, 1.0, False),
        ScoringProtocol("lisa", False, 1.0, False),
        ScoringProtocol("seg-zero", True, 1.0, True),
        ScoringProtocol("visionreasoner", True, 0.0, True),
    )
}
DEFAULT_PROTOCOL = PROTOCOLS["coprs"]
