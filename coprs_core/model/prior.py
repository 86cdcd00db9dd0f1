"""The positional prior: focus query · image keys, fused over the heads. Paper: `F_head`, `F_fuse`;
figure 2."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING_LOGIT = -50.0
"""Prior logit wherever SAM's square input holds no photo."""


class PositionalPrior(nn.Module):
    """From the focus token's hidden state and SAM's image embedding to the heatmap that anybody can
    look at.

    Parameter names are those of published checkpoints: `q_proj`, `k_proj`, `fuser.0`, `fuser.2`.
    """

    q_proj: nn.Linear
    k_proj: nn.Conv2d
    fuser: nn.Sequential

    def __init__(self, llm_width: int, image_channels: int, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(llm_width, width, bias=False)
        self.k_proj = nn.Conv2d(image_channels, width, kernel_size=1, bias=False)
        self.fuser = nn.Sequential(
            nn.Conv2d(heads, heads, 3, padding=1), nn.SiLU(), nn.Conv2d(heads, 1, 3, padding=1)
        )
        nn.init.constant_(
            self.fuser.get_parameter("2.bias"), -1.8
        )  # a prior starts out small: most of a photo is not the target

    def head_maps(self, focus_embedding: Tensor, image_embedding: Tensor) -> Tensor:
        """Scaled dot products, no softmax: [B, D], [B, C, h, w] → [B, heads, h, w]."""
        batch, _, h, w = image_embedding.shape
        focus_query = self.q_proj(focus_embedding).view(
            batch, self.heads, 1, -1
        )  # [B, heads, 1, d]
        image_keys = self.k_proj(image_embedding).view(
            batch, self.heads, -1, h * w
        )  # [B, heads, d, h·w]
        return (focus_query @ image_keys / math.sqrt(focus_query.shape[-1])).view(
            batch, self.heads, h, w
        )

    def forward(
        self, focus_embedding: Tensor, image_embedding: Tensor, valid_size: Tensor | None = None
    ) -> Tensor:
        """Prior logits, unbounded.

        Args:
            focus_embedding: float [B, D], the language model's last hidden state at the focus
                token.
            image_embedding: float [B, C, h, w] from SAM's image encoder.
            valid_size: int [B, 2], rows and columns of the 4h×4w logits that show the photo; the
                rest becomes −50.

        Returns:
            float [B, 1, 4h, 4w].
        """
        fused = self.fuser(self.head_maps(focus_embedding, image_embedding))
        prior_logits = F.interpolate(
            fused.float(), scale_factor=4, mode="bilinear", align_corners=False
        ).to(fused.dtype)
        return prior_logits if valid_size is None else mask_padding(prior_logits, valid_size)


def mask_padding(prior_logits: Tensor, valid_size: Tensor) -> Tensor:
    """Set the logits [B, 1, H, W] outside the first valid_size[b] rows and columns to −50."""
    rows = torch.arange(prior_logits.shape[-2], device=prior_logits.device)
    columns = torch.arange(prior_logits.shape[-1], device=prior_logits.device)
    height, width = valid_size.to(prior_logits.device)[:, :, None].unbind(1)  # [B, 1] each
    inside = (rows < height)[:, :, None] & (columns < width)[:, None, :]
    return prior_logits.masked_fill(~inside[:, None], PADDING_LOGIT)
