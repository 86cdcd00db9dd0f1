"""Save an answer as files, in a folder or a zip of it, and open them again.

photo.png        the photo as it was read: RGB, upright, as it is shown
result.json      the answer; its schema stands in `coprs_core.answer.results`
prior.npy        float32 [H, W] in [0, 1]; prior.png is its picture
mask.png         1 bit a pixel
cutout.png       the photo inside the mask, transparent outside
mask_full_size.png  the mask at the photo's full size, where that was asked for and the photo had
                 been downscaled
overlay.png      the mask over the photo; prior_overlay.png the prior over it
chain.png        photo, thought, prior and mask in one figure; chain.pdf the same as vectors
sentences.*      where the model would have focused after each sentence: figures (.json), priors
                 (.npy, float16, at most 1,024 pixels a side), a figure (.png); other probes alike

Where an answer has several regions, prior, mask and cut-out are of all together and `prior_1.npy`,
`mask_1.png` … of each. All files fit the photo as it is shown; where the file's stored pixels were
asked for, prior.*, mask*.png and cutout.png (those of regions, too) fit these instead, and
`result.json` says so under `frame`.
"""

import io
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from coprs_core.answer.pictures import (
    chain_figure,
    cut_out,
    heatmap,
    mask_overlay,
    prior_overlay,
)
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError, Phrase
from coprs_core.parsing import parse_json
from coprs_core.photos.orientation import UPRIGHT
from coprs_core.photos.photo import MAX_SIDE, Photo, open_photo, readable_formats
from coprs_core.probes import FILE_STEMS
from coprs_core.probes.finding import Finding
from coprs_core.probes.trace import MASKS_FILE, MAX_SAVED_PIXELS, SentenceTrace, parse_trace

_MAX_JSON_BYTES, _MAX_DIRECTORY_BYTES, _NPY_HEADER_BYTES = 16_000_000, 100_000, 4096
_MAX_CONTAINERS = 10_000
"""Objects and arrays in an answer's JSON: one region has about ten. An empty one takes 64 bytes of
memory for two of the file's, so that the size of the file bounds nothing."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ANSWER_FILES = re.compile(
    r"(result|asked)\.json|result\.json\.part"
    r"|(photo|cutout|overlay|prior_overlay)\.png|chain\.(png|pdf)|(prior|mask)(_\d+)?\.(npy|png)"
    r"|mask_full_size\.png"
    rf"|({'|'.join(FILE_STEMS)})\.(json|npy|png)"
)
_EXPECTED_HINT = Phrase("give a zip or folder that “Take away” or `segment --out` wrote")


ReadFile = Callable[[str, int], bytes]
"""(file name, maximal bytes) → its content."""


@dataclass(frozen=True, eq=False)
class SavedAnswer:
    """An answer read from its files."""

    photo: Photo
    result: Result
    sentences: SentenceTrace | None = None


def make_writable_folder(folder: Path) -> Path:
    """Make a folder where there is none, and check that it can be written to; raises `CoPRSError`
    where it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as problem:
        raise CoPRSError(
            "The folder {folder!r} cannot be made or written to ({reason}): choose another --out.",
            folder=str(folder),
            reason=problem.strerror,
        ) from problem
    return folder


def remove_answer_files(folder: Path) -> None:
    """Remove an earlier answer's files from a folder, `result.json` first: a folder that lost only
    some of them is then no longer taken for an answer, and two are never mixed."""
    names = sorted(
        (p.name for p in folder.iterdir() if _ANSWER_FILES.fullmatch(p.name)),
        key=lambda n: n != "result.json",
    )
    for name in names:
        (folder / name).unlink()


