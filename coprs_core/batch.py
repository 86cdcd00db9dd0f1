"""Many photos: each answer into a folder of its own, resumable, past bad files."""

from __future__ import annotations

import json
import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from glob import glob
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import fsspec
from PIL import Image

from coprs_core.answer.flags import ABOUT_PHOTO, flags
from coprs_core.answer.results import Result
from coprs_core.answer.together import AT_ONCE, answer_many
from coprs_core.errors import CoPRSError, first_line, from_os_error
from coprs_core.example import Example
from coprs_core.export.archive import save_answer, writable_folder
from coprs_core.files import check_no_mojibake, find_file, read_text, without_hidden
from coprs_core.parsing import parse_json
from coprs_core.photos.orientation import STORED, UPRIGHT
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.photos.unreadable import PHOTO_SUFFIXES
from coprs_core.probes.finding import Finding
from coprs_core.prompts import check_instruction

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine

_FORM = '{"photo": "a.jpg", "instruction": "the cat"}'
READERS, WRITERS, AHEAD = 2, 2, 16
"""Threads that open photos and write answers, and how many of either may wait."""
Ask = Callable[["Engine", Photo, Result], Iterator[Finding]]
"""What else is asked of an answer: one finding after the other."""


@dataclass(frozen=True)
class BatchOptions:
    """How the photos of a batch are answered; written beside each answer, so that it is done once.

    Attributes:
        model: as for one photo.
        probe, word, thought, again, again_model: further questions, as the command line has them.
        max_new_tokens: bound of the reply; None for the model's own.
        dtype, quantization, sam, detail: how the model is loaded, as in `LoadOptions`.
        figures: whether the chain is drawn as a figure, and the thing cut out.
        stored_pixels: whether masks fit the photo's file as it is stored (see `save_answer`).
    """

    model: str
    probe: tuple[str, ...] = ()
    word: tuple[str, ...] = ()
    thought: str | None = None
    again: str | None = None
    again_model: str | None = None
    max_new_tokens: int | None = None
    dtype: str = "auto"
    quantization: str = "auto"
    sam: str = "auto"
    detail: str = "auto"
    figures: bool = False
    stored_pixels: bool = False

    def asked_of(self, example: Example) -> dict:
        """As it is written to asked.json."""
        lists = {"probe": list(self.probe), "word": list(self.word)}
        return {"instruction": example.instruction} | asdict(self) | lists


@dataclass(frozen=True, eq=False)
class BatchOutcome:
    """What became of one photo of a batch: the answer's `outcome`, and what is doubtful about the
    photo (names of `flags.ABOUT_PHOTO`), or the `problem` in a sentence; neither where it was done
    before."""

    name: str
    folder: Path
    outcome: str = ""
    problem: str = ""
    doubts: tuple[str, ...] = ()


def segment_photos(
    examples: list[Example],
    options: BatchOptions,
    out: Path,
    engine: Callable[[], Engine],
    further: Ask | None = None,
    at_once: int = AT_ONCE,
) -> Iterator[BatchOutcome]:
    """Answer a question about each of many photos; one folder each under `out`.

    Photos are opened ahead and answers written in threads, while the model works.

    Args:
        examples: photos, each a path or an address such as s3://…, with an instruction and the
            `name` of its answer's folder, which no other has.
        options: how they are answered. A folder that holds all of it is not done again.
        out: the folder of folders.
        engine: gives the engine; called only when a photo is to be answered.
        further: asked of each answer.
        at_once: how many are answered together.

    Yields:
        A `BatchOutcome` for each photo, as they are done. A photo that cannot be answered is
        reported and skipped.
    """
    left, done = parted(examples, options, out)
    yield from done
    if not left:
        return
    answering, stored = engine(), {example.name: example for example in left}
    with ThreadPoolExecutor(WRITERS) as writers, ThreadPoolExecutor(READERS) as readers:
        opening = _opened_ahead(left, readers)
        writing: deque[Future[BatchOutcome]] = deque()
        for example, answer in answer_many(answering, opening, at_once, options.max_new_tokens):
            place = str(stored[example.name].photo)
            job = partial(_write, answering, example, answer, out, options, further, place)
            writing.append(writers.submit(job))
            while writing and (writing[0].done() or len(writing) > AHEAD):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


