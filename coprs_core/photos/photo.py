"""From whatever a person brings to an upright RGB photo."""

import hashlib
import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from coprs_core.errors import CoPRSError, Phrase, from_os_error
from coprs_core.photos.bit_depth import (
    DisplayRange,
    are_colours_dark,
    compute_display_range,
    has_16bit_colours,
    stretch_16bit_colours,
    to_8bit_grey,
)
from coprs_core.photos.metadata import (
    CameraRawFile,
    PhotoFile,
    as_icc_profile,
    can_strip_metadata,
    strip_metadata,
)
from coprs_core.photos.orientation import to_upright_image
from coprs_core.photos.unreadable_files import (
    COMMON_FORMAT_HINT,
    HEAD_BYTES,
    THIS_FILE,
    unreadable_file_error,
)

MAX_SIDE, MAX_ASPECT = 8192, 100
_PIL_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "JPEG2000",
    "ICO",
    "PPM",
)


@dataclass(frozen=True, eq=False)
class Photo:
    """An upright RGB picture.

    Attributes:
        image: its pixels.
        key: names its content, so that equal pictures have equal keys.
        full_size: the (height, width) that it had before it was brought down, where it was.
        orientation: EXIF's, 1 to 8, by which the stored pixels were turned upright.
        stretched: (lowest, highest) of the values that were made black and white, where they filled
            only a part of their range, or had none (10 to 14 bits in 16, floats).
    """

    image: Image.Image = field(repr=False)
    key: str
    full_size: tuple[int, int] | None = None
    orientation: int = 1
    stretched: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.height, self.image.width

    @property
    def pixels(self) -> int:
        return self.image.height * self.image.width

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) that it had before it was brought down, where it was."""
        return self.full_size or self.size


PhotoLike = str | PathLike | bytes | bytearray | Image.Image | np.ndarray | Photo | None
"""What `open_photo` reads; None stands for a photo that is not there yet."""


def open_photo(source: PhotoLike, max_pixels: int | None = None) -> Photo:
    """Read a photo from a path, the bytes of a file, a PIL image or an array (uint8 or bool, or
    float in [0, 1]; HxW, HxWx3 or HxWx4).

    The first frame of an animation, turned upright by its EXIF tag, transparency on white, any mode
    brought to RGB, and down to `max_pixels` where it has more. What stands beside its pixels
    (profiles, texts, EXIF) may be broken or large. Raises `CoPRSError` where there is no picture or
    its longest side is over 8,192 pixels (checked before decoding).
    """
    if isinstance(source, Photo):
        return source
    if source is None:
        raise CoPRSError("There is no picture yet: {hint}.", hint=COMMON_FORMAT_HINT)
    with decoder_errors_as_user_error(source):
        return _decode_photo(source, read_photo_file(source), max_pixels)


@contextmanager
def decoder_errors_as_user_error(
    source: PhotoLike, subject: Phrase = THIS_FILE
) -> Generator[None, None, None]:
    """Whatever a decoder raises over a picture becomes a `CoPRSError` that names what it is, and
    what to do; `subject` begins that sentence. Decoders' warnings are silenced."""
    try:
        with warnings.catch_warnings():
            # the checks here and the sentences below say it better
            warnings.simplefilter("ignore")
            yield
    except CoPRSError:
        raise
    except Image.DecompressionBombError as problem:
        raise CoPRSError(
            "The picture is far over {most:,} pixels a side: make it smaller.", most=MAX_SIDE
        ) from problem
    except FileNotFoundError as problem:
        raise CoPRSError(
            "There is no file {path!r}: check the path.", path=str(source)
        ) from problem
    except IsADirectoryError as problem:
        raise CoPRSError(
            "{path!r} is a folder and one picture was expected: name a file in it.",
            path=str(source),
        ) from problem
    except MemoryError as problem:
        raise CoPRSError("The picture does not fit into memory: make it smaller.") from problem
    except Exception as problem:  # decoders of foreign files raise anything at all
        if isinstance(problem, OSError) and problem.errno:  # decoders' own have no number
            raise from_os_error(problem) from problem
        raise _unreadable_source_error(source, problem, subject) from problem


def _decode_photo(source, file: PhotoFile | None, max_pixels: int | None) -> Photo:
    image = open_pil_image(source, file)
    _check_size(image)
    if getattr(image, "is_animated", False):
        image.seek(0)
    is_16bit, stretched = has_16bit_colours(image), None
    if image is source:  # what follows changes it
        image = image.copy()
    image.load()
    profile = as_icc_profile(image.info.get("icc_profile"))
    orientation = _pil_orientation(image)
    if file is not None:  # either tells, or none
        profile, orientation = file.icc_profile or profile, max(file.orientation, orientation)
    if is_16bit and file is not None and are_colours_dark(image):
        image, stretched = stretch_16bit_colours(image, open_pil_image(source, file))
    display_range = compute_display_range(image)
    image = to_upright_image(image, orientation)
    size = image.height, image.width
    if max_pixels:  # before there are copies of it
        image = _downscale(image, max_pixels)
    image.info["icc_profile"] = profile
    rgb = _to_rgb(image, display_range)
    is_kept = rgb.info.get("icc_profile") is not None  # not where white was laid under it
    rgb.info = {"icc_profile": profile} if is_kept else {}
    key = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
    full_size = size if size != (rgb.height, rgb.width) else None
    stretched = display_range.stretched if display_range else stretched
    return Photo(rgb, key, full_size, orientation, stretched)


