"""From whatever a person brings to an upright RGB photo."""

import hashlib
import io
import warnings
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from coprs_core.errors import CoPRSError

MAX_SIDE, MAX_ASPECT = 8192, 100
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM")
_WHAT_TO_DO = "use a JPEG, PNG, WebP or another common picture file"


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright RGB picture; `key` names its content, so that equal pictures have equal keys;
    `full_size` is the (height, width) that it had before it was brought down, where it was."""

    image: Image.Image = field(repr=False)
    key: str
    full_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width


PhotoLike = str | PathLike | bytes | bytearray | Image.Image | np.ndarray | Photo | None
"""What `open_photo` reads; None stands for a photo that is not there yet."""


def open_photo(source: PhotoLike, most_pixels: int | None = None) -> Photo:
    """Read a photo from a path, the bytes of a file, a PIL image or an array (uint8 or bool, or
    float in [0, 1]; HxW, HxWx3 or HxWx4).

    The first frame of an animation, turned upright by its EXIF tag, transparency on white, any mode
    brought to RGB, and down to `most_pixels` where it has more. Raises `CoPRSError` where there is
    no picture or its longest side is over 8,192 pixels (checked before decoding).
    """
    if isinstance(source, Photo):
        return source
    if source is None:
        raise CoPRSError(f"There is no picture yet: {_WHAT_TO_DO}.")
    try:
        with warnings.catch_warnings():
            # MAX_SIDE is the stricter rule
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _opened(source)
            _check_size(image)
            if getattr(image, "is_animated", False):
                image.seek(0)
            if image is source:  # what follows changes it
                image = image.copy()
            ImageOps.exif_transpose(image, in_place=True)
            size = image.height, image.width
            if most_pixels:  # before there are copies of it
                image = _brought_down(image, most_pixels)
            rgb = _to_rgb(image)
    except CoPRSError:
        raise
    except Image.DecompressionBombError as problem:
        raise CoPRSError(
            f"The picture is far over {MAX_SIDE:,} pixels a side: make it smaller."
        ) from problem
    except FileNotFoundError as problem:
        raise CoPRSError(f"There is no file {str(source)!r}: check the path.") from problem
    except IsADirectoryError as problem:
        raise CoPRSError(
            f"{str(source)!r} is a folder and one picture was expected: name a file in it."
        ) from problem
    except MemoryError as problem:
        raise CoPRSError("The picture does not fit into memory: make it smaller.") from problem
    except Exception as problem:  # decoders of foreign files raise anything at all
        raise CoPRSError(
            "This file cannot be read as a picture (it may be broken or of another kind): "
            f"{_WHAT_TO_DO}."
        ) from problem
    key = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
    return Photo(rgb, key, size if size != (rgb.height, rgb.width) else None)


def _opened(source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    file = io.BytesIO(source) if isinstance(source, bytes | bytearray) else Path(source)
    return Image.open(file, formats=readable())


@cache
def readable() -> tuple[str, ...]:
    """The formats of pictures that are read. Not EPS, a program that Ghostscript would run."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype.kind == "f":
        array = np.clip(np.nan_to_num(array) * 255, 0, 255).round().astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (3, 4))
        or not array.size
    ):
        raise CoPRSError(
            f"The picture is an array of {array.dtype} {list(array.shape)} and uint8 [H, W], "
            "[H, W, 3] or [H, W, 4] was expected: convert it."
        )
    return Image.fromarray(array)


def _check_size(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE:
        raise CoPRSError(
            f"The picture is {image.width:,}×{image.height:,} pixels and at most {MAX_SIDE:,} a "
            "side are read: make it smaller."
        )
    if min(image.size) < 1:
        raise CoPRSError(f"The picture is empty: {_WHAT_TO_DO}.")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise CoPRSError(
            f"The picture is {image.width:,}×{image.height:,} pixels, over {MAX_ASPECT} times as "
            "long as wide: crop it."
        )


def _brought_down(image: Image.Image, most_pixels: int) -> Image.Image:
    pixels = image.width * image.height
    if pixels <= most_pixels:
        return image
    factor = (most_pixels / pixels) ** 0.5
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    is_smooth = image.mode in ("L", "RGB", "RGBA", "CMYK", "YCbCr")  # others are no mere colours
    how = Image.Resampling.LANCZOS if is_smooth else Image.Resampling.NEAREST
    return image.resize(size, how, reducing_gap=3.0)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _scaled(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(ground, image).convert("RGB")
    return image.convert("RGB")


def _scaled(values: np.ndarray) -> Image.Image:
    """More than 8 bits a pixel → 8: values up to 1 (float), 255 or 65,535 are taken as full scale,
    others stretched."""
    scales = (1, 255, 65535) if values.dtype.kind == "f" else (255, 65535)
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    full = next((s for s in scales if high <= s), None)
    if low < 0 or full is None:
        values, full = values - low, max(high - low, 1e-9)
    return Image.fromarray((values * (255 / full)).round().clip(0, 255).astype(np.uint8))
