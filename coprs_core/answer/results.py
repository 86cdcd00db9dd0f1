"""What an answer is: its outcome, regions and timings; to and from dictionaries.

`Result.to_dict`, and so `result.json`, in schema version 1 (`SCHEMA_VERSION`):

schema_version  1
outcome         "found", "nothing found" or "unfinished"
reason          one sentence why
instruction, reasoning, reply
                texts
reply_ids       the reply's token ids
photo_size      [height, width] in pixels
prior_kind      "focus token", "attention" or "coordinates"
prior_iou       IoU of prior (≥ 0.5) and mask, all regions together; null where nothing was found
regions         a list; each has
                mask       COCO RLE, uncompressed: {"size": [H, W], "counts": […]}
                area       pixels of the mask
                prior_iou, prior_max
                box [x0, y0, x1, y1], points, label
                           where the model wrote coordinates
                prior      from the app's endpoints: a PNG as data URL, 8 bits, whose values are
                           200 × the prior, rounded down
seconds         of each stage: reading, thinking, focusing, drawing
tokens          how many were written
photo_reused    whether the photo had been read before
distance        how unlike the pictures that the model knows the photo is, over 1 unfamiliar; null
                where the model cannot tell
unfamiliar      true, false or null, accordingly
thought_given   whether the thought was given to the model by a person (see probes.thought)
seen_size       [height, width] in pixels of the picture that the language model was given; null in
                older answers
model           name of the checkpoint
settings        device, dtype, quantization, max_new_tokens, decoding, seed
versions        of packages
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from coprs_core.errors import CoPRSError, plain
from coprs_core.masks import decode_prior, decode_rle, encode_prior, encode_rle
from coprs_core.metrics import agreement
from coprs_core.model.boxes import most_objects
from coprs_core.photos import MAX_SIDE
from coprs_core.prompts import (
    FOCUS_TOKEN_PRIOR,
    FOUND,
    MAX_INSTRUCTION_CHARACTERS,
    MAX_NEW_TOKENS,
    NOTHING_FOUND,
    PRIOR_KINDS,
    UNFINISHED,
    Outcome,
    PriorKind,
)

SCHEMA_VERSION = 1
SEEN_WHOLE = 0.9
"""A model that was given this share of a photo's pixels has seen it whole."""
MAX_UNSEEN_PIXELS = 50_000_000
"""Of an answer read from a file without its photo: the pixels of all regions together."""
MAX_REPLY_IDS, MAX_TEXT, MAX_ENTRIES = 2 * MAX_NEW_TOKENS, 100_000, 100
"""Of an answer read from a file: tokens, characters of a text, entries of a table."""


