"""An answer as files to take away, and back from them: a folder, or a zip of it.

photo.png        the photo as it was read: RGB, upright, as it is shown
result.json      the answer; its schema stands in `coprs_core.answer.results`
prior.npy        float32 [H, W] in [0, 1]; prior.png is its picture
mask.png         1 bit a pixel
cutout.png       the photo inside the mask, transparent outside
mask_full_size.png  the mask at the photo's full size, where it was brought down to fewer pixels
                 and that was asked for
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
from coprs_core.probes import STEMS
from coprs_core.probes.finding import Finding
from coprs_core.probes.trace import MASKS, MAX_SAVED_PIXELS, Sentences, load_sentences

_MAX_JSON_BYTES, _MAX_DIRECTORY_BYTES, _NPY_HEADER = 16_000_000, 100_000, 4096
_MAX_TABLES = 10_000
"""Tables and lists in an answer's JSON: one region has about ten, and an empty one takes 64 bytes
of memory for two of the file's."""
_PACKED_AS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_OURS = re.compile(
    r"(result|asked)\.json|result\.json\.part"
    r"|(photo|cutout|overlay|prior_overlay)\.png|chain\.(png|pdf)|(prior|mask)(_\d+)?\.(npy|png)"
    r"|mask_full_size\.png"
    rf"|({'|'.join(STEMS)})\.(json|npy|png)"
)
_EXPECTED = Phrase("give a zip or folder that “Take away” or `segment --out` wrote")


Read = Callable[[str, int], bytes]
"""(name, bytes at most) → a file's bytes."""


@dataclass(frozen=True, eq=False)
class SavedAnswer:
    """What `open_answer` gives back."""

    photo: Photo
    result: Result
    sentences: Sentences | None = None


def writable_folder(folder: Path) -> Path:
    """A folder that exists from now on and can be written to; raises `CoPRSError` where it
    cannot."""
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


def clear_answer(folder: Path) -> None:
    """Take an earlier answer's files out of a folder, `result.json` first, so that two answers are
    never mixed."""
    names = sorted(
        (p.name for p in folder.iterdir() if _OURS.fullmatch(p.name)),
        key=lambda n: n != "result.json",
    )
    for name in names:
        (folder / name).unlink()


def save_answer(
    folder: Path,
    photo: Photo,
    result: Result,
    findings: Iterable[Finding] = (),
    has_figures: bool = True,
    frame: str = UPRIGHT,
    has_full_size: bool = False,
) -> list[Path]:
    """Write an answer's files (see this module's docstring) and what probes found in it; without
    figures neither the chain nor the cut-out, which take longer than an answer of a small model.

    They take the place of those of an earlier answer. `result.json` comes last, so that a folder
    which holds it is whole. Returns the paths.

    Args:
        frame: "upright", or "stored" for masks, priors and cut-outs that fit the file's pixels as
            they are stored, before the turn that EXIF asks for.
        has_full_size: whether the mask is also written at the photo's full size.

    Raises:
        CoPRSError: the answer is an older one, which does not tell what is asked for.
    """
    text = result.to_json(frame)
    full = result.in_frame(result.mask_at(), frame) if has_full_size else None
    folder.mkdir(parents=True, exist_ok=True)
    clear_answer(folder)
    pixels, written = np.asarray(photo.image), [folder / "photo.png"]
    photo.image.save(written[0])
    if result.prior is not None:
        written += _save_prior(folder, "", result.in_frame(result.prior, frame))
        pictures = {
            "mask": result.in_frame(result.mask, frame),
            "overlay": mask_overlay(pixels, *(r.mask for r in result.regions)),
            "prior_overlay": prior_overlay(pixels, result.prior),
        }
        if has_figures:
            pictures["cutout"] = result.in_frame(cut_out(pixels, result.mask), frame)
        if full is not None:
            pictures["mask_full_size"] = full
        for name, picture in pictures.items():
            written.append(_save_picture(folder / f"{name}.png", picture))
        written += _save_regions(folder, result, frame)
    if has_figures:
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
        written += _save_prior(folder, f"_{i}", result.in_frame(region.prior, frame))
        mask = result.in_frame(region.mask, frame)
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


def open_answer(path: str | Path, most_pixels: int | None = None) -> SavedAnswer:
    """The photo and the answer in a zip or folder that `save_zip` or `save_answer` wrote; needs no
    model.

    Raises `CoPRSError` where it is something else, is broken, or is far larger than any answer; or
    its photo has over `most_pixels`.
    """
    path = Path(path)
    try:
        return _read_answer(path, most_pixels)
    except (FileNotFoundError, KeyError) as problem:
        if not path.exists():
            raise CoPRSError(
                "There is no file {path!r}: {hint}.", path=str(path), hint=_EXPECTED
            ) from problem
        raise CoPRSError(
            "{file} lacks a file or an entry of a saved answer: {hint}.",
            file=path.name,
            hint=_EXPECTED,
        ) from problem
    except CoPRSError:
        raise
    except Exception as problem:  # readers of foreign files raise anything at all
        raise CoPRSError(
            "{file} cannot be read as a saved answer: {hint}.", file=path.name, hint=_EXPECTED
        ) from problem


