"""Instructions about scenes, and the replies they deserve.

A question is first a `Meaning` ("among the animals, the one nearest to the clock"), resolved against the things of a
scene with a margin, so that it has exactly one right answer or honestly none; then it is put into words, the way
people type; then the target reply thinks it through in words.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from coprs_core.world.drawings import COLOURS, KINDS
from coprs_core.prompts import FOCUS_TOKEN
from coprs_core.world.scenes import CATEGORIES, PLACES, UNSEEN_PAIRS, Scene, Thing, draw_scene

FAMILIES = ("name", "colour", "category", "use", "relation", "extreme", "exclusion", "two steps", "nothing there")
USES: dict[str, tuple[str, ...]] = {
    "fish": ("swims under water", "breathes in water", "has fins"),
    "bird": ("sings in the morning", "lays eggs in a nest", "has a beak"),
    "butterfly": ("was once a caterpillar", "drinks from blossoms", "flutters in summer"),
    "car": ("drives on the road", "needs a parking place", "has four wheels"),
    "boat": ("sails on the sea", "floats on the lake", "needs wind in its sails"),
    "plane": ("takes people to other countries by air", "lands at the airport", "a pilot steers"),
    "apple": ("keeps the doctor away", "cider is made from", "grows in an orchard"),
    "banana": ("monkeys like to eat", "you peel before you eat it", "is curved and sweet"),
    "carrot": ("rabbits like to eat", "grows under the ground", "makes the nose of a snowman"),
    "hammer": ("drives nails into wood", "a carpenter hits with", "you break a piggy bank with"),
    "key": ("opens a door", "turns in a lock", "you must not lose when you leave home"),
    "chair": ("you sit on", "you rest your legs on", "has a seat and a back"),
    "table": ("you put plates on", "a family eats dinner at", "you lay a cloth over"),
    "tree": ("gives shade", "has a trunk and leaves", "you could climb in the forest"),
    "flower": ("smells sweet", "you put in a vase", "bees visit"),
    "hat": ("you wear on your head", "a magician pulls a rabbit out of", "keeps your hair covered"),
    "shirt": ("has two sleeves", "you button up", "covers your chest"),
    "sun": ("warms the day", "rises in the morning", "gives you a tan"),
    "moon": ("shines at night", "wolves howl at", "astronauts walked on"),
    "cloud": ("brings the rain", "hides the blue sky", "is made of tiny drops"),
    "house": ("people live in", "has a roof and a chimney", "a family calls home"),
    "cup": ("you drink coffee from", "holds hot tea", "has a handle and is easily spilled"),
    "umbrella": ("keeps the rain off", "you open when it pours", "keeps you dry in bad weather"),
    "clock": ("tells the time", "wakes you up", "ticks all day"),
}
_TO_DO = {  # "something to …"
    "plane": "fly abroad with", "car": "drive to work with", "boat": "cross the lake with", "hammer": "hit a nail with",
    "key": "open a door with", "chair": "sit on", "table": "put plates on", "hat": "wear on the head",
    "shirt": "wear on the chest", "cup": "drink from", "umbrella": "stay dry with", "clock": "read the time from",
    "house": "live in", "flower": "put in a vase", "tree": "climb on", "banana": "peel and eat", "apple": "bake in a pie",
    "carrot": "feed a rabbit with",
}  # fmt: skip
_CATEGORY_WORDS = {  # singular, plural
    "animal": ("animal", "animals"), "vehicle": ("vehicle", "vehicles"), "food": ("food", "foods"),
    "fruit": ("fruit", "fruits"), "tool": ("tool", "tools"), "furniture": ("piece of furniture", "pieces of furniture"),
    "plant": ("plant", "plants"), "clothing": ("piece of clothing", "pieces of clothing"),
    "sky": ("thing of the sky", "things of the sky"),
}  # fmt: skip
RELATIONS = ("left of", "right of", "above", "below", "nearest to")
EXTREMES = ("largest", "smallest", "leftmost", "rightmost", "topmost", "lowest")

_CLEARLY, _BARELY = 20.0, 4.0  # pixels: apart enough to say "left of"; too close to call
_SIZE_MARGIN, _DISTANCE_MARGIN = 1.4, 1.3  # ratios between the best and the next
_EXTREME_WORDS = {
    "largest": ("largest", "biggest"), "smallest": ("smallest", "tiniest"), "leftmost": ("leftmost", "furthest left"),
    "rightmost": ("rightmost", "furthest right"), "topmost": ("topmost", "highest"), "lowest": ("lowest", "bottommost"),
}  # fmt: skip
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"), "above": ("above", "over"),
    "below": ("below", "under"), "nearest to": ("nearest to", "closest to"),
}  # fmt: skip

# Whole wordings. `{x}` is what is asked for. The last ones are for the test split alone.
_FRAMES = (
    "{x}", "{x}", "{x}", "{x}", "{x}", "{x}", "{x}", "{x}", "find {x}", "segment {x}", "please segment {x}", "show me {x}",
    "where is {x}?", "can you find {x}?", "i am looking for {x}", "select {x} please", "point to {x}", "highlight {x}",
    "please find {x}", "find {x} for me", "could you find {x}?", "could you show me {x} please?", "tell me where {x} is",
    "can you show me where {x} is?", "i need {x}", "i would like to see {x}", "look for {x} and select it", "pick {x}",
    "please highlight {x}", "highlight {x} for me", "cut out {x}", "give me {x}", "which one is {x}?", "outline {x}",
    "draw around {x}", "find {x} in this picture", "where can i see {x}?", "do you see {x}?", "select and highlight {x}",
    "let us find {x}", "help me find {x}", "hi, where is {x}?", "what about {x}?", "now {x}", "ok show {x}", "search for {x}",
)  # fmt: skip
_UNSEEN_FRAMES = ("could you mark {x} for me?", "please show me where {x} is", "i want {x}", "find and highlight {x}")
# Ways to say what is asked for, by family. Filled with the parts of a Meaning. The last ones are for the test split.
_PHRASES = {
    "name": ("the {noun}", "{a_noun}", "the {noun} in the picture"),
    "colour": ("the {noun}", "{a_noun}", "the {noun} in the picture"),
    "category": ("the {noun}", "{a_noun}", "the {noun} in the picture"),
    "use": ("the thing that {use}", "what {use}", "something that {use}"),
    "relation": ("the {noun} {relation} {anchor}", "what is {relation} {anchor}", "the {noun} that is {relation} {anchor}"),
    "extreme": ("the {extreme} {noun}", "the {noun} that is {extreme}", "the {extreme} {noun} in the picture"),
    "exclusion": ("the {noun} that is not {colour}", "the {noun} which is not {colour}", "the not {colour} {noun}"),
    "two steps": ("the {noun} {relation} {anchor}", "the {noun} that is {relation} {anchor}",
                  "the {noun} which is {relation} {anchor}"),
}  # fmt: skip
_UNSEEN_PHRASES = {
    "name": ("the thing that is {a_noun}",), "colour": ("the {kind} that is {colour}",),
    "category": ("the thing that is {a_noun}",), "use": ("the one that {use}",),
    "relation": ("the {noun} which is {relation} {anchor}",), "extreme": ("the {noun} which is {extreme}",),
    "exclusion": ("{a_noun} that is not {colour}",), "two steps": ("{a_noun} {relation} {anchor}",),
}  # fmt: skip
FAMILY_WEIGHTS = {"name": 1.0, "colour": 1.0, "category": 0.8, "use": 1.6, "relation": 1.5, "extreme": 1.5,
                   "exclusion": 0.9, "two steps": 1.3}  # fmt: skip
UNSEEN_WORDING_SHARE, TYPO_SHARE, NOTHING_SHARE = 0.3, 0.1, 0.12


@dataclass(frozen=True)
class Filter:
    """Which things are meant; None leaves a property open. `use` only changes the wording: the kind is asked by use."""

    kind: str | None = None
    colour: str | None = None
    category: str | None = None
    not_colour: str | None = None
    use: str | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            self.kind in (None, thing.kind)
            and self.colour in (None, thing.colour)
            and (self.category is None or thing.kind in CATEGORIES[self.category])
            and self.not_colour != thing.colour
        )


@dataclass(frozen=True)
class Meaning:
    """What an instruction asks for: one of `among`, singled out by a relation to one anchor or by an extreme."""

    family: str
    among: Filter
    relation: str | None = None
    anchor: Filter | None = None
    extreme: str | None = None


@dataclass(frozen=True)
class Question:
    """An instruction about a scene, its meaning, the index of the right thing (None: nothing fits) and the reply."""

    family: str
    instruction: str
    reply: str
    target: int | None
    meaning: Meaning
    unseen_wording: bool


class Ambiguous(Exception):
    """The scene does not answer the meaning clearly enough."""


def resolve(meaning: Meaning, things: tuple[Thing, ...]) -> int | None:
    """The index of the one right thing, None where nothing fits; raises `Ambiguous` where a person could argue."""
    candidates = [i for i, t in enumerate(things) if meaning.among.fits(t)]
    if meaning.anchor is not None:
        anchor = _only([i for i, t in enumerate(things) if meaning.anchor.fits(t)])
        if anchor is None:
            return None
        candidates = _related(meaning.relation, anchor, [i for i in candidates if i != anchor], things)
    if meaning.extreme is not None:
        return _extreme(meaning.extreme, candidates, things)
    return _only(candidates)


def _only(indices: list[int]) -> int | None:
    if len(indices) > 1:
        raise Ambiguous
    return indices[0] if indices else None


def _related(relation: str, anchor: int, candidates: list[int], things: tuple[Thing, ...]) -> list[int]:
    (ax, ay), centres = things[anchor].centre, [t.centre for t in things]
    if relation == "nearest to":
        order = sorted((math.dist(centres[i], (ax, ay)), i) for i in candidates)
        if len(order) > 1 and order[1][0] < _DISTANCE_MARGIN * order[0][0]:
            raise Ambiguous
        return [i for _, i in order[:1]]
    ahead = {
        "left of": lambda x, y: ax - x, "right of": lambda x, y: x - ax,
        "above": lambda x, y: ay - y, "below": lambda x, y: y - ay,
    }[relation]  # fmt: skip
    distances = {i: ahead(*centres[i]) for i in candidates}
    if any(_BARELY < d < _CLEARLY for d in distances.values()):
        raise Ambiguous
    return [i for i, d in distances.items() if d >= _CLEARLY]


def _extreme(extreme: str, candidates: list[int], things: tuple[Thing, ...]) -> int | None:
    if len(candidates) < 2:
        raise Ambiguous
    score = {
        "largest": lambda t: math.log(t.area), "smallest": lambda t: -math.log(t.area),
        "leftmost": lambda t: -t.centre[0], "rightmost": lambda t: t.centre[0],
        "topmost": lambda t: -t.centre[1], "lowest": lambda t: t.centre[1],
    }[extreme]  # fmt: skip
    second, first = sorted(candidates, key=lambda i: score(things[i]))[-2:]
    margin = math.log(_SIZE_MARGIN) if extreme in ("largest", "smallest") else _CLEARLY
    if score(things[first]) - score(things[second]) < margin:
        raise Ambiguous
    return first


# ------------------------------------------------------------------------------------------------------- meanings


def ask(
    scene: Scene,
    rng: random.Random,
    family: str | None = None,
    weights: dict[str, float] = FAMILY_WEIGHTS,
    nothing: float = NOTHING_SHARE,
) -> Question:
    """A random question about a scene: of the given family, or of any that the scene allows, by their `weights`; with
    probability `nothing` one that nothing in the scene fits."""
    if family is None and rng.random() < nothing:
        family = "nothing there"
    if family == "nothing there":
        return _in_words(_missing(scene, rng), None, scene, rng)
    families = [family] if family else _weighted_order(rng, weights)
    for name in families:
        for _ in range(8):
            meaning = _propose(name, scene.things, rng)
            try:
                target = None if meaning is None else resolve(meaning, scene.things)
            except Ambiguous:
                continue
            if target is not None:
                return _in_words(meaning, target, scene, rng)
    if family:
        raise Ambiguous(f"this scene allows no question of the family {family!r}")
    return ask(scene, rng, None, weights, nothing)


def examples(split: str, seed: int, count: int) -> Iterator[tuple[Scene, Question]]:
    """`count` scenes of a split from `seed` on, each with one question; the same arguments give the same examples."""
    for i in range(seed, seed + count):
        scene = draw_scene(i, split)
        yield scene, ask(scene, random.Random(f"coprs question {split} {i}"))


def _weighted_order(rng: random.Random, weights: dict[str, float]) -> list[str]:
    return sorted(weights, key=lambda f: rng.random() ** (1 / weights[f]), reverse=True)


def _propose(family: str, things: tuple[Thing, ...], rng: random.Random) -> Meaning | None:
    """A meaning of a family that this scene may answer; None where it plainly cannot."""
    thing = rng.choice(things)
    if family == "name":
        return Meaning(family, Filter(kind=thing.kind))
    if family == "colour":
        return Meaning(family, Filter(kind=thing.kind if rng.random() < 0.75 else None, colour=thing.colour))
    if family == "category":
        return Meaning(family, Filter(category=_category_of(thing, rng))) if _category_of(thing, rng) else None
    if family == "use":
        return Meaning(family, _by_use(thing.kind, rng))
    if family == "extreme":
        return Meaning(family, _group(things, rng), extreme=rng.choice(EXTREMES))
    if family == "exclusion":
        group = _rivals(things, rng)
        if group is None:
            return None
        colour = rng.choice([t.colour for t in things if group.fits(t)])
        return Meaning(family, Filter(group.kind, None, group.category, colour))
    relation = rng.choice((*RELATIONS, "nearest to"))
    if family == "relation":
        anchor = Filter(thing.kind) if rng.random() < 0.3 else Filter(thing.kind, thing.colour)
        return Meaning(family, Filter(), relation, anchor)
    group = _rivals(things, rng)
    anchor = Filter(thing.kind, thing.colour) if rng.random() < 0.35 else _by_use(thing.kind, rng)
    return Meaning(family, group, relation, anchor) if group and not group.fits(thing) else None


def _category_of(thing: Thing, rng: random.Random) -> str | None:
    categories = [c for c, kinds in CATEGORIES.items() if thing.kind in kinds]
    return rng.choice(categories) if categories else None


def _by_use(kind: str, rng: random.Random) -> Filter:
    return Filter(kind, use=rng.choice((*USES[kind], *(("to " + _TO_DO[kind],) if kind in _TO_DO else ()))))


def _rivals(things: tuple[Thing, ...], rng: random.Random) -> Filter | None:
    """A kind or a category that at least two things share."""
    groups = [Filter(k) for k in KINDS if sum(t.kind == k for t in things) > 1]
    groups += [Filter(category=c) for c in CATEGORIES if sum(t.kind in CATEGORIES[c] for t in things) > 1]
    return rng.choice(groups) if groups else None


def _group(things: tuple[Thing, ...], rng: random.Random) -> Filter:
    rivals = _rivals(things, rng)
    return rivals if rivals and rng.random() < 0.5 else Filter()


def _missing(scene: Scene, rng: random.Random) -> Meaning:
    """A meaning that nothing here fits: the kind, the pair, the category, the use or the anchor is not there.

    Unseen pairs are asked for in the test split alone: a pair that is only ever asked for in vain is learnt as absent.
    """
    things = scene.things

    def colour_for(kind: str) -> str:
        here = {t.colour for t in things if t.kind == kind}
        hidden = {c for k, c in UNSEEN_PAIRS if k == kind and scene.split != "test"}
        return rng.choice([c for c in COLOURS if c not in here | hidden])

    present = {t.kind for t in things}
    kind = rng.choice([k for k in KINDS if k not in present])
    here = rng.choice(things)
    categories = [c for c, kinds in CATEGORIES.items() if not present & set(kinds)]
    meanings = [
        Meaning("name", Filter(kind)),
        Meaning("colour", Filter(here.kind, colour_for(here.kind))),
        Meaning("colour", Filter(kind, colour_for(kind))),
        Meaning("use", _by_use(kind, rng)),
        Meaning("use", _by_use(kind, rng)),
        Meaning("relation", Filter(), rng.choice(RELATIONS), Filter(kind, colour_for(kind))),
    ]
    if categories:
        meanings.append(Meaning("category", Filter(category=rng.choice(categories))))
    return rng.choice(meanings)


# ---------------------------------------------------------------------------------------------------------- words


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(f: Filter, plural: bool = False) -> str:
    """ "red cup", "animal", "thing": the bare words of a filter."""
    base = f.kind or (_CATEGORY_WORDS[f.category][plural] if f.category else "thing")
    return f"{f.colour} {base}" if f.colour else base


def _use_phrase(use: str, rng: random.Random) -> str:
    return f"something {use}" if use.startswith("to ") else rng.choice(("the thing that {}", "what {}")).format(use)


def _in_words(meaning: Meaning, target: int | None, scene: Scene, rng: random.Random) -> Question:
    unseen = scene.split == "test" and rng.random() < UNSEEN_WORDING_SHARE
    instruction = _as_typed(_instruction(meaning, rng, unseen), rng)
    family = meaning.family if target is not None else "nothing there"
    return Question(family, instruction, reply_to(meaning, target, scene.things), target, meaning, unseen)


def _instruction(meaning: Meaning, rng: random.Random, unseen: bool) -> str:
    unseen_phrase = unseen and rng.random() < 0.5
    phrase = rng.choice((_UNSEEN_PHRASES if unseen_phrase else _PHRASES)[meaning.family])
    frame = rng.choice(_UNSEEN_FRAMES if unseen and not unseen_phrase else _FRAMES)
    group, anchor = meaning.among, meaning.anchor
    if group.use and group.use.startswith("to "):
        phrase = "something {use}" if not unseen_phrase else "the thing {use}"
    if meaning.family == "relation" and group == Filter() and rng.random() < 0.5:
        phrase = phrase.replace("the {noun}", "the one")
    if "{kind}" in phrase and group.kind is None:
        phrase = "the thing that is {colour}"
    asked = phrase.format(
        noun=_noun(group), a_noun=_a(_noun(group)), kind=group.kind, colour=group.not_colour or group.colour,
        use=group.use, extreme=rng.choice(_EXTREME_WORDS[meaning.extreme]) if meaning.extreme else "",
        relation=rng.choice(_RELATION_WORDS[meaning.relation]) if meaning.relation else "",
        anchor="" if anchor is None else _use_phrase(anchor.use, rng) if anchor.use else f"the {_noun(anchor)}",
    )  # fmt: skip
    return frame.format(x=asked)


def _as_typed(text: str, rng: random.Random) -> str:
    """Lower case, a capital, capitals; with or without a full stop; in one of ten a slip of the fingers."""
    words = text.split(" ")
    long_words = [i for i, w in enumerate(words) if len(w) >= 5 and w.isalpha()]
    if long_words and rng.random() < TYPO_SHARE:
        i = rng.choice(long_words)
        words[i] = _slip(words[i], rng)
        text = " ".join(words)
    case = rng.random()
    if case < 0.03:
        text = text.upper()
    elif case < 0.4:
        text = text[0].upper() + text[1:]
    return text + "." if text[-1] != "?" and rng.random() < 0.25 else text


def _slip(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word) - 2)
    swapped, dropped, doubled = word[i + 1] + word[i], word[i + 1], word[i] * 2 + word[i + 1]
    return word[:i] + rng.choice((swapped, dropped, doubled)) + word[i + 2 :]


# ---------------------------------------------------------------------------------------------------------- replies


def reply_to(meaning: Meaning, target: int | None, things: tuple[Thing, ...]) -> str:
    """The target reply: what is seen and where, what is asked, which one it is and why; then the focus token or none."""
    seen = _listed([f"{t.place} {_a(t.colour)} {t.kind}" for t in things])
    sentences = [f"I see {seen}.", f"You ask for {_asked(meaning)}."]
    if target is None:
        missing = meaning.anchor or meaning.among
        sentences.append(f"There is no {_noun(missing)} here.")
        return f"<think>{' '.join(sentences)}</think>Nothing in this picture fits."
    sentences += _steps(meaning, things)
    t = things[target]
    sentences.append(f"{_lead(meaning)} the {t.kind} {t.place}, the {t.colour} one.")
    return f"<think>{' '.join(sentences)}</think>It is here: {FOCUS_TOKEN}"


def conclusion_of(reasoning: str) -> tuple[str, str] | None:
    """(kind, colour) that a thought in the form of `reply_to` ends with; None where it names no thing."""
    found = re.search(
        rf"the (\w+) (?:{'|'.join(sorted(PLACES, key=len, reverse=True))}), the (\w+) one\.?\s*$", reasoning
    )
    return (found[1], found[2]) if found else None


def _listed(words: list[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _asked(meaning: Meaning) -> str:
    group = meaning.among
    if group.use:
        return f"something by its use: the {group.kind}"
    words = f"the {meaning.extreme} {_noun(group)}" if meaning.extreme else f"the {_noun(group)}"
    if group.not_colour:
        words += f" that is not {group.not_colour}"
    if meaning.anchor is not None:
        words += f" {meaning.relation} the {_noun(meaning.anchor)}"
    return words


def _steps(meaning: Meaning, things: tuple[Thing, ...]) -> list[str]:
    """The sentences between the request and the conclusion: the anchor, then the rivals."""
    steps = []
    if meaning.anchor is not None:
        anchor = next(t for t in things if meaning.anchor.fits(t))
        steps.append(f"The {anchor.kind} is {anchor.place}.")
    group = Filter(meaning.among.kind, None, meaning.among.category)
    rivals = [t for t in things if group.fits(t)]
    if group != Filter() and len(rivals) > 1:
        steps.append(f"It could be {_listed([f'{t.place} the {t.colour} {t.kind}' for t in rivals], 'or')}.")
    return steps


def _lead(meaning: Meaning) -> str:
    if meaning.extreme:
        return f"The {meaning.extreme} is"
    if meaning.relation:
        return f"{meaning.relation.capitalize()} it is"
    return f"Not {meaning.among.not_colour} is" if meaning.among.not_colour else "That is"
