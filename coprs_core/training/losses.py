"""L_SEG of the paper: BCE on the prior, Dice and focal on the mask; the authors' code adds Dice on
the prior."""

import torch.nn.functional as F
from torch import Tensor


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 − soft Dice, averaged over the batch; logits and target [B, 1, H, W], target in [0, 1]."""
    p, t = logits.float().sigmoid().flatten(1), target.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al., 2017), averaged over pixels; logits and target [B, 1, H, W], target
    in [0, 1]."""
    ce = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    p = logits.float().sigmoid()
    agreement = p * target + (1 - p) * (1 - target)
    return ((alpha * target + (1 - alpha) * (1 - target)) * (1 - agreement) ** gamma * ce).mean()


def segmentation_loss(
    prior_logits: Tensor,
    mask_logits: Tensor,
    target: Tensor,
    dice: float = 3.0,
    focal: float = 10.0,
) -> Tensor:
    """L_SEG = BCE(prior) + λ_d (Dice(mask) + Dice(prior)) + λ_f Focal(mask). METHOD: λ_d 3, λ_f 10.

    Args:
        prior_logits, mask_logits: [B, 1, h, w], unbounded.
        target: [B, 1, h, w] in [0, 1], the mask at decoding size, soft at its border.
    """
    bce = F.binary_cross_entropy_with_logits(prior_logits.float(), target)
    dices = dice_loss(mask_logits, target) + dice_loss(prior_logits, target)
    return bce + dice * dices + focal * focal_loss(mask_logits, target)