def _read_answer(path: Path, most_pixels: int | None) -> SavedAnswer:
    if path.is_dir() and not (path / "result.json").exists() and any(path.glob("*/result.json")):
        raise CoPRSError(
            "{path} holds several answers, one folder each: give one of those folders.", path=path
        )
    with _file_reader(path) as read:
        photo = open_photo(_photo_file(read, most_pixels))
        values = _read_json(read, "result.json")
        count = len(values["regions"]) if isinstance(values, dict) else 0
        # one at a time: whether they are too many is told before the first
        tags = [""] if count == 1 else (f"_{i}" for i in range(1, count + 1))
        most = 4 * photo.pixels + _NPY_HEADER
        files = (io.BytesIO(read(f"prior{tag}.npy", most)) for tag in tags)
        priors = (_read_array(file) for file in files)
        result = Result.from_dict(values, priors, photo.size)
        return SavedAnswer(
            _restore_photo_facts(photo, result), result, _read_trace(read, photo.size)
        )


def _restore_photo_facts(photo: Photo, result: Result) -> Photo:
    """A saved photo with what its answer tells of it."""
    was = result.full_size if result.full_size != photo.size else None
    return replace(
        photo, full_size=was, orientation=result.orientation or 1, stretched=result.stretched
    )


def _read_json(read: Read, name: str) -> Any:
    text = read(name, _MAX_JSON_BYTES)
    if text.count(b"{") + text.count(b"[") > _MAX_TABLES:
        raise ValueError("far more tables than an answer has")
    return parse_json(text)


def _photo_file(read: Read, most_pixels: int | None) -> bytes:
    """The photo's file, whose header says that it is one of ours and not too large: before any of
    its pixels is decoded, since a flat picture of 67 million takes 200 kB."""
    file = read("photo.png", 4 * (most_pixels or MAX_SIDE**2) + 65_536)
    try:
        with Image.open(io.BytesIO(file), formats=readable_formats()) as image:
            kind, pixels = (image.format, image.mode), image.width * image.height
    except UnidentifiedImageError:
        return file  # `open_photo` says what it is
    if kind != ("PNG", "RGB"):
        raise ValueError(f"a photo of kind {kind}")
    if most_pixels and pixels > most_pixels:
        raise CoPRSError(
            "The photo of this answer has over {millions:.0f} million pixels: look at it "
            "with `coprs open`.",
            millions=most_pixels / 1000000.0,
        )
    return file


def count_pixels(path: str | Path) -> int:
    """How many pixels a saved answer in a zip holds: photo, priors, masks and trace, a byte of
    JSON counted as four. Known from its list of files, before any of them is read.

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
        for names in (("result.json", "sentences.json"), ("sentences.npy", MASKS))
    )
    return pixels * (1 + count) + 4 * texts + trace


def _read_trace(read: Read, photo_size: tuple[int, int]) -> Sentences | None:
    """The saved trace of a thought; None where there is none, or one of an older version."""
    try:
        files = [read(MASKS, MAX_SAVED_PIXELS + _NPY_HEADER)]
        files.append(read("sentences.npy", 2 * MAX_SAVED_PIXELS + _NPY_HEADER))
        values = _read_json(read, "sentences.json")
    except (FileNotFoundError, KeyError):
        return None
    masks, priors = (_read_array(io.BytesIO(file)) for file in files)
    return load_sentences(values, priors, masks, photo_size)


class _Unreadable(Exception):
    """A file that its reader cannot read, whatever the reader raises."""


def _read_array(file: IO[bytes]) -> np.ndarray:
    try:  # `np.load` would also open a zip, whatever its list of files takes
        return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as problem:
        raise _Unreadable from problem


@contextmanager
def _file_reader(path: Path) -> Generator[Read, None, None]:
    """Reads a file of a folder or a zip by name, of at most so many bytes."""
    if path.is_dir():
        yield lambda name, most: _read_bounded((path / name).open("rb"), most)
        return
    with _open_zip(path) as archive:
        yield lambda name, most: _read_bounded(archive.open(name), most)


class _ZipFile(io.FileIO):
    """A zip's file, of which at most `most` bytes are read at once."""

    most = _MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > self.most:
            raise ValueError("far more than an answer's zip has there")
        return super().read(size)


@contextmanager
def _open_zip(path: Path) -> Generator[zipfile.ZipFile, None, None]:
    """A zip that lists no more files than an answer has, packed in the ways that zips of ours are.

    The list is read as a whole, and how long it is stands in several places. Of bzip2 and LZMA
    `zipfile` unpacks whatever it has read, however few bytes are wanted: 4 kB may be 4 GB.
    """
    with _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
        if any(i.compress_type not in _PACKED_AS for i in archive.infolist()):
            raise ValueError("packed in a way that no zip of ours is")
        file.most = sys.maxsize
        yield archive


def _read_bounded(file: IO[bytes], most: int) -> bytes:
    with file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError("a file that is far larger than an answer's")
    return data
