"""Values of more than 8 bits a pixel, brought to 8: by their full scale, where they use it, else
stretched from the lowest to the highest that there is."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from coprs_core.errors import CoPRSError

_FULL_SCALES = {"F": (1, 255, 65535), "I": (255, 65535)}
"""The values that can mean white, by the mode of PIL: of floats, of 8 and of 16 bits."""
_DARK_FACTOR = 4
"""Values below white divided by this do not fill their scale: 14 bits in 16, and fewer."""
_STRIP_ROWS = 256
"""Rows that are converted at once: a whole photo in float64 would take eight times its memory."""
_SWAPPED_BYTE_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


@dataclass(frozen=True)
class DisplayRange:
    """The values that become black and white; `is_stretched` where that is what there is, and not
    the ends of a scale."""

    black: float
    white: float
    is_stretched: bool

    @property
    def stretched(self) -> tuple[float, float] | None:
        """(lowest, highest), where they were stretched."""
        return (float(self.black), float(self.white)) if self.is_stretched else None

    def to_uint8(self, values: np.ndarray) -> np.ndarray:
        """Values of any number type as uint8; what is no number is black."""
        if values.dtype.kind == "f":
            values = np.nan_to_num(values, nan=self.black, posinf=self.white, neginf=self.black)
        scaled = (values.astype(np.float64) - self.black) * (255 / self._width)
        return scaled.round().clip(0, 255).astype(np.uint8)

    @property
    def _width(self) -> float:
        return max(self.white - self.black, 1e-9)


def compute_display_range(image: Image.Image) -> DisplayRange | None:
    """The display range of a grey photo of more than 8 bits a pixel; None for any other. Raises
    `CoPRSError` where none of its values is a number."""
    if not image.mode.startswith(("I", "F")):
        return None
    min_max = _min_max(strip for _, strip in _iterate_strips(image))
    if min_max is None:
        raise CoPRSError("The picture holds no numbers, only NaN or infinity: save it again.")
    return _choose_display_range(*min_max, image.mode[0])


def _choose_display_range(low: float, high: float, kind: str) -> DisplayRange:
    full = next((scale for scale in _FULL_SCALES[kind] if high <= scale), None)
    if low < 0 or full is None or low < high <= full / _DARK_FACTOR:
        return DisplayRange(low, high, True)
    return DisplayRange(0, full, False)


def _min_max(strips: Iterable[np.ndarray]) -> tuple[float, float] | None:
    """Lowest and highest number of all strips; None where there is none."""
    low, high = np.inf, -np.inf
    for values in strips:
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, values.min().item()), max(high, values.max().item())
    return (low, high) if low <= high else None


def _iterate_strips(image: Image.Image):
    """(row, values [rows, W, …]) of a picture, from top to bottom."""
    for top in range(0, image.height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, image.height)
        yield top, np.asarray(image.crop((0, top, image.width, bottom)))


def to_8bit_grey(image: Image.Image, display_range: DisplayRange) -> Image.Image:
    """A grey image of more than 8 bits a pixel as one of 8, by its display range."""
    grey = np.empty((image.height, image.width), np.uint8)
    for top, values in _iterate_strips(image):
        grey[top : top + _STRIP_ROWS] = display_range.to_uint8(values)
    return Image.fromarray(grey)


# --- colours of 16 bits, of which a decoder gives the upper 8


def has_16bit_colours(image: Image.Image) -> bool:
    """Whether a picture that is opened and not yet decoded has colours of 16 bits each."""
    tiles = getattr(image, "tile", None) or ()
    return image.mode in ("RGB", "RGBA") and any(";16" in _raw_mode(tile.args) for tile in tiles)


def are_colours_dark(image: Image.Image) -> bool:
    """Whether the upper 8 bits of such colours stay under a quarter of their scale."""
    extrema: Any = image.getextrema()
    return max(high for _, high in extrema[:3]) < 256 // _DARK_FACTOR


def stretch_16bit_colours(
    upper: Image.Image, undecoded: Any
) -> tuple[Image.Image, tuple[float, float] | None]:
    """Dark colours of 16 bits, stretched together.

    Args:
        upper: the decoded picture, RGB or RGBA: the upper 8 bits.
        undecoded: the same file, opened and not yet decoded; its lower 8 bits are read, which is
            what a decoder gives of the other byte order.

    Returns:
        the picture with 8 bits a colour, and `DisplayRange.stretched` of the 16-bit values.
    """
    undecoded.tile = [t._replace(args=_swap_byte_order(t.args)) for t in undecoded.tile]
    undecoded.load()
    low, high = _min_max(_combine_bytes(*pair) for pair in _strip_pairs(upper, undecoded)) or (0, 0)
    display_range, pixels = DisplayRange(low, high, low < high), np.array(upper)
    for top, pair in zip(
        range(0, upper.height, _STRIP_ROWS), _strip_pairs(upper, undecoded), strict=True
    ):
        pixels[top : top + _STRIP_ROWS, :, :3] = display_range.to_uint8(_combine_bytes(*pair))
    return Image.fromarray(pixels), display_range.stretched


def _strip_pairs(upper: Image.Image, lower: Image.Image):
    for (_, high), (_, low) in zip(_iterate_strips(upper), _iterate_strips(lower), strict=True):
        yield high[..., :3], low[..., :3]


def _combine_bytes(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    return upper.astype(np.uint16) << 8 | lower


def _raw_mode(args) -> str:
    """How a decoder is told that a file stores its pixels, such as "RGB;16B"."""
    raw_mode = args if isinstance(args, str) else args[0] if args else ""
    return raw_mode if isinstance(raw_mode, str) else ""


def _swap_byte_order(args):
    raw_mode = _raw_mode(args)
    swapped = raw_mode[:-1] + _SWAPPED_BYTE_ORDER[raw_mode[-1]]
    return swapped if isinstance(args, str) else (swapped, *args[1:])
