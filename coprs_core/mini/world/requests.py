"""What people ask for, in words: meanings the way somebody types them.

A wording is a frame ("find {x} for me") around a phrase ("the {noun} that is {extreme}"). Most are
listed here; varied ones are put together from the parts in varied.json, for training alone. Some
are for the test split alone: training never shows them.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coprs_core.mini.world.meanings import Filter, Meaning
from coprs_core.mini.world.nouns import noun_phrase, plural_phrase, with_article

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

WordingParts = dict[str, Any]
VARIED: WordingParts = json.loads(
    (Path(__file__).parent / "varied.json").read_text(encoding="utf-8")
)
"""The parts that varied wordings are put together from."""
VARIED["phrases"] |= {
    "category": VARIED["phrases"]["name"],
    "two steps": VARIED["phrases"]["relation"],
}
OTHER_VERBS = VARIED | {"verbs": VARIED["other verbs"]}
"""The same with verbs that do not ask to find anything, such as those of picture editors."""
TYPO_SHARE, CAPITALS_SHARE = 0.1, 0.03
"""How often a typing error slips in, and how often all is in capitals."""


def write_instruction(
    meaning: Meaning,
    rng: random.Random,
    unseen: bool,
    targets: int | None = None,
    varied: WordingParts | None = None,
) -> str:
    """A meaning as somebody says it, in a wording of the test split where it is `unseen`, in one
    put together from the `varied` parts where they are given; of several things with their number
    now and then, which is that of the `targets`."""
    if meaning.unknown:
        return _choose_frame(rng, unseen, varied).format(x=meaning.wording)
    if meaning.several:
        return _several_instruction(meaning.among, rng, unseen, targets, varied)
    unseen_phrase = unseen and rng.random() < 0.5
    phrases = _UNSEEN_PHRASES if unseen_phrase else varied["phrases"] if varied else _PHRASES
    phrase = rng.choice(phrases[meaning.family])
    frame = _choose_frame(rng, unseen and not unseen_phrase, varied)
    group, anchor = meaning.among, meaning.anchor
    if group.use and group.use.startswith("to "):
        phrase = "the thing {use}" if unseen_phrase else "something {use}"
        if varied:
            phrase = rng.choice(varied["uses"])
    if meaning.family == "relation" and group == Filter() and rng.random() < 0.5:
        phrase = phrase.replace("the {noun}", "the one")
    if "kind}" in phrase and group.kind is None:
        phrase = "the thing that is {colour}"
    phrase = phrase.format(
        noun=noun_phrase(group),
        nouns=plural_phrase(group),
        a_noun=with_article(noun_phrase(group)),
        kind=group.kind,
        a_kind=with_article(group.kind or "thing"),
        colour=group.not_colour or group.colour,
        use=group.use,
        extreme=_word_for(meaning.extreme, _EXTREME_WORDS, rng, varied),
        relation=_word_for(meaning.relation, _RELATION_WORDS, rng, varied),
        anchor=_anchor_phrase(anchor, rng) if anchor else "",
    )
    return frame.format(x=phrase)


def _several_instruction(
    group: Filter,
    rng: random.Random,
    unseen: bool,
    targets: int | None,
    varied: WordingParts | None,
) -> str:
    """An instruction for all the things of a group."""
    unseen_phrase = unseen and rng.random() < 0.5
    usual = varied["several"] if varied else _SEVERAL_PHRASES
    phrase = rng.choice(_UNSEEN_SEVERAL_PHRASES if unseen_phrase else usual)
    if targets in _NUMBERS and not unseen_phrase and rng.random() < 0.25:
        phrase = f"the {_NUMBERS[targets]} {{nouns}}"
        if targets == 2 and rng.random() < 0.3:
            phrase = "both {nouns}"
    are = "are" if "{nouns}" in phrase else "is"
    frame = _choose_frame(rng, unseen and not unseen_phrase, varied, are)
    if "{nouns}" in phrase:
        frame = frame.replace(" is ", " are ").replace("which one", "which ones")
    request = phrase.format(noun=noun_phrase(group), nouns=plural_phrase(group))
    if group.not_colour:
        request += f" that {are} not {group.not_colour}"
    return frame.format(x=request)


def _choose_frame(
    rng: random.Random, unseen: bool, varied: WordingParts | None, are: str = "is"
) -> str:
    """The words around what is asked for, which takes the place of `{x}`."""
    if unseen or not varied:
        return rng.choice(_UNSEEN_FRAMES if unseen else _FRAMES)
    draw = rng.random()
    if draw < 0.15:
        return "{x}"
    if draw < 0.4:
        return rng.choice(varied["questions"]).format(**{"is": are}, x="{x}")
    opening, verb, ending = (rng.choice(varied[k]) for k in ("openings", "verbs", "endings"))
    is_question = opening.split(" ")[0] in ("can", "could", "would", "will", "may")
    return f"{opening}{verb} {{x}}{ending}{'?' if is_question and rng.random() < 0.7 else ''}"


def _word_for(
    what: str | None,
    words: Mapping[str, tuple[str, ...]],
    rng: random.Random,
    varied: WordingParts | None,
) -> str:
    """A relation or an extreme in one of its words."""
    if what is None:
        return ""
    return rng.choice([*words[what], *(varied["words"][what] if varied else ())])


def _anchor_phrase(anchor: Filter, rng: random.Random) -> str:
    return _use_phrase(anchor.use, rng) if anchor.use else f"the {noun_phrase(anchor)}"


def add_typing_noise(
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
        words[i] = _misspell(words[i], rng)
        text = " ".join(words)
    case = rng.random()
    if case < capitals:
        text = text.upper()
    elif case < 0.4:
        text = text[0].upper() + text[1:]
    return text + "." if text[-1] != "?" and rng.random() < 0.25 else text


def _misspell(word: str, rng: random.Random) -> str:
    i = rng.randrange(1, len(word) - 2)
    swapped, dropped, doubled = word[i + 1] + word[i], word[i + 1], word[i] * 2 + word[i + 1]
    return word[:i] + rng.choice((swapped, dropped, doubled)) + word[i + 2 :]


def _use_phrase(use: str, rng: random.Random) -> str:
    return (
        f"something {use}"
        if use.startswith("to ")
        else rng.choice(("the thing that {}", "what {}")).format(use)
    )
