"""The unified objective: L = L_GRPO + λ_SEG · L_SEG from one forward, and its reward.

Paper, sections 3.3 and 3.4. Two presets: as the paper tells them, and as the authors' released
scripts set them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coprs_core.prompts import FOCUS_TOKEN, format_score, is_well_formed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """The weights of the objective.

    Attributes:
        policy: weight of L_GRPO; 0 leaves L_SEG alone, on replies that are sampled all the same.
        segmentation: λ_SEG.
        dice, focal: λ_d and λ_f of L_SEG, up to step `switch_at`.
        later_dice, later_focal: the same from that step on; None keeps them.
        kl: weight of the KL to the model that training began with.
        clip: how far a token's probability may move, by ratio, before its gain counts no more (PPO,
            arXiv 1707.06347).
        group: replies to each question, G.
        mask_share: of the reward; the format has the rest.
        least_spread: a group whose rewards lie closer together than this teaches nothing; scaled by
            their deviation, hair-breadths between masks would count as much as right and wrong.
    """

    policy: float = 1.0
    segmentation: float = 0.3
    dice: float = 3.0
    focal: float = 10.0
    switch_at: int | None = None
    later_dice: float | None = None
    later_focal: float | None = None
    kl: float = 5e-3
    clip: float = 0.2
    group: int = 8
    mask_share: float = 0.7
    least_spread: float = 0.0

    def weights(self, step: int) -> tuple[float, float]:
        """λ_d and λ_f at a step, counted from 0."""
        if self.switch_at is None or step < self.switch_at:
            return self.dice, self.focal
        dice = self.dice if self.later_dice is None else self.later_dice
        focal = self.focal if self.later_focal is None else self.later_focal
        return dice, focal


PRESETS = {
    "paper": Objective(),
    "released": Objective(
        dice=0.8, focal=0.0, switch_at=300, later_dice=2.0, later_focal=5.0, kl=0.2
    ),
}
"""The paper gives no weight of the KL: there it is that of the scripts' base configuration."""


def segmentation_term(
    objective: Objective, prior_logits: Tensor, mask_logits: Tensor, target: Tensor, step: int = 0
) -> Tensor:
    """L_SEG of N replies that have a focus token and a thing to find, [N, 1, h, w] each; 0 without
    any, from the same graph."""
    if not len(target):
        return (prior_logits.sum() + mask_logits.sum()) * 0.0
    from coprs_core.training.losses import segmentation_loss

    return segmentation_loss(prior_logits, mask_logits, target, *objective.weights(step))


def score_reply(reply: str, mask_reward: float, targets: int = 1) -> tuple[float, float]:
    """What a reply earns for its mask and for its form, each in [0, 1]; the reward is their mean,
    weighted by `mask_share`.

    Where nothing fits the instruction there is no mask to be right about: a well-formed reply that
    says so, without a focus token, earns 1 for both, any other 0; so that it can be learnt at all.

    Args:
        reply: with its special tokens.
        mask_reward: of `rewards.mask_reward`, the mean over all things; 0 without a focus token.
        targets: how many things the instruction asks for in the picture.
    """
    if not targets:
        right = float(FOCUS_TOKEN not in reply and is_well_formed(reply))
        return right, right
    return mask_reward, format_score(reply, targets)