def save_answer(
    folder: Path,
    photo: Photo,
    result: Result,
    findings: Iterable[Finding] = (),
    with_figures: bool = True,
    frame: str = UPRIGHT,
    with_full_size: bool = False,
) -> list[Path]:
    """Write an answer's files (see this module's docstring) and what probes found in it; without
    figures neither the chain nor the cut-out, which take longer than an answer of a small model.

    They take the place of those of an earlier answer. `result.json` comes last, so that a folder
    which holds it is whole. Returns the paths.

    Args:
        frame: "upright", or "stored" for masks, priors and cut-outs that fit the file's pixels as
            they are stored, before the turn that EXIF asks for.
        with_full_size: whether the mask is also written at the photo's full size.

    Raises:
        CoPRSError: the answer is an older one, which lacks its photo's full size or orientation.
    """
    text = result.to_json(frame)
    full = result.to_frame(result.mask_at(), frame) if with_full_size else None
    folder.mkdir(parents=True, exist_ok=True)
    remove_answer_files(folder)
    pixels, written = np.asarray(photo.image), [folder / "photo.png"]
    photo.image.save(written[0])
    if result.prior is not None:
        written += _save_prior(folder, "", result.to_frame(result.prior, frame))
        pictures = {
            "mask": result.to_frame(result.mask, frame),
            "overlay": mask_overlay(pixels, *(r.mask for r in result.regions)),
            "prior_overlay": prior_overlay(pixels, result.prior),
        }
        if with_figures:
            pictures["cutout"] = result.to_frame(cut_out(pixels, result.mask), frame)
        if full is not None:
            pictures["mask_full_size"] = full
        for name, picture in pictures.items():
            written.append(_save_picture(folder / f"{name}.png", picture))
        written += _save_regions(folder, result, frame)
    if with_figures:
        figure = chain_figure(pixels, result)
        for kind in ("png", "pdf"):
            figure.savefig(folder / f"chain.{kind}", dpi=150)
            written.append(folder / f"chain.{kind}")
    for finding in findings:
        written += finding.save(folder, photo)
    part = folder / "result.json.part"
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(folder / "result.json")
    return [folder / "result.json", *written]


def _save_regions(folder: Path, result: Result, frame: str) -> list[Path]:
    """Prior and mask of each of several regions."""
    written = []
    for i, region in enumerate(result.regions if len(result.regions) > 1 else (), start=1):
        written += _save_prior(folder, f"_{i}", result.to_frame(region.prior, frame))
        mask = result.to_frame(region.mask, frame)
        written.append(_save_picture(folder / f"mask_{i}.png", mask))
    return written


def _save_picture(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture).save(path)
    return path


def _save_prior(folder: Path, tag: str, prior: np.ndarray) -> list[Path]:
    np.save(folder / f"prior{tag}.npy", prior)
    Image.fromarray(heatmap(prior)).save(folder / f"prior{tag}.png")
    return [folder / f"prior{tag}.npy", folder / f"prior{tag}.png"]


def save_zip(path: Path, photo: Photo, result: Result, findings: Iterable[Finding] = ()) -> Path:
    """The files of `save_answer` as one zip."""
    with tempfile.TemporaryDirectory(prefix="coprs-") as folder:
        written = save_answer(Path(folder), photo, result, findings)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in written:
                archive.write(file, file.name)
    return path


def open_answer(path: str | Path, max_pixels: int | None = None) -> SavedAnswer:
    """The photo and the answer in a zip or folder that `save_zip` or `save_answer` wrote; needs no
    model.

    Raises `CoPRSError` where it is something else, is broken, or is far larger than any answer; or
    its photo has over `max_pixels`.
    """
    path = Path(path)
    try:
        return _read_answer(path, max_pixels)
    except (FileNotFoundError, KeyError) as problem:
        if not path.exists():
            raise CoPRSError(
                "There is no file {path!r}: {hint}.", path=str(path), hint=_EXPECTED_HINT
            ) from problem
        raise CoPRSError(
            "{file} lacks a file or an entry of a saved answer: {hint}.",
            file=path.name,
            hint=_EXPECTED_HINT,
        ) from problem
    except CoPRSError:
        raise
    except Exception as problem:  # readers of foreign files raise anything at all
        raise CoPRSError(
            "{file} cannot be read as a saved answer: {hint}.", file=path.name, hint=_EXPECTED_HINT
        ) from problem


def _read_answer(path: Path, max_pixels: int | None) -> SavedAnswer:
    if path.is_dir() and not (path / "result.json").exists() and any(path.glob("*/result.json")):
        raise CoPRSError(
            "{path} holds several answers, one folder each: give one of those folders.", path=path
        )
    with _file_reader(path) as read:
        photo = open_photo(_read_photo_file(read, max_pixels))
        values = _read_json(read, "result.json")
        count = len(values["regions"]) if isinstance(values, dict) else 0
        # read lazily: `Result.from_dict` refuses too many regions before the first prior is read
        tags = [""] if count == 1 else (f"_{i}" for i in range(1, count + 1))
        max_bytes = 4 * photo.pixels + _NPY_HEADER_BYTES
        files = (io.BytesIO(read(f"prior{tag}.npy", max_bytes)) for tag in tags)
        priors = (_read_array(file) for file in files)
        result = Result.from_dict(values, priors, photo.size)
        return SavedAnswer(
            _restore_photo_facts(photo, result), result, _read_trace(read, photo.size)
        )


def _restore_photo_facts(photo: Photo, result: Result) -> Photo:
    """A saved photo with the facts about its file that its answer holds."""
    full_size = result.full_size if result.full_size != photo.size else None
    return replace(
        photo, full_size=full_size, orientation=result.orientation or 1, stretched=result.stretched
    )


