"""Ground truth: how good an answer is, and at which threshold of its prior."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from coprs_core.answer.compare import TruthComparison, compare_with_truth
from coprs_core.answer.pictures import truth_figure
from coprs_core.answer.results import Result
from coprs_core.photos.photo import Photo
from coprs_core.probes.finding import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class TruthFinding(Finding):
    """An answer, a true mask bool [H, W], and how they compare."""

    result: Result
    truth: np.ndarray = field(repr=False)
    scores: TruthComparison

    def stem(self) -> str:
        return "truth"

    def to_dict(self) -> dict:
        return self.scores.to_dict()

    def figure(self, photo: Photo) -> Figure | None:
        if not self.result.regions:
            return None
        return truth_figure(np.asarray(photo.image), self.result, self.truth, self.scores)


def run(result: Result, truth: np.ndarray) -> TruthFinding:
    """Compare an answer with a true mask, bool [H, W] of the photo's size (see `read_truth`)."""
    return TruthFinding(result, truth, compare_with_truth(result, truth))
