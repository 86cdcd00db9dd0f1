"""Weights in bfloat16 on a CPU without instructions for it.

Such a CPU reads bfloat16 as quickly as any, but multiplies matrices in it several times slower
than in float32. So layers that see many rows at once, a photo's tokens, compute in float32, their
weights converted on the way; a word at a time is bound by reading the weights, and stays as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv3d, linear

from coprs_core.machine import has_native_bfloat16

MIN_FLOAT32_ROWS = 32
"""From so many rows on a layer saves more than converting its weights costs (2 cores with AVX2)."""


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 where it sees many rows."""

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() < MIN_FLOAT32_ROWS * self.in_features:
            return super().forward(input)
        return linear(input.float(), *_float32_parameters(self)).to(input.dtype)


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32."""

    def forward(self, input: Tensor) -> Tensor:
        more = self.stride, self.padding, self.dilation, self.groups
        return conv2d(input.float(), *_float32_parameters(self), *more).to(input.dtype)


class Float32Conv3d(nn.Conv3d):
    """A convolution that computes in float32."""

    def forward(self, input: Tensor) -> Tensor:
        more = self.stride, self.padding, self.dilation, self.groups
        return conv3d(input.float(), *_float32_parameters(self), *more).to(input.dtype)


_FLOAT32_CLASSES: dict[type[nn.Module], Any] = {
    nn.Linear: Float32Linear,
    nn.Conv2d: Float32Conv2d,
    nn.Conv3d: Float32Conv3d,
}
_ORIGINAL_CLASSES: dict[type[nn.Module], Any] = {
    wide: plain for plain, wide in _FLOAT32_CLASSES.items()
}


def compute_in_float32(model: nn.Module) -> None:
    """Let the layers of a model on the CPU compute so, if the CPU is such a one."""
    for layer in model.modules():
        if type(layer) in _FLOAT32_CLASSES and getattr(layer, "padding_mode", "zeros") == "zeros":
            weight: Tensor = layer.weight  # ty: ignore[invalid-assignment]
            if weight.dtype == torch.bfloat16 and not has_native_bfloat16(weight.device):
                layer.__class__ = _FLOAT32_CLASSES[type(layer)]


def compute_in_own_dtype(model: nn.Module) -> None:
    """Undo `compute_in_float32`."""
    for layer in model.modules():
        if type(layer) in _ORIGINAL_CLASSES:
            layer.__class__ = _ORIGINAL_CLASSES[type(layer)]


def _float32_parameters(layer: nn.Linear | nn.Conv2d | nn.Conv3d) -> tuple[Tensor, Tensor | None]:
    return layer.weight.float(), None if layer.bias is None else layer.bias.float()
