"""What an instruction asks for, and which object of a scene it is.

A `Meaning` ("among the animals, the one nearest to the clock") is resolved against the objects of a
scene with a margin, so that it has exactly one right answer or honestly none. Or it asks for
several objects, or for something that the world does not know.
"""

import math
import random
from dataclasses import dataclass

from coprs_core.mini.world.drawings import COLOURS
from coprs_core.mini.world.kinds import CATEGORIES, KIND_BY_NAME, KINDS
from coprs_core.mini.world.scenes import UNSEEN_PAIRS, Scene, SceneObject
from coprs_core.mini.world.unknown import (
    foreign_words,
    random_keystrokes,
    unknown_noun,
    unknown_quality,
)

RELATIONS = ("left of", "right of", "above", "below", "nearest to")
EXTREMES = ("largest", "smallest", "leftmost", "rightmost", "topmost", "lowest")

MAX_TARGETS = 4
"""An instruction asks for at most so many objects."""
_CLEAR_OFFSET, _NEGLIGIBLE_OFFSET = (
    20.0,
    4.0,
)  # pixels: apart enough to say "left of"; too close to call
SIZE_MARGIN, DISTANCE_MARGIN = 1.4, 1.3
"""Ratios of area and of distance between the right object and the next."""


@dataclass(frozen=True)
class Filter:
    """Properties that select objects; None leaves one open. `use` changes the wording alone: the
    kind is described by its use."""

    kind: str | None = None
    colour: str | None = None
    category: str | None = None
    not_colour: str | None = None
    use: str | None = None

    def matches(self, obj: SceneObject) -> bool:
        return (
            self.kind in (None, obj.kind)
            and self.colour in (None, obj.colour)
            and (self.category is None or obj.kind in CATEGORIES[self.category])
            and self.not_colour != obj.colour
        )


@dataclass(frozen=True)
class Meaning:
    """What an instruction asks for: one of `among`, singled out by a relation to one anchor or by
    an extreme.

    Where it asks for `several`, all of `among`. Where it holds a word that the world does not know,
    that is `unknown`, and `wording` the whole of what is asked for.
    """

    family: str
    among: Filter
    relation: str | None = None
    anchor: Filter | None = None
    extreme: str | None = None
    several: bool = False
    unknown: str = ""
    wording: str = ""


class Ambiguous(Exception):
    """The scene does not answer the meaning clearly enough."""


def resolve(meaning: Meaning, objects: tuple[SceneObject, ...]) -> tuple[int, ...]:
    """The indices of the right objects: one, up to `MAX_TARGETS` where several are asked for, none
    where nothing fits. Raises `Ambiguous` where a person could argue."""
    if meaning.unknown:
        return ()
    if meaning.several:
        found = tuple(i for i, t in enumerate(objects) if meaning.among.matches(t))
        if len(found) > MAX_TARGETS:
            raise Ambiguous
        return found
    one = _resolve_one(meaning, objects)
    return () if one is None else (one,)


def _resolve_one(meaning: Meaning, objects: tuple[SceneObject, ...]) -> int | None:
    candidates = [i for i, t in enumerate(objects) if meaning.among.matches(t)]
    if meaning.anchor is not None and meaning.relation is not None:
        anchor = _single([i for i, t in enumerate(objects) if meaning.anchor.matches(t)])
        if anchor is None:
            return None
        candidates = _filter_by_relation(
            meaning.relation, anchor, [i for i in candidates if i != anchor], objects
        )
    if meaning.extreme is not None:
        return _select_extreme(meaning.extreme, candidates, objects)
    return _single(candidates)


def _single(indices: list[int]) -> int | None:
    if len(indices) > 1:
        raise Ambiguous
    return indices[0] if indices else None


