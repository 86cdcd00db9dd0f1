"""Diagnose an answer: the links of its chain, each able to fail by itself.

Was the question understood, does the thought name a thing that it said it saw, does the model look
at one place, is that what was drawn? None of them says that an answer is right: that is known only
where the truth is.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final, Literal

import numpy as np

from coprs_core.answer.flags import component_areas, mask_follows_prior
from coprs_core.answer.results import Result, max_prior
from coprs_core.metrics import PRIOR_THRESHOLD, iou
from coprs_core.prompts import (
    COORDINATES_PRIOR,
    FOCUS_TOKEN_PRIOR,
    FOUND,
    NOTHING_FOUND,
    UNFINISHED,
    last_sentence,
    parse_reply,
    sentences,
)

State = Literal["holds", "broken", "open"]
HOLDS: Final = "holds"
BROKEN: Final = "broken"
OPEN: Final = "open"
"""A link holds, is broken, or cannot be told from the answer alone."""
LINK_TEXTS = {
    "familiar_holds": "It knows pictures like this one.",
    "familiar_broken": "It knows hardly any picture like this one: a guess. Load a model for "
    "photos.",
    "understood_holds": "It took up your words: {words}.",
    "understood_partly": "It took up {words}, not {missed}: “{quote}”",
    "understood_open": "It took up none of your words ({missed}): “{quote}”",
    "understood_broken": "It says that it does not know what is meant: “{quote}” Use other words.",
    "given_open": "The thought is yours: the model read it instead of its own.",
    "finished_broken": "It broke off before it answered: ask again, or shorter.",
    "named_holds": "It named a thing it said it saw.",
    "named_broken": "It named what it did not say it saw ({words}): change that sentence.",
    "named_other": "It named what it did not say it saw ({words}): use other words.",
    "looked_holds": "It looked at one place.",
    "looked_several": "It looked at {count} places.",
    "looked_broken": "It looked at {count} places: say which is meant.",
    "looked_nowhere": "It looked nowhere (at most {highest}).",
    "looked_each": "It looked at one place for each of {count} things.",
    "looked_partly": "For {missing} of its {count} things it looked nowhere: ask for fewer.",
    "looked_twice": "It looked at the same place for several of its {count} things: ask for fewer.",
    "drawn_holds": "It drew what it looked at.",
    "drawn_broken": "It drew something else than it looked at: try a closer look, or other words.",
    "true_open": "Whether it is right is not known: paint the truth.",
    "true_holds": "It covers the true mask that you gave: IoU {iou}.",
    "true_broken": "It misses the true mask that you gave: IoU {iou}.",
}
"""The sentence for each state of each link."""
MIN_TRUE_IOU = 0.5
"""An answer with at least this IoU covers the true mask, as in the field's "accuracy at 0.5"."""
MIN_PLACE_SHARE = 0.25
"""A component of a prior counts as a place from this share of the largest component's area on: a
prior of a few small cells besides a large one is not two places."""
SAME_PLACE_IOU = 0.5
"""Priors (≥ 0.5) of two things with such an IoU look at the same place."""
_NOT_UNDERSTOOD = re.compile(r"\b(?:do not|don['’]t) know (?:what|which)|不知道", re.IGNORECASE)
"""In an answer without a focus token: the question was not understood."""
_MAX_LISTED_WORDS = 4
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """the a an of to in on at by for with and or that this these those which what who is are it
        its be as from not no one thing things something anything picture image photo please show
        me my find where there here all any each every both two three four can could would you i am
        want like need ones see look looking spot locate point mark outline highlight select segment
        mask do does did hi hello thanks give tell pick choose most least very than""",
    )
)
"""Words that do not name what is asked for."""


@dataclass(frozen=True)
class Link:
    """One link of the chain.

    Attributes:
        name: "familiar", "given", "understood", "finished", "named", "looked", "drawn" or "true".
        state: "holds", "broken" or "open".
        text_key: the key of `LINK_TEXTS` for it.
        values: what fills the placeholders of that text.
    """

    name: str
    state: State
    text_key: str
    values: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return LINK_TEXTS[self.text_key].format(**self.values)


