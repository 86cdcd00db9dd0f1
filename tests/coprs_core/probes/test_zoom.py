"""Zooming in on the real miniature: exact frames, an untouched answer, and the gain that justifies
it."""

from dataclasses import replace

import numpy as np
import pytest

from coprs_core import CoPRSError
from coprs_core.metrics import iou
from coprs_core.mini.world.questions import draw_examples
from coprs_core.probes import zoom
from coprs_core.probes.zoom import Crop, crop_around
from coprs_core.prompts import FOUND
from tests import record
from tests.record import tiny_targets


@pytest.mark.parametrize("size", [(100, 100), (60, 200), (300, 90)])
@pytest.mark.parametrize("place", [(0.05, 0.05), (0.5, 0.5), (0.97, 0.9)])
def test_the_crop_is_a_square_inside_the_photo_around_the_mass(size, place):
    prior = np.zeros(size, np.float32)
    y, x = (int(p * n) for p, n in zip(place, size, strict=True))
    prior[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 0.8
    crop = crop_around(prior)
    assert crop.crop(prior).shape == (crop.side, crop.side) and crop.crop(
        prior
    ).sum() == pytest.approx(prior.sum())
    assert crop.side <= min(size)


def test_zooming_changes_nothing_but_prior_and_mask_and_not_the_answer_itself(fresh):
    scene, question = next(tiny_targets("test", 300))
    result = fresh.segment(scene.image, question.instruction)
    before = (result.prior.copy(), result.mask.copy())
    finding = zoom.run(fresh, scene.image, result)
    zoomed, crop = finding.result, finding.crop
    assert np.array_equal(result.prior, before[0]) and np.array_equal(result.mask, before[1])
    again = fresh.segment(scene.image, question.instruction)
    assert (
        again.reply == result.reply
        and np.array_equal(again.mask, before[1])
        and np.array_equal(again.prior, before[0])
    )
    outside = np.ones(result.photo_size, bool)
    crop.crop(outside)[:] = False
    assert (
        np.array_equal(zoomed.prior[outside], result.prior[outside])
        and not zoomed.mask[outside].any()
    )
    assert zoomed.reply == result.reply and "Zoomed in" in zoomed.reason and isinstance(crop, Crop)


def test_what_cannot_be_zoomed_into_is_said(mini, nothing_found, monkeypatch):
    scene, _, result = nothing_found
    with pytest.raises(CoPRSError, match="nothing to zoom into"):
        zoom.run(mini, scene.image, result)
    large = max(
        (e for e in draw_examples("test", 0, 60) if e[1].targets),
        key=lambda e: e[0].objects[e[1].targets[0]].area,
    )
    result = mini.segment(large[0].image, large[1].instruction)
    assert result.outcome == FOUND
    with pytest.raises(CoPRSError, match="not small"):
        zoom.run(mini, large[0].image, result)
    region = replace(result.regions[0], prior=np.zeros_like(result.prior))  # as a stranger may say
    with pytest.raises(CoPRSError, match="nothing to zoom into"):
        zoom.run(mini, large[0].image, replace(result, regions=(region,)))


def test_zooming_in_gives_the_masks_that_were_recorded(mini):
    """Scene by scene, before and after; what it gains, a slow test measures."""
    measured = np.array(record.zoomed_ious(mini, 20))
    np.testing.assert_allclose(measured, record.recorded()["zoom"][:20], atol=0.02)


@pytest.mark.slow
def test_zooming_in_raises_the_masks_of_tiny_targets(mini):
    """300 test scenes whose target is under 1 % of the picture; an answer that cannot be zoomed
    into counts as it is."""
    before, after = [], []
    for scene, question in tiny_targets("test", 300):
        result = mini.segment(scene.image, question.instruction)
        truth = scene.mask(*question.targets)
        before.append(iou(result.mask, truth))
        try:
            after.append(iou(zoom.run(mini, scene.image, result).result.mask, truth))
        except CoPRSError:
            after.append(before[-1])
    assert len(before) == 300
    told = f"mask gIoU {np.mean(before):.3f} -> {np.mean(after):.3f}"
    print(told)
    assert np.mean(after) - np.mean(before) >= 0.01, told
