"""Values of an answer that came from a file, whoever made it: as they must be, or `ValueError`."""

import math

from coprs_core.photos.orientation import FRAMES, STORED
from coprs_core.photos.photo import MAX_SIDE

MAX_TEXT = 100_000
"""Characters of a text."""


def as_count(value) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r:.40} in the place of a count")
    return value


def as_finite(value) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"{value!r:.40} in the place of a number")
    return float(value)


def as_distance(value) -> float | None:
    if value is not None and not (isinstance(value, int | float) and 0 <= value < 1e9):
        raise ValueError(f"{value!r:.40} in the place of a distance")
    return None if value is None else float(value)


def as_size(value) -> tuple[int, int] | None:
    """(height, width) of a picture; None where it is not told."""
    if value is None:
        return None
    height, width = (as_count(v) for v in value)
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"a picture of {height}×{width} pixels")
    return height, width


def as_full_size(value, photo_size: tuple[int, int]) -> tuple[int, int] | None:
    """What a photo had before it was brought down to `photo_size`; None where it is not told."""
    size = as_size(value)
    if size is not None and (size[0] < photo_size[0] or size[1] < photo_size[1]):
        raise ValueError("a photo that was smaller before it was brought down")
    return size


def as_levels(value) -> tuple[float, float] | None:
    """(lowest, highest) value of a photo; None where it was not stretched."""
    if value is None:
        return None
    low, high = (as_finite(v) for v in value)
    return low, high


def as_orientation(values: dict) -> tuple[int | None, bool]:
    """EXIF's orientation, None where it is not told; and whether the answer is given for the
    pixels as they are stored."""
    orientation, frame = values.get("orientation"), values.get("frame", FRAMES[0])
    if orientation is not None and as_count(orientation) not in range(1, 9):
        raise ValueError(f"orientation {orientation}")
    if frame not in FRAMES or (frame == STORED and orientation is None):
        raise ValueError(f"{frame!r:.40} in the place of a frame")
    return orientation, frame == STORED


def as_text(value) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{str(value)[:40]!r} in the place of a text")
    return value
