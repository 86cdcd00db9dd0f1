"""Linear layers in 8 bits on a CPU without bfloat16 instructions.

There a word at a time is bound by reading the weights: half of the bytes take half of the time. A
row w of the weights is kept as ŵ = round(w / s) with s = max |w| / 127, and its output is s · ŵ·x.
Many rows of input at once, a photo's tokens, are computed in float32 (see `float32`), few of them
in bfloat16, whatever the precision of the layers around.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

MIN_FLOAT32_ROWS = 64
"""From so many rows on converting the weights costs less than it saves (2 cores with AVX2)."""
_CHUNK_ROWS = 256


class Int8Linear(nn.Module):
    """A linear layer whose weights are kept in 8 bits, with a scale a row."""

    int8_weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        rows, scale, _ = quantize_rows(layer.weight)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("int8_weight", rows, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        bias = None if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        flat = input.reshape(-1, self.in_features)
        if len(flat) < MIN_FLOAT32_ROWS:
            few, scale = flat.bfloat16().contiguous(), self.scale.bfloat16()
            output = torch._weight_int8pack_mm(few, self.int8_weight, scale)
        else:
            output = linear(flat.float(), self.int8_weight.float()).mul_(self.scale.float())
        output = output if self.bias is None else output + self.bias
        return output.to(input.dtype).view(*input.shape[:-1], self.out_features)


@torch.no_grad()
def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [O, I] as int8 [O, I], the float32 [O] scale of each row, rounded to
    bfloat16, and how far each row is from its own: float32 [O], the Euclidean distance."""
    rows = torch.empty(weight.shape, dtype=torch.int8)
    scale, error = (torch.empty(len(weight)) for _ in range(2))
    for start in range(0, len(weight), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        exact = weight[part].float()
        of_row = exact.abs().amax(1, keepdim=True) / 127
        of_row = of_row.bfloat16().float().clamp(min=1e-30)  # as the product uses it
        exact = exact / of_row  # not in place: it may be the weights themselves
        rounded = exact.round().clamp_(-127, 127)
        rows[part], scale[part] = rounded.to(torch.int8), of_row[:, 0]
        error[part] = torch.linalg.vector_norm(exact - rounded, dim=1) * of_row[:, 0]
    return rows, scale, error


def quantize_linears(model: nn.Module) -> None:
    """Replace all linear layers of a model by `Int8Linear`, one after the other, so that only one
    is in memory twice; none of them may be quantized already."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, Int8Linear(layer))
