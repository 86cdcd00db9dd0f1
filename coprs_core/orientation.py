"""How a camera was held, by a photo's EXIF tag, and what lies on the pixels as they are stored."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from coprs_core.errors import CoPRSError
from coprs_core.photos import PhotoLike, readable

_TAG = 0x0112
_UPRIGHT = 1
_TURNED = range(2, 9)


def orientation_of(source: PhotoLike) -> int:
    """The EXIF orientation of a picture file, its bytes or a PIL image, 1 (upright) to 8; 1 where
    it has none."""
    try:
        if isinstance(source, Image.Image):
            told = source.getexif().get(_TAG)
        elif isinstance(source, str | Path | bytes):
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=readable()) as image:
                told = image.getexif().get(_TAG)
        else:
            told = None
    except Exception:  # decoders of foreign files raise anything; who opens it says why
        told = None
    return told if isinstance(told, int) and told in _TURNED else _UPRIGHT


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored of a photo that is shown with `size`, and the other way round."""
    return size if orientation < 5 else size[::-1]


def turned_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, …] as stored, turned as the photo is shown, by EXIF's table."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def on_upright(
    mask: np.ndarray, size: tuple[int, int], orientation: int, is_stored: bool = False
) -> np.ndarray:
    """A mask [H, W] in the frame of a photo that is shown with `size` (height, width): turned where
    it fits the stored pixels alone, or is known to lie on them; as it is where it fits neither.

    Raises `CoPRSError` where it fits both and turning it makes a difference.
    """
    as_stored = stored_size(size, orientation)
    if orientation == _UPRIGHT or mask.shape[:2] != as_stored:
        return mask
    turned = turned_upright(mask, orientation)
    if is_stored or as_stored != size or np.array_equal(turned, mask):
        return turned
    raise cannot_tell("The mask", orientation)


def cannot_tell(what: str, orientation: int) -> CoPRSError:
    """The sentence for what fits a photo both as it is stored and as it is shown."""
    return CoPRSError(
        f"{what} fits the photo both as it is stored and as its EXIF tag turns it (orientation "
        f"{orientation}): save the photo upright, without the tag, and the mask for that."
    )
