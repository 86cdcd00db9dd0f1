"""The mask decoder (`F_dec`): segment_anything's prompt encoder and mask decoder, prompted by the
prior alone."""

from dataclasses import dataclass

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from coprs_core.model.vision import VisionConfig

FLOAT32_BUFFER = "positional_encoding_gaussian_matrix"
"""SAM works out positions in float32 whatever the precision of the weights: this buffer must stay
so."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of SAM's prompt encoder and mask decoder; the defaults are those of all published SAM
    files."""

    mask_channels: int = 16
    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    iou_depth: int = 3
    iou_width: int = 256


def infer_decoder_config(state: dict[str, Tensor]) -> DecoderConfig:
    """Infer the sizes of SAM's prompt encoder and mask decoder from their tensors; raises
    `KeyError` where one is missing.

    The number of attention heads leaves no trace in the tensors: it is 8, as in all published
    files.
    """
    layers = {k.split(".")[3] for k in state if k.startswith("mask_decoder.transformer.layers.")}
    head = [
        k
        for k in state
        if k.startswith("mask_decoder.iou_prediction_head.layers.") and k.endswith("weight")
    ]
    return DecoderConfig(
        mask_channels=state["prompt_encoder.mask_downscaling.6.weight"].shape[1],
        depth=len(layers),
        mlp_width=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        iou_depth=len(head),
        iou_width=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    )


class PriorDecoder(nn.Module):
    """Prior logits and image embedding → mask logits. Children keep SAM's names, so SAM's weights
    load as they are."""

    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder

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
            transformer=TwoWayTransformer(
                config.depth, vision.channels, config.heads, config.mlp_width
            ),
            transformer_dim=vision.channels,
            iou_head_depth=config.iou_depth,
            iou_head_hidden_dim=config.iou_width,
        )

    def forward(self, prior_logits: Tensor, image_embedding: Tensor) -> Tensor:
        """float [B, 1, 4h, 4w], [B, C, h, w] → mask logits float [B, 1, 4h, 4w], unbounded; above 0
        is mask.

        SAM's decoder takes one image and many prompts. Its only use of the image is the sum image +
        dense prompt, so a batch of images goes in as the prompts of an empty one.
        """
        sparse, dense = self.prompt_encoder(points=None, boxes=None, masks=prior_logits)
        return self._decode(sparse, image_embedding + dense)

    def decode_coordinates(
        self, image_embedding: Tensor, box: Tensor | None, points: Tensor | None
    ) -> Tensor:
        """Decode from SAM's own prompts: `box` float [B, 4] (XYXY), `points` float [B, N, 2] (XY,
        all on the target), in pixels of the SAM frame; either may be None, not both. Returns mask
        logits as `forward` does."""
        labelled = (
            None if points is None else (points, torch.ones(points.shape[:2], device=points.device))
        )
        sparse, dense = self.prompt_encoder(points=labelled, boxes=box, masks=None)
        return self._decode(sparse, image_embedding + dense)

    def decode_embedding(self, image_embedding: Tensor, prompt: Tensor) -> Tensor:
        """Decode from a prompt embedding in place of any prompt, float [B, n, C], as LISA makes of
        a hidden state. Returns mask logits as `forward` does."""
        _, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
        return self._decode(prompt, image_embedding + dense)

    def _decode(self, sparse: Tensor, image_and_dense: Tensor) -> Tensor:
        mask_logits, _ = self.mask_decoder(
            image_embeddings=image_and_dense.new_zeros(1, *image_and_dense.shape[1:]),
            image_pe=self.prompt_encoder.get_dense_pe().to(image_and_dense.dtype),
            sparse_prompt_embeddings=sparse.to(image_and_dense.dtype),
            dense_prompt_embeddings=image_and_dense,
            multimask_output=False,
        )
        return mask_logits
