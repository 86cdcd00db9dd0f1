"""Drawn scenes as a data set: every object of a picture is known, so an answer's thought can be
scored too.

The one way from a data set into the drawn world, `coprs_core.mini`.
"""

import random
from functools import partial

import numpy as np

from coprs_core.answer.results import Result
from coprs_core.datasets.dataset import Dataset, Split
from coprs_core.example import Example, Tag
from coprs_core.metrics import iou
from coprs_core.mini.world import scenes
from coprs_core.mini.world.questions import (
    EXTRA_FAMILIES,
    FAMILIES,
    FAMILY_WEIGHTS,
    Question,
    QuestionMix,
    draw_examples,
    draw_question,
)
from coprs_core.mini.world.replies import parse_conclusions, parse_seen_objects
from coprs_core.mini.world.scenes import SQUARE, UNSEEN_PAIRS, Scene, draw_scene, random_size
from coprs_core.prompts import NOTHING_FOUND

_VARIANTS: dict[str, dict] = {
    "several": {"family": "several"},
    "unknown": {"family": "unknown word"},
    "shapes": {"is_square": False},
}
GROUPS: dict[str, tuple[str, Tag]] = {
    family: ("family", family) for family in (*FAMILIES, *EXTRA_FAMILIES)
} | {
    "unseen pair": ("unseen_pair", True),
    "unseen wording": ("unseen_wording", True),
}
_UNKNOWN_PHRASE = "that I do not know"
JOINT_QUESTION_MIX = QuestionMix(
    FAMILY_WEIGHTS | {"relation": 2.0, "two steps": 2.0, "exclusion": 1.5, "several": 1.0}, 0.1
)
"""What joint training asks about scenes: more often what the miniature learns last."""
_SPLITS = (
    *("test", "validation", "train"),
    *(f"{split}-{more}" for split in scenes.SPLITS for more in _VARIANTS),
)


def list_splits(name: str) -> tuple[str, ...]:
    """test; test-several, of questions for several objects; test-unknown, with words that the world
    does not know; test-shapes, of pictures that are no squares; and so on."""
    return _SPLITS


def read_split(split: Split) -> Dataset:
    """The scenes of a split, by seed. One that allows no question of the split's family is passed
    over."""
    drawn_from, _, more = split.name.partition("-")

    def item(seed: int) -> Example | None:
        asked = next(draw_examples(drawn_from, seed, 1, **_VARIANTS.get(more, {})), None)
        return asked and to_example(seed, *asked)

    return Dataset(f"drawn scenes, split {split.name}", None, item, GROUPS, has_grades=True)


def training_scenes(
    count: int,
    other_shapes: float = 0.0,
    asking: QuestionMix = JOINT_QUESTION_MIX,
    name: str = "joint items",
) -> Dataset:
    """Scenes of the training split with a question each, the same in every run; those of another
    `name` are others. `other_shapes` is the share of pictures that are no squares."""

    def item(index: int) -> Example:
        seed = f"{name} {index}"
        rng = random.Random(seed)
        size = random_size(rng) if rng.random() < other_shapes else SQUARE
        scene = draw_scene(seed, size=size)
        return to_example(index, scene, draw_question(scene, rng, None, asking))

    return Dataset(f"drawn scenes, {name}", count, item, GROUPS, has_grades=True)


def to_example(index: int, scene: Scene, question: Question) -> Example:
    """Make an `Example` of a scene and its question."""
    pairs = {(scene.objects[i].kind, scene.objects[i].colour) for i in question.targets}
    tags: dict[str, Tag] = {
        "family": question.family,
        "unseen_pair": bool(pairs & UNSEEN_PAIRS),
        "unseen_wording": question.unseen_wording,
    }
    return Example(
        scene.image,
        question.instruction,
        tuple(scene.mask(i) for i in question.targets),
        scene.image.shape[:2],
        index=index,
        tags=tags,
        score=partial(_score_answer, scene, question),
        grade=partial(grade_thought, scene, question),
        reply=question.reply,
    )


def _score_answer(scene: Scene, question: Question, result: Result) -> dict[str, bool | float]:
    """`named`: the thought concludes with the kind and colour of every right object and of no
    other, or says that nothing fits, or what it does not know, where that is so.

    `hit`: each region overlaps its own target more than any other object, in reading order, or
    there is none where nothing fits. `mask_giou_if_named`: the mask's IoU with the
    targets, where the thought named them.
    """
    if not question.targets:
        is_unknown = _UNKNOWN_PHRASE in result.reasoning
        is_named = result.outcome == NOTHING_FOUND and is_unknown == bool(question.meaning.unknown)
        return {"named": is_named, "hit": not result.regions}
    objects = [scene.objects[i] for i in question.targets]
    is_named = parse_conclusions(result.reasoning) == [(t.kind, t.colour) for t in objects]
    hits = [
        _best_overlap(scene, region.mask) == i
        for region, i in zip(result.regions, question.targets, strict=False)
    ]
    is_hit = all(hits) and len(result.regions) == len(question.targets)
    scores: dict[str, bool | float] = {"named": is_named, "hit": is_hit}
    if is_named:
        scores["mask_giou_if_named"] = iou(result.mask, scene.mask(*question.targets))
    return scores


def grade_thought(scene: Scene, question: Question, result: Result) -> float:
    """Grade a thought from 0 to 10 by counting: 4 · the share of what it says to see that is
    there, 2 · the share of what is there that it says to see (object, colour and place), 4 where it
    concludes rightly (`named`)."""
    there = {(t.place, t.colour, t.kind) for t in scene.objects}
    # a set: naming the same object twice earns nothing
    seen = set(parse_seen_objects(result.reasoning))
    right = len(seen & there)
    conclusion = bool(_score_answer(scene, question, result)["named"])
    return 4 * right / max(1, len(seen)) + 2 * right / max(1, len(there)) + 4 * conclusion


def _best_overlap(scene: Scene, mask: np.ndarray) -> int | None:
    """The object that a mask overlaps most; None where it overlaps none, or two alike."""
    overlaps = [int((mask & scene.mask(i)).sum()) for i in range(len(scene.objects))]
    most = max(overlaps)
    return overlaps.index(most) if most and overlaps.count(most) == 1 else None
