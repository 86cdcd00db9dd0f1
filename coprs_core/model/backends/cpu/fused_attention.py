"""Attention of SAM's image encoder in torch's fused kernel."""

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention, ImageEncoderViT, get_rel_pos
from torch import Tensor, nn


class FusedAttention(Attention):
    """segment_anything's `Attention` with relative positions, but for rounding, without its scores
    in memory: 1 GB a layer and pass where ViT-H's 16 heads see the whole grid, in float32. In
    bfloat16 a CPU without instructions for it is 40 times as fast so there.

    A query's bias towards row i is q·Rh[i], towards column j q·Rw[j]. So the query is lengthened by
    all of them, and a key by the one-hot code of its row and column: their product is the biased
    score.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, rows, columns, width] → the same."""
        count, rows, columns, _ = x.shape
        qkv = self.qkv(x).view(count, rows * columns, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, cells, d]
        at = q.unflatten(2, (rows, columns))
        to_row = get_rel_pos(rows, rows, self.rel_pos_h)  # [rows, rows, d]
        to_column = get_rel_pos(columns, columns, self.rel_pos_w)
        to_rows = torch.einsum("bnhwd,hkd->bnhwk", at, to_row).flatten(2, 3)
        to_columns = torch.einsum("bnhwd,wkd->bnhwk", at, to_column).flatten(2, 3)
        row = torch.eye(rows, dtype=x.dtype, device=x.device).repeat_interleave(columns, 0)
        column = torch.eye(columns, dtype=x.dtype, device=x.device).repeat(rows, 1)
        one_hot = torch.cat([row, column], 1).expand(*k.shape[:2], -1, -1)
        mixed = F.scaled_dot_product_attention(
            torch.cat([q * self.scale, to_rows, to_columns], -1),
            torch.cat([k, one_hot], -1),
            F.pad(v, (0, rows + columns)),  # of one length, as the fused kernels want them
            scale=1.0,
        )
        mixed = mixed[..., : v.shape[-1]]
        return self.proj(mixed.transpose(1, 2).reshape(count, rows, columns, -1))


def fuse_attention(model: nn.Module) -> None:
    """Let SAM's image encoder in a model attend so, on any device: the same weights. A small one
    without windows gains nothing."""
    for encoder in model.modules():
        if isinstance(encoder, ImageEncoderViT) and any(b.window_size for b in encoder.blocks):
            for block in encoder.blocks:
                block.attn.__class__ = FusedAttention


def unfuse_attention(model: nn.Module) -> None:
    """Undo `fuse_attention`."""
    for layer in model.modules():
        if type(layer) is FusedAttention:
            layer.__class__ = Attention
