"""Drawn scenes as a data set: every thing of a picture is known, so an answer's thought can be
scored too."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from coprs_core.answer.results import Result
from coprs_core.datasets.example import Example
from coprs_core.metrics import iou
from coprs_core.prompts import NOTHING_FOUND
from coprs_core.world.questions import FAMILIES, Question, examples
from coprs_core.world.scenes import SPLITS, UNSEEN_PAIRS, Scene
from coprs_core.world.wording import conclusion_of

__all__ = ["GROUPS", "SPLITS", "example_of", "read"]
GROUPS = {family: ("family", family) for family in FAMILIES} | {
    "unseen pair": ("unseen_pair", True),
    "unseen wording": ("unseen_wording", True),
}


def read(root: Path | None, split: str, start: int, count: int) -> Iterator[Example]:
    """`count` scenes of a split, from the one with seed `start` on; they are drawn, so `root` is
    not used."""
    for i, (scene, question) in enumerate(examples(split, start, count), start=start):
        yield example_of(i, scene, question)


def example_of(index: int, scene: Scene, question: Question) -> Example:
    """A scene and its question as an `Example`."""
    target = None if question.target is None else scene.things[question.target]
    pair = None if target is None else (target.kind, target.colour)
    tags = {
        "family": question.family,
        "unseen_pair": pair in UNSEEN_PAIRS,
        "unseen_wording": question.unseen_wording,
    }
    return Example(
        index,
        scene.image,
        question.instruction,
        scene.mask(question.target),
        tags,
        partial(_score, scene, question),
    )


def _score(scene: Scene, question: Question, result: Result) -> dict[str, bool | float]:
    """`named`: the thought concludes with the right kind and colour, or says that nothing fits
    where nothing does.

    `hit`: the mask overlaps the target more than any other thing, or is absent where nothing fits.
    `mask_giou_if_named`: the mask's IoU with the target, where the thought named it.
    """
    mask = result.mask
    if question.target is None:
        return {"named": result.outcome == NOTHING_FOUND, "hit": not mask.any()}
    target = scene.things[question.target]
    overlaps = [int((mask & scene.mask(i)).sum()) for i in range(len(scene.things))]
    most_elsewhere = max([0, *(o for i, o in enumerate(overlaps) if i != question.target)])
    is_named = conclusion_of(result.reasoning) == (target.kind, target.colour)
    scores = {"named": is_named, "hit": overlaps[question.target] > most_elsewhere}
    if is_named:
        scores["mask_giou_if_named"] = iou(mask, scene.mask(question.target))
    return scores
