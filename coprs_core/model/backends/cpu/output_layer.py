"""The output layer on a CPU: its argmax, without reading all of its weights.

In a small language model the output layer is a third of the bytes that one token costs, and on a
CPU bytes are time. Its rows are kept once more in 8 bits. They give each token's logit but for an
error that is bounded by Cauchy and Schwarz: |w·h − ŵ·h| ≤ |w − ŵ| |h|. Only rows that could be the
highest within that bound are read in full, so that the answer is that of the whole layer, but for
the order in which sums are rounded.
"""

from typing import Any

import torch
from torch import Tensor, nn

from coprs_core.model.backends.cpu.int8 import quantize_rows

MIN_SHORTLISTED_WEIGHTS = 50_000_000
"""A smaller layer is read as a whole: too little would be saved."""
LOGIT_ROUNDING = 2.0**-7
"""Of a logit in bfloat16, up or down, with the sums of the 8-bit product."""


class ShortlistedOutput(nn.Module):
    """A linear layer without a bias, whose highest output can be told from part of its weights.

    Called, it is the layer. `argmax` gives the index of its highest output.
    """

    int8_weight: Tensor
    scale: Tensor
    error: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer
        rows, scale, error = quantize_rows(layer.weight)
        self.register_buffer("int8_weight", rows, persistent=False)
        self.register_buffer("scale", scale.to(layer.weight.dtype), persistent=False)
        self.register_buffer("error", error, persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layer(hidden)

    def argmax(self, hidden: Tensor) -> int:
        """Index of the highest output for a hidden state [1, D]; the first of several."""
        near = torch._weight_int8pack_mm(hidden, self.int8_weight, self.scale)[0].float()
        margin = self.error * hidden.float().norm() + LOGIT_ROUNDING * near.abs()
        candidates = (near + margin >= (near - margin).max()).nonzero()[:, 0]
        if not len(candidates):  # NaN: no comparison holds
            return int(self.layer(hidden).argmax(-1))
        exact = nn.functional.linear(hidden, self.weight[candidates])
        return int(candidates[exact[0].argmax()])


def install_shortlist(model: nn.Module) -> None:
    """Let a language model on a CPU, in bfloat16, alone or part of a model, use a
    `ShortlistedOutput` where its output layer is large."""
    for mllm in list(model.modules()):
        layer = dict(mllm.named_children()).get("lm_head")
        is_plain = isinstance(layer, nn.Linear) and layer.bias is None
        is_fit = is_plain and layer.weight.device.type == "cpu"
        if (
            is_fit
            and layer.weight.dtype == torch.bfloat16
            and layer.weight.numel() >= MIN_SHORTLISTED_WEIGHTS
        ):
            mllm.lm_head = ShortlistedOutput(layer)


def remove_shortlist(model: nn.Module) -> None:
    """Undo `install_shortlist`."""
    for mllm in list(model.modules()):
        layer = dict(mllm.named_children()).get("lm_head")
        if isinstance(layer, ShortlistedOutput):
            mllm.lm_head = layer.layer


def argmax_tokens(mllm: Any, hidden: Tensor) -> list[int]:
    """The likeliest token after each hidden state of [B, D]."""
    layer = mllm.lm_head
    if isinstance(layer, ShortlistedOutput):
        return [layer.argmax(one) for one in hidden.split(1)]
    return layer(hidden).argmax(-1).tolist()