@dataclass(frozen=True, eq=False)
class Region:
    """One answer in the picture: `prior` float32 [H, W] in [0, 1] and `mask` bool [H, W], both at
    the photo's size.

    Where the model wrote coordinates: `box` XYXY or None, `points` XY, in pixels of the photo, and
    its `label`.
    """

    prior: np.ndarray = field(repr=False)
    mask: np.ndarray = field(repr=False)
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    label: str = ""

    @property
    def prior_iou(self) -> float:
        """IoU of the prior, where it is at least 0.5, with the mask; 0 where nothing is drawn."""
        return agreement(self.prior, self.mask)


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to one instruction about one photo.

    Attributes:
        outcome: "found", "nothing found" (the model says so) or "unfinished" (it ran out of tokens
            or broke off).
        reason: one sentence that says why the outcome is what it is.
        instruction: as typed.
        reasoning: the thought, without its tags.
        reply: everything that the model wrote, tags and focus token included.
        regions: one for each answer; empty unless found.
        photo_size: (height, width) in pixels.
        seconds: time of each stage: "reading", "thinking", "focusing", "drawing".
        tokens: how many tokens were written.
        photo_reused: whether the photo's features were kept from an earlier question.
        model: name of the checkpoint.
        settings: device, dtype, quantization, max_new_tokens.
        prior_kind: "focus token" (where it looks), "attention" (where the model's words looked
            while it wrote coordinates) or "coordinates" (drawn from them, in older answers).
        reply_ids: the reply's token ids, for `probes`.
        distance: how unlike the pictures that the model knows the photo is: over 1 it is
            unfamiliar; None where the model cannot tell.
        seen_size: (height, width) in pixels of the picture that the language model was given; None
            in older answers.
        is_thought_given: whether a person wrote the thought, or changed it, and the model read it.
        versions: of Python and of the packages that gave the answer.
    """

    outcome: Outcome
    reason: str
    instruction: str
    reasoning: str
    reply: str
    regions: tuple[Region, ...]
    photo_size: tuple[int, int]
    seconds: dict[str, float]
    tokens: int
    photo_reused: bool
    model: str
    settings: dict
    prior_kind: PriorKind = FOCUS_TOKEN_PRIOR
    reply_ids: tuple[int, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    distance: float | None = None
    seen_size: tuple[int, int] | None = None
    is_thought_given: bool = False

    @property
    def is_seen_smaller(self) -> bool:
        """Whether the language model was given clearly fewer pixels than the photo has."""
        return self.seen_share is not None and self.seen_share < SEEN_WHOLE

    @property
    def seen_share(self) -> float | None:
        """How much of the photo's pixels the language model was given, at most 1; None where that
        is not known."""
        if self.seen_size is None:
            return None
        seen, pixels = (height * width for height, width in (self.seen_size, self.photo_size))
        return min(1.0, seen / pixels)

    @property
    def unfamiliar(self) -> bool | None:
        """Whether the photo is unlike the pictures that the model knows; None where it cannot
        tell."""
        return is_unfamiliar(self.distance)

    @property
    def prior_iou(self) -> float | None:
        """IoU of the union of the priors (≥ 0.5) with the union of the masks, 0 where nothing is
        drawn; None where nothing was found."""
        prior = self.prior
        return None if prior is None else agreement(prior, self.mask)

    @property
    def prior(self) -> np.ndarray | None:
        """float32 [H, W] in [0, 1]: the highest of all regions' priors; None where nothing was
        found."""
        if len(self.regions) < 2:
            return self.regions[0].prior if self.regions else None
        return highest_of(r.prior for r in self.regions)

    @property
    def mask(self) -> np.ndarray:
        """bool [H, W]: the union of all regions; empty where nothing was found."""
        if len(self.regions) < 2:
            return self.regions[0].mask if self.regions else np.zeros(self.photo_size, bool)
        union = self.regions[0].mask.copy()
        for region in self.regions[1:]:
            union |= region.mask
        return union

    def to_dict(self, with_priors: bool = False) -> dict:
        """The answer in plain values, as this module's docstring says; `with_priors` adds each
        region's prior as a PNG."""
        return {
            "schema_version": SCHEMA_VERSION,
            "outcome": self.outcome,
            "reason": self.reason,
            "instruction": self.instruction,
            "reasoning": self.reasoning,
            "reply": self.reply,
            "photo_size": list(self.photo_size),
            "prior_kind": self.prior_kind,
            "prior_iou": self.prior_iou,
            "regions": [_region_to_dict(r, with_priors) for r in self.regions],
            "seconds": {k: round(v, 4) for k, v in self.seconds.items()},
            "tokens": self.tokens,
            "photo_reused": self.photo_reused,
            "distance": None if self.distance is None else round(self.distance, 4),
            "unfamiliar": self.unfamiliar,
            "seen_size": None if self.seen_size is None else list(self.seen_size),
            "thought_given": self.is_thought_given,
            "model": self.model,
            "settings": self.settings,
            "versions": self.versions,
            "reply_ids": list(self.reply_ids),
        }

    def to_json(self) -> str:
        """The answer as JSON; masks as uncompressed COCO RLE, priors by their figures alone (they
        are saved as `.npy`)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    @classmethod
    def from_dict(
        cls,
        values: dict,
        priors: Iterable[np.ndarray] | None = None,
        photo_size: tuple[int, int] | None = None,
    ) -> "Result":
        """The answer that `to_dict` wrote; raises `CoPRSError` for anything else, whoever made it.

        Args:
            values: as `to_dict` gives them.
            priors: float32 [H, W] of each region, taken one at a time; without them each region's
                own `prior` is read (see `decode_prior`).
            photo_size: (height, width) of the photo that it is about, where that is at hand.
        """
        if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
            raise CoPRSError(
                f"This is not an answer of CoPRS with schema version {SCHEMA_VERSION}: give the "
                "result.json of `segment --out`, of a downloaded zip or of the endpoint."
            )
        try:
            # whole characters, real numbers
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8")
            return _from_dict(cls, values, priors, photo_size)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
            MemoryError,
        ) as problem:
            # what other exceptions say is about the reader, not about the answer
            why = f" ({plain(problem)})" if isinstance(problem, ValueError | KeyError) else ""
            raise CoPRSError(f"This answer of CoPRS is broken{why}: save it again.") from problem


def highest_of(priors: Iterable[np.ndarray]) -> np.ndarray:
    """The highest of priors [H, W] of one size; no more than one further is in memory."""
    first, *others = priors
    highest = first.copy()
    for other in others:
        np.maximum(highest, other, out=highest)
    return highest


def is_unfamiliar(distance: float | None) -> bool | None:
    """What a distance (see `familiar.Familiar`) means; None where there is none."""
    return None if distance is None else distance > 1


def _region_to_dict(region: Region, with_prior: bool) -> dict:
    values = {
        "mask": encode_rle(region.mask),
        "area": int(region.mask.sum()),
        "prior_iou": region.prior_iou,
        "prior_max": float(region.prior.max()),
    }
    if region.box or region.points or region.label:
        values |= {"box": region.box, "points": region.points, "label": region.label}
    if with_prior:
        values["prior"] = encode_prior(region.prior)
    return values


def _from_dict(
    cls,
    values: dict,
    priors: Iterable[np.ndarray] | None,
    photo_size: tuple[int, int] | None,
) -> Result:
    """Everything that is small first; then the regions, one at a time."""
    size = _checked_size(values, photo_size)
    texts = {
        k: _text(values[k])
        for k in ("reason", "instruction", "reasoning", "reply", "model", "prior_kind")
    }
    if len(texts["instruction"]) > MAX_INSTRUCTION_CHARACTERS:
        raise ValueError("an instruction that is too long")
    if len(values["reply_ids"]) > MAX_REPLY_IDS:
        raise ValueError(f"{len(values['reply_ids'])} tokens")
    if any(len(values.get(k, ())) > MAX_ENTRIES for k in ("seconds", "settings", "versions")):
        raise ValueError("a table with too many entries")
    if texts["prior_kind"] not in PRIOR_KINDS:
        raise ValueError(f"a prior of kind {texts['prior_kind']!r}")
    reply_ids = tuple(_count(i) for i in values["reply_ids"])
    is_found, count = values["outcome"] == FOUND, len(values["regions"])
    if values["outcome"] not in (FOUND, NOTHING_FOUND, UNFINISHED) or bool(count) != is_found:
        raise ValueError(f"outcome {values['outcome']!r} with {count} regions")
    if priors is None:
        priors = (decode_prior(r["prior"], size) for r in values["regions"])
    pairs = zip(values["regions"], priors, strict=True)
    regions = tuple(_region(r, p, size) for r, p in pairs)
    return cls(
        outcome=values["outcome"],
        regions=regions,
        photo_size=size,
        seconds={_text(k): _finite(v) for k, v in values["seconds"].items()},
        tokens=_count(values["tokens"]),
        photo_reused=bool(values["photo_reused"]),
        settings=dict(values["settings"]),
        reply_ids=reply_ids,
        versions=dict(values.get("versions", {})),
        distance=_distance(values.get("distance")),
        seen_size=_seen_size(values.get("seen_size")),
        is_thought_given=bool(values.get("thought_given")),
        **texts,
    )


def check_photo_size(answer_size: tuple[int, int], photo_size: tuple[int, int]) -> None:
    """Raises `CoPRSError` where a photo, (height, width), is not the one of an answer."""
    if answer_size != photo_size:
        raise CoPRSError("This photo is not the one that the answer is about: give the same photo.")


def _checked_size(values: dict, photo_size: tuple[int, int] | None) -> tuple[int, int]:
    """The photo's size as an answer tells it, where its regions are not too many for it."""
    height, width = (_count(v) for v in values["photo_size"])
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"a photo of {height}×{width} pixels")
    if photo_size is not None:
        check_photo_size((height, width), photo_size)
    count, pixels = len(values["regions"]), height * width
    most = most_objects((height, width))
    if photo_size is None:
        most = min(most, MAX_UNSEEN_PIXELS // pixels)
    if count > most:
        raise CoPRSError(
            f"This answer has {count} regions of {width}×{height} pixels and at most {most} are "
            "opened: ask again about a smaller copy of the photo."
        )
    return height, width


def _region(values: dict, prior: np.ndarray, size: tuple[int, int]) -> Region:
    mask = decode_rle(values["mask"])
    if mask.shape != size or prior.shape != size or prior.dtype != np.float32:
        raise ValueError(
            f"mask {mask.shape} and prior {prior.dtype} {prior.shape} of a photo {size}"
        )
    if not (prior.min() >= 0 and prior.max() <= 1):
        raise ValueError("a prior outside 0 to 1")
    box = None
    if values.get("box"):
        left, top, right, bottom = (_finite(v) for v in values["box"])
        box = left, top, right, bottom
    points = tuple((_finite(x), _finite(y)) for x, y in values.get("points", ()))
    return Region(prior, mask, box, points, _text(values.get("label", "")))


def _count(value) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{value!r:.40} in the place of a count")
    return value


def _finite(value) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value)):
        raise ValueError(f"{value!r:.40} in the place of a number")
    return float(value)


def _distance(value) -> float | None:
    if value is not None and not (isinstance(value, int | float) and 0 <= value < 1e9):
        raise ValueError(f"{value!r:.40} in the place of a distance")
    return None if value is None else float(value)


def _seen_size(value) -> tuple[int, int] | None:
    if value is None:
        return None
    height, width = (_count(v) for v in value)
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"a picture of {height}×{width} pixels")
    return height, width


def _text(value) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{str(value)[:40]!r} in the place of a text")
    return value
