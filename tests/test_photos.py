"""Whatever a person brings: every mode, EXIF, transparency, animations, strips, and files that are
no pictures."""

import io
import subprocess
import tracemalloc

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

from coprs_core.errors import CoPRSError
from coprs_core.photos import MAX_SIDE, open_photo


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
    photo = open_photo(in_mode(mode), most_pixels=300)
    assert photo.image.mode == "RGB" and photo.size == (15, 20) and photo.full_size == (30, 40)
    whole = np.asarray(open_photo(in_mode(mode)).image, float)
    assert open_photo(in_mode(mode), most_pixels=1200).full_size is None
    if mode not in ("1", "P", "I;16"):  # no gradients
        assert np.abs(np.asarray(photo.image, float) - whole[::2, ::2]).max() < 12


def test_a_small_file_of_many_grey_levels_takes_little_memory_where_few_pixels_are_kept():
    data = saved(Image.fromarray(np.zeros((3000, 3000), np.uint16)))
    tracemalloc.start()
    open_photo(data, most_pixels=100_000)
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
