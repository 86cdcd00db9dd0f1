"""The other camp: a language model that writes coordinates, and SAM as published, prompted by them."""

from dataclasses import dataclass

import torch
from torch import nn

from coprs_core.model.decoder import DecoderConfig, PriorDecoder
from coprs_core.model.vision import VisionConfig, build_image_encoder


@dataclass(frozen=True)
class PointingConfig:
    """What the engine needs to know of such a model; the rest stands in its Hugging Face folder and its SAM file."""

    vision: VisionConfig
    decoder: DecoderConfig
    prompt_template: str
    max_new_tokens: int = 2000
    note: str = ""


class Pointing(nn.Module):
    """`mllm` (a Hugging Face model), `image_encoder` and `decoder` (SAM's own weights)."""

    def __init__(self, config: PointingConfig, mllm: nn.Module):
        super().__init__()
        self.config = config
        self.mllm = mllm
        self.image_encoder = build_image_encoder(config.vision)
        self.decoder = PriorDecoder(config.decoder, config.vision)

    @property
    def device(self) -> torch.device:
        return self.image_encoder.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.image_encoder.pos_embed.dtype
