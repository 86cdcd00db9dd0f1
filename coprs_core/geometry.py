"""Frames of a photo and the ways between them; the only copy of this arithmetic.

Photo frame: pixels of the upright photo, (H, W). SAM frame: the longest side scaled to `side`,
padded right and below to a square. Prior frame: SAM frame at a quarter of the patch grid's pitch.
MLLM frame: area limited by nearest-neighbour resizing, then whatever the model's own processor
does. Sizes are (height, width) throughout.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


def unpadded_size(photo_size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of a photo of `photo_size` inside SAM's side×side square; never below one
    pixel."""
    height, width = ResizeLongestSide.get_preprocess_shape(*photo_size, side)
    return max(1, height), max(1, width)


def to_sam_frame(photo: Image.Image, side: int) -> Tensor:
    """An RGB photo → normalised, zero-padded pixels float32 [1, 3, side, side], as
    segment_anything's predictor does."""
    height, width = unpadded_size((photo.height, photo.width), side)
    resized = (
        photo
        if (width, height) == photo.size
        else photo.resize((width, height), Image.Resampling.BILINEAR)
    )
    return _normalize_and_pad(torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None], side)


def to_sam_frames(photos: Tensor, side: int) -> Tensor:
    """RGB [B, 3, H, W] in [0, 255] → the same as `to_sam_frame`, but for rounding to whole numbers;
    float32 [B, 3, side, side], on the pictures' device."""
    height, width = photos.shape[-2:]
    size = unpadded_size((height, width), side)
    resized = F.interpolate(photos.float(), size, mode="bilinear", antialias=True)
    return _normalize_and_pad(resized, side)


def _normalize_and_pad(pixels: Tensor, side: int) -> Tensor:
    """RGB [B, 3, h, w] in [0, 255] with h, w ≤ side → normalised, zero-padded float32 [B, 3, side,
    side]."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (SAM_MEAN, SAM_STD))
    normalised = (pixels.float() - mean) / std
    return F.pad(normalised, (0, side - pixels.shape[-1], 0, side - pixels.shape[-2]))


def unpadded_prior_size(unpadded: Tensor, side: int, prior_side: int) -> Tensor:
    """int [B, 2] (height, width) in the SAM frame → rows and columns of the prior frame that show
    photo, rounded up."""
    return torch.ceil(unpadded.float() * prior_side / side).long()


def to_photo_frame(logits: Tensor, photo_size: tuple[int, int], side: int) -> Tensor:
    """Logits [B, 1, p, p] of the prior frame → [B, 1, H, W] of the photo: up to SAM's square, crop,
    resize; bilinear."""
    height, width = unpadded_size(photo_size, side)
    square = F.interpolate(logits.float(), size=(side, side), mode="bilinear", align_corners=False)
    return F.interpolate(
        square[..., :height, :width], size=photo_size, mode="bilinear", align_corners=False
    )


def to_mllm_frame(photo: Image.Image, pixel_bounds: tuple[int, int]) -> Image.Image:
    """The photo with its area brought inside `pixel_bounds` (least, most) by nearest-neighbour
    resizing, aspect ratio kept."""
    min_pixels, max_pixels = pixel_bounds
    area = photo.width * photo.height
    if min_pixels <= area <= max_pixels:
        return photo
    if area > max_pixels:
        factor = math.sqrt(max_pixels / area)
        size = max(1, int(photo.width * factor)), max(1, int(photo.height * factor))
    else:
        factor = math.sqrt(min_pixels / area)
        size = math.ceil(photo.width * factor), math.ceil(photo.height * factor)
    return photo.resize(size, Image.Resampling.NEAREST)


def to_sam_points(points: np.ndarray, photo_size: tuple[int, int], side: int) -> Tensor:
    """XY points float [..., 2] in pixels of the photo → float32 [..., 2] in pixels of the SAM
    frame."""
    height, width = unpadded_size(photo_size, side)
    return torch.as_tensor(points, dtype=torch.float32) * torch.tensor(
        [width / photo_size[1], height / photo_size[0]]
    )


def to_square(photo: Image.Image, side: int) -> Image.Image:
    """The photo squeezed into side×side pixels, bilinear; the aspect ratio is given up."""
    return photo.resize((side, side), Image.Resampling.BILINEAR)
