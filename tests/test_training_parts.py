"""Losses and rewards: the authors' recorded numbers and hand-made cases."""

import json
from pathlib import Path

import pytest
import torch

from coprs_core.prompts import format_score
from coprs_core.training.losses import dice_loss, focal_loss, segmentation_loss
from coprs_core.training.rewards import mask_reward

GOLDEN = json.loads((Path(__file__).with_name("golden") / "official_rewards.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["format"], ids=lambda c: repr(c["reply"][:40]))
def test_format_reward_equals_the_authors(case):
    assert format_score(case["reply"]) == case["format_reward"]


@pytest.mark.parametrize("case", GOLDEN["mask"])
def test_mask_reward_equals_the_authors(case):
    p, t = (torch.tensor(case[k]).view(16, 16) for k in ("probability", "target"))
    assert mask_reward(p, t).item() == pytest.approx(case["mask_reward"], abs=1e-6)


def test_segmentation_loss_is_the_sum_of_its_terms():
    prior, mask, target = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(prior, target)
    expected = (
        bce
        + 3 * (dice_loss(mask, target) + dice_loss(prior, target))
        + 10 * focal_loss(mask, target)
    )
    torch.testing.assert_close(segmentation_loss(prior, mask, target), expected)


def test_losses_fall_to_nothing_on_a_perfect_answer():
    target = (torch.rand(2, 1, 8, 8) > 0.5).float()
    logits = (target - 0.5) * 60
    assert segmentation_loss(logits, logits, target).item() < 1e-3
    assert segmentation_loss(-logits, -logits, target).item() > 10
