"""Many photos, one instruction: each answer into a folder of its own, resumable, past bad files."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path

from PIL import Image

from coprs_core.answer.engine import Engine
from coprs_core.answer.results import Result
from coprs_core.archive import save_answer, writable_folder
from coprs_core.errors import CoPRSError, of_the_system
from coprs_core.photos import Photo, open_photo
from coprs_core.probes.finding import Finding

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


def segment_photos(
    photos: list[Path],
    query: Query,
    out: Path,
    engine: Callable[[], Engine],
    further: Ask | None = None,
) -> Iterator[Answered]:
    """Answer one instruction about each of many photos; one folder each under `out`.

    Args:
        photos: picture files; their folders' common part is left out of the names under `out`.
        query: what is asked. A folder that holds all of it is not done again.
        out: the folder of folders.
        engine: gives the engine; called only when a photo is to be answered.
        further: asked of each answer.

    Yields:
        An `Answered` for each photo, in order. A photo that cannot be answered is reported and
        skipped.
    """
    if not photos:
        return
    root = os.path.commonpath([p.absolute().parent for p in photos])
    for path in photos:
        name = os.path.relpath(path.absolute(), root)
        folder = out / name
        if _earlier_query(folder) == query.to_dict():
            yield Answered(name, folder)
            continue
        answering = engine()
        try:
            photo = open_photo(path)
            result = answering.segment(photo, query.instruction, query.max_new_tokens)
            # first: until all is written, the folder holds neither this answer nor one before
            (writable_folder(folder) / "asked.json").unlink(missing_ok=True)
            save_answer(folder, photo, result)
            if further:
                for finding in further(answering, photo, result):
                    finding.save(folder, photo)
            # last: it says that nothing is missing
            (folder / "asked.json").write_text(json.dumps(query.to_dict(), indent=1) + "\n")
            yield Answered(name, folder, result)
        except CoPRSError as problem:
            yield Answered(name, folder, problem=str(problem))
        except OSError as problem:
            yield Answered(name, folder, problem=of_the_system(problem))


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


def _earlier_query(folder: Path) -> dict | None:
    """What the answer in a folder was asked, where all of it is there."""
    try:
        if not (folder / "result.json").exists():
            return None
        return json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
