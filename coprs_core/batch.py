"""Answer many photos: a folder each, resumable, past files that cannot be read."""

from __future__ import annotations

import json
import os
import posixpath
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from glob import glob
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

import fsspec
from PIL import Image

from coprs_core.answer.concurrent import DEFAULT_AT_ONCE, answer_many
from coprs_core.answer.flags import PHOTO_FLAGS, find_flags
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError, first_line, from_os_error
from coprs_core.example import Example
from coprs_core.export.archive import make_writable_folder, save_answer
from coprs_core.files import check_no_mojibake, find_file, read_text, without_hidden
from coprs_core.parsing import parse_json
from coprs_core.photos.orientation import STORED, UPRIGHT
from coprs_core.photos.photo import Photo, open_photo
from coprs_core.photos.unreadable_files import UNREADABLE_PHOTO_SUFFIXES
from coprs_core.probes.finding import Finding
from coprs_core.prompts import check_instruction

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine

_EXAMPLE_LINE = '{"photo": "a.jpg", "instruction": "the cat"}'
READER_THREADS, WRITER_THREADS, MAX_QUEUED = 2, 2, 16
"""Threads that open photos and that write answers, and how many photos or answers may wait for
them: each holds its pixels in memory."""
RunProbes = Callable[["Engine", Photo, Result], Iterator[Finding]]
"""(engine, photo, result) → the findings of the probes that were asked for, one by one."""


@dataclass(frozen=True)
class BatchOptions:
    """How the photos of a batch are answered; saved with each answer: a later run skips it.

    Attributes:
        model: as for one photo.
        probe, word, thought, again, again_model: the probes, as the command line has them.
        max_new_tokens: limit of the reply; None for the model's own.
        dtype, quantization, sam, detail: how the model is loaded, as in `LoadOptions`.
        figures: whether the chain is drawn as a figure, and the region cut out.
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

    def to_request(self, example: Example) -> dict:
        """What asked.json holds: the whole request, by which a later run knows that it is done."""
        lists = {"probe": list(self.probe), "word": list(self.word)}
        return {"instruction": example.instruction} | asdict(self) | lists


@dataclass(frozen=True, eq=False)
class BatchOutcome:
    """What became of one photo of a batch: the answer's `outcome`, and warnings about the
    photo (names in `flags.PHOTO_FLAGS`), or the `problem` in a sentence; neither where it was done
    before."""

    name: str
    folder: Path
    outcome: str = ""
    problem: str = ""
    photo_flags: tuple[str, ...] = ()


def segment_photos(
    examples: list[Example],
    options: BatchOptions,
    out: Path,
    engine: Callable[[], Engine],
    run_probes: RunProbes | None = None,
    at_once: int = DEFAULT_AT_ONCE,
) -> Iterator[BatchOutcome]:
    """Answer a question about each of many photos; one folder each under `out`.

    Photos are opened ahead and answers written in threads, while the model works.

    Args:
        examples: photos, each a path or an address such as s3://…, with an instruction and the
            `name` of its answer's folder, which no other has.
        options: how they are answered. A folder that holds all of it is not done again.
        out: the folder of folders.
        engine: gives the engine; called only when a photo is to be answered.
        run_probes: gives the findings about each answer.
        at_once: how many are answered together.

    Yields:
        A `BatchOutcome` for each photo, as they are done. A photo that cannot be answered is
        reported and skipped.
    """
    todo, done = split_done(examples, options, out)
    yield from done
    if not todo:
        return
    loaded_engine, by_name = engine(), {example.name: example for example in todo}
    with (
        ThreadPoolExecutor(WRITER_THREADS) as writers,
        ThreadPoolExecutor(READER_THREADS) as readers,
    ):
        opening = _prefetch_photos(todo, readers)
        writing: deque[Future[BatchOutcome]] = deque()
        for example, answer in answer_many(loaded_engine, opening, at_once, options.max_new_tokens):
            # by now `example.photo` is the opening of it, no longer the path
            photo_path = str(by_name[example.name].photo)
            what = loaded_engine, example, answer
            job = writers.submit(_save_example, *what, out, options, run_probes, photo_path)
            writing.append(job)
            while writing and (writing[0].done() or len(writing) > MAX_QUEUED):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


def _prefetch_photos(examples: list[Example], readers: ThreadPoolExecutor) -> Iterator[Example]:
    """Examples in order, the photos of some opened ahead."""
    opening: deque[Example] = deque()
    for example in examples:
        photo = readers.submit(open_photo_or_url, str(example.photo))
        opening.append(replace(example, photo=photo))
        if len(opening) == MAX_QUEUED:
            yield opening.popleft()
    yield from opening


def _save_example(
    engine: Engine,
    example: Example,
    answer: Result | CoPRSError,
    out: Path,
    options: BatchOptions,
    run_probes: RunProbes | None,
    photo_path: str,
) -> BatchOutcome:
    """Write one answer's folder, with the findings of its probes."""
    name = example.name
    folder = out / name
    try:
        if isinstance(answer, CoPRSError):
            raise answer
        photo = example.load_photo()
        # first: a folder without asked.json is done again, whatever a crash leaves in it
        (make_writable_folder(folder) / "asked.json").unlink(missing_ok=True)
        frame = STORED if options.stored_pixels else UPRIGHT
        save_answer(folder, photo, answer, with_figures=options.figures, frame=frame)
        if run_probes:
            for finding in run_probes(engine, photo, answer):
                finding.save(folder, photo)
        # last: with it the folder counts as done
        request = options.to_request(example) | {"photo": _photo_identity(photo_path)}
        (folder / "asked.json").write_text(json.dumps(request, indent=1) + "\n")
        photo_flags = tuple(flag for flag in find_flags(answer) if flag in PHOTO_FLAGS)
        return BatchOutcome(name, folder, answer.outcome, photo_flags=photo_flags)
    except CoPRSError as problem:
        return BatchOutcome(name, folder, problem=str(problem))
    except OSError as problem:
        return BatchOutcome(name, folder, problem=str(from_os_error(problem)))