def _opened_ahead(examples: list[Example], readers: ThreadPoolExecutor) -> Iterator[Example]:
    """Examples in order, the photos of some opened ahead."""
    opening: deque[Example] = deque()
    for example in examples:
        photo = readers.submit(open_stored, str(example.photo))
        opening.append(replace(example, photo=photo))
        if len(opening) == AHEAD:
            yield opening.popleft()
    yield from opening


def _write(
    engine: Engine,
    example: Example,
    answer: Result | CoPRSError,
    out: Path,
    options: BatchOptions,
    further: Ask | None,
    place: str,
) -> BatchOutcome:
    """One answer's folder, and what else is asked of it; `place`: where the photo lies."""
    name = example.name
    folder = out / name
    try:
        if isinstance(answer, CoPRSError):
            raise answer
        photo = example.opened()
        # first: until all is written, the folder holds neither this answer nor one before
        (writable_folder(folder) / "asked.json").unlink(missing_ok=True)
        frame = STORED if options.stored_pixels else UPRIGHT
        save_answer(folder, photo, answer, has_figures=options.figures, frame=frame)
        if further:
            for finding in further(engine, photo, answer):
                finding.save(folder, photo)
        # last: it says that nothing is missing
        asked = options.asked_of(example) | {"photo": _identity(place)}
        (folder / "asked.json").write_text(json.dumps(asked, indent=1) + "\n")
        doubts = tuple(flag for flag in flags(answer) if flag in ABOUT_PHOTO)
        return BatchOutcome(name, folder, answer.outcome, doubts=doubts)
    except CoPRSError as problem:
        return BatchOutcome(name, folder, problem=str(problem))
    except OSError as problem:
        return BatchOutcome(name, folder, problem=str(from_os_error(problem)))


def find_items(given: str, instruction: str | None) -> list[Example]:
    """What a path means: the photos of `find_photos`, each with the instruction, or the lines of a
    manifest (.jsonl).

    A manifest's line is `{"photo": "a.jpg", "instruction": "the cat", "name": "a"}`, the photo from
    the manifest's folder; without an instruction it has the given one, without a name that of the
    photo. Raises `CoPRSError` where there is nothing to ask, or a line is none.
    """
    if given.lower().endswith(".jsonl") and (listing := find_file(Path(given))).is_file():
        return _manifest(listing, instruction)
    if instruction is None:
        raise CoPRSError(f"Nothing is asked about {given!r}: add an instruction in quotes.")
    photos = find_photos(given)
    if "://" in photos[0]:
        scheme = f"{photos[0].partition('://')[0]}://"
        paths = [photo.removeprefix(scheme) for photo in photos]
        root = posixpath.commonpath([posixpath.dirname(path) for path in paths])
        names = [posixpath.relpath(path, root) for path in paths]
        return [Example(p, instruction, name=n) for p, n in zip(photos, names, strict=True)]
    paths = [Path(photo).absolute() for photo in photos]
    root = os.path.commonpath([path.parent for path in paths])
    names = [os.path.relpath(path, root) for path in paths]
    return [Example(str(p), instruction, name=n) for p, n in zip(paths, names, strict=True)]


def _manifest(path: Path, instruction: str | None) -> list[Example]:
    items: dict[str, Example] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            photo, name = row["photo"], _folder_of(row.get("name", row["photo"]))
            asked = row.get("instruction", instruction)
            is_one = all(isinstance(t, str) and t.strip() for t in (photo, name, asked))
            is_one = is_one and "\0" not in photo + name  # which no path has
        except (ValueError, LookupError, TypeError, AttributeError):
            is_one = False
        if not is_one:
            raise CoPRSError(f"Line {number} of {path} is no item: write it like {_FORM}.")
        check_no_mojibake(asked, f"The instruction in line {number} of {path}")
        place = photo if "://" in photo else str(find_file(path.absolute().parent / photo))
        tries = (name if n == 1 else f"{name}-{n}" for n in count(1))
        own = next(one for one in tries if one not in items)  # a photo may come again
        items[own] = Example(place, check_instruction(asked), name=own)
    if not items:
        raise CoPRSError(f"{path} holds no items: write lines like {_FORM}.")
    return list(items.values())


