"""Losses and rewards: the authors' recorded numbers and hand-made cases."""

import dataclasses
import json

import pytest
import torch

from coprs_core.prompts import format_score
from coprs_core.training.losses import dice_loss, focal_loss, segmentation_loss
from coprs_core.training.objective import PRESETS, score_reply
from coprs_core.training.rewards import mask_reward
from tests import GOLDEN
from tests.formulas import (
    Rollouts,
    clipped_policy_loss,
    group_advantages,
    kl_to_reference,
    unified_loss,
)

OFFICIAL = json.loads((GOLDEN / "official_rewards.json").read_text())


@pytest.mark.parametrize("case", OFFICIAL["format"], ids=lambda c: repr(c["reply"][:40]))
def test_format_reward_equals_the_authors(case):
    assert format_score(case["reply"]) == case["format_reward"]


@pytest.mark.parametrize("case", OFFICIAL["mask"])
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


# --- GRPO and the unified objective, against hand numbers and plain formulas


def test_advantages_are_those_of_the_group():
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.3, 0.3, 0.3, 0.3]]))
    # mean 0.5, deviation (n − 1) 0.57735
    expected = torch.tensor([0.8660, -0.8660, 0.8660, -0.8660])
    torch.testing.assert_close(advantages[0], expected, atol=1e-4, rtol=0)
    assert (advantages[1] == 0).all()  # alike: it teaches nothing


def test_the_policy_loss_is_clipped_on_the_side_of_its_gain_alone():
    old, written = torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    log_probs = torch.log(torch.tensor([[1.5, 0.9, 9.0], [1.5, 0.5, 1.0]])).requires_grad_()
    loss = clipped_policy_loss(log_probs, old, torch.tensor([1.0, -2.0]), written)
    # gains: 1.2 (clipped), 0.9; −3.0 (not clipped), −1.6 (clipped), −2.0
    assert loss.item() == pytest.approx(-(1.2 + 0.9 - 3.0 - 1.6 - 2.0) / 5, abs=1e-6)
    loss.backward()
    gradient = log_probs.grad
    assert gradient[0, 0] == 0 and gradient[1, 1] == 0  # clipped: no further
    assert gradient[0, 2] == 0  # not written
    assert gradient[0, 1].item() == pytest.approx(-0.9 / 5) and gradient[1, 0].item() == pytest.approx(3 / 5)  # fmt: skip


def test_the_kl_is_nothing_at_the_start_and_never_below():
    log_probs, written = torch.randn(2, 5), torch.ones(2, 5)
    assert kl_to_reference(log_probs, log_probs.clone(), written).item() == 0
    assert kl_to_reference(log_probs, torch.randn(2, 5), written).item() > 0
    one = kl_to_reference(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.ones(1, 1))
    assert one.item() == pytest.approx(2.718282 - 1 - 1, abs=1e-5)


def rollouts(count=4, length=6):
    log_probs = torch.randn(count, length, dtype=torch.float64, requires_grad=True)
    old, reference = log_probs.detach() + 0.3, log_probs.detach() - 0.2
    written = (torch.arange(length)[None] < torch.tensor([6, 3, 5, 1])[:, None]).double()
    return Rollouts(log_probs, old, reference, torch.tensor([1.0, -0.5, 0.2, -0.7]), written)


def test_the_unified_loss_and_its_gradients_equal_a_plain_formula():
    torch.manual_seed(0)
    r, objective = rollouts(), PRESETS["paper"]
    prior = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    terms = unified_loss(objective, r, prior, mask, target)
    terms.total.backward()
    given = [x.grad.clone() for x in (r.log_probs, prior, mask)]
    for x in (r.log_probs, prior, mask):
        x.grad = None

    total, tokens = 0.0, float(r.written.sum())
    for i in range(4):
        for t in range(int(r.written[i].sum())):
            ratio = torch.exp(r.log_probs[i, t] - r.old_log_probs[i, t])
            a = float(r.advantages[i])
            gain = min(ratio * a, torch.clamp(ratio, 0.8, 1.2) * a)
            d = r.reference[i, t] - r.log_probs[i, t]
            total = total - gain / tokens + 5e-3 * (torch.exp(d) - d - 1) / tokens
    total = total + 0.3 * segmentation_loss(prior, mask, target, 3.0, 10.0)
    torch.testing.assert_close(terms.total, total, rtol=1e-6, atol=1e-6)
    total.backward()
    for ours, x in zip(given, (r.log_probs, prior, mask), strict=True):
        torch.testing.assert_close(ours, x.grad, rtol=1e-5, atol=1e-7)


def test_each_term_reaches_what_it_should_and_nothing_else():
    r = rollouts()
    prior = torch.randn(1, 1, 4, 4, requires_grad=True)
    mask = torch.randn(1, 1, 4, 4, requires_grad=True)
    target = torch.rand(1, 1, 4, 4)
    only_policy = dataclasses.replace(PRESETS["paper"], segmentation=0.0)
    unified_loss(only_policy, r, prior, mask, target).total.backward()
    assert (prior.grad == 0).all() and (mask.grad == 0).all() and (r.log_probs.grad != 0).any()
    r.log_probs.grad = None
    still = dataclasses.replace(r, advantages=torch.zeros(4))
    only_masks = dataclasses.replace(PRESETS["paper"], kl=0.0)
    unified_loss(only_masks, still, prior, mask, target).total.backward()
    assert (r.log_probs.grad == 0).all() and (prior.grad != 0).any() and (mask.grad != 0).any()
    none = torch.zeros(0, 1, 4, 4, requires_grad=True)
    terms = unified_loss(only_masks, r, none, none, torch.zeros(0, 1, 4, 4))
    assert terms.segmentation == 0 and torch.isfinite(terms.total)  # no focus token anywhere


def test_the_released_scripts_switch_their_weights():
    assert PRESETS["paper"].weights(0) == PRESETS["paper"].weights(10**6) == (3.0, 10.0)
    released = PRESETS["released"]
    assert released.weights(299) == (0.8, 0.0) and released.weights(300) == (2.0, 5.0)


GOOD = "<think>I see a cup. That is the cup.</think>It is here: <REF_POS>"
NOTHING = "<think>I see a cup. There is no dog.</think>Nothing in this picture fits."


@pytest.mark.parametrize(
    "reply, mask, targets, earned",
    [
        (GOOD, 0.8, 1, (0.8, 1.0)),
        (GOOD, 0.0, 1, (0.0, 1.0)),
        (NOTHING, 0.0, 1, (0.0, 0.0)),
        (NOTHING, 0.0, 0, (1.0, 1.0)),  # it can be earned
        (GOOD, 0.0, 0, (0.0, 0.0)),
        ("Nothing in this picture fits.", 0.0, 0, (0.0, 0.0)),  # without a thought
        (GOOD + "<REF_POS>", 0.8, 1, (0.8, 0.0)),
        (GOOD + "<REF_POS>", 0.8, 2, (0.8, 1.0)),  # one for each of two things
        (GOOD, 0.4, 2, (0.4, 0.0)),
    ],
)
def test_what_a_reply_earns(reply, mask, targets, earned):
    assert score_reply(reply, mask, targets) == pytest.approx(earned)
