"""Many photos: each answer into a folder of its own, resumable, past bad files."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from glob import glob
from pathlib import Path

from PIL import Image

from coprs_core.answer.engine import Engine
from coprs_core.answer.results import Result
from coprs_core.answer.together import AT_ONCE, Question, answer_together
from coprs_core.archive import save_answer, writable_folder
from coprs_core.errors import CoPRSError, of_the_system
from coprs_core.photos import Photo, PhotoLike, open_photo
from coprs_core.probes.finding import Finding
from coprs_core.prompts import check_instruction

_FORM = '{"photo": "a.jpg", "instruction": "the cat"}'
READERS, WRITERS, AHEAD = 2, 2, 16
"""Threads that open photos and write answers, and how many of either may wait."""
Ask = Callable[[Engine, Photo, Result], Iterator[Finding]]
"""What else is asked of an answer: one finding after the other."""


@dataclass(frozen=True)
class Query:
    """What one photo of a batch is asked; written beside its answer, so that it is done once.

    Attributes:
        instruction, model: as for one photo.
        probe, word, thought, again, again_model: further questions, as the command line has them.
        max_new_tokens: bound of the reply; None for the model's own.
        dtype, quantization, sam, detail: how the model is loaded, as in `LoadOptions`.
        figures: whether the chain is drawn as a figure, and the thing cut out.
    """

    instruction: str
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

    def to_dict(self) -> dict:
        """As it is written to asked.json."""
        return asdict(self) | {"probe": list(self.probe), "word": list(self.word)}


@dataclass(frozen=True, eq=False)
class Answered:
    """One photo of a batch: its `result`, or the `problem` in a sentence; neither where it was done
    before."""

    name: str
    folder: Path
    result: Result | None = None
    problem: str = ""


@dataclass(frozen=True)
class Item:
    """One photo of many, what is asked about it, and the name of its answer's folder."""

    photo: Path
    instruction: str
    name: str


def segment_photos(
    items: list[Item],
    query: Query,
    out: Path,
    engine: Callable[[], Engine],
    further: Ask | None = None,
    at_once: int = AT_ONCE,
) -> Iterator[Answered]:
    """Answer a question about each of many photos; one folder each under `out`.

    Photos are opened ahead and answers written in threads, while the model works.

    Args:
        items: what is asked about which photo.
        query: how it is asked. A folder that holds all of it is not done again.
        out: the folder of folders.
        engine: gives the engine; called only when a photo is to be answered.
        further: asked of each answer.
        at_once: how many are answered together.

    Yields:
        An `Answered` for each photo, as they are done. A photo that cannot be answered is reported
        and skipped.
    """
    left = []
    for item in items:
        if _is_done(out / item.name, replace(query, instruction=item.instruction)):
            yield Answered(item.name, out / item.name)
        else:
            left.append(item)
    if not left:
        return
    answering = engine()
    with ThreadPoolExecutor(WRITERS) as writers, ThreadPoolExecutor(READERS) as readers:
        questions = (
            Question(photo, item.instruction, item) for item, photo in _opened(left, readers)
        )
        writing: deque[Future[Answered]] = deque()
        for question, answer in answer_together(
            answering, questions, at_once, query.max_new_tokens
        ):
            asked = replace(query, instruction=question.instruction)
            job = partial(_write, answering, question, answer, out, asked, further)
            writing.append(writers.submit(job))
            while writing and (writing[0].done() or len(writing) > AHEAD):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()


def _opened(items: list[Item], readers: ThreadPoolExecutor) -> Iterator[tuple[Item, PhotoLike]]:
    """Photos in order, some opened ahead; where one cannot be opened its path, so that the sentence
    comes in its turn."""
    opening: deque[tuple[Item, Future[Photo]]] = deque()
    waiting = iter(items)
    while True:
        while len(opening) < AHEAD and (item := next(waiting, None)):
            opening.append((item, readers.submit(open_photo, item.photo)))
        if not opening:
            return
        item, photo = opening.popleft()
        yield item, item.photo if photo.exception() else photo.result()


