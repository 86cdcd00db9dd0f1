"""Rewards of the method's GRPO stage, as pure functions. Reward = 0.7 · mask + 0.3 · format (paper, section 3.3)."""

import re

import torch
from torch import Tensor

from coprs_core.prompts import FOCUS_TOKEN

_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
LONGEST_THOUGHT, LONGEST_ANSWER = 2048, 10  # characters of the thought; words between the thought and the focus token


def format_reward(reply: str) -> float:
    """How well a reply keeps to the form: 0, 0.9 or 1.

    0 unless there is exactly one non-empty thought, exactly one focus token, and it stands behind the thought. 0.9
    where the thought is over 2,048 characters, text stands before it, or over 10 words stand between it and the token.
    """
    thoughts = list(_THOUGHT.finditer(reply))
    if len(thoughts) != 1 or not thoughts[0][1].strip() or reply.count(FOCUS_TOKEN) != 1:
        return 0.0
    before, between = reply[: thoughts[0].start()], reply[thoughts[0].end() :].split(FOCUS_TOKEN)[0]
    if reply.index(FOCUS_TOKEN) < thoughts[0].end():
        return 0.0
    untidy = len(thoughts[0][1]) > LONGEST_THOUGHT or before.strip() or len(between.split()) > LONGEST_ANSWER
    return 0.9 if untidy else 1.0


def mask_reward(probability: Tensor, target: Tensor) -> Tensor:
    """0.5 soft IoU + 0.2 soft Dice + 0.3 hard IoU (both sides thresholded at 0.5); [..., H, W] in [0, 1] → [...]."""
    p, t = probability.flatten(-2), target.flatten(-2)
    both, total = (p * t).sum(-1), (p + t).sum(-1)
    hard_p, hard_t = p > 0.5, t > 0.5
    hard_iou = (hard_p & hard_t).sum(-1) / (hard_p | hard_t).sum(-1).clamp(min=1)
    tiny = torch.finfo(torch.float32).eps
    return 0.5 * both / (total - both + tiny) + 0.2 * 2 * both / (total + tiny) + 0.3 * hard_iou
