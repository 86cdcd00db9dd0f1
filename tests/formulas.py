"""The joint objective in plain formulas, to hold the code and TRL against.

GRPO: Shao et al., 2024 (arXiv 2402.03300); clipping: Schulman et al., 2017 (arXiv 1707.06347).
"""

from dataclasses import dataclass

from torch import Tensor

from coprs_core.training.objective import Objective, segmentation_term


def group_advantages(rewards: Tensor, eps: float = 1e-6) -> Tensor:
    """(reward − mean of its group) / (deviation of its group + eps): DeepSeek-R1, equation 3; GRPO
    (arXiv 2402.03300), section 4.1.2.

    Args:
        rewards: [groups, G], of the G replies to each question.

    Returns:
        [groups, G]; zeros where a group's rewards are all alike: it teaches nothing.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + eps)


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    written: Tensor,
    clip: float = 0.2,
) -> Tensor:
    """−min(ratio · A, clip(ratio, 1 ± clip) · A), averaged over all written tokens together, and
    not reply by reply as in GRPO's paper (TRL's "bnpo").

    Args:
        log_probs: [B, T], of the tokens of each reply by the model that is trained.
        old_log_probs: [B, T], by the model that wrote them; no gradient goes there.
        advantages: [B], one a reply.
        written: [B, T], 1 where a token was written, 0 behind the reply's end.
    """
    ratio = (log_probs - old_log_probs.detach()).exp()
    each = advantages[:, None].to(ratio)
    gain = (ratio * each).minimum(ratio.clamp(1 - clip, 1 + clip) * each)
    return -mean_of_written(gain, written)


def kl_to_reference(log_probs: Tensor, reference: Tensor, written: Tensor) -> Tensor:
    """exp(r − p) − (r − p) − 1 a token, averaged over all written tokens: never below 0, of low
    variance (Schulman, 2020, "Approximating KL divergence", k3).

    Args:
        log_probs, reference: [B, T], by the model that is trained and by the one it began as; no
            gradient goes to the second.
        written: as in `clipped_policy_loss`.
    """
    difference = reference.detach() - log_probs
    return mean_of_written(difference.exp() - difference - 1, written)


def mean_of_written(values: Tensor, written: Tensor) -> Tensor:
    """The mean of values [B, T] where tokens were written, all replies together; 0 without any."""
    return (values * written).sum() / written.sum().clamp(min=1)


@dataclass(frozen=True)
class Terms:
    """The objective and what it is made of, scalars; `total` carries the gradient."""

    total: Tensor
    policy: Tensor
    kl: Tensor
    segmentation: Tensor


@dataclass(frozen=True)
class Rollouts:
    """What the policy's part of a step is computed from.

    Attributes:
        log_probs, old_log_probs, reference: [B, T], of the tokens of each reply, by the
            model that is trained, the one that wrote them, the one that training began with.
        advantages: [B].
        written: [B, T].
    """

    log_probs: Tensor
    old_log_probs: Tensor
    reference: Tensor
    advantages: Tensor
    written: Tensor


def unified_loss(
    objective: Objective,
    rollouts: Rollouts,
    prior_logits: Tensor,
    mask_logits: Tensor,
    target: Tensor,
    step: int = 0,
) -> Terms:
    """L_GRPO + λ_SEG · L_SEG.

    Args:
        prior_logits, mask_logits, target: [N, 1, h, w], of the N replies that have a focus token
            and a thing to find; N may be 0, then L_SEG is 0.
    """
    r = rollouts
    policy = clipped_policy_loss(
        r.log_probs, r.old_log_probs, r.advantages, r.written, objective.clip
    )
    kl = kl_to_reference(r.log_probs, r.reference, r.written)
    segmentation = segmentation_term(objective, prior_logits, mask_logits, target, step)
    grpo = policy + objective.kl * kl
    total = objective.policy * grpo + objective.segmentation * segmentation
    return Terms(total, policy.detach(), kl.detach(), segmentation.detach())
