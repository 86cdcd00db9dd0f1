"""The mask decoder (`F_dec`): segment_anything's prompt encoder and mask decoder, prompted by the prior alone."""

from dataclasses import dataclass

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from coprs_core.model.vision import VisionConfig

FLOAT32_BUFFER = "positional_encoding_gaussian_matrix"
"""SAM works out positions in float32 whatever the precision of the weights: this buffer must stay so."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of SAM's prompt encoder and mask decoder; the defaults are those of all published SAM files."""

    mask_channels: int = 16
    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    iou_depth: int = 3
    iou_width: int = 256


class PriorDecoder(nn.Module):
    """Prior logits and image embedding → mask logits. Children keep SAM's names, so SAM's weights load as they are."""

    def __init__(self, config: DecoderConfig, vision: VisionConfig):
        super().__init__()
        self.prompt_encoder = PromptEncoder(
            embed_dim=vision.channels,
            image_embedding_size=(vision.grid, vision.grid),
            input_image_size=(vision.side, vision.side),
            mask_in_chans=config.mask_channels,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(config.depth, vision.channels, config.heads, config.mlp_width),
            transformer_dim=vision.channels,
            iou_head_depth=config.iou_depth,
            iou_head_hidden_dim=config.iou_width,
        )

    def forward(self, prior_logits: Tensor, image_embedding: Tensor) -> Tensor:
        """float [B, 1, 4h, 4w], [B, C, h, w] → mask logits float [B, 1, 4h, 4w], unbounded; above 0 is mask.

        SAM's decoder takes one image and many prompts. Its only use of the image is the sum image + dense prompt, so a
        batch of images goes in as the prompts of an empty one.
        """
        sparse, dense = self.prompt_encoder(points=None, boxes=None, masks=prior_logits)
        mask_logits, _ = self.mask_decoder(
            image_embeddings=image_embedding.new_zeros(1, *image_embedding.shape[1:]),
            image_pe=self.prompt_encoder.get_dense_pe().to(image_embedding.dtype),
            sparse_prompt_embeddings=sparse.to(image_embedding.dtype),
            dense_prompt_embeddings=image_embedding + dense,
            multimask_output=False,
        )
        return mask_logits
