"""The replies that meanings deserve, thought through in words."""

import math
import re

from coprs_core.mini.world.meanings import DISTANCE_MARGIN, SIZE_MARGIN, Filter, Meaning
from coprs_core.mini.world.nouns import noun_phrase, plural_phrase, with_article
from coprs_core.mini.world.scenes import MIN_AREA_SHARE, PLACES, SceneObject
from coprs_core.mini.world.unknown import MAX_QUOTED
from coprs_core.prompts import FOCUS_TOKEN

_MIN_DISTANCE = 10.0  # pixels; centres of two things are hardly ever nearer


def target_reply(
    meaning: Meaning, targets: tuple[int, ...], objects: tuple[SceneObject, ...]
) -> str:
    """The target reply: what is seen and where, what is asked, which one it is and why; then a
    focus token for each, in reading order, or none."""
    seen = _join_words([f"{t.place} {with_article(t.colour)} {t.kind}" for t in objects])
    sentences = [f"I see {seen}.", f"You ask for {_restated_request(meaning)}."]
    if meaning.unknown:
        sentences.append("I cannot tell what is meant.")
        return f"<think>{' '.join(sentences)}</think>I do not know what to look for."
    if not targets:
        missing = meaning.anchor or meaning.among
        sentences.append(f"There is no {noun_phrase(missing)} here.")
        return f"<think>{' '.join(sentences)}</think>Nothing in this picture fits."
    targeted = [objects[i] for i in targets]
    named = _join_words([f"the {t.kind} {t.place}, the {t.colour} one" for t in targeted])
    if len(targeted) > 1:
        sentences.append(f"Those are {named}.")
        each = " ".join(f"{t.place} {FOCUS_TOKEN}" for t in targeted)
        return f"<think>{' '.join(sentences)}</think>They are here: {each}"
    sentences += _reasoning_steps(meaning, objects)
    sentences.append(f"{_conclusion_start(meaning)} {named}.")
    return f"<think>{' '.join(sentences)}</think>It is here: {FOCUS_TOKEN}"


def parse_conclusions(reasoning: str) -> list[tuple[str, str]]:
    """(kind, colour) of every object that the last sentence of a thought in the form of
    `target_reply` names, in its order."""
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    last = reasoning.strip().removesuffix(".").rpartition(". ")[2]
    return re.findall(rf"the (\w+) (?:{places}), the (\w+) one", last)


def parse_seen_objects(reasoning: str) -> list[tuple[str, str, str]]:
    """(place, colour, kind) of everything that the first sentence of such a thought says to see."""
    places = "|".join(sorted(PLACES, key=len, reverse=True))
    return re.findall(rf"({places}) an? (\w+) (\w+)", reasoning.partition(". ")[0])


def _join_words(words: list[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _restated_request(meaning: Meaning) -> str:
    group = meaning.among
    if meaning.unknown:
        return f"something that I do not know: {meaning.unknown[:MAX_QUOTED].strip()}"
    if group.use:
        return f"something by its use: the {group.kind}"
    words = (
        f"the {meaning.extreme} {noun_phrase(group)}"
        if meaning.extreme
        else f"the {noun_phrase(group)}"
    )
    if meaning.several:
        words = f"all the {plural_phrase(group)}"
    if group.not_colour:
        words += f" that {'are' if meaning.several else 'is'} not {group.not_colour}"
    if meaning.anchor is not None:
        words += f" {meaning.relation} the {noun_phrase(meaning.anchor)}"
    return words


def _reasoning_steps(meaning: Meaning, objects: tuple[SceneObject, ...]) -> list[str]:
    """The sentences between the request and the conclusion: the anchor, the rivals, and what tells
    them apart where that is a number."""
    steps, anchor = [], None
    if meaning.anchor is not None:
        anchor = next(t for t in objects if meaning.anchor.matches(t))
        steps.append(f"The {anchor.kind} is {anchor.place}.")
    group = Filter(meaning.among.kind, None, meaning.among.category)
    rivals = [t for t in objects if group.matches(t)]
    if group != Filter() and len(rivals) > 1:
        steps.append(f"It could be {_list_rivals(rivals, 'or')}.")
    matching, other = (
        [t for t in rivals if meaning.among.matches(t) == fits] for fits in (True, False)
    )
    if meaning.among.not_colour:
        steps.append(f"Not {_list_rivals(other)} but {_list_rivals(matching)}.")
    elif meaning.family == "colour" and group != Filter() and other:
        steps.append(f"Rather {_list_rivals(matching)} than {_list_rivals(other)}.")
    # numbers make the choice checkable: the reply states what it compares, then the result
    measured = [t for t in objects if meaning.among.matches(t) and t is not anchor]
    if meaning.extreme in ("largest", "smallest"):
        steps.append(f"By size: {_list_with_levels(measured, [_size_level(t) for t in measured])}.")
    if anchor is not None and meaning.relation == "nearest to" and len(measured) > 1:
        levels = [_distance_level(t, anchor) for t in measured]
        steps.append(f"From there: {_list_with_levels(measured, levels)}.")
    return steps


def _list_rivals(objects: list[SceneObject], last: str = "and") -> str:
    return _join_words([f"{t.place} the {t.colour} {t.kind}" for t in objects], last)


def _list_with_levels(objects: list[SceneObject], levels: list[int]) -> str:
    """Things with a number each, by their kind, and by their colour too where two are alike."""
    kinds = [t.kind for t in objects]
    names = [t.name if kinds.count(t.kind) > 1 else t.kind for t in objects]
    numbered = zip(names, levels, strict=True)
    return _join_words([f"the {name} {level}" for name, level in numbered])


def _size_level(obj: SceneObject) -> int:
    """The area as a whole number from 0 to 12: one more where it is `SIZE_MARGIN` times as large,
    so that the right one of a question always differs from the next."""
    height, width = obj.image_size
    return _level(obj.area / (height * width), MIN_AREA_SHARE, SIZE_MARGIN)


def _distance_level(obj: SceneObject, other: SceneObject) -> int:
    """The distance of two centres as a whole number from 0 to 14, likewise."""
    return _level(math.dist(obj.centre, other.centre), _MIN_DISTANCE, DISTANCE_MARGIN)


def _level(value: float, least: float, ratio: float) -> int:
    return max(0, math.floor(math.log(value / least) / math.log(ratio)))


def _conclusion_start(meaning: Meaning) -> str:
    """How the conclusion begins."""
    if meaning.extreme:
        return f"The {meaning.extreme} is"
    return f"{meaning.relation.capitalize()} it is" if meaning.relation else "That is"
