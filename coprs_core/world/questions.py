"""Instructions about scenes, each with its meaning, the right thing, and the reply that it
deserves."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from coprs_core.world.meanings import Ambiguous, Meaning, missing, propose, resolve
from coprs_core.world.scenes import Scene, draw_scene
from coprs_core.world.wording import as_typed, instruction_of, reply_to

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
UNSEEN_WORDING_SHARE, NOTHING_SHARE = 0.3, 0.12


@dataclass(frozen=True)
class Question:
    """An instruction about a scene, its meaning, the index of the right thing (None: nothing fits)
    and the reply."""

    family: str
    instruction: str
    reply: str
    target: int | None
    meaning: Meaning
    unseen_wording: bool


def ask(
    scene: Scene,
    rng: random.Random,
    family: str | None = None,
    weights: dict[str, float] = FAMILY_WEIGHTS,
    nothing: float = NOTHING_SHARE,
) -> Question:
    """A random question about a scene: of the given family, or of any that the scene allows, by
    their `weights`; with probability `nothing` one that nothing in the scene fits."""
    if family is None and rng.random() < nothing:
        family = "nothing there"
    if family == "nothing there":
        return _in_words(missing(scene, rng), None, scene, rng)
    families = [family] if family else _weighted_order(rng, weights)
    for name in families:
        for _ in range(8):
            meaning = propose(name, scene.things, rng)
            if meaning is None:
                continue
            try:
                target = resolve(meaning, scene.things)
            except Ambiguous:
                continue
            if target is not None:
                return _in_words(meaning, target, scene, rng)
    if family:
        raise Ambiguous(f"this scene allows no question of the family {family!r}")
    return ask(scene, rng, None, weights, nothing)


def examples(split: str, seed: int, count: int) -> Iterator[tuple[Scene, Question]]:
    """`count` scenes of a split from `seed` on, each with one question; the same arguments give the
    same examples."""
    for i in range(seed, seed + count):
        scene = draw_scene(i, split)
        yield scene, ask(scene, random.Random(f"coprs question {split} {i}"))


def _weighted_order(rng: random.Random, weights: dict[str, float]) -> list[str]:
    return sorted(weights, key=lambda f: rng.random() ** (1 / weights[f]), reverse=True)


def _in_words(meaning: Meaning, target: int | None, scene: Scene, rng: random.Random) -> Question:
    unseen = scene.split == "test" and rng.random() < UNSEEN_WORDING_SHARE
    text = as_typed(instruction_of(meaning, rng, unseen), rng)
    family = meaning.family if target is not None else "nothing there"
    return Question(family, text, reply_to(meaning, target, scene.things), target, meaning, unseen)