def read_orientation(source: PhotoLike) -> int:
    """The EXIF orientation of a picture that is not decoded for it, 1 (upright) to 8; 1 where it
    has none, or is no picture."""
    if isinstance(source, Photo):
        return source.orientation
    try:
        file = read_photo_file(source)
        orientation = _pil_orientation(open_pil_image(source, file))
    except Exception:  # decoders of foreign files raise anything at all; who opens it says why
        return 1
    return orientation if file is None else max(file.orientation, orientation)


def read_photo_file(source: PhotoLike) -> PhotoFile | None:
    """The bytes of a picture file (see `metadata.strip_metadata`); None for what is none, or is of
    a kind that is opened as it stands."""
    if isinstance(source, bytes | bytearray):
        return strip_metadata(bytes(source))
    if not isinstance(source, str | PathLike):
        return None
    with Path(source).open("rb") as file:
        head = file.read(16)
        return strip_metadata(head + file.read()) if can_strip_metadata(head) else None


def open_pil_image(source, file: PhotoFile | None) -> Image.Image:
    """A PIL image, not decoded yet: of the bytes of `read_photo_file(source)`, where it has any."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _image_from_array(source)
    content = Path(source) if file is None else io.BytesIO(file.data)
    return Image.open(content, formats=readable_formats())


def _pil_orientation(image: Image.Image) -> int:
    """The orientation that a decoder tells of a picture that came decoded, or of an AVIF."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # what is not pixels breaks no photo
        return 1
    return orientation if orientation in range(1, 9) else 1


def _unreadable_source_error(source, problem: Exception, subject: Phrase) -> CoPRSError:
    head, suffix, is_whole = b"\0", "", True
    with suppress(Exception):  # it was no file, or its parts lie about their sizes
        if isinstance(source, bytes | bytearray):
            head = bytes(source[:HEAD_BYTES])
        elif isinstance(source, str | PathLike):
            suffix = Path(source).suffix
            with Path(source).open("rb") as stream:
                head = stream.read(HEAD_BYTES)
        file = read_photo_file(source)
        is_whole = file is None or file.is_whole
    is_cut = "truncated" in str(problem).lower() or not is_whole
    return unreadable_file_error(head, suffix, is_cut, isinstance(problem, CameraRawFile), subject)


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats of pictures that are read. Not EPS, a program that Ghostscript would run."""
    Image.init()
    return tuple(name for name in _PIL_FORMATS if name in Image.OPEN)


def _image_from_array(array: np.ndarray) -> Image.Image:
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
            "The picture is an array of {dtype} {shape} and uint8 [H, W], [H, W, 3] or [H, "
            "W, 4] was expected: convert it.",
            dtype=array.dtype,
            shape=list(array.shape),
        )
    return Image.fromarray(array)


def _check_size(image: Image.Image) -> None:
    if max(image.size) > MAX_SIDE:
        raise CoPRSError(
            "The picture is {width:,}×{height:,} pixels and at most {most:,} a side are "
            "read: make it smaller.",
            width=image.width,
            height=image.height,
            most=MAX_SIDE,
        )
    if min(image.size) < 1:
        raise CoPRSError("The picture is empty: {hint}.", hint=COMMON_FORMAT_HINT)
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise CoPRSError(
            "The picture is {width:,}×{height:,} pixels, over {most} times as long as wide: "
            "crop it.",
            width=image.width,
            height=image.height,
            most=MAX_ASPECT,
        )


def _downscale(image: Image.Image, max_pixels: int) -> Image.Image:
    pixels = image.width * image.height
    if pixels <= max_pixels:
        return image
    factor = (max_pixels / pixels) ** 0.5
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    is_smooth = image.mode in ("L", "RGB", "RGBA", "CMYK", "YCbCr")  # others are no mere colours
    resampling = Image.Resampling.LANCZOS if is_smooth else Image.Resampling.NEAREST
    # PIL reduces by a whole factor first, which is fast; at a gap of 3 the difference is not seen
    return image.resize(size, resampling, reducing_gap=3.0)


def _to_rgb(image: Image.Image, display_range: DisplayRange | None) -> Image.Image:
    if display_range is not None:
        return to_8bit_grey(image, display_range).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")
