"""Warnings about an answer, in words."""

import re

import numpy as np

from coprs_core.answer.results import Result
from coprs_core.model.backends.boxes import is_coordinate_list_cut_off, max_objects
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR, FOUND, last_sentence

FLAG_TEXTS = {
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
PHOTO_FLAGS = ("unfamiliar", "stretched")
"""Those that are about the photo, whatever was answered."""
MIN_PRIOR_IOU, MAX_TINY_SHARE, MIN_COMPONENT_SHARE = 0.5, 0.001, 0.02
"""IoU of prior and mask below which they disagree; share of the picture below which a mask is tiny;
share of the mask from which a component counts, so that specks at its edge do not."""

_NOTHING_FITS = re.compile(
    r"\b(nothing|none of|no such|not (?:present|visible|there|in the (?:picture|image|photo))"
    r"|no (?:target|match|object)|there is no|there are no|can(?:no|')t (?:find|see)"
    r"|does not exist|doesn't exist)\b|没有|找不到|不存在|看不到",
    re.IGNORECASE,
)
_MAX_LABELLED_SIDE = 1024
"""Larger masks are labelled on a subsampled grid: labelling 67 million pixels takes seconds, and
areas are compared with each other alone."""


def find_flags(result: Result) -> tuple[str, ...]:
    """The keys of `FLAG_TEXTS` that hold for an answer, in their order."""
    general_flags = ("unfamiliar",) if result.unfamiliar else ()
    if result.settings.get("is_proven") is False:
        general_flags = (*general_flags, "unproven")
    if result.stretched is not None:
        general_flags = (*general_flags, "stretched")
    if result.outcome != FOUND:
        return general_flags
    mask = result.mask
    if not mask.any():
        return (*general_flags, "empty")
    edges = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    conditions = {
        "elsewhere": result.prior_kind == ATTENTION_PRIOR and not mask_follows_prior(result),
        "disagree": result.prior_kind == FOCUS_TOKEN_PRIOR and not mask_follows_prior(result),
        "border": any(edge.any() for edge in edges),
        "tiny": mask.mean() < MAX_TINY_SHARE,
        "scattered": any(count_components(r.mask) > 1 for r in result.regions),
        "cut off": result.prior_kind != FOCUS_TOKEN_PRIOR
        and is_coordinate_list_cut_off(result.reply),
        "many": 1 < len(result.regions) == max_objects(result.photo_size),
        "contradiction": thought_finds_nothing(result.reasoning),
    }
    return (*general_flags, *(name for name, holding in conditions.items() if holding))


def mask_follows_prior(result: Result) -> bool:
    """Whether a mask is of what the prior points at: they agree, or, where the prior is attention,
    its brightest spots lie by the masks."""
    if not result.mask.any():
        return False
    if result.prior_kind == ATTENTION_PRIOR:
        return not is_peak_outside_mask(result)
    return (result.prior_iou or 0) >= MIN_PRIOR_IOU


def is_peak_outside_mask(result: Result) -> bool:
    """Whether the brightest spot of a region's prior lies outside the box around its mask, widened
    by a quarter of its size on each side."""
    return any(_is_peak_outside(r.prior, r.mask) for r in result.regions if r.mask.any())


def _is_peak_outside(prior: np.ndarray, mask: np.ndarray) -> bool:
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
    return int((areas >= max(1, MIN_COMPONENT_SHARE * areas.sum())).sum())


def component_areas(mask: np.ndarray) -> np.ndarray:
    """The area of each separate piece of a bool mask [H, W], int [pieces]; a large mask is looked
    at in steps."""
    step = -(-max(mask.shape) // _MAX_LABELLED_SIDE)
    from scipy.ndimage import label

    numbered, _ = label(mask[::step, ::step])
    return np.bincount(numbered.ravel())[1:]


def thought_finds_nothing(reasoning: str) -> bool:
    """Whether the last sentence of a thought says that nothing fits."""
    return bool(_NOTHING_FITS.search(last_sentence(reasoning)))