def _folder_of(name: str) -> str:
    """A name as that of a folder under the one of all answers."""
    parts = Path(name).parts
    return "/".join(part for part in parts if part not in ("..", os.sep) and ":" not in part)


def find_photos(given: str) -> list[str]:
    """The photos that a path or an address means: itself, the picture files of a folder, or the
    matches of a glob."""
    if "://" in given:
        return _found_elsewhere(given)
    path = Path(given)
    if not path.exists() and (path := find_file(path)).exists():
        given = str(path)
    if path.is_dir():
        kinds = {*Image.registered_extensions(), *PHOTO_SUFFIXES}
        files = (p for p in path.iterdir() if p.suffix.lower() in kinds and p.is_file())
        if not (photos := without_hidden(files)):
            raise CoPRSError(f"The folder {given!r} holds no picture files: name one that does.")
        return [str(p) for p in photos]
    if path.exists() or not any(c in given for c in "*?["):
        return [given]
    forms = {_any_case(normalize(form, given)) for form in ("NFC", "NFD")} | {given}
    matches = {Path(match) for form in forms for match in glob(form, recursive=True)}
    if not (photos := without_hidden(p for p in matches if p.is_file())):
        raise CoPRSError(f"No file matches {given!r}: check the pattern.")
    return [str(p) for p in photos]


def _any_case(pattern: str) -> str:
    """A pattern whose ending, such as .jpg, may be in capitals, as cameras write it."""
    stem, ending = os.path.splitext(pattern)
    letters = (f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in ending)
    return pattern if any(c in ending for c in "*?[") else stem + "".join(letters)


def _found_elsewhere(given: str) -> list[str]:
    if not any(c in given for c in "*?["):
        return [given]
    try:
        files, paths = fsspec.core.url_to_fs(given)
        names = (path for path in files.glob(paths) if not posixpath.basename(path).startswith("."))
        photos = sorted(files.unstrip_protocol(path) for path in names)
    except Exception as problem:  # each kind of storage has its own
        raise CoPRSError(f"{given} cannot be read ({first_line(problem)}): check it.") from problem
    if not photos:
        raise CoPRSError(f"No file matches {given!r}: check the pattern.")
    return photos


def parted(
    examples: list[Example], options: BatchOptions, out: Path
) -> tuple[list[Example], list[BatchOutcome]]:
    """What is left to do, and what was done before."""
    left, done = [], []
    for example in examples:
        if is_done(example, options, out):
            done.append(BatchOutcome(example.name, out / example.name))
        else:
            left.append(example)
    return left, done


def is_done(example: Example, options: BatchOptions, out: Path) -> bool:
    """Whether the folder of an example holds all that is asked of it."""
    folder, asked = out / example.name, options.asked_of(example)
    try:
        if not (folder / "result.json").exists():
            return False
        earlier = parse_json((folder / "asked.json").read_text(encoding="utf-8"))
        earlier.setdefault("stored_pixels", False)  # older answers do not tell
        has_figures = earlier.pop("figures", True)
        photo = earlier.pop("photo", None)
        if photo is not None and photo != _identity(str(example.photo)):
            return False
    except (OSError, ValueError, AttributeError):
        return False
    return asked.pop("figures") <= has_figures and asked == earlier


def _identity(photo: str) -> list[str | int]:
    """Which photo it is, without opening it: its address, or its place, size in bytes and time of
    change."""
    if "://" in photo:
        return [photo]
    told = Path(photo).stat()
    return [str(Path(photo).absolute()), told.st_size, told.st_mtime_ns]


def open_stored(photo: str) -> Photo:
    """The photo of a path, or of an address that fsspec knows (s3://, gs://, https://, …).

    Raises `CoPRSError` where it is not there or is none."""
    if "://" not in photo:
        return open_photo(photo)
    try:
        with fsspec.open(photo, "rb") as file:
            content = file.read()
    except ImportError as problem:
        raise CoPRSError(f"{photo} cannot be opened: {first_line(problem)}.") from problem
    except Exception as problem:  # each kind of storage has its own
        raise CoPRSError(f"{photo} cannot be read ({first_line(problem)}): check it.") from problem
    return open_photo(content)
