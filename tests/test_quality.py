"""The miniature's quality on the first 100 test scenes, one by one through the real engine.

The bars are a little under what `evaluate --limit 1000` measured (assets/mini/CARD.md): 100 scenes
scatter.
"""

import numpy as np
import pytest

from coprs_core.datasets import scenes
from coprs_core.evaluation.report import compute_scores, format_table
from coprs_core.evaluation.rows import measure
from coprs_core.metrics import iou
from tests import record


@pytest.fixture(scope="module")
def measured(answered):
    return compute_scores(
        [
            measure(scenes.to_example(i, scene, question), result)
            for i, (scene, question, result) in enumerate(answered)
        ],
        scenes.GROUPS,
    )


BARS = {
    "well_formed": 0.99,
    "hit": 0.92,
    "named": 0.91,
    "mask_giou": 0.86,
    "prior_giou": 0.80,
    "mask_giou_if_named": 0.90,
}


@pytest.mark.parametrize("measure", BARS)
def test_bar(measured, measure):
    assert measured["all"][measure] >= BARS[measure], format_table(measured)


def test_nothing_there_is_said_when_it_is_so(measured):
    assert (
        measured["nothing_there"]["precision"] >= 0.9
        and measured["nothing_there"]["recall"] >= 0.85
    ), format_table(measured)


def test_prior_and_mask_go_together(measured):
    assert measured["prior_mask_correlation"] >= 0.9, format_table(measured)


def test_the_miniature_draws_the_masks_that_were_recorded(answered):
    """Scene by scene."""
    measured = [iou(result.mask, s.mask(*q.targets)) for s, q, result in answered[: record.COUNT]]
    np.testing.assert_allclose(measured, record.recorded()["full"], atol=0.02)
