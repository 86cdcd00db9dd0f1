"""An answer against another about the same photo, or against the truth."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError, Phrase, strip_markup
from coprs_core.files import find_file, read_text
from coprs_core.masks import decode_rle
from coprs_core.metrics import PRIOR_THRESHOLD, PRIOR_THRESHOLDS, iou, iou_curve
from coprs_core.parsing import parse_json
from coprs_core.photos.orientation import to_stored_size, to_upright_mask
from coprs_core.photos.photo import (
    decoder_errors_as_user_error,
    open_pil_image,
    read_orientation,
    read_photo_file,
)

_MAX_JSON_BYTES = 16_000_000
_VOID_INDEX = 255
MIN_STAYED_IOU, MAX_MOVED_IOU = 0.8, 0.2
"""IoU from which two masks are the same place, and below which they are another. Between the two
the mask has changed: the same object, more or less of it."""
Move = Literal["stayed", "changed", "moved", "appeared", "vanished", "neither"]
_TRUTH_HINT = Phrase(
    "give a PNG of the photo's size, white where the thing is, or COCO RLE as JSON"
)


@dataclass(frozen=True)
class AnswerComparison:
    """Two answers about one photo: IoU of their masks and, where both have one, of their priors (≥
    0.5)."""

    mask_iou: float
    prior_iou: float | None


@dataclass(frozen=True)
class AnswerMove:
    """What became of an answer in another: the same place, a part of it, another place; it
    appeared, vanished, or neither answer has one. Places as `name_position` names them, "" without
    one, "several" of several objects."""

    move: Move
    before: str
    after: str
    mask_iou: float


@dataclass(frozen=True, eq=False)
class TruthComparison:
    """An answer against a true mask.

    `mask_iou`; `prior_curve` float64 [101]: IoU of the prior at each of `metrics.PRIOR_THRESHOLDS`;
    `prior_iou`: at 0.5; `best_threshold`, `best_iou`: where the prior comes nearest to the truth.
    Of the prior all are None without one.
    """

    mask_iou: float
    prior_iou: float | None = None
    best_threshold: float | None = None
    best_iou: float | None = None
    prior_curve: np.ndarray | None = field(default=None, repr=False)

    def to_dict(self) -> dict:
        curve = None if self.prior_curve is None else [round(float(v), 6) for v in self.prior_curve]
        return {
            "mask_iou": self.mask_iou,
            "prior_iou": self.prior_iou,
            "best_threshold": self.best_threshold,
            "best_iou": self.best_iou,
            "prior_curve": curve,
        }


def compare_answers(a: Result, b: Result) -> AnswerComparison:
    """Compare two answers; raises `CoPRSError` where they are about photos of different sizes."""
    if a.photo_size != b.photo_size:
        raise CoPRSError("The two answers are about different photos: ask both about the same one.")
    prior_iou = None
    if a.prior is not None and b.prior is not None:
        prior_iou = iou(a.prior >= PRIOR_THRESHOLD, b.prior >= PRIOR_THRESHOLD)
    return AnswerComparison(iou(a.mask, b.mask), prior_iou)


def describe_move(a: Result, b: Result) -> AnswerMove:
    """What became of answer `a` in `b`, measured by their masks; raises as `compare_answers`."""
    agreement = compare_answers(a, b).mask_iou
    before, after = (_describe_place(answer) for answer in (a, b))
    move: Move = "changed"
    if not (before and after):
        move = "vanished" if before else "appeared" if after else "neither"
    elif agreement >= MIN_STAYED_IOU:
        move = "stayed"
    elif agreement < MAX_MOVED_IOU:
        move = "moved"
    return AnswerMove(move, before, after, agreement)


def _describe_place(result: Result) -> str:
    place = name_position(result.mask)
    return "several" if place and len(result.regions) > 1 else place


def name_position(mask: np.ndarray) -> str:
    """In which ninth of the picture the middle of a mask bool [H, W] lies: "top left", "middle",
    "right" …; "" where it is empty."""
    y, x = np.nonzero(mask)
    if not len(y):
        return ""
    row, column = (
        int(3 * np.median(at) / size) for at, size in zip((y, x), mask.shape, strict=True)
    )
    return f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip() or "middle"


def compare_with_truth(result: Result, truth: np.ndarray) -> TruthComparison:
    """Compare an answer with a true mask, bool [H, W] of the photo's size (see `read_truth`)."""
    _check_truth_size(truth.shape, result.photo_size)
    mask_iou = iou(result.mask, truth)
    if result.prior is None:
        return TruthComparison(mask_iou)
    curve = iou_curve(result.prior, truth)
    best = 1 + int(curve[1:].argmax())  # at threshold 0 a prior is the whole picture
    at_half = int(np.searchsorted(PRIOR_THRESHOLDS, PRIOR_THRESHOLD))
    return TruthComparison(
        mask_iou, float(curve[at_half]), float(PRIOR_THRESHOLDS[best]), float(curve[best]), curve
    )


