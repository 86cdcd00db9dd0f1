"""Whatever a person brings: every mode, EXIF, transparency, animations, strips, and files that are
no pictures."""

import cProfile
import io
import struct
import subprocess
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms, ImageOps, features

from coprs_core.errors import CoPRSError
from coprs_core.photos.orientation import (
    to_stored_array,
    to_stored_point,
    to_stored_size,
    to_upright_array,
    to_upright_point,
)
from coprs_core.photos.photo import MAX_SIDE, open_photo


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(size=(40, 30)):
    x = np.linspace(0, 255, size[0], dtype=np.uint8)
    return Image.fromarray(
        np.dstack([np.tile(x, (size[1], 1))] * 2 + [np.full((size[1], size[0]), 90, np.uint8)])
    )


MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
)


def in_mode(mode, size=(40, 30)):
    if mode == "I;16":
        values = np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[1], size[0])
        return Image.fromarray(values * 50)
    return gradient(size).convert("RGBA" if mode == "PA" else "RGB").convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    image = in_mode(mode)
    photo = open_photo(image)
    assert photo.image.mode == "RGB" and photo.size == (30, 40)
    assert np.asarray(photo.image).std() > 5  # something is still to be seen


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_brought_down_and_the_full_size_is_known(mode):
    photo = open_photo(in_mode(mode), max_pixels=300)
    assert photo.image.mode == "RGB" and photo.size == (15, 20) and photo.full_size == (30, 40)
    whole = np.asarray(open_photo(in_mode(mode)).image, float)
    assert open_photo(in_mode(mode), max_pixels=1200).full_size is None
    if mode not in ("1", "P", "I;16"):  # no gradients
        assert np.abs(np.asarray(photo.image, float) - whole[::2, ::2]).max() < 12


def test_a_small_file_of_many_grey_levels_takes_little_memory_where_few_pixels_are_kept():
    data = saved(Image.fromarray(np.zeros((3000, 3000), np.uint16)))
    tracemalloc.start()
    open_photo(data, max_pixels=100_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000  # of numpy; as floats of 64 bits they would be 72 MB, several times


def test_sixteen_bits_keep_their_range():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert (
        np.abs(
            np.asarray(open_photo(saved(Image.fromarray(ramp))).image)[..., 0]
            - np.linspace(0, 255, 256).reshape(16, 16)
        ).max()
        <= 1
    )


def test_floats_up_to_one_and_up_to_255_and_beyond():
    unit = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    for image in (unit, unit * 255, unit * 9e6 - 4e6):
        seen = np.asarray(open_photo(Image.fromarray(image)).image)[..., 0]
        assert seen.min() == 0 and seen.max() == 255


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_file_kinds(kind, tmp_path):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    path = tmp_path / f"a.{kind.lower()}"
    gradient().save(path, kind)
    assert (
        open_photo(path).size
        == open_photo(str(path)).size
        == open_photo(path.read_bytes()).size
        == (30, 40)
    )


@pytest.mark.parametrize(
    "orientation, size", [(1, (30, 40)), (3, (30, 40)), (6, (40, 30)), (8, (40, 30))]
)
def test_exif_turns_the_photo_upright(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert open_photo(saved(gradient(), "JPEG", exif=exif)).size == size


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(open_photo(clear).image).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert np.asarray(open_photo(saved(palette, transparency=0)).image).min() == 255


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        seen = np.asarray(
            open_photo(saved(frames[0], kind, save_all=True, append_images=frames[1:])).image
        )[0, 0].astype(int)
        assert seen[0] > 200 and seen[2] < 60


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (1600, 32), (MAX_SIDE, 82)])
def test_smallest_largest_and_strips(size):
    assert open_photo(Image.new("RGB", size)).size == (size[1], size[0])


@pytest.mark.parametrize("size", [(300, 1), (2, MAX_SIDE)])
def test_a_thinner_strip_than_the_language_model_takes_is_refused(size):
    with pytest.raises(CoPRSError, match="over 100 times as long as wide"):
        open_photo(Image.new("RGB", size))


