"""Learning rates by part of the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


HEADS_MODULE = "focus_heads"
"""Name of the module that holds prior and decoder inside the language model while it is trained."""


@dataclass(frozen=True)
class LearningRates:
    """Learning rates as multiples of the language model's (paper's scripts: 25, 10, 5)."""

    prior: float = 25.0
    prompt_encoder: float = 10.0
    mask_decoder: float = 5.0

    def multiple_for(self, name: str) -> float:
        """The multiple for a parameter by its name, with or without the prefixes of adapters."""
        part = re.search(rf"(?:^|\.){HEADS_MODULE}\.(?:decoder\.)?(\w+)\.", name)
        return 1.0 if part is None else getattr(self, part[1])

    def build_optimizer(self, model: nn.Module, args: Any) -> torch.optim.Optimizer:
        """AdamW over all that is trainable, a group for each learning rate."""
        # one group a rate, not a parameter: the optimizer steps a group's tensors together
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self.multiple_for(name), []).append(parameter)
        import torch

        return torch.optim.AdamW(
            [{"params": p, "lr": args.learning_rate * times} for times, p in groups.items()],
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )
