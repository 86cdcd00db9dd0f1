"""Shapes as labelme writes them: polygons, rectangles, circles and masks.

See https://github.com/wkentaro/labelme.
"""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from coprs_core.datasets.formats import declared_size, is_drawable, missing_library_message
from coprs_core.errors import CoPRSError, truncate
from coprs_core.photos.photo import MAX_SIDE, open_pil_image, read_photo_file

_KINDS_WITH_AREA = ("polygon", "rectangle", "circle", "mask")
_KINDS_WITHOUT_AREA = ("line", "linestrip", "point", "points")


def image_size_and_extent(
    annotation: dict[str, Any], shapes: list[dict]
) -> tuple[tuple[int, int] | None, tuple[float, float]]:
    """(height, width) of the image that shapes were drawn on, where the file declares it, and the
    (bottom, right) of their points."""
    size = declared_size(
        {"height": annotation.get("imageHeight"), "width": annotation.get("imageWidth")}
    )
    corners = [corners for shape in shapes if (corners := _parse_points(shape)) is not None]
    right, down = np.concatenate([*corners, np.zeros((1, 2))]).max(axis=0)
    return size, (int(down), int(right))


def rasterize_shapes(
    shapes: list[dict], size: tuple[int, int], where: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Target and regions to ignore, bool [H, W], and how many shapes could not be drawn.

    As LISA does, with the same library: large shapes first, whole pixels, borders included; "flag"
    shapes mean nothing. Raises `CoPRSError` for a kind of shape that has no area or is not known,
    and `ValueError` where there are shapes and none can be drawn.
    """
    drawn, areas, left_out = [], [], 0
    for shape in shapes:
        label = str(shape.get("label")).lower() if isinstance(shape, dict) else ""
        if label == "flag":
            continue
        mask = _rasterize(shape, size, where) if isinstance(shape, dict) else None
        if mask is None:
            left_out += 1
        else:  # drawn again below: masks of many shapes together would take much memory
            drawn.append((shape, "ignore" in label))
            areas.append(int(mask.sum()))
    if left_out and not drawn:
        raise ValueError("a shape has points [x, y] near the picture, and a mask its PNG")
    # large first: a small shape on a large one keeps its own meaning
    target, ignore = np.zeros((2, *size), bool)
    for i in np.argsort(areas)[::-1]:
        shape, is_ignored = drawn[i]
        mask = _rasterize(shape, size, where)
        target[mask], ignore[mask] = not is_ignored, is_ignored
    return target, ignore, left_out


def _parse_points(shape: Any) -> np.ndarray | None:
    """The points of a shape, float64 [N, 2]; None where they cannot be drawn."""
    try:
        points = np.array(shape["points"], np.float64)
    except (TypeError, ValueError, LookupError, OverflowError):
        return None
    is_flat = points.ndim == 2 and points.shape[1] == 2 and len(points) > 0
    return points if is_flat and is_drawable(points) else None


def _rasterize(shape: dict, size: tuple[int, int], where: str) -> np.ndarray | None:
    """Draw a shape as bool [H, W]; None where it cannot be drawn."""
    kind = shape.get("shape_type") or "polygon"
    if kind not in _KINDS_WITH_AREA:
        why = "has no area" if kind in _KINDS_WITHOUT_AREA else "is not known"
        raise CoPRSError(
            f"{where} has a shape of the kind {truncate(kind)!r}, which {why}: draw it as a "
            f"{', a '.join(_KINDS_WITH_AREA[:-1])} or a {_KINDS_WITH_AREA[-1]}, or take it out."
        )
    points = _parse_points(shape)
    if points is None or (kind != "polygon" and len(points) < 2):
        return None
    rasterizers: dict[str, Callable[[], np.ndarray | None]] = {
        "polygon": lambda: _fill_polygon(points, size),
        "rectangle": lambda: _fill_polygon(_rectangle_corners(points), size),
        "circle": lambda: _fill_circle(points, size),
        "mask": lambda: _decode_mask_shape(shape.get("mask"), points, size),
    }
    return rasterizers[kind]()


def _rectangle_corners(points: np.ndarray) -> np.ndarray:
    """The four corners of a rectangle from two opposite ones; four are returned as they are."""
    if len(points) != 2:
        return points
    (x0, y0), (x1, y1) = points
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _fill_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    try:
        import cv2
    except ModuleNotFoundError as problem:
        raise CoPRSError(missing_library_message("opencv-python-headless")) from problem
    mask = np.zeros(size, np.uint8)
    # truncated, and with a border of one pixel: to the pixel what LISA's evaluation does
    corners = [points.astype(np.int32)]
    cv2.polylines(mask, corners, True, (1,), 1)
    cv2.fillPoly(mask, corners, (1,))
    return mask > 0


def _fill_circle(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Fill a circle, given by its centre and a point of its border."""
    (x, y), border = points[0], points[1]
    radius = np.hypot(*(border - points[0]))
    down, right = np.ogrid[: size[0], : size[1]]
    return (right - x) ** 2 + (down - y) ** 2 <= radius**2


def _decode_mask_shape(
    encoded: Any, points: np.ndarray, size: tuple[int, int]
) -> np.ndarray | None:
    """Paste a base64 PNG at its top left corner; None where it cannot be decoded."""
    try:
        png = base64.b64decode(encoded)
        image = open_pil_image(png, read_photo_file(png))
        if max(image.size) > MAX_SIDE:
            return None
        pixels = np.asarray(image.convert("L")) > 0
    except Exception:  # decoders raise anything at all over what is no picture
        return None
    mask = np.zeros(size, bool)
    left, top = (int(v) for v in points.min(axis=0))
    rows = slice(max(top, 0), min(top + pixels.shape[0], size[0]))
    columns = slice(max(left, 0), min(left + pixels.shape[1], size[1]))
    if rows.start < rows.stop and columns.start < columns.stop:
        inside = pixels[rows.start - top :, columns.start - left :]
        mask[rows, columns] = inside[: rows.stop - rows.start, : columns.stop - columns.start]
    return mask
