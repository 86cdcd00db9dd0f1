"""Rewards of the method's GRPO stage, as pure functions. Reward = 0.7 · mask + 0.3 · format (paper,
section 3.3).

The format reward is `prompts.format_score`.
"""

import torch
from torch import Tensor


def mask_reward(probability: Tensor, target: Tensor) -> Tensor:
    """0.5 soft IoU + 0.2 soft Dice + 0.3 hard IoU (both sides thresholded at 0.5); [..., H, W] in
    [0, 1] → [...]."""
    p, t = probability.flatten(-2), target.flatten(-2)
    both, total = (p * t).sum(-1), (p + t).sum(-1)
    hard_p, hard_t = p > 0.5, t > 0.5
    hard_iou = (hard_p & hard_t).sum(-1) / (hard_p | hard_t).sum(-1).clamp(min=1)
    tiny = torch.finfo(torch.float32).eps
    return 0.5 * both / (total - both + tiny) + 0.2 * 2 * both / (total + tiny) + 0.3 * hard_iou
