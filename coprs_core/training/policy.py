"""L_GRPO of the paper (section 3.3), as pure functions.

Advantages within a group, the clipped policy loss, and the KL to the model as it began.

GRPO: Shao et al., 2024 (arXiv 2402.03300); clipping: Schulman et al., 2017 (arXiv 1707.06347).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CLIP, STD_EPS = 0.2, 1e-6
"""How far a token's probability may move before its gain counts no more; what keeps the division by
a group's deviation finite."""


def group_advantages(rewards: Tensor, eps: float = STD_EPS) -> Tensor:
    """(reward − mean of its group) / (deviation of its group + eps): DeepSeek-R1, equation 3; GRPO
    (arXiv 2402.03300), section 4.1.2.

    Args:
        rewards: [groups, G], of the G replies to each question.

    Returns:
        [groups, G]; zeros where a group's rewards are all alike: it teaches nothing.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + eps)


def flat_share(rewards: Tensor, least: float = 1e-6) -> float:
    """The share of groups [groups, G] whose rewards differ by no more than `least`."""
    return float((rewards.amax(-1) - rewards.amin(-1) <= least).float().mean())


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    written: Tensor,
    clip: float = CLIP,
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
