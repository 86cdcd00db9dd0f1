"""EXIF orientations: between a photo as it is shown, upright, and as its file stores it.

An orientation is a number from 1, stored upright, to 8 (EXIF 3.0, tag 0x0112).
"""

import numpy as np
from PIL import Image

from coprs_core.errors import CoPRSError, Phrase

UPRIGHT, STORED = "upright", "stored"
FRAMES = (UPRIGHT, STORED)
"""In which frame masks and priors are given: of the photo as shown, or of its file's pixels."""
_TRANSPOSE_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def swaps_axes(orientation: int) -> bool:
    """Whether height and width change places."""
    return orientation >= 5


def _flipped_axes(orientation: int) -> tuple[bool, bool]:
    """Whether left and right, top and bottom change places, once height and width did."""
    return orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)


def to_upright_image(image: Image.Image, orientation: int) -> Image.Image:
    """A picture as its file stores it, turned as it is shown."""
    method = _TRANSPOSE_METHODS.get(orientation)
    return image if method is None else image.transpose(method)


def to_upright_array(array: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, …] as the file stores them, turned as the photo is shown; the inverse of
    `to_stored_array`."""
    if swaps_axes(orientation):
        array = array.swapaxes(0, 1)
    return np.ascontiguousarray(_flip_array(array, orientation))


def to_stored_array(array: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, …] of a photo as it is shown (a mask, a prior, a picture), turned as the
    photo's file stores them. Nothing is interpolated."""
    array = _flip_array(array, orientation)
    if swaps_axes(orientation):
        array = array.swapaxes(0, 1)
    return np.ascontiguousarray(array)


def _flip_array(array: np.ndarray, orientation: int) -> np.ndarray:
    left_right, top_bottom = _flipped_axes(orientation)
    return array[:: -1 if top_bottom else 1, :: -1 if left_right else 1]


def to_stored_point(
    point: tuple[float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float]:
    """A place (x, y) in pixels of a photo as it is shown, of `size` (height, width), as one of the
    stored pixels."""
    x, y = _flip_point(point, size, orientation)
    return (y, x) if swaps_axes(orientation) else (x, y)


def to_upright_point(
    point: tuple[float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float]:
    """The inverse of `to_stored_point`; `size` is that of the photo as shown in both."""
    x, y = point
    return _flip_point((y, x) if swaps_axes(orientation) else (x, y), size, orientation)


def _flip_point(
    point: tuple[float, float], size: tuple[int, int], orientation: int
) -> tuple[float, float]:
    (x, y), (height, width) = point, size
    left_right, top_bottom = _flipped_axes(orientation)
    return (width - x if left_right else x), (height - y if top_bottom else y)


def to_stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) of a photo as it is shown → as it is stored, and back."""
    return size[::-1] if swaps_axes(orientation) else size  # type: ignore[return-value]


def to_upright_mask(
    mask: np.ndarray, size: tuple[int, int], orientation: int, is_stored: bool = False
) -> np.ndarray:
    """A mask [H, W] in the frame of a photo that is shown with `size` (height, width): turned where
    it fits the stored pixels alone, or is known to lie on them; as it is where it fits neither.

    Raises `CoPRSError` where it fits both and turning it makes a difference.
    """
    stored = to_stored_size(size, orientation)
    if orientation == 1 or mask.shape[:2] != stored:
        return mask
    turned = to_upright_array(mask, orientation)
    if is_stored or stored != size or np.array_equal(turned, mask):
        return turned
    raise ambiguous_frame_error(Phrase("The mask"), orientation)


def ambiguous_frame_error(subject: str, orientation: int) -> CoPRSError:
    """The sentence for what fits a photo both as it is stored and as it is shown."""
    return CoPRSError(
        "{what} fits the photo both as it is stored and as its EXIF tag turns it "
        "(orientation {orientation}): save the photo upright, without the tag, and the "
        "mask for that.",
        what=subject,
        orientation=orientation,
    )