def find_examples(source: str, instruction: str | None) -> list[Example]:
    """The examples that a path means: the photos of `find_photos`, each with the instruction, or
    the lines of a manifest (.jsonl).

    A manifest's line is `{"photo": "a.jpg", "instruction": "the cat", "name": "a"}`, the photo from
    the manifest's folder; without an instruction it has the given one, without a name that of the
    photo. Raises `CoPRSError` where there is nothing to ask, or a line is none.
    """
    if source.lower().endswith(".jsonl") and (listing := find_file(Path(source))).is_file():
        return _read_manifest(listing, instruction)
    if instruction is None:
        raise CoPRSError(f"Nothing is asked about {source!r}: add an instruction in quotes.")
    photos = find_photos(source)
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


def _read_manifest(path: Path, instruction: str | None) -> list[Example]:
    items: dict[str, Example] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            photo, name = row["photo"], _folder_name(row.get("name", row["photo"]))
            text = row.get("instruction", instruction)
            is_valid = all(isinstance(t, str) and t.strip() for t in (photo, name, text))
            is_valid = is_valid and "\0" not in photo + name  # which no path has
        except (ValueError, LookupError, TypeError, AttributeError):
            is_valid = False
        if not is_valid:
            raise CoPRSError(f"Line {number} of {path} is no item: write it like {_EXAMPLE_LINE}.")
        check_no_mojibake(text, f"The instruction in line {number} of {path}")
        place = photo if "://" in photo else str(find_file(path.absolute().parent / photo))
        tries = (name if n == 1 else f"{name}-{n}" for n in count(1))
        # several lines may be about one photo
        folder_name = next(one for one in tries if one not in items)
        items[folder_name] = Example(place, check_instruction(text), name=folder_name)
    if not items:
        raise CoPRSError(f"{path} holds no items: write lines like {_EXAMPLE_LINE}.")
    return list(items.values())


def _folder_name(name: str) -> str:
    """A name as a folder below --out: without parts that would lead out of it."""
    parts = Path(name).parts
    return "/".join(part for part in parts if part not in ("..", os.sep) and ":" not in part)


