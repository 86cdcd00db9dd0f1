"""Which attention heads of a model tell a place, found out with drawn scenes whose truth is known.

Without it they are chosen from each answer itself (`Looks.heads`). Here the model is asked about
scenes; where it points at something, those heads are kept whose attention, at the words that point,
lies on the thing that was asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.localization_heads import heads_path, save_heads
from coprs_core.datasets import open_dataset
from coprs_core.errors import CoPRSError
from coprs_core.example import Example
from coprs_core.model.backends.attention import LOCALIZATION_HEADS
from coprs_core.probes.looks import observe_reply, pointing_words

SCENES, FIRST_SCENE = 60, 20_000
"""How many scenes are asked about by default, and the first of them, of the validation split."""
MIN_ANSWERS = 10
"""Fewer answers than this that point at something are no ground to choose by."""
_CANDIDATES = 48
_SAVED_EVERY = 5


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        heads: those that were kept, the best first.
        hits: how often the brightest cell of their attention lay on the thing, in [0, 1], on the
            scenes by which they were chosen.
        hits_without: the same of the heads that each answer chooses for itself.
        answers: how many of the scenes the model pointed at something in.
        path: the file that the heads are kept in.
    """

    heads: tuple[int, ...]
    hits: float
    hits_without: float
    answers: int
    path: Path


@dataclass(eq=False)
class _Observations:
    """What was seen in the scenes so far.

    `done` scenes were asked about. Of each where the model pointed: `maps` float16 [heads, N], the
    share of attention of each of the picture's N tokens; `targets` bool [N], which of them lie on
    the thing; `own`, whether the heads that the answer chose for itself look at it.
    """

    done: int = 0
    maps: list[np.ndarray] = field(default_factory=list)
    targets: list[np.ndarray] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, done=self.done, maps=self.maps, targets=self.targets, own=self.own)
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "_Observations":
        """What was saved; nothing where there is no such file, or it is broken."""
        try:
            with np.load(path) as saved:
                lists = (list(saved[name]) for name in ("maps", "targets", "own"))
                return cls(int(saved["done"]), *lists)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return cls()


def calibrate(engine: Engine, count: int = SCENES) -> Iterator[int | Calibration]:
    """Ask a model about `count` scenes and keep the heads that tell the place; from now on the
    engine uses them.

    Args:
        engine: of a model whose language model runs here.
        count: how many scenes; those asked about earlier are not asked about again.

    Yields:
        the number of scenes done, after each; at the end what was found.

    Raises:
        CoPRSError: the model runs elsewhere, or points at something too seldom.
    """
    language, folder = engine.local.language, engine.checkpoint.language_folder
    if folder is None:
        raise CoPRSError(f"{engine.name} lies in no folder: load it by its name.")
    saved = heads_path(folder).with_suffix(".npz")
    language.heads = ()
    seen = _Observations.read(saved)
    saved.parent.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset("scenes", split="validation")
    asked = Engine(engine.checkpoint)  # with features of its own: those kept for others stay
    for example in dataset.examples(FIRST_SCENE + seen.done, max(0, count - seen.done)):
        _observe_scene(asked, example, seen)
        if seen.done % _SAVED_EVERY == 0 or seen.done == count:
            seen.save(saved)
        yield seen.done
    if len(seen.maps) < MIN_ANSWERS:
        raise CoPRSError(
            f"{engine.name} pointed at something in {len(seen.maps)} of {seen.done} scenes and at "
            f"least {MIN_ANSWERS} are needed: ask about more, or leave the choice to each answer."
        )
    maps, targets = np.stack(seen.maps).astype(np.float32), np.stack(seen.targets)
    language.heads = best_heads(maps, targets)
    hits, own = _score(maps[:, list(language.heads)].sum(1), targets)[0], float(np.mean(seen.own))
    facts = {"model": engine.name, "scenes": seen.done, "answers": len(maps), "hits": hits}
    path = save_heads(folder, language.heads, facts)
    yield Calibration(language.heads, hits, own, len(maps), path)


def _observe_scene(engine: Engine, example: Example, seen: _Observations) -> None:
    """Ask about one scene, and add what every head saw where the model points."""
    seen.done += 1
    if not example.truth.any():
        return
    photo = example.opened()
    result = engine.segment(photo, example.instruction)
    if not result.regions:
        return
    with engine.within_memory():
        reply = observe_reply(engine, photo, result, "heads")
    words = pointing_words(engine, result)
    every = [reply.looks.map(words, [head]) for head in range(reply.looks.heads_in_all)]
    target = covered_cells(example.truth, every[0].shape)
    seen.maps.append(np.stack(every).reshape(len(every), -1).astype(np.float16))
    seen.targets.append(target.ravel())
    seen.own.append(bool(target.ravel()[reply.seen(words).argmax()]))


def covered_cells(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Which cells of a grid (rows, columns) hold some of a mask bool [H, W]."""
    down, across = (
        np.linspace(0, side, cells, endpoint=False).astype(int)
        for side, cells in zip(mask.shape, grid, strict=True)
    )
    by_row = np.logical_or.reduceat(mask, down, axis=0)
    return np.logical_or.reduceat(by_row, across, axis=1)


def best_heads(
    maps: np.ndarray, targets: np.ndarray, count: int = LOCALIZATION_HEADS
) -> tuple[int, ...]:
    """The heads whose attention together lies on the targets most: one after the other, each the
    one that adds most.

    The first tells the place about as well as all do; the others make it surer at other words.

    Args:
        maps: float32 [scenes, heads, N]; targets: bool [scenes, N].
        count: how many.
    """
    alone = [sum(_score(maps[:, head], targets)) for head in range(maps.shape[1])]
    candidates = [int(head) for head in np.argsort(alone)[::-1][:_CANDIDATES]]
    chosen: list[int] = []
    together = np.zeros_like(maps[:, 0])
    while candidates and len(chosen) < count:
        adding = [sum(_score(together + maps[:, head], targets)) for head in candidates]
        chosen.append(candidates.pop(int(np.argmax(adding))))
        together = together + maps[:, chosen[-1]]
    return tuple(chosen)


def _score(maps: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """How often the brightest cell lies on the target, and the mean share of a map that does."""
    hits = np.take_along_axis(targets, maps.argmax(-1)[:, None], axis=-1).mean()
    shares = (maps * targets).sum(-1) / np.maximum(maps.sum(-1), 1e-9)
    return float(hits), float(shares.mean())