def read_truth(
    source: "str | Path | Image.Image | np.ndarray | dict",
    photo_size: tuple[int, int],
    orientation: int = 1,
) -> np.ndarray:
    """A true mask, bool [H, W], as `read_mask` reads it."""
    return read_mask(source, photo_size, orientation)[0]


def read_mask(
    source: "str | Path | Image.Image | np.ndarray | dict",
    photo_size: tuple[int, int],
    orientation: int = 1,
) -> tuple[np.ndarray, np.ndarray | None]:
    """A true mask, bool [H, W], from a picture file, a file of COCO RLE in JSON, a PIL image, an
    array or an RLE dict, and what is void in it, where anything is.

    In a picture a pixel is target where its value is over half of the highest, what is transparent
    being black; in one with a palette of colours, where its index is not 0. Beside other indices
    255 is void there, neither right nor wrong, as in PASCAL VOC.

    Args:
        source: where it is read from.
        photo_size: (height, width) of the photo as it is shown.
        orientation: of the photo, by its EXIF tag: a mask of the stored pixels is turned with them.

    Raises `CoPRSError` where it cannot be read, its size is neither of the photo's, or it fits the
    photo both as it is stored and as it is shown.
    """
    is_stored, void = False, None
    try:
        if isinstance(source, str | Path):
            path = find_file(Path(source))
            source = _open_truth(path, (photo_size, to_stored_size(photo_size, orientation)))
            is_stored = isinstance(source, Image.Image) and read_orientation(path) == orientation
        if isinstance(source, dict):
            truth = decode_rle(_find_rle(source))
        else:
            truth, void = _mask_from_image(source)
    except CoPRSError:
        raise
    except Exception as problem:  # decoders of foreign files raise anything at all
        raise CoPRSError(
            "This true mask cannot be read ({reason}): {hint}.",
            reason=strip_markup(problem),
            hint=_TRUTH_HINT,
        ) from problem
    # target and void share one array: EXIF's turn then cannot move them apart
    both = truth.astype(np.uint8) if void is None else truth + 2 * void.astype(np.uint8)
    both = to_upright_mask(both, photo_size, orientation, is_stored)
    _check_truth_size(both.shape, photo_size)
    return both == 1, None if void is None else both == 2


def _find_rle(values: dict) -> dict:
    """A COCO annotation holds its RLE under `segmentation`."""
    inner = values.get("segmentation", values)
    if not isinstance(inner, dict):
        raise ValueError("a COCO annotation whose segmentation is no RLE")
    return inner


def _open_truth(path: Path, sizes: tuple[tuple[int, int], ...]) -> "Image.Image | dict":
    if path.suffix.lower() == ".json":
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("far larger than a mask")
        values = parse_json(read_text(path))
        if not isinstance(values, dict):
            raise ValueError("no JSON object")
        return values
    with decoder_errors_as_user_error(path, Phrase("This true mask")):
        image = open_pil_image(path, read_photo_file(path))
        if (image.height, image.width) not in sizes:  # before anything is decoded
            _check_truth_size((image.height, image.width), sizes[0])
        image.load()
    return image


def _has_grey_palette(source: Image.Image) -> bool:
    """Whether a picture's palette holds greys alone: then its values count, not its indices."""
    red, green, blue = (np.asarray(band) for band in source.convert("RGB").split())
    return bool((red == green).all() and (green == blue).all())


def _mask_from_image(
    source: "Image.Image | np.ndarray",
) -> tuple[np.ndarray, np.ndarray | None]:
    if isinstance(source, Image.Image):
        if source.mode == "P" and not _has_grey_palette(source):
            return _mask_from_palette(np.asarray(source))
        if source.has_transparency_data:  # transparent pixels are no target, whatever their colour
            source = Image.alpha_composite(
                Image.new("RGBA", source.size, "black"), source.convert("RGBA")
            )
        is_plain = source.mode in ("1", "I;16", "I", "F")
        source = np.asarray(source if is_plain else source.convert("L"))
    if source.ndim != 2:
        raise ValueError(f"an array of {source.ndim} dimensions")
    return (source if source.dtype == bool else source > source.max(initial=0) / 2), None


def _mask_from_palette(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Target and void by the indices of a palette; 255 is void beside others alone, since a mask
    may have no other index."""
    void = indices == _VOID_INDEX
    target = (indices > 0) & ~void
    return (target, void) if target.any() and void.any() else (indices > 0, None)


def _check_truth_size(truth_size: tuple[int, int], photo_size: tuple[int, int]) -> None:
    if tuple(truth_size) != tuple(photo_size):
        raise CoPRSError(
            "The true mask has {width}×{height} pixels and the photo "
            "{photo_width}×{photo_height}: {hint}.",
            width=truth_size[1],
            height=truth_size[0],
            photo_width=photo_size[1],
            photo_height=photo_size[0],
            hint=_TRUTH_HINT,
        )
