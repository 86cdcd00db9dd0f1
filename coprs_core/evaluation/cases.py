"""Pictures of single items: photo, prior, mask and truth side by side."""

from pathlib import Path

import numpy as np
from PIL import Image

from coprs_core.answer.pictures import mask_overlay, prior_overlay
from coprs_core.answer.results import Result
from coprs_core.example import Example
from coprs_core.masks import resize_mask

SIDE, GAP, QUALITY = 220, 4, 80


def save_case(path: Path, example: Example, result: Result) -> None:
    """Write photo, prior, mask and truth side by side, each at most `SIDE` pixels, as WebP, and
    the reply beside it as text."""
    photo = example.load_photo().image
    small = photo.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    size, pixels = small.size, np.asarray(small)
    prior = np.zeros(result.photo_size, np.float32) if result.prior is None else result.prior
    small_prior = np.asarray(Image.fromarray(prior).resize(size, Image.Resampling.BILINEAR))
    parts = [pixels, prior_overlay(pixels, small_prior)]
    for mask in (result.mask, example.truth):
        parts.append(mask_overlay(pixels, resize_mask(mask, pixels.shape[:2])))
    gap = np.full((size[1], GAP, 3), 255, np.uint8)
    row = [piece for part in parts for piece in (part, gap)][:-1]
    path.with_suffix(".txt").write_text(result.reply, encoding="utf-8")
    Image.fromarray(np.concatenate(row, axis=1)).save(path, quality=QUALITY)