def diagnose(result: Result, true_iou: float | None = None) -> tuple[Link, ...]:
    """The links of an answer, in the order of the method; those that do not apply are left out.

    `true_iou` is the IoU of its mask with the true one, where that is known.
    """
    links = [_familiar_link(result)]
    if result.is_thought_given:
        links.append(Link("given", OPEN, "given_open"))
    else:
        links.append(_understood_link(result))
    if result.outcome == UNFINISHED:
        links.append(Link("finished", BROKEN, "finished_broken"))
    if result.outcome == FOUND:
        if not result.is_thought_given:
            links.append(_named_link(result))
        # a prior drawn from coordinates shows what the model wrote, not where it looked
        if result.prior_kind != COORDINATES_PRIOR:
            links.append(looked := _looked_link(result))
            if looked.text_key != "looked_nowhere":
                links.append(_drawn_link(result))
        links.append(_true_link(true_iou))
    return tuple(link for link in links if link)


def first_broken_link(links: tuple[Link, ...]) -> Link | None:
    """The first link that is broken; what follows it stands on nothing."""
    return next((link for link in links if link.state == BROKEN), None)


def _familiar_link(result: Result) -> Link | None:
    if result.unfamiliar is None:
        return None
    state = BROKEN if result.unfamiliar else HOLDS
    return Link("familiar", state, f"familiar_{state}")


def _understood_link(result: Result) -> Link | None:
    instruction_words = _content_words(result.instruction)
    if not instruction_words or not result.reasoning.strip():
        return None
    if result.outcome == NOTHING_FOUND and _NOT_UNDERSTOOD.search(parse_reply(result.reply).answer):
        values = {"quote": _restating_sentence(result.reasoning)}
        return Link("understood", BROKEN, "understood_broken", values)
    if not _scripts(" ".join(instruction_words)) & _scripts(result.reasoning):
        return None  # its words in another writing cannot be compared
    # before it the thought lists what is in the photo, which may repeat a word by chance
    from_restatement = result.reasoning[
        result.reasoning.find(_restating_sentence(result.reasoning)) :
    ]
    thought_stems = _word_stems(
        part for word in _split_words(from_restatement) for part in _word_or_bigrams(word)
    )
    repeated = [
        w
        for w in instruction_words
        if any(_has_stem(part, thought_stems) for part in _word_or_bigrams(w))
    ]
    missed = [word for word in instruction_words if word not in repeated]
    values = {"words": _join_words(repeated), "missed": _join_words(missed)}
    if not missed:
        return Link("understood", HOLDS, "understood_holds", values)
    values["quote"] = _restating_sentence(result.reasoning)
    text_key = "understood_partly" if repeated else "understood_open"
    return Link("understood", OPEN, text_key, values)


def _named_link(result: Result) -> Link | None:
    last = last_sentence(result.reasoning)
    before = result.reasoning.strip()[: -len(last)] if last else ""
    last_words = _content_words(last)
    if not before.strip() or not last_words:
        return None
    earlier_stems = _word_stems(
        part for word in _split_words(before) for part in _word_or_bigrams(word)
    )
    new_words = [
        w for w in last_words if not any(_has_stem(p, earlier_stems) for p in _word_or_bigrams(w))
    ]
    if not new_words:
        return Link("named", HOLDS, "named_holds")
    text_key = "named_broken" if result.prior_kind == FOCUS_TOKEN_PRIOR else "named_other"
    return Link("named", BROKEN, text_key, {"words": _join_words(new_words)})