def _filter_by_relation(
    relation: str, anchor: int, candidates: list[int], objects: tuple[SceneObject, ...]
) -> list[int]:
    (ax, ay), centres = objects[anchor].centre, [t.centre for t in objects]
    if relation == "nearest to":
        order = sorted((math.dist(centres[i], (ax, ay)), i) for i in candidates)
        if len(order) > 1 and order[1][0] < DISTANCE_MARGIN * order[0][0]:
            raise Ambiguous
        return [i for _, i in order[:1]]
    ahead = {
        "left of": lambda x, y: ax - x,
        "right of": lambda x, y: x - ax,
        "above": lambda x, y: ay - y,
        "below": lambda x, y: y - ay,
    }[relation]
    distances = {i: ahead(*centres[i]) for i in candidates}
    # between the two a person could say yes or no: such a question is not asked
    if any(_NEGLIGIBLE_OFFSET < d < _CLEAR_OFFSET for d in distances.values()):
        raise Ambiguous
    return [i for i, d in distances.items() if d >= _CLEAR_OFFSET]


def _select_extreme(
    extreme: str, candidates: list[int], objects: tuple[SceneObject, ...]
) -> int | None:
    if len(candidates) < 2:
        raise Ambiguous
    score = {
        "largest": lambda t: math.log(t.area),
        "smallest": lambda t: -math.log(t.area),
        "leftmost": lambda t: -t.centre[0],
        "rightmost": lambda t: t.centre[0],
        "topmost": lambda t: -t.centre[1],
        "lowest": lambda t: t.centre[1],
    }[extreme]
    second, first = sorted(candidates, key=lambda i: score(objects[i]))[-2:]
    margin = math.log(SIZE_MARGIN) if extreme in ("largest", "smallest") else _CLEAR_OFFSET
    if score(objects[first]) - score(objects[second]) < margin:
        raise Ambiguous
    return first


def propose_meaning(
    family: str, objects: tuple[SceneObject, ...], rng: random.Random, is_test: bool = False
) -> Meaning | None:
    """A meaning of a family that this scene may answer; None where it plainly cannot. Nouns held
    back for the test come up only where it `is_test`."""
    obj = rng.choice(objects)
    if family == "name":
        return Meaning(family, Filter(kind=obj.kind))
    if family == "colour":
        return Meaning(
            family, Filter(kind=obj.kind if rng.random() < 0.75 else None, colour=obj.colour)
        )
    if family == "category":
        return (
            Meaning(family, Filter(category=_random_category(obj, rng)))
            if _random_category(obj, rng)
            else None
        )
    if family == "use":
        return Meaning(family, _use_filter(obj.kind, rng))
    if family == "several":
        return Meaning(family, _objects_alike(objects, rng), several=True)
    if family == "unknown word":
        return propose_unknown(objects, rng, is_test)
    if family == "extreme":
        return Meaning(family, _random_group(objects, rng), extreme=rng.choice(EXTREMES))
    if family == "exclusion":
        group = _shared_filter(objects, rng)
        if group is None:
            return None
        colour = rng.choice([t.colour for t in objects if group.matches(t)])
        return Meaning(family, Filter(group.kind, None, group.category, colour))
    relation = rng.choice((*RELATIONS, "nearest to"))
    if family == "relation":
        anchor = Filter(obj.kind) if rng.random() < 0.3 else Filter(obj.kind, obj.colour)
        return Meaning(family, Filter(), relation, anchor)
    group = _shared_filter(objects, rng)
    anchor = Filter(obj.kind, obj.colour) if rng.random() < 0.35 else _use_filter(obj.kind, rng)
    return Meaning(family, group, relation, anchor) if group and not group.matches(obj) else None


def _random_category(obj: SceneObject, rng: random.Random) -> str | None:
    categories = [c for c, kinds in CATEGORIES.items() if obj.kind in kinds]
    return rng.choice(categories) if categories else None


def _use_filter(kind: str, rng: random.Random) -> Filter:
    known = KIND_BY_NAME[kind]
    uses = (*known.uses, f"to {known.purpose}") if known.purpose else known.uses
    return Filter(kind, use=rng.choice(uses))


def _shared_filter(objects: tuple[SceneObject, ...], rng: random.Random) -> Filter | None:
    """A kind or a category that at least two objects share."""
    groups = [Filter(k) for k in KINDS if sum(t.kind == k for t in objects) > 1]
    groups += [
        Filter(category=c) for c in CATEGORIES if sum(t.kind in CATEGORIES[c] for t in objects) > 1
    ]
    return rng.choice(groups) if groups else None


