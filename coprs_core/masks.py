"""Masks and priors as text: COCO's run-length encoding, and a prior as a PNG in a data URL."""

import base64
import binascii
import io

import numpy as np
from PIL import Image

from coprs_core.errors import CoPRSError
from coprs_core.photos.photo import MAX_SIDE

PRIOR_SCALE = 200
"""A prior's PNG holds the prior times this, rounded down; `app/static/view.js` divides by it."""


def encode_prior(prior: np.ndarray) -> str:
    """A prior float32 [H, W] in [0, 1] as a PNG in a data URL: 8 bits, values 200 × the prior,
    rounded down."""
    file = io.BytesIO()
    # 53 / 200 times 200 is 52.999… in float32: encoded again, a prior would lose a step
    scaled = (prior * PRIOR_SCALE + 1e-4).astype(np.uint8)
    Image.fromarray(scaled).save(file, "PNG", compress_level=4)
    return data_url("png", file)


def decode_prior(url: str, size: tuple[int, int]) -> np.ndarray:
    """The prior of `encode_prior`, float32 [H, W] of `size`, exact to 1/200.

    Raises `ValueError` for anything else, before any pixel is decoded.
    """
    height, width = size
    # noise, which PNG cannot pack, takes 4/3 characters a pixel in base64
    if not isinstance(url, str) or len(url) > 2 * height * width + 4096:
        raise ValueError("a prior that is not a PNG of the photo's size")
    encoded = url.partition("base64,")[2]
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded)), formats=("PNG",))
        if image.size != (width, height) or image.format != "PNG" or image.mode != "L":
            raise ValueError("a prior that is not an 8-bit PNG of the photo's size")
        return np.asarray(image).astype(np.float32) / PRIOR_SCALE
    except (OSError, binascii.Error, SyntaxError, Image.DecompressionBombError) as problem:
        raise ValueError("a prior that cannot be read") from problem


def data_url(kind: str, file: io.BytesIO) -> str:
    """A picture file of a kind ("png", "jpeg") as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run-length encoding of a bool mask [H, W].

    Column by column; `counts` are the lengths of runs of 0 and 1 in turn, 0 first.
    """
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def decode_rle(rle: dict) -> np.ndarray:
    """The bool mask [H, W] of a COCO run-length encoding.

    `counts` is a list (uncompressed) or a string (compressed, as pycocotools writes it).
    Raises `ValueError` where the runs do not add up to the size.
    """
    height, width = (int(v) for v in rle["size"])
    counts = rle["counts"]
    if not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"a mask of {height}×{width} pixels")
    if len(counts) > 8 * height * width + 64:
        raise ValueError("more run lengths than pixels")
    if isinstance(counts, str | bytes):
        counts = _decompress_counts(counts if isinstance(counts, bytes) else counts.encode("ascii"))
    counts, pixels = np.asarray(counts).reshape(-1), height * width
    if counts.dtype.kind == "f" and (counts == np.floor(counts)).all() and len(counts):
        counts = counts.clip(-1, pixels + 1).astype(np.int64)  # 12.0, as some writers have it
    if len(counts) and counts.dtype.kind not in "iu":
        raise ValueError("run lengths that are no whole numbers")
    is_possible = (counts >= 0).all() and (counts <= pixels).all() and counts.sum() == pixels
    if not is_possible:
        raise ValueError(f"run lengths that do not add up to {height}×{width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def _decompress_counts(coded: bytes) -> list[int]:
    """COCO's compressed counts: 5 bits a character from 48 on; the sixth bit says that more follow.

    From the third count on each is the difference to the one before the last.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in coded:
        bits = character - 48
        if shift > 60:
            raise ValueError("a run length without an end")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return counts


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask [H, W] at another size (height, width): interpolated bilinearly and cut at one
    half, so that edges are no stairs. Raises `CoPRSError` where that is no size of a photo."""
    height, width = size
    if not 1 <= min(size) <= max(size) <= MAX_SIDE:
        raise CoPRSError(
            "A mask of {width}×{height} pixels was asked for, and 1 to {most:,} a side are "
            "possible: give (height, width) of the photo.",
            width=width,
            height=height,
            most=MAX_SIDE,
        )
    if mask.shape == (height, width):
        return mask
    shares = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(shares.resize((width, height), Image.Resampling.BILINEAR)) >= 128
