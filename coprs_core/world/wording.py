"""Meanings in words, the way people type; and the replies that they deserve, thought through in
words."""

import math
import random
import re

from coprs_core.prompts import FOCUS_TOKEN
from coprs_core.world.meanings import DISTANCE_MARGIN, SIZE_MARGIN, Filter, Meaning
from coprs_core.world.scenes import PLACES, SMALLEST, Thing
from coprs_core.world.unknown import MAX_QUOTED

_CATEGORY_WORDS = {
    "animal": "animal",
    "vehicle": "vehicle",
    "food": "food",
    "fruit": "fruit",
    "tool": "tool",
    "furniture": "piece of furniture",
    "plant": "plant",
    "clothing": "piece of clothing",
    "sky": "thing of the sky",
}
_EXTREME_WORDS = {
    "largest": ("largest", "biggest"),
    "smallest": ("smallest", "tiniest"),
    "leftmost": ("leftmost", "furthest left"),
    "rightmost": ("rightmost", "furthest right"),
    "topmost": ("topmost", "highest"),
    "lowest": ("lowest", "bottommost"),
}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "nearest to": ("nearest to", "closest to"),
}

# Whole wordings. `{x}` is what is asked for. The last ones are for the test split alone.
_FRAMES = (
    "{x}",
    *["{x}"] * 7,
    "find {x}",
    "segment {x}",
    "please segment {x}",
    "show me {x}",
    "where is {x}?",
    "can you find {x}?",
    "i am looking for {x}",
    "select {x} please",
    "point to {x}",
    "highlight {x}",
    "please find {x}",
    "find {x} for me",
    "could you find {x}?",
    "could you show me {x} please?",
    "tell me where {x} is",
    "can you show me where {x} is?",
    "i need {x}",
    "i would like to see {x}",
    "look for {x} and select it",
    "pick {x}",
    "please highlight {x}",
    "highlight {x} for me",
    "cut out {x}",
    "give me {x}",
    "which one is {x}?",
    "outline {x}",
    "draw around {x}",
    "find {x} in this picture",
    "where can i see {x}?",
    "do you see {x}?",
    "select and highlight {x}",
    "let us find {x}",
    "help me find {x}",
    "hi, where is {x}?",
    "what about {x}?",
    "now {x}",
    "ok show {x}",
    "search for {x}",
    "circle {x}",
    "identify {x}",
    "spot {x}",
    "trace {x} please",
    "could you circle {x} for me?",
    "can you select {x} for me?",
    "could you pick out {x} for me please?",
    "would you tag {x} for us?",
    "please tell me which one is {x}",
    "please colour in {x}",
    "focus on {x}",
    "take {x}",
    "i like {x}",
    "get {x} and show it to me",
    "look at {x} and name it",
    "my task is to separate {x}",
    "notice {x}",
    "catch {x}",
)
_UNSEEN_FRAMES = (
    "could you mark {x} for me?",
    "please show me where {x} is",
    "i want {x}",
    "find and highlight {x}",
)
# Ways to say what is asked for, by family, filled with the parts of a `Meaning`; then those for the
# test split alone.
_NAMES = (
    *("the {noun}", "{a_noun}", "the {noun} in the picture") * 3,
    *("my {noun}", "this {noun}", "one {noun}", "the object that looks like {a_noun}"),
    *("what looks like {a_noun}", "the thing called {noun}", "{a_noun} that is here"),
)
_PHRASES = {
    "name": _NAMES,
    "colour": _NAMES,
    "category": _NAMES,
    "use": ("the thing that {use}", "what {use}", "something that {use}"),
    "relation": (
        "the {noun} {relation} {anchor}",
        "what is {relation} {anchor}",
        "the {noun} that is {relation} {anchor}",
    ),
    "extreme": (
        "the {extreme} {noun}",
        "the {noun} that is {extreme}",
        "the {extreme} {noun} in the picture",
    ),
    "exclusion": (
        "the {noun} that is not {colour}",
        "the {noun} which is not {colour}",
        "the not {colour} {noun}",
    ),
    "two steps": (
        "the {noun} {relation} {anchor}",
        "the {noun} that is {relation} {anchor}",
        "the {noun} which is {relation} {anchor}",
    ),
}
_UNSEEN_PHRASES = {
    "name": ("the thing that is {a_noun}",),
    "colour": ("the {kind} that is {colour}",),
    "category": ("the thing that is {a_noun}",),
    "use": ("the one that {use}",),
    "relation": ("the {noun} which is {relation} {anchor}",),
    "extreme": ("the {noun} which is {extreme}",),
    "exclusion": ("{a_noun} that is not {colour}",),
    "two steps": ("{a_noun} {relation} {anchor}",),
}
_SEVERAL_PHRASES = (
    "all the {nouns}",
    "all the {nouns}",
    "all {nouns}",
    "the {nouns}",
    "every {noun}",
    "each {noun}",
    "all of the {nouns}",
    "all the {nouns} in the picture",
)
_UNSEEN_SEVERAL_PHRASES = ("each of the {nouns}", "any {noun} there is")
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_IRREGULAR = {"fish": "fish", "clothing": "clothing", "furniture": "furniture"}
_CLOSEST = 10.0  # pixels; centres of two things are hardly ever nearer
TYPO_SHARE, CAPITALS_SHARE = 0.1, 0.03
"""How often a typing error slips in, and how often all is in capitals."""