def _objects_alike(objects: tuple[SceneObject, ...], rng: random.Random) -> Filter:
    """Things that share a kind, a category or a colour, mostly two or more; now and then all of
    them but those of one colour, and now and then what is not there."""
    if rng.random() < 0.08:
        return Filter(rng.choice([k for k in KINDS if all(t.kind != k for t in objects)]))
    groups = [Filter(category=c) for c in CATEGORIES]
    groups += [f for k in {t.kind: 0 for t in objects} for f in [Filter(k)] * 2]
    groups += [Filter(colour=c) for c in {t.colour: 0 for t in objects}]
    groups += [Filter(category=c, colour=t.colour) for c in CATEGORIES for t in objects]
    counts = [(group, sum(group.matches(t) for t in objects)) for group in groups]
    least = 1 if rng.random() < 0.15 else 2
    fitting = [group for group, count in counts if count >= least] or [
        group for group, count in counts if count
    ]
    group = rng.choice(fitting)
    inside = [t for t in objects if group.matches(t)]
    if group.colour is None and len(inside) > 2 and rng.random() < 0.25:
        return Filter(group.kind, None, group.category, rng.choice(inside).colour)
    return group


def propose_unknown(objects: tuple[SceneObject, ...], rng: random.Random, is_test: bool) -> Meaning:
    """A meaning with a word in it that the world does not know: a noun by itself, with a colour, as
    an anchor; a quality of an object that is here; or another language, or no language at all."""
    draw, obj = rng.random(), rng.choice(objects)
    noun = unknown_noun(rng, is_test)
    word, wording = noun, f"the {noun}"
    if draw < 0.1:
        wording = f"the {rng.choice(list(COLOURS))} {noun}"
    elif draw < 0.15:
        wording = f"the {rng.choice(EXTREMES[:2])} {noun}"
    elif draw < 0.25:
        wording = f"the {obj.kind} {rng.choice(RELATIONS)} the {noun}"
    elif draw < 0.35:
        word = unknown_quality(rng)
        wording = f"the {word} {obj.kind}"
    elif draw < 0.5:
        word = wording = foreign_words(rng)
    elif draw < 0.75:
        word = wording = random_keystrokes(rng)
        if rng.random() < 0.3:
            wording = f"the {word}"
    elif draw < 0.85:
        wording = rng.choice((noun, f"a {noun}", f"all the {noun}s", f"the {noun} in the picture"))
    return Meaning("unknown word", Filter(), unknown=word, wording=wording)


def _random_group(objects: tuple[SceneObject, ...], rng: random.Random) -> Filter:
    rivals = _shared_filter(objects, rng)
    return rivals if rivals and rng.random() < 0.5 else Filter()


def propose_absent(scene: Scene, rng: random.Random) -> Meaning:
    """A meaning that nothing here fits: the kind, the pair, the category, the use or the anchor is
    not there.

    Unseen pairs are asked for in the test split alone: a pair that is only ever asked for in vain
    is learnt as absent.
    """
    objects = scene.objects

    def colour_for(kind: str) -> str:
        here = {t.colour for t in objects if t.kind == kind}
        hidden = {c for k, c in UNSEEN_PAIRS if k == kind and scene.split != "test"}
        return rng.choice([c for c in COLOURS if c not in here | hidden])

    present = {t.kind for t in objects}
    kind = rng.choice([k for k in KINDS if k not in present])
    here = rng.choice(objects)
    categories = [c for c, kinds in CATEGORIES.items() if not present & set(kinds)]
    meanings = [
        Meaning("name", Filter(kind)),
        Meaning("colour", Filter(here.kind, colour_for(here.kind))),
        Meaning("colour", Filter(kind, colour_for(kind))),
        Meaning("use", _use_filter(kind, rng)),
        Meaning("use", _use_filter(kind, rng)),
        Meaning("relation", Filter(), rng.choice(RELATIONS), Filter(kind, colour_for(kind))),
    ]
    if categories:
        meanings.append(Meaning("category", Filter(category=rng.choice(categories))))
    return rng.choice(meanings)
