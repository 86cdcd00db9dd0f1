"""Warnings about an answer, in words."""

import re

import numpy as np

from coprs_core.answer.results import Result
from coprs_core.model.backends.boxes import breaks_off, most_objects
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR, FOUND, last_sentence

FLAGS = {
    "unfamiliar": (
        "The picture is unlike nearly all that this model was trained on: the answer is a guess in "
        "the words of another world."
    ),
    "unproven": (
        "Asked at the start where a drawn square is, this model missed it: its boxes may be wrong."
    ),
    "stretched": (
        "The photo's values fill only a part of their range, or have none: they were stretched, "
        "the lowest to black and the highest to white."
    ),
    "empty": (
        "The mask is empty: the model wrote its focus token, but looks at nothing in the picture."
    ),
    "disagree": (
        "Prior and mask disagree (IoU under 0.5): the mask is of something else than the prior "
        "points at."
    ),
    "elsewhere": (
        "The words that wrote the box looked elsewhere: the brightest spot of the prior lies "
        "outside the mask's surroundings."
    ),
    "border": "The mask touches the picture's border: the thing may go on outside.",
    "tiny": "The mask covers under 0.1 % of the picture: check that it is no speck.",
    "scattered": (
        "The mask lies in several separate pieces: one thing partly hidden, or several things in "
        "one answer."
    ),
    "cut off": "The list of coordinates breaks off: there may be more things than these.",
    "many": (
        "No more things are shown on a photo of this size: if some are missing, ask about a "
        "smaller copy."
    ),
    "contradiction": (
        "The thought ends by saying that nothing fits, and yet there is a mask: do not trust it."
    ),
}
"""Warnings, by name."""
ABOUT_PHOTO = ("unfamiliar", "stretched")
"""Those that are about the photo, whatever was answered."""
DISAGREE, TINY, PIECE = 0.5, 0.001, 0.02
"""IoU under which prior and mask disagree; share of the picture under which a mask is tiny; of the
mask that makes a piece."""

_NOTHING = re.compile(
    r"\b(nothing|none of|no such|not (?:present|visible|there|in the (?:picture|image|photo))"
    r"|no (?:target|match|object)|there is no|there are no|can(?:no|')t (?:find|see)"
    r"|does not exist|doesn't exist)\b|没有|找不到|不存在|看不到",
    re.IGNORECASE,
)
_MAX_SIDE = 1024


def flags(result: Result) -> tuple[str, ...]:
    """Names of `FLAGS` that hold for an answer, in their order."""
    about_all = ("unfamiliar",) if result.unfamiliar else ()
    if result.settings.get("is_proven") is False:
        about_all = (*about_all, "unproven")
    if result.stretched is not None:
        about_all = (*about_all, "stretched")
    if result.outcome != FOUND:
        return about_all
    mask = result.mask
    if not mask.any():
        return (*about_all, "empty")
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    holds = {
        "elsewhere": result.prior_kind == ATTENTION_PRIOR and not mask_follows_prior(result),
        "disagree": result.prior_kind == FOCUS_TOKEN_PRIOR and not mask_follows_prior(result),
        "border": any(edge.any() for edge in edges),
        "tiny": mask.mean() < TINY,
        "scattered": any(count_components(r.mask) > 1 for r in result.regions),
        "cut off": result.prior_kind != FOCUS_TOKEN_PRIOR and breaks_off(result.reply),
        "many": 1 < len(result.regions) == most_objects(result.photo_size),
        "contradiction": thought_finds_nothing(result.reasoning),
    }
    return (*about_all, *(name for name, holding in holds.items() if holding))


def mask_follows_prior(result: Result) -> bool:
    """Whether a mask is of what the prior points at: they agree, or, where the prior is attention,
    its brightest spots lie by the masks."""
    if not result.mask.any():
        return False
    if result.prior_kind == ATTENTION_PRIOR:
        return not is_peak_outside_mask(result)
    return (result.prior_iou or 0) >= DISAGREE


def is_peak_outside_mask(result: Result) -> bool:
    """Whether the brightest spot of a region's prior lies outside the box around its mask, widened
    by a quarter of its size on each side."""
    return any(_is_outside(r.prior, r.mask) for r in result.regions if r.mask.any())


def _is_outside(prior: np.ndarray, mask: np.ndarray) -> bool:
    brightest = np.unravel_index(int(prior.argmax()), prior.shape)
    for place, indices in zip(brightest, np.nonzero(mask), strict=True):
        low, high = int(indices.min()), int(indices.max())
        margin = (high - low + 1) / 4
        if not low - margin <= place <= high + margin:
            return True
    return False


def count_components(mask: np.ndarray) -> int:
    """How many separate pieces a bool mask [H, W] has, each at least a fiftieth of it."""
    areas = component_areas(mask)
    return int((areas >= max(1, PIECE * areas.sum())).sum())


def component_areas(mask: np.ndarray) -> np.ndarray:
    """The area of each separate piece of a bool mask [H, W], int [pieces]; a large mask is looked
    at in steps."""
    step = -(-max(mask.shape) // _MAX_SIDE)
    from scipy.ndimage import label

    numbered, _ = label(mask[::step, ::step])
    return np.bincount(numbered.ravel())[1:]


def thought_finds_nothing(reasoning: str) -> bool:
    """Whether the last sentence of a thought says that nothing fits."""
    return bool(_NOTHING.search(last_sentence(reasoning)))
