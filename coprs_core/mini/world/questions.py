"""Instructions about scenes, each with its meaning, the right object, and the reply that it
deserves."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from coprs_core.mini.world.meanings import (
    Ambiguous,
    Meaning,
    propose_absent,
    propose_meaning,
    resolve,
)
from coprs_core.mini.world.replies import target_reply
from coprs_core.mini.world.requests import (
    CAPITALS_SHARE,
    OTHER_VERBS,
    TYPO_SHARE,
    VARIED,
    add_typing_noise,
    write_instruction,
)
from coprs_core.mini.world.scenes import SQUARE, Scene, draw_scene, random_size

FAMILIES = (
    "name",
    "colour",
    "category",
    "use",
    "relation",
    "extreme",
    "exclusion",
    "two steps",
    "nothing there",
)
FAMILY_WEIGHTS = {
    "name": 1.0,
    "colour": 1.0,
    "category": 0.8,
    "use": 1.6,
    "relation": 1.5,
    "extreme": 1.5,
    "exclusion": 0.9,
    "two steps": 1.3,
}
EXTRA_FAMILIES = ("several", "unknown word")
"""Families that come up only where they are asked for."""
UNSEEN_WORDING_SHARE, NOTHING_SHARE = 0.3, 0.12


@dataclass(frozen=True)
class QuestionMix:
    """How questions are drawn.

    Attributes:
        weights: how often which family.
        nothing: share of questions that nothing in the scene fits.
        slips, capitals: shares with a typing error, and all in capitals.
        varied: share in wordings that are put together from parts, for training alone; of these,
            `other_verbs` is the share with verbs that do not ask to find anything.
    """

    weights: dict[str, float] = field(default_factory=lambda: FAMILY_WEIGHTS)
    nothing: float = NOTHING_SHARE
    slips: float = TYPO_SHARE
    capitals: float = CAPITALS_SHARE
    varied: float = 0.0
    other_verbs: float = 0.0


DEFAULT_MIX = QuestionMix()


@dataclass(frozen=True)
class Question:
    """An instruction about a scene, its meaning, the indices of the right objects in reading order
    (none: nothing fits) and the reply."""

    family: str
    instruction: str
    reply: str
    targets: tuple[int, ...]
    meaning: Meaning
    unseen_wording: bool


def draw_question(
    scene: Scene,
    rng: random.Random,
    family: str | None = None,
    asking: QuestionMix = DEFAULT_MIX,
) -> Question:
    """A random question about a scene: of the given family, or of any that the scene allows."""
    if family is None and rng.random() < asking.nothing:
        family = "nothing there"
    if family == "nothing there":
        return _build_question(propose_absent(scene, rng), (), scene, rng, asking)
    families = [family] if family else _weighted_order(rng, asking.weights)
    # a few tries each: most meanings of a crowded scene are ambiguous
    for name in families:
        for _ in range(8):
            meaning = propose_meaning(name, scene.objects, rng, scene.split == "test")
            if meaning is None:
                continue
            try:
                targets = resolve(meaning, scene.objects)
            except Ambiguous:
                continue
            if targets or name in EXTRA_FAMILIES:
                return _build_question(meaning, targets, scene, rng, asking)
    if family:
        raise Ambiguous(f"this scene allows no question of the family {family!r}")
    return draw_question(scene, rng, None, asking)


def draw_examples(
    split: str, seed: int, count: int, family: str | None = None, is_square: bool = True
) -> Iterator[tuple[Scene, Question]]:
    """`count` scenes of a split from `seed` on, each with one question, of one family where that is
    given; the same arguments give the same examples."""
    for i in range(seed, seed + count):
        size = SQUARE if is_square else random_size(random.Random(f"coprs size {split} {i}"))
        scene, rng = draw_scene(i, split, size=size), random.Random(f"coprs question {split} {i}")
        try:
            yield scene, draw_question(scene, rng, family)
        except Ambiguous:  # this scene allows no question of the family
            continue


def _weighted_order(rng: random.Random, weights: dict[str, float]) -> list[str]:
    families = [family for family, weight in weights.items() if weight > 0]
    return sorted(families, key=lambda f: rng.random() ** (1 / weights[f]), reverse=True)


def _build_question(
    meaning: Meaning,
    targets: tuple[int, ...],
    scene: Scene,
    rng: random.Random,
    asking: QuestionMix,
) -> Question:
    unseen = scene.split == "test" and rng.random() < UNSEEN_WORDING_SHARE
    # nothing is drawn where nothing is varied: a seed's questions stay
    varied = VARIED if asking.varied > 0 and rng.random() < asking.varied else None
    if varied and asking.other_verbs > 0 and rng.random() < asking.other_verbs:
        varied = OTHER_VERBS
    text = write_instruction(meaning, rng, unseen, len(targets), varied)
    slips = 0.0 if meaning.unknown else asking.slips  # what is not known is repeated as it is
    text = add_typing_noise(text, rng, slips, asking.capitals)
    family = meaning.family if targets or meaning.unknown else "nothing there"
    reply = target_reply(meaning, targets, scene.objects)
    return Question(family, text, reply, targets, meaning, unseen)
