"""Muon, with matrices of one shape orthogonalised together and in the dtype that the machine is
quick in."""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from coprs_core.machine import has_native_bfloat16

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients of https://kellerjordan.github.io/posts/muon, as in `torch.optim.Muon`."""
_ITERATIONS = 5


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, step for step, but for rounding.

    The library takes the matrices one after the other, always in bfloat16. For the miniature's 106
    small ones that is thousands of launches a step on a GPU; a CPU without bfloat16 instructions
    took 9 s for them, and 0.25 s in float32 (2026-11-26, two cores with AVX2).
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step, for `adjust_lr_fn="match_rms_adamw"` and Nesterov's momentum."""
        for group in self.param_groups:
            matrices, gradients, momenta = [], [], []
            self._init_group(group, matrices, gradients, momenta)
            momentum, rate = group["momentum"], group["lr"]
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix, gradient, mean in zip(matrices, gradients, momenta, strict=True):
                mean.lerp_(gradient, 1 - momentum)
                alike[matrix.shape].append((matrix, gradient.lerp(mean, momentum)))
            for shape, pairs in alike.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]), group["eps"])
                own = -rate * 0.2 * math.sqrt(max(shape))
                for (matrix, _), update in zip(pairs, updates, strict=True):
                    matrix.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=own)


def orthogonal(matrices: Tensor, eps: float = 1e-7) -> Tensor:
    """The matrices [N, R, C] with all singular values brought near 1, by Newton-Schulz iterations;
    in bfloat16 where the device computes in it, else in float32."""
    x = matrices.bfloat16() if has_native_bfloat16(matrices.device) else matrices.float()
    # the product is square in the shorter side: cheaper
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    a, b, c = NEWTON_SCHULZ
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