def instruction_of(
    meaning: Meaning, rng: random.Random, unseen: bool, targets: int | None = None
) -> str:
    """A meaning as somebody says it, in a wording of the test split where it is `unseen`; of
    several things with their number now and then, which is that of the `targets`."""
    if meaning.unknown:
        frame = rng.choice(_UNSEEN_FRAMES if unseen else _FRAMES)
        return frame.format(x=meaning.said)
    if meaning.several:
        return _several(meaning.among, rng, unseen, targets)
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
    phrase = phrase.format(
        noun=_noun(group),
        a_noun=_a(_noun(group)),
        kind=group.kind,
        colour=group.not_colour or group.colour,
        use=group.use,
        extreme=rng.choice(_EXTREME_WORDS[meaning.extreme]) if meaning.extreme else "",
        relation=rng.choice(_RELATION_WORDS[meaning.relation]) if meaning.relation else "",
        anchor=_anchor_phrase(anchor, rng) if anchor else "",
    )
    return frame.format(x=phrase)


def _several(group: Filter, rng: random.Random, unseen: bool, targets: int | None) -> str:
    """An instruction for all the things of a group."""
    unseen_phrase = unseen and rng.random() < 0.5
    phrase = rng.choice(_UNSEEN_SEVERAL_PHRASES if unseen_phrase else _SEVERAL_PHRASES)
    if targets in _NUMBERS and not unseen_phrase and rng.random() < 0.25:
        phrase = f"the {_NUMBERS[targets]} {{nouns}}"
        if targets == 2 and rng.random() < 0.3:
            phrase = "both {nouns}"
    frame = rng.choice(_UNSEEN_FRAMES if unseen and not unseen_phrase else _FRAMES)
    if "{nouns}" in phrase:
        frame = frame.replace(" is ", " are ").replace("which one", "which ones")
    asked = phrase.format(noun=_noun(group), nouns=_nouns(group))
    if group.not_colour:
        asked += f" that {'are' if '{nouns}' in phrase else 'is'} not {group.not_colour}"
    return frame.format(x=asked)


def _anchor_phrase(anchor: Filter, rng: random.Random) -> str:
    return _use_phrase(anchor.use, rng) if anchor.use else f"the {_noun(anchor)}"


def as_typed(
    text: str,
    rng: random.Random,
    slips: float = TYPO_SHARE,
    capitals: float = CAPITALS_SHARE,
) -> str:
    """Lower case, a capital, capitals; with or without a full stop; in a share of `slips` a typing
    error, in a share of `capitals` all in capitals."""
    words = text.split(" ")
    long_words = [i for i, w in enumerate(words) if len(w) >= 5 and w.isalpha()]
    if long_words and rng.random() < slips:
        i = rng.choice(long_words)
        words[i] = _slip(words[i], rng)
        text = " ".join(words)
    case = rng.random()
    if case < capitals:
        text = text.upper()
    elif case < 0.4:
        text = text[0].upper() + text[1:]
    return text + "." if text[-1] != "?" and rng.random() < 0.25 else text


def _slip(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word) - 2)
    swapped, dropped, doubled = word[i + 1] + word[i], word[i + 1], word[i] * 2 + word[i + 1]
    return word[:i] + rng.choice((swapped, dropped, doubled)) + word[i + 2 :]


# --- replies


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(f: Filter) -> str:
    """The bare words of a filter: red cup, animal, thing."""
    base = f.kind or (_CATEGORY_WORDS[f.category] if f.category else "thing")
    return f"{f.colour} {base}" if f.colour else base


def _nouns(f: Filter) -> str:
    """The words of a filter for several things: red cups, animals, things of the sky."""
    first, *rest = (f.kind or (_CATEGORY_WORDS[f.category] if f.category else "thing")).split(" ")
    words = " ".join([_plural(first), *rest])
    return f"{f.colour} {words}" if f.colour else words


def _plural(noun: str) -> str:
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _use_phrase(use: str, rng: random.Random) -> str:
    return (
        f"something {use}"
        if use.startswith("to ")
        else rng.choice(("the thing that {}", "what {}")).format(use)
    )