def test_too_large_is_refused_before_decoding(monkeypatch):
    data = saved(Image.new("1", (MAX_SIDE + 1, 4)))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(CoPRSError, match="8,193×4 pixels and at most 8,192"):
        open_photo(data)


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CoPRSError, match="make it smaller"):
        open_photo(saved(Image.new("L", (200, 200))))


BROKEN = {
    "empty": b"",
    "text": b"this is not a picture",
    "cut short": saved(gradient((400, 300)))[:900],
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.7 ...",
    "damaged": saved(gradient())[:40] + b"\xff" * 60 + saved(gradient())[100:],
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_and_foreign_files_get_one_sentence(what):
    with pytest.raises(CoPRSError) as error:
        open_photo(BROKEN[what])
    assert "\n" not in str(error.value) and "picture" in str(error.value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 5), np.uint8),
        np.zeros((0, 3, 3), np.uint8),
        np.zeros((2, 2), np.int64),
        np.zeros(3, np.uint8),
    ],
)
def test_arrays_of_another_shape_are_refused(array):
    with pytest.raises(CoPRSError, match="was expected"):
        open_photo(array)


def test_a_program_that_draws_is_no_picture(tmp_path, monkeypatch):
    """EPS: Ghostscript would run it, for ever where it says so."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("it was run"))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    for source in (program, tmp_path / "a.png"):
        (tmp_path / "a.png").write_bytes(program)
        with pytest.raises(CoPRSError, match="cannot be read as a picture"):
            open_photo(source)


def test_missing_file_folder_and_nothing(tmp_path):
    for source, words in (
        (tmp_path / "no.png", "no file"),
        (tmp_path, "folder"),
        (None, "no picture yet"),
    ):
        with pytest.raises(CoPRSError, match=words):
            open_photo(source)


def test_equal_pictures_have_equal_keys_and_others_not():
    a = open_photo(gradient())
    assert a.key == open_photo(saved(gradient())).key == open_photo(np.asarray(gradient())).key
    assert a.key != open_photo(gradient((41, 30))).key != open_photo(gradient((30, 41))).key
    assert open_photo(a) is a


# --- what is not pixels breaks no photo, and takes no memory


def chunk(name, body, is_sound=True):
    crc = zlib.crc32(name + body) if is_sound else 1
    return len(body).to_bytes(4, "big") + name + body + crc.to_bytes(4, "big")


def in_png(*chunks, is_last=False):
    """A PNG with chunks before or behind its pixels."""
    data = saved(gradient())
    at = len(data) - 12 if is_last else data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def in_jpeg(*segments):
    data = saved(gradient(), "JPEG")
    parts = (bytes([0xFF, m]) + (len(b) + 2).to_bytes(2, "big") + b for m, b in segments)
    return data[:2] + b"".join(parts) + data[2:]


def in_webp(*chunks, flags=0x2C):
    """A WebP with a profile, EXIF or XMP, as the extended form has them."""
    pixels = saved(gradient(), "WEBP", lossless=True)[12:]
    size = (gradient().width - 1).to_bytes(3, "little") + (gradient().height - 1).to_bytes(
        3, "little"
    )
    body = b"VP8X" + (10).to_bytes(4, "little") + bytes([flags, 0, 0, 0]) + size + pixels
    for name, content in chunks:
        body += name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
    return b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body


def in_gif(*blocks):
    data = saved(gradient().quantize(16), "GIF")
    at = data.index(b"!\xf9") if b"!\xf9" in data else data.index(b",")
    extensions = b"".join(
        b"!\xfe" + b"".join(bytes([len(b)]) + b for b in block) + b"\0" for block in blocks
    )
    return data[:at] + extensions + data[at:]


def in_tiff(*entries, compression="raw"):
    """A TIFF with a directory to which (tag, type, count, value) are added."""
    data = saved(gradient(), "TIFF", compression=compression)
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    found = [struct.unpack_from("<HHLL", data, start + 2 + 12 * i) for i in range(count)]
    directory = sorted([*(e for e in found if e[0] not in {x[0] for x in entries}), *entries])
    coded = b"".join(struct.pack("<HHLL", *entry) for entry in directory)
    tail = struct.pack("<H", len(directory)) + coded + bytes(4)
    return data[:4] + len(data).to_bytes(4, "little") + data[8:] + tail


def exif_bomb(entries, blob):
    """EXIF whose entries all lie over the same bytes."""
    start = 8 + 2 + 12 * entries + 4
    table = b"".join(struct.pack("<HHLL", 1 + i, 7, blob, start) for i in range(entries))
    head = b"II*\0" + struct.pack("<LH", 8, entries)
    return head + table + bytes(4) + b"x" * blob


NOISE = bytes(range(256)) * 8
BESIDE = {
    "a packed text that is too large": in_png(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
    "such a text behind the pixels": in_png(
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000))), is_last=True
    ),
    "many packed texts": in_png(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))] * 70),
    "a packed text in Unicode": in_png(
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(5_000_000))), is_last=True
    ),
    "a text of several megabytes": in_png(chunk(b"tEXt", b"a\0" + b"x" * 3_000_000)),
    "a text with a wrong checksum": in_png(chunk(b"tEXt", b"a\0b", is_sound=False)),
    "a text cut short": in_png(chunk(b"tEXt", b"a\0b"), is_last=True)[:-15],
    "a large profile": in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(5_000_000)))),
    "a profile of an unknown form": in_png(chunk(b"iCCP", b"a\0\7" + NOISE)),
    "a profile without a name": in_png(chunk(b"iCCP", b"a")),
    "colours that are none": in_png(chunk(b"sRGB", b""), chunk(b"gAMA", b"1"), chunk(b"cHRM", b"1")),
    "EXIF that is none in a PNG": in_png(chunk(b"eXIf", NOISE), is_last=True),
    "a raw profile that is none": in_png(chunk(b"tEXt", b"Raw profile type exif\0\n\n\nxyz")),
    "EXIF that is none in a JPEG": in_jpeg((0xE1, b"Exif\0\0" + NOISE)),
    "EXIF of one byte": in_jpeg((0xE1, b"Exif\0\0M")),
    "EXIF that points outside": in_jpeg((0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "EXIF with a far BigTIFF directory": in_jpeg((0xE1, b"Exif\0\0II+\0\x08\0\0\0" + b"\xff" * 8)),
    "a profile of no length in a JPEG": in_jpeg((0xE2, b"ICC_PROFILE\0")),
    "a profile whose parts are missing": in_jpeg((0xE2, b"ICC_PROFILE\0\2\3" + NOISE)),
    "several pictures that are not there": in_jpeg((0xE2, b"MPF\0" + NOISE)),
    "several pictures in a broken list": in_jpeg((0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")),
    "JFIF and Adobe cut short": in_jpeg((0xE0, b"JFIF\0"), (0xEE, b"Adobe")),
    "Photoshop's blocks cut short": in_jpeg((0xED, b"Photoshop 3.0\x008BIM\4")),
    "XMP that is none": in_jpeg((0xE1, b'http://ns.adobe.com/xap/1.0/\0tiff:Orientation="9"')),
    "a segment of no length": in_jpeg()[:2] + b"\xff\xe5\0\0" + in_jpeg()[2:],
    "EXIF that is none in a WebP": in_webp((b"EXIF", NOISE), (b"XMP ", NOISE)),
    "a large profile in a WebP": in_webp((b"ICCP", bytes(3_000_000))),
    "a WebP cut short in its EXIF": in_webp((b"EXIF", NOISE))[:-1000],
    "a WebP without what it announces": in_webp(),
    "a GIF's comments": in_gif([b"x" * 255] * 2000, [b"y"]),
    "EXIF that is none in a TIFF": in_tiff((34665, 4, 1, 3), (34853, 4, 1, 0xFFFFFFF0)),
    "XMP and a profile that are numbers": in_tiff((700, 3, 50, 8), (34675, 3, 50, 8)),
    "a packed TIFF's": in_tiff((700, 3, 50, 8), (34665, 4, 1, 3), compression="tiff_lzw"),
    "a deflated TIFF's": in_tiff((34675, 7, 900, 8), compression="tiff_adobe_deflate"),
}  # fmt: skip
PLAIN = {
    b"\x89P": lambda: saved(gradient()),
    b"\xff\xd8": lambda: saved(gradient(), "JPEG"),
    b"RI": lambda: saved(gradient(), "WEBP", lossless=True),
    b"GI": lambda: saved(gradient().quantize(16), "GIF"),
    b"II": lambda: saved(gradient(), "TIFF"),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_is_not_pixels_breaks_no_photo(what, recwarn, tmp_path):
    data = BESIDE[what]
    (tmp_path / "a.png").write_bytes(data)
    plain = open_photo(PLAIN[data[:2]]())
    for photo in (open_photo(data), open_photo(tmp_path / "a.png")):
        assert photo.key == plain.key and photo.orientation == 1
    photo.image.save(tmp_path / "again.png")
    assert open_photo(tmp_path / "again.png").key == plain.key and not recwarn


def test_exif_that_is_none_breaks_no_avif():
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = saved(gradient(), "AVIF", exif=exif)
    at = data.index(b"II*\0") if b"II*\0" in data else data.index(b"MM\0*")
    broken = data[:at] + b"\xff" * 8 + data[at + 8 :]
    assert open_photo(broken).key == open_photo(data).key


BOMBS = {
    "packed texts": lambda: in_png(
        *(chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(bytes(1_000_000))) for i in range(60))
    ),
    "a packed profile": lambda: in_png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000)))),
    "EXIF in a JPEG": lambda: in_jpeg((0xE1, b"Exif\0\0" + exif_bomb(2600, 30_000))),
    "EXIF in a PNG": lambda: in_png(chunk(b"eXIf", exif_bomb(2600, 30_000))),
    "EXIF in a WebP": lambda: in_webp((b"EXIF", exif_bomb(2600, 30_000))),
    "a TIFF's directory": lambda: in_tiff(*[(2000 + i, 7, 3000, 8) for i in range(20_000)]),
}


@pytest.mark.parametrize("what", BOMBS)
def test_what_is_not_pixels_takes_no_memory(what):
    data = BOMBS[what]()
    open_photo(gradient())  # modules of the decoders
    tracemalloc.start()
    photo = open_photo(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert photo.size == (30, 40) and peak < 12_000_000


def test_what_is_not_pixels_takes_no_time():
    """Parts that decoders join one by one, or go through byte by byte: seconds, and minutes for a
    file of twice the size. Counted in calls, not in seconds."""
    hostile = {
        "comments of a GIF": in_gif([b"x" * 255] * 8000),
        "fill bytes of a JPEG": in_jpeg()[:2] + b"\xff" * 3_000_000 + in_jpeg()[3:],
    }
    for what, data in hostile.items():
        profile = cProfile.Profile()
        photo = profile.runcall(open_photo, data)
        calls = sum(entry.callcount for entry in profile.getstats())
        assert photo.size == (30, 40) and calls < 5000, what
    for data in (b"\xe5\0\2\xff" * 20_000, b"\xff" * 3_000_000):
        with pytest.raises(CoPRSError, match="a JPEG"):
            open_photo(b"\xff\xd8\xff" + data)


def test_entries_that_lie_over_one_another_are_no_tiff():
    """Where strips are told to be is pixels; a list of them that is as long as the file is not."""
    with pytest.raises(CoPRSError, match="TIFF that is damaged"):
        open_photo(in_tiff((273, 4, 1000, 8), (279, 4, 1000, 8)))


def test_a_colour_profile_stays_with_the_photo(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        photo = open_photo(saved(gradient(), kind, icc_profile=profile))
        photo.image.save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as again:
            assert again.info["icc_profile"] == profile, kind


# --- upright, and back


def turned_file(orientation, kind, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(gradient(), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photo_is_turned_as_its_viewers_turn_it_and_can_be_turned_back(orientation, kind):
    data = turned_file(orientation, kind)
    with Image.open(io.BytesIO(data)) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    photo = open_photo(data)
    upright = np.asarray(photo.image)
    assert photo.orientation == orientation and np.array_equal(upright, shown)
    stored = to_stored_array(upright, orientation)
    assert stored.shape[:2] == (30, 40) == to_stored_size(photo.size, orientation)
    assert np.array_equal(to_upright_array(stored, orientation), upright)
    assert np.array_equal(stored, np.asarray(open_photo(saved(gradient(), kind)).image))
    spot = np.zeros(photo.size, bool)
    spot[3, 7] = True
    y, x = np.argwhere(to_stored_array(spot, orientation))[0]
    place = to_stored_point((7.5, 3.5), photo.size, orientation)
    assert place == (x + 0.5, y + 0.5)
    assert to_upright_point(place, photo.size, orientation) == (7.5, 3.5)


def test_avif_is_turned_and_told():
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    photo = open_photo(turned_file(6, "AVIF"))
    assert photo.size == (40, 30) and photo.orientation == 6


def test_an_orientation_in_xmp_alone_counts():
    told = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="8"/>'
    for data in (
        in_jpeg((0xE1, told)),
        in_jpeg((0xE1, told.replace(b'"', b"'").replace(b"=", b" = "))),
        in_png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + told)),
        in_webp((b"XMP ", told)),
    ):
        assert open_photo(data).orientation == 8 and open_photo(data).size == (40, 30)


# --- more than 8 bits


def ramp(highest, dtype=np.uint16, lowest=0):
    return np.linspace(lowest, highest, 1200).reshape(30, 40).astype(dtype)


DEEP = {
    **{f"{bits} bits in a PNG": (bits, "PNG", {}) for bits in (10, 12, 14)},
    **{f"{bits} bits in a TIFF": (bits, "TIFF", {}) for bits in (10, 12, 14)},
    "12 bits in a packed TIFF": (12, "TIFF", {"compression": "tiff_adobe_deflate"}),
}


@pytest.mark.parametrize("what", DEEP)
def test_fewer_bits_in_sixteen_are_stretched_and_said(what):
    bits, kind, options = DEEP[what]
    values = ramp(2**bits - 1)
    photo = open_photo(saved(Image.fromarray(values), kind, **options))
    seen = np.asarray(photo.image)[..., 1]
    assert seen.min() == 0 and seen.max() == 255
    assert np.abs(seen - values * (255 / (2**bits - 1))).max() <= 0.5
    assert photo.stretched == (0, 2**bits - 1)
    some = open_photo(saved(Image.fromarray(values), kind, **options), max_pixels=300)
    assert some.stretched == photo.stretched


@pytest.mark.parametrize("highest", [16384, 40000, 65535])
def test_sixteen_bits_that_fill_their_range_stay_as_they_are(highest):
    values = ramp(highest)
    photo = open_photo(saved(Image.fromarray(values)))
    same = (values.astype(float) * (255 / 65535)).round().astype(np.uint8)
    assert photo.stretched is None and np.array_equal(np.asarray(photo.image)[..., 0], same)


def deep_png(values):
    """RGB or RGBA uint16 [H, W, C] as a PNG, which Pillow does not write."""
    height, width, count = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">LLBBBBB", width, height, 16, {3: 2, 4: 6}[count], 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_colours_of_fewer_bits_in_sixteen_are_stretched_together(bits):
    top = 2**bits - 1
    values = np.dstack([ramp(top), ramp(top // 2), np.full((30, 40), top // 4)])
    photo = open_photo(deep_png(values))
    expected = values * (255 / top)
    assert photo.stretched == (0, top)
    assert np.abs(np.asarray(photo.image) - expected).max() <= 0.5
    clear = np.dstack([values, np.full((30, 40), 65535)])
    assert np.array_equal(open_photo(deep_png(clear)).image, photo.image)
    full = np.dstack([ramp(65535)] * 3)
    bright = open_photo(deep_png(full))
    assert bright.stretched is None
    assert np.array_equal(np.asarray(bright.image), (full >> 8).astype(np.uint8))


def deep_tiff(values, order, packed=False):
    """RGB uint16 [H, W, 3] as a TIFF of a byte order, which Pillow does not write."""
    height, width, count = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if packed else pixels
    pixels += b"\0" * (len(pixels) % 2)
    short, long, bits = 3, 4, 8 + len(pixels)
    entries = [(256, short, 1, width), (257, short, 1, height), (258, short, 3, bits)]
    entries += [
        (259, short, 1, 8 if packed else 1),
        (262, short, 1, 2),
        (273, long, 1, 8),
        (277, short, 1, count),
    ]
    entries += [(278, short, 1, height), (279, long, 1, len(pixels))]
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, number, value in entries:
        is_short = kind == short and number == 1
        coded = struct.pack(f"{order}HH" if is_short else f"{order}L", *(value, 0)[: 1 + is_short])
        table += struct.pack(f"{order}HHL", tag, kind, number) + coded
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}L", bits + 6)
    return head + pixels + struct.pack(f"{order}3H", 16, 16, 16) + table + bytes(4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_colours_of_fewer_bits_in_a_tiff_are_stretched_together(order, packed):
    values = np.dstack([ramp(4095), ramp(2000), ramp(1000)])
    photo = open_photo(deep_tiff(values, order, packed))
    assert photo.stretched == (0, 4095)
    assert np.abs(np.asarray(photo.image) - values * (255 / 4095)).max() <= 0.5
    assert open_photo(deep_tiff(np.dstack([ramp(65535)] * 3), order, packed)).stretched is None


FLOATS = {
    "a part of 0 to 1": ramp(0.1, np.float32),
    "beyond all scales": ramp(4e6, np.float32, -2e6),
    "12 bits": ramp(4095, np.float32),
    "with holes": np.where(ramp(1) == 1, np.nan, ramp(3000, np.float32)).astype(np.float32),
    "with infinity": np.where(ramp(1) == 1, np.inf, ramp(3000, np.float32)).astype(np.float32),
    "whole numbers of 32 bits": ramp(10**6, np.int32, 100),
    "numbers below 0": ramp(100, np.int32, -100),
}


@pytest.mark.parametrize("what", FLOATS)
def test_numbers_that_fill_no_scale_are_stretched_and_said(what):
    values = FLOATS[what]
    photo = open_photo(saved(Image.fromarray(values), "TIFF"))
    known = values[np.isfinite(values)]
    assert photo.stretched == (pytest.approx(known.min()), pytest.approx(known.max()))
    seen = np.asarray(photo.image)[..., 0]
    assert seen[np.isfinite(values)].min() == 0 and seen[np.isfinite(values)].max() == 255
    assert set(seen[np.isnan(values)]) <= {0} and set(seen[np.isinf(values)]) <= {255}


@pytest.mark.parametrize("highest", [1, 255])
def test_floats_that_fill_their_scale_are_not_stretched(highest):
    photo = open_photo(saved(Image.fromarray(ramp(highest, np.float32)), "TIFF"))
    assert photo.stretched is None and np.asarray(photo.image).max() == 255


def test_a_picture_without_a_number_is_one_sentence():
    with pytest.raises(CoPRSError, match="holds no numbers"):
        open_photo(saved(Image.fromarray(np.full((3, 3), np.nan, np.float32)), "TIFF"))


# --- what is no picture is named


def boxes(*brands):
    return (8 + 4 * len(brands)).to_bytes(4, "big") + b"ftyp" + b"".join(brands) + bytes(200)


def dng():
    return in_tiff((50706, 1, 4, 0x0401))


NAMED = {
    "nothing": (b"", "it is empty, 0 bytes"),
    "a web page": (b"\n<!DOCTYPE html>\n<html><img src='a.png'></html>", "a web page"),
    "a web page of a bare kind": (b"<html>", "a web page"),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "zeros, as a copy that broke off": (bytes(9000), "begins with zeros alone.*copy or download"),
    "text": (b"this is not a picture", "it is text"),
    "text that the head cuts through": (b"x" + b"\xc3\xa4" * 5000, "it is text"),
    "text in UTF-16": ("not a picture".encode("utf-16"), "it is text"),
    "JSON": (b'{"photo": "a.jpg"}', "it is JSON"),
    "SVG": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "PDF": (b"%PDF-1.7 ...", "a PDF"),
    "HEIC": (boxes(b"heic", b"\0\0\0\0", b"mif1", b"heic"), "HEIC.*save it as JPEG"),
    "HEIF of another brand": (boxes(b"mif1", b"\0\0\0\0", b"mif1", b"heic"), "HEIC"),
    "a video": (boxes(b"isom", b"\0\0\0\0"), "a video"),
    "Canon's newer RAW": (boxes(b"crx ", b"\0\0\0\1"), "RAW"),
    "Canon's RAW": (b"II*\0\x10\0\0\0CR\2\0" + bytes(99), "RAW"),
    "DNG": (dng(), "a camera's RAW file"),
    "a RAW file with a small preview": (in_tiff((254, 4, 1, 1), (330, 4, 1, 8)), "RAW"),
    "Fuji's RAW": (b"FUJIFILMCCD-RAW 0201", "RAW"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "JPEG XL"),
    "JPEG XL in boxes": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
    "Photoshop": (b"8BPS\0\1" + bytes(99), "Photoshop"),
    "a zip": (b"PK\3\4" + bytes(99), "a zip"),
    "a PNG cut short": (saved(gradient((400, 300)))[:900], "a PNG that ends too early"),
    "a JPEG cut short": (saved(gradient((400, 300)), "JPEG")[:-900], "a JPEG that ends too early"),
    "a WebP cut short": (saved(gradient((400, 300)), "WEBP")[:-300], "a WebP that ends too early"),
    "a GIF cut short": (saved(gradient((400, 300)), "GIF")[:5000], "a GIF that ends too early"),
    "a TIFF cut short": (saved(gradient(), "TIFF")[:2000], "a TIFF"),
    "something": (bytes(range(256)), "may be broken or of another kind"),
}


@pytest.mark.parametrize("what", NAMED)
def test_what_is_no_picture_is_named(what, tmp_path):
    data, words = NAMED[what]
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        with pytest.raises(CoPRSError, match=words) as error:
            open_photo(source)
        told = str(error.value)
        assert told.startswith("This file cannot be read as a picture (") and ": " in told
        assert "\n" not in told and told.endswith(".")


def test_a_path_that_no_disk_holds_is_no_broken_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(gradient()))
    for path in (tmp_path / "a.png" / "b.png", tmp_path / ("a" * 300)):
        with pytest.raises(CoPRSError, match="(Not a directory|File name too long) .*check the pa"):
            open_photo(path)


def test_a_raw_file_is_known_by_its_name_where_its_bytes_tell_nothing(tmp_path):
    for name in ("a.NEF", "a.dng"):
        (tmp_path / name).write_bytes(b"MM\0*" + bytes(range(200)))
        with pytest.raises(CoPRSError, match="a camera's RAW file"):
            open_photo(tmp_path / name)
