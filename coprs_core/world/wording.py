"""Meanings in words, the way people type; and the replies that they deserve, thought through in
words."""

import random
import re

from coprs_core.prompts import FOCUS_TOKEN
from coprs_core.world.meanings import Filter, Meaning
from coprs_core.world.scenes import PLACES, Thing

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
    "{x}",
    "{x}",
    "{x}",
    "{x}",
    "{x}",
    "{x}",
    "{x}",
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
)
_UNSEEN_FRAMES = (
    "could you mark {x} for me?",
    "please show me where {x} is",
    "i want {x}",
    "find and highlight {x}",
)
# Ways to say what is asked for, by family, filled with the parts of a `Meaning`; then those for the
# test split alone.
_PHRASES = {
    "name": ("the {noun}", "{a_noun}", "the {noun} in the picture"),
    "colour": ("the {noun}", "{a_noun}", "the {noun} in the picture"),
    "category": ("the {noun}", "{a_noun}", "the {noun} in the picture"),
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
TYPO_SHARE = 0.1


def instruction_of(meaning: Meaning, rng: random.Random, unseen: bool) -> str:
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


def _anchor_phrase(anchor: Filter, rng: random.Random) -> str:
    return _use_phrase(anchor.use, rng) if anchor.use else f"the {_noun(anchor)}"


def as_typed(text: str, rng: random.Random) -> str:
    """Lower case, a capital, capitals; with or without a full stop; in one of ten a typing
    error."""
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


# --- replies


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(f: Filter) -> str:
    """The bare words of a filter: red cup, animal, thing."""
    base = f.kind or (_CATEGORY_WORDS[f.category] if f.category else "thing")
    return f"{f.colour} {base}" if f.colour else base


def _use_phrase(use: str, rng: random.Random) -> str:
    return (
        f"something {use}"
        if use.startswith("to ")
        else rng.choice(("the thing that {}", "what {}")).format(use)
    )


def reply_to(meaning: Meaning, target: int | None, things: tuple[Thing, ...]) -> str:
    """The target reply: what is seen and where, what is asked, which one it is and why; then the
    focus token or none."""
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
    """(kind, colour) that a thought in the form of `reply_to` ends with; None where it names no
    thing."""
    found = re.search(
        rf"the (\w+) (?:{'|'.join(sorted(PLACES, key=len, reverse=True))}), the (\w+) one\.?\s*$",
        reasoning,
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
        steps.append(
            f"It could be {_listed([f'{t.place} the {t.colour} {t.kind}' for t in rivals], 'or')}."
        )
    return steps


def _lead(meaning: Meaning) -> str:
    if meaning.extreme:
        return f"The {meaning.extreme} is"
    if meaning.relation:
        return f"{meaning.relation.capitalize()} it is"
    return f"Not {meaning.among.not_colour} is" if meaning.among.not_colour else "That is"