def _read_json(read: ReadFile, name: str) -> Any:
    text = read(name, _MAX_JSON_BYTES)
    if text.count(b"{") + text.count(b"[") > _MAX_CONTAINERS:
        raise ValueError("far more tables than an answer has")
    return parse_json(text)


def _read_photo_file(read: ReadFile, max_pixels: int | None) -> bytes:
    """Read the photo's file and check in its header that it is a PNG of ours and not too large,
    before any pixel is decoded: a flat picture of 67 million pixels takes 200 kB."""
    file = read("photo.png", 4 * (max_pixels or MAX_SIDE**2) + 65_536)
    try:
        with Image.open(io.BytesIO(file), formats=readable_formats()) as image:
            kind, pixels = (image.format, image.mode), image.width * image.height
    except UnidentifiedImageError:
        return file  # `open_photo` raises the error that says what it is
    if kind != ("PNG", "RGB"):
        raise ValueError(f"a photo of kind {kind}")
    if max_pixels and pixels > max_pixels:
        raise CoPRSError(
            "The photo of this answer has over {millions:.0f} million pixels: look at it "
            "with `coprs open`.",
            millions=max_pixels / 1000000.0,
        )
    return file


def count_pixels(path: str | Path) -> int:
    """Count the pixels that a saved answer in a zip holds, from its list of files, before any is
    read: photo, priors, masks and trace, a byte of JSON counted as four.

    0 where the file is no such zip: `open_answer` says so.
    """
    try:
        with _open_zip(Path(path)) as archive:
            sizes = {i.filename: i.file_size for i in archive.infolist()}
            with archive.open("photo.png") as file, Image.open(file, formats=["PNG"]) as photo:
                pixels = photo.width * photo.height
    except Exception:  # readers of foreign files raise anything at all
        return 0
    count = sum(bool(re.fullmatch(r"prior(_\d+)?\.npy", name)) for name in sizes)
    texts, trace = (
        sum(sizes.get(name, 0) for name in names)
        for names in (("result.json", "sentences.json"), ("sentences.npy", MASKS_FILE))
    )
    return pixels * (1 + count) + 4 * texts + trace


def _read_trace(read: ReadFile, photo_size: tuple[int, int]) -> SentenceTrace | None:
    """The saved trace of a thought; None where there is none, or one of an older version."""
    try:
        files = [read(MASKS_FILE, MAX_SAVED_PIXELS + _NPY_HEADER_BYTES)]
        files.append(read("sentences.npy", 2 * MAX_SAVED_PIXELS + _NPY_HEADER_BYTES))
        values = _read_json(read, "sentences.json")
    except (FileNotFoundError, KeyError):
        return None
    masks, priors = (_read_array(io.BytesIO(file)) for file in files)
    return parse_trace(values, priors, masks, photo_size)


class _UnreadableArray(Exception):
    """An array file that cannot be read. Not a `ValueError`: that would pass for a broken answer,
    whose sentence quotes the reader's."""


def _read_array(file: IO[bytes]) -> np.ndarray:
    try:  # `np.load` would also open a zip, whatever its list of files takes
        return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as problem:
        raise _UnreadableArray from problem


@contextmanager
def _file_reader(path: Path) -> Generator[ReadFile, None, None]:
    """A function that reads a file of a folder or a zip by name, up to a number of bytes."""
    if path.is_dir():
        yield lambda name, max_bytes: _read_bounded((path / name).open("rb"), max_bytes)
        return
    with _open_zip(path) as archive:
        yield lambda name, max_bytes: _read_bounded(archive.open(name), max_bytes)


class _BoundedFile(io.FileIO):
    """A zip's file, that refuses to read more than `max_bytes` at once."""

    max_bytes = _MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > self.max_bytes:
            raise ValueError("far more than an answer's zip has there")
        return super().read(size)


@contextmanager
def _open_zip(path: Path) -> Generator[zipfile.ZipFile, None, None]:
    """Open a zip that lists no more files than an answer has, compressed as zips of ours are.

    The list is read as a whole, and how long it is stands in several places. Of bzip2 and LZMA
    `zipfile` unpacks whatever it has read, however few bytes are wanted: 4 kB may be 4 GB.
    """
    with _BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
        if any(i.compress_type not in _COMPRESSIONS for i in archive.infolist()):
            raise ValueError("packed in a way that no zip of ours is")
        file.max_bytes = sys.maxsize
        yield archive


def _read_bounded(file: IO[bytes], max_bytes: int) -> bytes:
    with file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError("a file that is far larger than an answer's")
    return data