def _looked_link(result: Result) -> Link:
    highest = [float(region.prior.max()) for region in result.regions] or [0.0]
    if max(highest) < PRIOR_THRESHOLD:
        return Link("looked", BROKEN, "looked_nowhere", {"highest": f"{max(highest):.2f}"})
    if len(highest) > 1 and result.prior_kind == FOCUS_TOKEN_PRIOR:
        return _looked_link_of_each(result, highest)
    count = _count_places(max_prior(region.prior for region in result.regions))
    if count <= len(result.regions):
        text_key = "looked_holds" if count == 1 else "looked_several"
        return Link("looked", HOLDS, text_key, {"count": str(count)})
    return Link("looked", BROKEN, "looked_broken", {"count": str(count)})


def _looked_link_of_each(result: Result, highest: list[float]) -> Link:
    """Of several focus tokens: whether each looks at one place, and no two at the same."""
    values = {"count": str(len(highest))}
    if missing := sum(value < PRIOR_THRESHOLD for value in highest):
        return Link("looked", BROKEN, "looked_partly", values | {"missing": str(missing)})
    places = [region.prior >= PRIOR_THRESHOLD for region in result.regions]
    if any(iou(a, b) >= SAME_PLACE_IOU for a, b in combinations(places, 2)):
        return Link("looked", BROKEN, "looked_twice", values)
    count = sum(_count_places(region.prior) for region in result.regions)
    if count > len(places):
        return Link("looked", BROKEN, "looked_broken", {"count": str(count)})
    return Link("looked", HOLDS, "looked_each", values)


def _drawn_link(result: Result) -> Link:
    state = HOLDS if mask_follows_prior(result) else BROKEN
    return Link("drawn", state, f"drawn_{state}")


def _true_link(true_iou: float | None) -> Link:
    if true_iou is None:
        return Link("true", OPEN, "true_open")
    state = HOLDS if true_iou >= MIN_TRUE_IOU else BROKEN
    return Link("true", state, f"true_{state}", {"iou": f"{true_iou:.2f}"})


def _count_places(prior: np.ndarray) -> int:
    """How many separate places a prior has, none far smaller than the largest."""
    areas = component_areas(prior >= PRIOR_THRESHOLD)
    return int((areas >= MIN_PLACE_SHARE * areas.max()).sum()) if len(areas) else 0


def _content_words(text: str) -> list[str]:
    """The words of a text but for stop words, each once, in order."""
    return [w for w in dict.fromkeys(_split_words(text)) if w not in _STOP_WORDS and len(w) > 1]


def _split_words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", text.lower())


def _scripts(text: str) -> set[str]:
    """The writings of a text's letters, such as LATIN and CJK."""
    return {unicodedata.name(c, "").partition(" ")[0] for c in set(text) if c.isalpha()}


def _word_or_bigrams(word: str) -> list[str]:
    """A word as one unit; in a writing without spaces its pairs of characters, since there a run of
    letters is a whole clause and would never occur twice."""
    if any("\u3040" <= c <= "\u9fff" for c in word):
        return [word[i : i + 2] for i in range(len(word) - 1)] or [word]
    return [word]


def _word_stems(words: Iterable[str]) -> set[tuple[str, int]]:
    """Words by their beginnings, each without 0 to 4 of its last letters, and their length."""
    return {(w[: len(w) - cut], len(w)) for w in set(words) for cut in range(min(5, len(w)))}


def _has_stem(word: str, stems: set[tuple[str, int]]) -> bool:
    """Whether a word is among others, given as `_word_stems`, but for its ending."""
    stem, length = word[: max(3, len(word) - 2)], len(word)
    return any((stem, other) in stems for other in range(length - 2, length + 3))


def _restating_sentence(reasoning: str) -> str:
    """The sentence of a thought that says what was asked, as far as can be told; else its last."""
    candidates = (
        s
        for s in sentences(reasoning)
        if re.search(r"\b(you|asks?|asked|means?|user)\b", s.lower())
    )
    return next(candidates, last_sentence(reasoning))


def _join_words(words: list[str]) -> str:
    text = ", ".join(words[:_MAX_LISTED_WORDS])
    return f"{text} …" if len(words) > _MAX_LISTED_WORDS else text