def _write(
    engine: Engine,
    question: Question,
    answer: Result | CoPRSError,
    out: Path,
    query: Query,
    further: Ask | None,
) -> Answered:
    """One answer's folder, and what else is asked of it."""
    name = question.about.name
    folder = out / name
    try:
        if isinstance(answer, CoPRSError):
            raise answer
        photo = open_photo(question.photo)
        # first: until all is written, the folder holds neither this answer nor one before
        (writable_folder(folder) / "asked.json").unlink(missing_ok=True)
        save_answer(folder, photo, answer, has_figures=query.figures)
        if further:
            for finding in further(engine, photo, answer):
                finding.save(folder, photo)
        # last: it says that nothing is missing
        (folder / "asked.json").write_text(json.dumps(query.to_dict(), indent=1) + "\n")
        return Answered(name, folder, answer)
    except CoPRSError as problem:
        return Answered(name, folder, problem=str(problem))
    except OSError as problem:
        return Answered(name, folder, problem=of_the_system(problem))


def find_items(given: Path, instruction: str | None) -> list[Item]:
    """What a path means: the photos of `find_photos`, each with the instruction, or the lines of a
    manifest (.jsonl).

    A manifest's line is `{"photo": "a.jpg", "instruction": "the cat", "name": "a"}`, the photo from
    the manifest's folder; without an instruction it has the given one, without a name that of the
    photo. Raises `CoPRSError` where there is nothing to ask, or a line is none.
    """
    if given.suffix == ".jsonl" and given.is_file():
        return _manifest(given, instruction)
    if instruction is None:
        raise CoPRSError(f"Nothing is asked about {str(given)!r}: add an instruction in quotes.")
    photos = [path.absolute() for path in find_photos(given)]
    root = os.path.commonpath([path.parent for path in photos])
    return [Item(path, instruction, os.path.relpath(path, root)) for path in photos]


def _manifest(path: Path, instruction: str | None) -> list[Item]:
    items: list[Item] = []
    names: Counter[str] = Counter()
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), 1
    ):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            told = [
                row["photo"],
                row.get("instruction", instruction),
                row.get("name", row["photo"]),
            ]
            is_one = all(isinstance(text, str) and text.strip() for text in told)
        except (ValueError, LookupError, TypeError, AttributeError):
            is_one = False
        if not is_one:
            raise CoPRSError(f"Line {number} of {path} is no item: write it like {_FORM}.")
        photo, asked, name = told
        parts = [part for part in Path(name).parts if part not in ("..", os.sep)]
        name = "/".join(parts)
        names[name] += 1
        if names[name] > 1:  # one photo may be asked about several times
            name = f"{name}-{names[name]}"
        items.append(Item(path.parent / photo, check_instruction(asked), name))
    if not items:
        raise CoPRSError(f"{path} holds no items: write lines like {_FORM}.")
    return items


def find_photos(given: Path) -> list[Path]:
    """The photos that a path means: itself, the picture files of a folder, or the matches of a
    glob."""
    if given.is_dir():
        kinds = Image.registered_extensions()
        found = sorted(p for p in given.iterdir() if p.suffix.lower() in kinds and p.is_file())
        if not found:
            raise CoPRSError(
                f"The folder {str(given)!r} holds no picture files: name one that does."
            )
        return found
    if given.exists() or not any(c in str(given) for c in "*?["):
        return [given]
    matches = (Path(match) for match in glob(str(given), recursive=True))
    if not (found := sorted(p for p in matches if p.is_file())):
        raise CoPRSError(f"No file matches {str(given)!r}: check the pattern.")
    return found


def _is_done(folder: Path, query: Query) -> bool:
    """Whether a folder holds an answer to a query, all of it."""
    try:
        if not (folder / "result.json").exists():
            return False
        earlier = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
        has_figures = earlier.pop("figures", True)
    except (OSError, ValueError, RecursionError, AttributeError):
        return False
    asked = query.to_dict()
    return asked.pop("figures") <= has_figures and asked == earlier
