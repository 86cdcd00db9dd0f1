"""The vision backbone (`F_enc`): segment_anything's image encoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT
    from torch import Tensor


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of SAM's image encoder. `side` is the square input in pixels; the grid has side / patch
    cells a side."""

    side: int = 1024
    patch: int = 16
    width: int = 1280
    depth: int = 32
    heads: int = 16
    mlp_ratio: float = 4.0
    window: int = 14
    global_layers: tuple[int, ...] = (7, 15, 23, 31)
    channels: int = 256

    @property
    def grid(self) -> int:
        return self.side // self.patch

    @property
    def prior_side(self) -> int:
        """Side of prior and mask logits: four times the grid, as SAM's prompt encoder and decoder
        have it."""
        return 4 * self.grid


SAM_SIZES = {
    "vit_b": VisionConfig(width=768, depth=12, heads=12, global_layers=(2, 5, 8, 11)),
    "vit_l": VisionConfig(width=1024, depth=24, heads=16, global_layers=(5, 11, 17, 23)),
    "vit_h": VisionConfig(),
}


def infer_vision_config(state: dict[str, Tensor]) -> VisionConfig:
    """Infer the sizes of an image encoder from its tensors (SAM's names, without a prefix).

    Raises `KeyError` where a tensor that tells a size is missing.
    """
    _, grid, _, width = state["pos_embed"].shape
    patch = state["patch_embed.proj.weight"].shape[-1]
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    window_sizes = [(state[f"blocks.{i}.attn.rel_pos_h"].shape[0] + 1) // 2 for i in range(depth)]
    return VisionConfig(
        side=grid * patch,
        patch=patch,
        width=width,
        depth=depth,
        heads=width // state["blocks.0.attn.rel_pos_h"].shape[1],
        mlp_ratio=state["blocks.0.mlp.lin1.weight"].shape[0] / width,
        window=min(window_sizes),
        global_layers=tuple(i for i, cells in enumerate(window_sizes) if cells == grid),
        channels=state["neck.0.weight"].shape[0],
    )


def build_image_encoder(config: VisionConfig) -> ImageEncoderViT:
    """SAM's image encoder: normalised pixels float [B, 3, side, side] → image embedding [B,
    channels, grid, grid]."""
    import torch
    from segment_anything.modeling import ImageEncoderViT

    layer_norm: Any = partial(torch.nn.LayerNorm, eps=1e-6)
    return ImageEncoderViT(
        img_size=config.side,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        norm_layer=layer_norm,
        qkv_bias=True,
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=config.global_layers,
        out_chans=config.channels,
    )