def reply_to(meaning: Meaning, targets: tuple[int, ...], things: tuple[Thing, ...]) -> str:
    """The target reply: what is seen and where, what is asked, which one it is and why; then a
    focus token for each, in reading order, or none."""
    seen = _listed([f"{t.place} {_a(t.colour)} {t.kind}" for t in things])
    sentences = [f"I see {seen}.", f"You ask for {_asked(meaning)}."]
    if meaning.unknown:
        sentences.append("I cannot tell what is meant.")
        return f"<think>{' '.join(sentences)}</think>I do not know what to look for."
    if not targets:
        missing = meaning.anchor or meaning.among
        sentences.append(f"There is no {_noun(missing)} here.")
        return f"<think>{' '.join(sentences)}</think>Nothing in this picture fits."
    found = [things[i] for i in targets]
    named = _listed([f"the {t.kind} {t.place}, the {t.colour} one" for t in found])
    if len(found) > 1:
        sentences.append(f"Those are {named}.")
        each = " ".join(f"{t.place} {FOCUS_TOKEN}" for t in found)
        return f"<think>{' '.join(sentences)}</think>They are here: {each}"
    sentences += _steps(meaning, things)
    sentences.append(f"{_lead(meaning)} {named}.")
    return f"<think>{' '.join(sentences)}</think>It is here: {FOCUS_TOKEN}"


def conclusions_of(reasoning: str) -> list[tuple[str, str]]:
    """(kind, colour) of every thing that the last sentence of a thought in the form of `reply_to`
    names, in its order."""
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    last = reasoning.strip().removesuffix(".").rpartition(". ")[2]
    return re.findall(rf"the (\w+) (?:{places}), the (\w+) one", last)


def seen_in(reasoning: str) -> list[tuple[str, str, str]]:
    """(place, colour, kind) of everything that the first sentence of such a thought says to see."""
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    return re.findall(rf"({places}) an? (\w+) (\w+)", reasoning.partition(". ")[0])


def _listed(words: list[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _asked(meaning: Meaning) -> str:
    group = meaning.among
    if meaning.unknown:
        return f"something that I do not know: {meaning.unknown[:MAX_QUOTED].strip()}"
    if group.use:
        return f"something by its use: the {group.kind}"
    words = f"the {meaning.extreme} {_noun(group)}" if meaning.extreme else f"the {_noun(group)}"
    if meaning.several:
        words = f"all the {_nouns(group)}"
    if group.not_colour:
        words += f" that {'are' if meaning.several else 'is'} not {group.not_colour}"
    if meaning.anchor is not None:
        words += f" {meaning.relation} the {_noun(meaning.anchor)}"
    return words


def _steps(meaning: Meaning, things: tuple[Thing, ...]) -> list[str]:
    """The sentences between the request and the conclusion: the anchor, the rivals, and what tells
    them apart where that is a number."""
    steps, anchor = [], None
    if meaning.anchor is not None:
        anchor = next(t for t in things if meaning.anchor.fits(t))
        steps.append(f"The {anchor.kind} is {anchor.place}.")
    group = Filter(meaning.among.kind, None, meaning.among.category)
    rivals = [t for t in things if group.fits(t)]
    if group != Filter() and len(rivals) > 1:
        steps.append(f"It could be {_rivals(rivals, 'or')}.")
    meant, other = ([t for t in rivals if meaning.among.fits(t) == fits] for fits in (True, False))
    if meaning.among.not_colour:
        steps.append(f"Not {_rivals(other)} but {_rivals(meant)}.")
    elif meaning.family == "colour" and group != Filter() and other:
        steps.append(f"Rather {_rivals(meant)} than {_rivals(other)}.")
    measured = [t for t in things if meaning.among.fits(t) and t is not anchor]
    if meaning.extreme in ("largest", "smallest"):
        steps.append(f"By size: {_numbered(measured, [_size_level(t) for t in measured])}.")
    if anchor is not None and meaning.relation == "nearest to" and len(measured) > 1:
        levels = [_distance_level(t, anchor) for t in measured]
        steps.append(f"From there: {_numbered(measured, levels)}.")
    return steps


def _rivals(things: list[Thing], last: str = "and") -> str:
    return _listed([f"{t.place} the {t.colour} {t.kind}" for t in things], last)


def _numbered(things: list[Thing], levels: list[int]) -> str:
    """Things with a number each, by their kind, and by their colour too where two are alike."""
    kinds = [t.kind for t in things]
    names = [t.name if kinds.count(t.kind) > 1 else t.kind for t in things]
    numbered = zip(names, levels, strict=True)
    return _listed([f"the {name} {level}" for name, level in numbered])


def _size_level(thing: Thing) -> int:
    """The area as a whole number from 0 to 12: one more where it is `SIZE_MARGIN` times as large,
    so that the right one of a question always differs from the next."""
    height, width = thing.within
    return _level(thing.area / (height * width), SMALLEST, SIZE_MARGIN)


def _distance_level(thing: Thing, other: Thing) -> int:
    """The distance of two centres as a whole number from 0 to 14, likewise."""
    return _level(math.dist(thing.centre, other.centre), _CLOSEST, DISTANCE_MARGIN)


def _level(value: float, least: float, ratio: float) -> int:
    return max(0, math.floor(math.log(value / least) / math.log(ratio)))


def _lead(meaning: Meaning) -> str:
    """How the conclusion begins."""
    if meaning.extreme:
        return f"The {meaning.extreme} is"
    return f"{meaning.relation.capitalize()} it is" if meaning.relation else "That is"
