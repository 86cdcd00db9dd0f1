"""Calibrate a model's localization heads with drawn scenes, whose truth is known.

Uncalibrated, they are chosen from each answer itself (see `model.backends.attention`). Here the
model is asked about scenes; where it points at something, those heads are kept whose attention, at
the tokens that point, lies on the target.
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
from coprs_core.model.backends.attention import NUM_LOCALIZATION_HEADS
from coprs_core.probes.reply_attention import compute_reply_attention, pointing_tokens

DEFAULT_SCENES, FIRST_SCENE = 60, 20_000
"""How many scenes are asked about by default, and the first of them, of the validation split."""
MIN_ANSWERS = 10
"""Fewer answers than this that point at something are too few to choose by."""
_MAX_CANDIDATES = 48
_SAVE_INTERVAL = 5


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration.

    Attributes:
        heads: the chosen ones, the best first.
        hits: how often the brightest cell of their attention lay on the target, in [0, 1], on the
            scenes by which they were chosen.
        own_hits: the same of the heads that each answer chooses for itself.
        answers: how many of the scenes the model pointed at something in.
        path: the file that the heads were saved to.
    """

    heads: tuple[int, ...]
    hits: float
    own_hits: float
    answers: int
    path: Path


@dataclass(eq=False)
class _Observations:
    """Attention in the scenes so far.

    `done` scenes were asked about. Of each in which the model pointed at something: `maps` float16
    [heads, N], the share of attention of each of the picture's N tokens; `targets` bool [N], which
    of them lie on the target; `own`, whether the heads that the answer chose for itself look at it.
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
    def load(cls, path: Path) -> "_Observations":
        """What was saved; nothing where there is no such file, or it is broken."""
        try:
            with np.load(path) as saved:
                lists = (list(saved[name]) for name in ("maps", "targets", "own"))
                return cls(int(saved["done"]), *lists)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return cls()


def calibrate(engine: Engine, count: int = DEFAULT_SCENES) -> Iterator[int | Calibration]:
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
    language, folder = engine.local_segmenter.language, engine.checkpoint.language_folder
    if folder is None:
        raise CoPRSError(f"{engine.name} lies in no folder: load it by its name.")
    saved = heads_path(folder).with_suffix(".npz")
    language.localization_heads = ()
    observations = _Observations.load(saved)
    saved.parent.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset("scenes", split="validation")
    uncached_engine = Engine(
        engine.checkpoint
    )  # its scenes must not push others' photos out of the cache
    for example in dataset.examples(
        FIRST_SCENE + observations.done, max(0, count - observations.done)
    ):
        _observe_scene(uncached_engine, example, observations)
        if observations.done % _SAVE_INTERVAL == 0 or observations.done == count:
            observations.save(saved)
        yield observations.done
    if len(observations.maps) < MIN_ANSWERS:
        raise CoPRSError(
            f"{engine.name} pointed at something in {len(observations.maps)} of "
            f"{observations.done} scenes and at least {MIN_ANSWERS} are needed: ask about more, or "
            "leave the choice to each answer."
        )
    maps, targets = np.stack(observations.maps).astype(np.float32), np.stack(observations.targets)
    language.localization_heads = select_heads(maps, targets)
    hits, own = (
        _score(maps[:, list(language.localization_heads)].sum(1), targets)[0],
        float(np.mean(observations.own)),
    )
    facts = {"model": engine.name, "scenes": observations.done, "answers": len(maps), "hits": hits}
    path = save_heads(folder, language.localization_heads, facts)
    yield Calibration(language.localization_heads, hits, own, len(maps), path)


def _observe_scene(engine: Engine, example: Example, observations: _Observations) -> None:
    """Ask about one scene, and add every head's attention where the model points."""
    observations.done += 1
    if not example.truth.any():
        return
    photo = example.load_photo()
    result = engine.segment(photo, example.instruction)
    if not result.regions:
        return
    with engine.memory_guard():
        reply = compute_reply_attention(engine, photo, result, "heads")
    words = pointing_tokens(engine, result)
    head_maps = [reply.trace.attention_map(words, [head]) for head in range(reply.trace.num_heads)]
    target = covered_cells(example.truth, head_maps[0].shape)
    observations.maps.append(np.stack(head_maps).reshape(len(head_maps), -1).astype(np.float16))
    observations.targets.append(target.ravel())
    observations.own.append(bool(target.ravel()[reply.attention_map(words).argmax()]))


def covered_cells(mask: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Which cells of a grid (rows, columns) hold some of a mask bool [H, W]."""
    down, across = (
        np.linspace(0, side, cells, endpoint=False).astype(int)
        for side, cells in zip(mask.shape, grid, strict=True)
    )
    by_row = np.logical_or.reduceat(mask, down, axis=0)
    return np.logical_or.reduceat(by_row, across, axis=1)


def select_heads(
    maps: np.ndarray, targets: np.ndarray, count: int = NUM_LOCALIZATION_HEADS
) -> tuple[int, ...]:
    """The heads whose attention together lies on the targets most: one after the other, each the
    one that adds most.

    The first alone is about as good as all together; the others help at other words.

    Args:
        maps: float32 [scenes, heads, N]; targets: bool [scenes, N].
        count: how many.
    """
    single_scores = [sum(_score(maps[:, head], targets)) for head in range(maps.shape[1])]
    candidates = [int(head) for head in np.argsort(single_scores)[::-1][:_MAX_CANDIDATES]]
    chosen: list[int] = []
    summed = np.zeros_like(maps[:, 0])
    while candidates and len(chosen) < count:
        scores = [sum(_score(summed + maps[:, head], targets)) for head in candidates]
        chosen.append(candidates.pop(int(np.argmax(scores))))
        summed = summed + maps[:, chosen[-1]]
    return tuple(chosen)


def _score(maps: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """How often the brightest cell lies on the target, and the mean share of a map that does."""
    hits = np.take_along_axis(targets, maps.argmax(-1)[:, None], axis=-1).mean()
    shares = (maps * targets).sum(-1) / np.maximum(maps.sum(-1), 1e-9)
    return float(hits), float(shares.mean())