def find_photos(source: str) -> list[str]:
    """The photos that a path or an address means: itself, the picture files of a folder, or the
    matches of a glob."""
    if "://" in source:
        return _find_remote_photos(source)
    path = Path(source)
    if not path.exists() and (path := find_file(path)).exists():
        source = str(path)
    if path.is_dir():
        kinds = {*Image.registered_extensions(), *UNREADABLE_PHOTO_SUFFIXES}
        files = (p for p in path.iterdir() if p.suffix.lower() in kinds and p.is_file())
        if not (photos := without_hidden(files)):
            raise CoPRSError(f"The folder {source!r} holds no picture files: name one that does.")
        return [str(p) for p in photos]
    if path.exists() or not any(c in source for c in "*?["):
        return [source]
    forms = {_with_any_case_suffix(normalize(form, source)) for form in ("NFC", "NFD")} | {source}
    matches = {Path(match) for form in forms for match in glob(form, recursive=True)}
    if not (photos := without_hidden(p for p in matches if p.is_file())):
        raise CoPRSError(f"No file matches {source!r}: check the pattern.")
    return [str(p) for p in photos]


def _with_any_case_suffix(pattern: str) -> str:
    """A pattern that also matches its suffix in capitals, .JPG, as cameras write it."""
    stem, ending = os.path.splitext(pattern)
    letters = (f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in ending)
    return pattern if any(c in ending for c in "*?[") else stem + "".join(letters)


def _find_remote_photos(url: str) -> list[str]:
    if not any(c in url for c in "*?["):
        return [url]
    try:
        files, paths = fsspec.core.url_to_fs(url)
        names = (path for path in files.glob(paths) if not posixpath.basename(path).startswith("."))
        photos = sorted(files.unstrip_protocol(path) for path in names)
    except Exception as problem:  # each kind of storage raises errors of its own
        raise CoPRSError(f"{url} cannot be read ({first_line(problem)}): check it.") from problem
    if not photos:
        raise CoPRSError(f"No file matches {url!r}: check the pattern.")
    return photos


def split_done(
    examples: list[Example], options: BatchOptions, out: Path
) -> tuple[list[Example], list[BatchOutcome]]:
    """Examples that are still to be answered, and the outcomes of those that were before."""
    todo, done = [], []
    for example in examples:
        if is_done(example, options, out):
            done.append(BatchOutcome(example.name, out / example.name))
        else:
            todo.append(example)
    return todo, done


def is_done(example: Example, options: BatchOptions, out: Path) -> bool:
    """Whether an example's folder holds the answer to this request, of this photo."""
    folder, request = out / example.name, options.to_request(example)
    try:
        if not (folder / "result.json").exists():
            return False
        earlier = parse_json((folder / "asked.json").read_text(encoding="utf-8"))
        earlier.setdefault("stored_pixels", False)  # answers from before this option existed
        has_figures = earlier.pop("figures", True)
        photo = earlier.pop("photo", None)
        if photo is not None and photo != _photo_identity(str(example.photo)):
            return False
    except (OSError, ValueError, AttributeError):
        return False
    return request.pop("figures") <= has_figures and request == earlier


def _photo_identity(photo: str) -> list[str | int]:
    """Which photo it is, without opening it: its address, or its place, size in bytes and time of
    change."""
    if "://" in photo:
        return [photo]
    stat = Path(photo).stat()
    return [str(Path(photo).absolute()), stat.st_size, stat.st_mtime_ns]


def open_photo_or_url(photo: str) -> Photo:
    """The photo of a path, or of an address that fsspec knows (s3://, gs://, https://, …).

    Raises `CoPRSError` where it is not there or is none."""
    if "://" not in photo:
        return open_photo(photo)
    try:
        with fsspec.open(photo, "rb") as file:
            content = file.read()
    except ImportError as problem:
        raise CoPRSError(f"{photo} cannot be opened: {first_line(problem)}.") from problem
    except Exception as problem:  # each kind of storage raises errors of its own
        raise CoPRSError(f"{photo} cannot be read ({first_line(problem)}): check it.") from problem
    return open_photo(content)
