"""SAM as published, prompted by boxes and points: SAM by segment_anything, SAM 2.1 by
transformers."""

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from coprs_core.geometry import to_photo_frame, to_sam_frame, to_sam_points
from coprs_core.model.decoder import DecoderConfig, PriorDecoder
from coprs_core.model.vision import VisionConfig, build_image_encoder

Box = tuple[float, float, float, float]
Points = tuple[tuple[float, float], ...]


class PromptedSam(Protocol):
    """A published SAM. Boxes are XYXY and points XY, in pixels of the photo; one of them is
    given."""

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def embed(self, photo: Image.Image) -> tuple[Tensor, ...]:
        """The image embedding of an RGB photo, one tensor a level."""
        ...

    def predict_mask(
        self,
        embedding: tuple[Tensor, ...],
        box: Box | None,
        points: Points,
        photo_size: tuple[int, int],
    ) -> np.ndarray:
        """Predict the mask of what box and points show, bool [H, W] at the photo's size."""
        ...


class Sam1(nn.Module):
    """segment_anything's SAM: `image_encoder` and `decoder`, SAM's own names."""

    image_encoder: Any
    decoder: PriorDecoder

    def __init__(self, vision: VisionConfig, decoder: DecoderConfig):
        super().__init__()
        self.vision = vision
        self.image_encoder = build_image_encoder(vision)
        self.decoder = PriorDecoder(decoder, vision)

    @property
    def device(self) -> torch.device:
        return self.image_encoder.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.image_encoder.pos_embed.dtype

    @torch.no_grad()
    def embed(self, photo: Image.Image) -> tuple[Tensor, ...]:
        pixels = to_sam_frame(photo, self.vision.side).to(self.device, self.dtype)
        return (self.image_encoder(pixels),)

    @torch.no_grad()
    def predict_mask(
        self,
        embedding: tuple[Tensor, ...],
        box: Box | None,
        points: Points,
        photo_size: tuple[int, int],
    ) -> np.ndarray:
        side = self.vision.side
        corners = spots = None
        if box is not None:
            corners = to_sam_points(np.array(box).reshape(2, 2), photo_size, side)
            corners = corners.reshape(1, 4).to(self.device)
        if points:
            spots = to_sam_points(np.array(points), photo_size, side)[None].to(self.device)
        mask_logits = self.decoder.decode_coordinates(embedding[0], corners, spots)
        return to_photo_frame(mask_logits, photo_size, side)[0, 0].cpu().numpy() > 0


COORDINATE_ENCODERS = ["shared_image_embedding", "shared_embedding"]
"""Where `Sam2Model` encodes coordinates: in float32, for bfloat16 rounds pixel 900 to four."""


class Sam2(nn.Module):
    """transformers' `Sam2Model` with the image processor of its folder.

    It squeezes a photo into its square; prompts are squeezed alike (`Sam2Processor`). Coordinates
    are encoded in float32 whatever the model computes in.
    """

    def __init__(self, model: Any, image_processor: Any):
        super().__init__()
        self.model, self._image_processor = model, image_processor
        self._side = image_processor.size["height"], image_processor.size["width"]
        for encoder in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
            encoder.register_forward_hook(lambda _encoder, _args, encoded: encoded.to(self.dtype))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @torch.no_grad()
    def embed(self, photo: Image.Image) -> tuple[Tensor, ...]:
        pixels = self._image_processor(images=[photo], return_tensors="pt")["pixel_values"]
        return tuple(self.model.get_image_embeddings(pixels.to(self.device, self.dtype)))

    @torch.no_grad()
    def predict_mask(
        self,
        embedding: tuple[Tensor, ...],
        box: Box | None,
        points: Points,
        photo_size: tuple[int, int],
    ) -> np.ndarray:
        squeeze = torch.tensor(
            [self._side[1] / photo_size[1], self._side[0] / photo_size[0]], device=self.device
        )
        prompts = {}
        if box is not None:
            corners = torch.tensor(box, device=self.device).reshape(2, 2) * squeeze
            prompts["input_boxes"] = corners.reshape(1, 1, 4)
        if points:
            spots = torch.tensor(points, device=self.device) * squeeze
            prompts["input_points"] = spots[None, None]
        output = self.model(image_embeddings=list(embedding), multimask_output=False, **prompts)
        mask_logits = output.pred_masks[:, 0].float()
        at_photo_size = F.interpolate(mask_logits, photo_size, mode="bilinear", align_corners=False)
        return at_photo_size[0, 0].cpu().numpy() > 0
