"""The bytes of a picture file: its pixels without what stands beside them.

Profiles, texts, comments, EXIF and XMP are taken out before a decoder sees the file, so that none
of them can break a photo or take memory, whoever wrote them. Two things are read off them first,
within bounds: which way the photo is up, and its colour profile.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

ByteOrder = Literal["little", "big"]
MAX_METADATA_BYTES = 1_000_000
"""Bytes of a profile, of EXIF or of XMP that are looked at; what is larger is passed over."""
_ORIENTATION_TAG = 0x0112
_XMP_KEY, _EXIF_KEY = b"XML:com.adobe.xmp", b"Raw profile type exif"
_JPEG_MARKER, _MAX_SEGMENTS = re.compile(rb"\xff([^\x00\xff])", re.S), 10_000
_MARKERS_WITHOUT_LENGTH = {bytes([marker]) for marker in (0x01, *range(0xD0, 0xDB))}
"""Markers of JPEG before which the tables end: they have no length, or a scan comes."""
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")
_PNG_PIXEL_CHUNKS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")
_WEBP_PIXEL_CHUNKS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04
"""The flags of VP8X that announce a profile, EXIF and XMP."""
_TIFF_PIXEL_TAGS = {
    *(254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293),
    *(296, 317, 320, 322, 323, 324, 325, 332, 334, 336, 338, 339, 340, 341, 342, 347, 529, 530),
    *(531, 532, *range(512, 522), 50674),
}
"""Tags that say how pixels are stored (TIFF 6.0; 50674: LERC)."""
_TIFF_TYPE_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
}
_TIFF_TYPE_SIZES |= {16: 8, 17: 8, 18: 8}
_SUBFILE_TAG, _SUB_IFDS_TAG, _XMP_TAG, _ICC_PROFILE_TAG, _DNG_VERSION_TAG = (
    254,
    330,
    700,
    34675,
    50706,
)


class CameraRawFile(Exception):
    """A camera's RAW file, of which a decoder would read the small preview."""


@dataclass(eq=False)
class PhotoFile:
    """A picture file as decoders get it.

    Attributes:
        data: its bytes.
        orientation: EXIF's, 1 (upright) to 8; without one in EXIF, that of XMP.
        icc_profile: the colour profile, where it is one.
        is_whole: False where the file ends before its last part does.
    """

    data: bytes
    orientation: int = 1
    icc_profile: bytes | None = None
    is_whole: bool = True


