"""Diagnose an answer: the links of its chain, each able to fail by itself, and how it understood
the question.

Does the model know such pictures, did it finish, does it look at one place, is that what was drawn?
None of them says that an answer is right: that is known only where the truth is.
"""

import re
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
    UNFINISHED,
    split_sentences,
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
    "given_open": "The thought is yours: the model read it instead of its own.",
    "finished_broken": "It broke off before it answered: ask again, or shorter.",
    "looked_holds": "It looked at one place.",
    "looked_several": "It looked at {count} places.",
    "looked_broken": "It looked at {count} places: say which is meant.",
    "looked_nowhere": "It looked nowhere (at most {highest}): use other words.",
    "looked_each": "It looked at one place for each of {count} things.",
    "looked_partly": "For {missing} of its {count} things it looked nowhere: ask for fewer.",
    "looked_twice": "It looked at the same place for several of its {count} things: ask for fewer.",
    "drawn_holds": "It drew what it looked at.",
    "drawn_broken": "It drew something else than it looked at: try a closer look, or other words.",
    "true_open": "Whether it is right is not known: paint the truth.",
    "true_holds": "It covers the true mask that you gave: IoU {iou}.",
    "true_broken": "It misses the true mask that you gave (IoU {iou}): find the sentence that "
    "leads astray.",
}
"""The sentence for each state of each link."""
MIN_TRUE_IOU = 0.5
"""An answer with at least this IoU covers the true mask, as in the field's "accuracy at 0.5"."""
MIN_PLACE_SHARE = 0.25
"""A component of a prior counts as a place from this share of the largest component's area on: a
prior of a few small cells besides a large one is not two places."""
SAME_PLACE_IOU = 0.5
"""Priors (≥ 0.5) of two things with such an IoU look at the same place."""
MAX_QUOTE_CHARACTERS = 160
"""Characters of a quoted sentence; a model that writes without full stops fills the page else."""
_RESTATES_QUESTION = re.compile(
    # at the beginning of a sentence: further in, "not what the user wants" restates nothing
    r"(?:[^,，:：]{0,40}[,，:：]\s*)?(?:(?:okay|ok|so|now|well|first)\s+)*(?:"
    r"you(?: are|['’]re)? (?:ask|asked|asking|want|look|looking) "
    r"|(?:the |this |my )?(?:user|question|instruction|request|task|query|prompt)"
    r"(?:['’]s (?:question|instruction|request|task|query))? (?:is )?"
    r"(?:asks?|asking|wants?|wanting|needs?|requests?|requesting|looking|refers?|referring|to find"
    r"|to locate|to identify|to segment|to determine)\b"
    r"|(?:I|we)(?: need| have| want| should| must| am asked| are asked|['’]m asked|['’]re asked)"
    r"(?: to)? (?:find|locate|identify|segment|look for|determine|point out|spot|pick|detect)\b"
    r"|(?:这个|该)?(?:用户|问题|题目|指令|任务|你|您)(?:的(?:问题|要求|指令|任务))?是?在?"
    r"(?:想|要|问|找|定位|识别|分割|希望|需要|询问|请求)"
    r"|(?:我们?)?(?:现在)?(?:需要|要|应该|必须)(?:在[^,，]{0,12})?(?:找|寻找|定位|识别|分割|确定)"
    r")",
    re.IGNORECASE,
)
"""A sentence that plainly restates the question. It is quoted, nothing is concluded from it."""


@dataclass(frozen=True)
class Link:
    """One link of the chain.

    Attributes:
        name: "familiar", "given", "finished", "looked", "drawn" or "true".
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
    if result.outcome == UNFINISHED:
        links.append(Link("finished", BROKEN, "finished_broken"))
    if result.outcome == FOUND:
        # a prior drawn from coordinates shows what the model wrote, not where it looked
        if result.prior_kind != COORDINATES_PRIOR:
            links.append(looked := _looked_link(result))
            if looked.text_key != "looked_nowhere":
                links.append(_drawn_link(result))
        links.append(_true_link(true_iou))
    return tuple(link for link in links if link)


def restated_question(result: Result) -> str:
    """The first sentence of the thought that restates the question, cut to `MAX_QUOTE_CHARACTERS`;
    "" where none plainly does, or where a person wrote the thought."""
    if result.is_thought_given:
        return ""
    quote = next(filter(_RESTATES_QUESTION.match, split_sentences(result.reasoning)), "")
    if len(quote) > MAX_QUOTE_CHARACTERS:
        quote = f"{quote[: MAX_QUOTE_CHARACTERS - 1].rstrip()}…"
    return quote


def first_broken_link(links: tuple[Link, ...]) -> Link | None:
    """The first link that is broken; what follows it stands on nothing."""
    return next((link for link in links if link.state == BROKEN), None)


def _familiar_link(result: Result) -> Link | None:
    if result.unfamiliar is None:
        return None
    state = BROKEN if result.unfamiliar else HOLDS
    return Link("familiar", state, f"familiar_{state}")


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