def can_strip_metadata(head: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of a kind that `strip_metadata` knows."""
    return _stripper_for(head) is not None


def strip_metadata(data: bytes) -> PhotoFile:
    """A picture file without what stands beside its pixels; one of another kind as it is. Nothing
    is decoded. Raises `CameraRawFile`, and `ValueError` where its parts lie about their sizes."""
    reader = _stripper_for(data[:16])
    return PhotoFile(data) if reader is None else reader(data)


def _stripper_for(head: bytes):
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _strip_png
    if head.startswith(b"\xff\xd8\xff"):
        return _strip_jpeg
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _strip_webp
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _strip_gif
    if head.startswith(_TIFF_SIGNATURES):
        return _strip_tiff
    return _strip_avif if head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS else None


def as_icc_profile(value: object) -> bytes | None:
    """A colour profile, where it is one (ICC.1:2022, 7.2: its signature is at byte 36)."""
    is_one = (
        isinstance(value, bytes) and len(value) <= MAX_METADATA_BYTES and value[36:40] == b"acsp"
    )
    return value if is_one else None  # type: ignore[return-value]


def _combine_orientations(exif: bytes, xmp: bytes) -> int:
    orientation = _orientation_in_exif(exif)
    if orientation is None:
        return _orientation_in_xmp(xmp)
    return _orientation_or_upright(orientation)


def _orientation_or_upright(orientation: int) -> int:
    return orientation if orientation in range(1, 9) else 1


def _orientation_in_xmp(xmp: bytes) -> int:
    match = re.search(rb"tiff:Orientation(?:\s*=\s*[\"']|>\s*)([0-9])", xmp[:MAX_METADATA_BYTES])
    return _orientation_or_upright(int(match[1])) if match else 1


def _orientation_in_exif(exif: bytes) -> int | None:
    """By hand: a decoder of EXIF reads every entry, and many can lie over the same bytes."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    try:
        order, entries = _ifd_entries(exif)
        for tag, kind, _, _, value in entries:
            if tag == _ORIENTATION_TAG:
                return int.from_bytes(value[: _TIFF_TYPE_SIZES.get(kind, 2)][:4], order)
    except (struct.error, ValueError, OverflowError):
        pass
    return None


def _ifd_entries(data: bytes) -> tuple[ByteOrder, Iterator[tuple[int, int, int, int, bytes]]]:
    """Byte order and entries of a TIFF's first directory: tag, type, count, where the entry
    stands, and its value or where that is."""
    if not data.startswith(_TIFF_SIGNATURES):
        raise ValueError("no TIFF")
    order: ByteOrder = "little" if data[:1] == b"I" else "big"
    sign = "<" if order == "little" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    start = struct.unpack_from(f"{sign}Q" if is_big else f"{sign}L", data, 8 if is_big else 4)[0]
    (count,) = struct.unpack_from(f"{sign}Q" if is_big else f"{sign}H", data, start)
    form, first = (f"{sign}HHQ8s", start + 8) if is_big else (f"{sign}HHL4s", start + 2)
    width = struct.calcsize(form)
    last = min(first + count * width, len(data) - width + 1)

    def entries():
        for at in range(first, last, width):
            tag, kind, number, value = struct.unpack_from(form, data, at)
            yield tag, kind, number, at, value

    return order, entries()


# --- one reader for each kind


def _strip_png(data: bytes) -> PhotoFile:
    """Chunks (PNG, 5.3): those that every reader must know stay, and those of animations."""
    file, view = PhotoFile(data, is_whole=False), memoryview(data)
    kept, at, metadata = [view[:8]], 8, {}
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if not name.isalpha():
            break
        end = at + 12 + length
        if name[:1].isupper() or name in _PNG_PIXEL_CHUNKS:
            kept.append(view[at:end])
        elif length <= MAX_METADATA_BYTES:
            metadata |= _png_metadata(name, data[at + 8 : at + 8 + length])
        at = end
        if name == b"IEND":
            file.is_whole = True
            break
    if not file.is_whole:
        kept.append(view[at:])  # as it is: the decoder sees what is wrong
    file.data, file.icc_profile = b"".join(kept), metadata.get("profile")
    exif = metadata.get("exif") or metadata.get("exif in a text", b"")
    file.orientation = _combine_orientations(exif, metadata.get("xmp", b""))
    return file


def _png_metadata(name: bytes, body: bytes) -> dict[str, bytes]:
    """What a chunk tells of which way is up and of colours."""
    key, _, rest = body.partition(b"\0")
    if name == b"eXIf":
        return {"exif": body}
    if name == b"iCCP" and (profile := as_icc_profile(_decompress(rest[1:]))):
        return {"profile": profile}
    if name in (b"tEXt", b"zTXt") and key == _EXIF_KEY:
        text = rest if name == b"tEXt" else _decompress(rest[1:])
        digits = b"".join(text.split(b"\n")[3:])  # ImageMagick's form: a head of lines before
        try:
            return {"exif in a text": bytes.fromhex(digits.decode("ascii"))}
        except ValueError:
            return {}
    if name == b"iTXt" and key == _XMP_KEY:
        text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        return {"xmp": _decompress(text) if rest[:1] == b"\1" else text}
    return {}


def _decompress(data: bytes) -> bytes:
    """What zlib packed, of at most `MAX_METADATA_BYTES` bytes; else empty."""
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return b""
    return b"" if stream.unconsumed_tail else text


def _strip_jpeg(data: bytes) -> PhotoFile:
    """Segments (ITU T.81, annex B), up to the first scan. JFIF's and Adobe's say how colours are
    stored and stay, where they are as long as they must be."""
    file, view = PhotoFile(data), memoryview(data)
    kept, at, profiles, exif, xmp = [view[:2]], 2, [], b"", b""
    for _ in range(_MAX_SEGMENTS):
        marker_match = _JPEG_MARKER.search(data, at)
        at = marker_match.start() if marker_match else len(data)
        if marker_match is None or marker_match[1] in _MARKERS_WITHOUT_LENGTH:
            break
        marker, length = marker_match[1][0], int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + max(length, 2)
        body = data[at + 4 : end]
        is_colour = len(body) >= {0xE0: 14, 0xEE: 12}.get(marker, 1 << 16)
        if is_colour or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(view[at:end])
        elif marker == 0xE1 and body.startswith(b"Exif\0\0") and len(exif) < MAX_METADATA_BYTES:
            exif += body[6:] if exif else body
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = body
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profiles.append(body)
        at = end
    else:
        raise ValueError("more segments than a JPEG has")
    if profiles and min(profiles)[13] == len(profiles):  # they come numbered, in any order
        file.icc_profile = as_icc_profile(b"".join(p[14:] for p in sorted(profiles)))
    file.data = b"".join([*kept, view[at:]])
    file.is_whole = data.rfind(b"\xff\xd9") > at
    file.orientation = _combine_orientations(exif, xmp)
    return file


def _strip_webp(data: bytes) -> PhotoFile:
    """Chunks of RIFF (Google's WebP container specification)."""
    file, view = PhotoFile(data), memoryview(data)
    kept, at, exif, xmp = [], 12, b"", b""
    last = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= last:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        body = data[at + 8 : at + 8 + min(length, MAX_METADATA_BYTES + 1)]
        if name == b"VP8X" and body:
            kept += view[at : at + 8], bytes([body[0] & ~_WEBP_METADATA_FLAGS]), view[at + 9 : end]
        elif name in _WEBP_PIXEL_CHUNKS:
            kept.append(view[at:end])
        elif name == b"ICCP":
            file.icc_profile = as_icc_profile(body)
        elif name == b"EXIF":
            exif = body
        elif name == b"XMP ":
            xmp = body
        at = end
    pixels = b"".join(kept)
    file.data = b"RIFF" + (4 + len(pixels)).to_bytes(4, "little") + b"WEBP" + pixels
    file.is_whole = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    file.orientation = _combine_orientations(exif, xmp)
    return file


def _strip_gif(data: bytes) -> PhotoFile:
    """Blocks (GIF89a): all extensions but those that tell how a picture is shown go. Comments may
    come in millions of pieces."""
    file = PhotoFile(data, is_whole=False)
    flags = data[10] if len(data) > 12 else 0
    at = 13 + (3 << (flags % 8 + 1) if flags & 128 else 0)
    view, size = memoryview(data), len(data)
    kept = [view[:at]]
    while at < size:
        start, kind, label = at, data[at], data[at + 1 : at + 2]
        if kind == 0x21:
            at += 2
        elif kind == 0x2C and at + 9 < size:
            flags = data[at + 9]
            at += 11 + (3 << (flags % 8 + 1) if flags & 128 else 0)
        else:
            break
        while at < size and data[at]:  # blocks of at most 255 bytes, an empty one last
            at += 1 + data[at]
        at += 1
        if kind == 0x2C or label == b"\xf9":
            kept.append(view[start:at])
    file.is_whole = data[at : at + 1] == b";"
    file.data = b"".join([*kept, view[at:]])
    return file


def _strip_tiff(data: bytes) -> PhotoFile:
    """Entries of the first directory: those that say how pixels are stored stay, the count of any
    other becomes 0, which readers pass over. A turn, too: all kinds are turned in one place."""
    if data[8:10] == b"CR":  # Canon
        raise CameraRawFile
    file, tags, size, xmp = PhotoFile(data), {}, 0, b""
    order, entries = _ifd_entries(data)
    kept, view, copied_to = [], memoryview(data), 0
    width = 8 if data[2:4] in (b"+\0", b"\0+") else 4  # of a count
    for tag, kind, count, at, value in entries:
        length, number = count * _TIFF_TYPE_SIZES.get(kind, 1), int.from_bytes(value, order)
        tags.setdefault(tag, int.from_bytes(value[: _TIFF_TYPE_SIZES.get(kind, 4)], order))
        if tag == _ICC_PROFILE_TAG and length <= MAX_METADATA_BYTES:
            file.icc_profile = as_icc_profile(data[number : number + length])
        elif tag == _XMP_TAG and length <= MAX_METADATA_BYTES:
            xmp = data[number : number + length]
        if tag in _TIFF_PIXEL_TAGS:
            size += length
        else:
            kept += view[copied_to : at + 4], bytes(width)
            copied_to = at + 4 + width
    is_preview = tags.get(_SUBFILE_TAG, 0) & 1 and _SUB_IFDS_TAG in tags
    if _DNG_VERSION_TAG in tags or is_preview:
        raise CameraRawFile
    if size > len(data):
        raise ValueError("entries of a TIFF that lie over one another")
    orientation = tags.get(_ORIENTATION_TAG)
    file.orientation = (
        _orientation_in_xmp(xmp) if orientation is None else _orientation_or_upright(orientation)
    )
    file.data = b"".join([*kept, view[copied_to:]])
    return file


def _strip_avif(data: bytes) -> PhotoFile:
    """Items (ISO 23008-12): EXIF becomes an item of a kind that nobody knows; a turn is told by
    the pixels' own properties."""
    return PhotoFile(re.sub(rb"(infe\x02.{7}|infe\x03.{9})Exif", rb"\1none", data, flags=re.S))
