"""What an answer is: its outcome, regions and timings; to and from dictionaries.

`Result.to_dict`, and so `result.json`, in schema version 1 (`SCHEMA_VERSION`):

schema_version  1
outcome         "found", "nothing found" or "unfinished"
reason          one sentence why
instruction, reasoning, reply
                texts
reply_ids       the reply's token ids
photo_size      [height, width] in pixels of the photo as it is shown: upright
full_size       the same before it was downscaled; null in older answers
orientation     EXIF's, 1 to 8, by which the file's pixels were turned upright; null in older
                answers
frame           what the regions and the mask and prior files beside this one fit: "upright", the
                photo as it is shown, or "stored", the file's pixels as they are (--stored-pixels);
                missing in older answers: upright
stretched       [lowest, highest] value of the photo, which became black and white, where it fills
                only a part of its range or has none (10 to 14 bits in 16, floats); else null
prior_kind      "focus token", "attention" or "coordinates"
prior_iou       IoU of prior (≥ 0.5) and mask, all regions together; null where nothing was found
regions         a list; each has
                mask       COCO RLE, uncompressed: {"size": [H, W], "counts": […]}, in `frame`
                area       pixels of the mask
                prior_iou, prior_max
                box [x0, y0, x1, y1], points, label
                           where the model wrote coordinates, in `frame`
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
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from coprs_core.answer.regions import Region, max_prior, region_from_dict, region_to_dict
from coprs_core.answer.validation import (
    as_count,
    as_distance,
    as_finite,
    as_full_size,
    as_levels,
    as_orientation,
    as_size,
    as_text,
)
from coprs_core.errors import CoPRSError, strip_markup
from coprs_core.masks import decode_prior, resize_mask
from coprs_core.metrics import prior_mask_iou
from coprs_core.model.backends.boxes import max_objects
from coprs_core.photos.orientation import UPRIGHT, to_stored_array, to_stored_size
from coprs_core.photos.photo import MAX_SIDE
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
MIN_WHOLE_SHARE = 0.9
"""A model that was given this share of a photo's pixels has seen it whole: rounding to whole
patches always loses a few."""
MAX_PIXELS_WITHOUT_PHOTO = 50_000_000
"""Of an answer read from a file without its photo: the pixels of all regions together. A photo
bounds them else; without one a small file could ask for any amount of memory."""
MAX_REPLY_IDS, MAX_TABLE_ENTRIES = 2 * MAX_NEW_TOKENS, 100
"""Of an answer read from a file: tokens, entries of a table."""


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
        photo_size: (height, width) in pixels of the photo as it is shown, upright; so are masks,
            priors and boxes.
        seconds: time of each stage: "reading", "thinking", "focusing", "drawing".
        tokens: how many tokens were written.
        photo_reused: whether the photo's features came from the cache.
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
        full_size, orientation, stretched: of the photo, as `Photo` has them, but the first also
            where it was not downscaled; None in older answers.
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
    full_size: tuple[int, int] | None = None
    orientation: int | None = None
    stretched: tuple[float, float] | None = None

    @property
    def is_seen_downscaled(self) -> bool:
        """Whether the language model was given clearly fewer pixels than the photo has."""
        return self.seen_pixel_share is not None and self.seen_pixel_share < MIN_WHOLE_SHARE

    @property
    def seen_pixel_share(self) -> float | None:
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
        return None if prior is None else prior_mask_iou(prior, self.mask)

    @property
    def prior(self) -> np.ndarray | None:
        """float32 [H, W] in [0, 1]: the highest of all regions' priors; None where nothing was
        found."""
        if len(self.regions) < 2:
            return self.regions[0].prior if self.regions else None
        return max_prior(r.prior for r in self.regions)

    @property
    def mask(self) -> np.ndarray:
        """bool [H, W]: the union of all regions; empty where nothing was found."""
        if len(self.regions) < 2:
            return self.regions[0].mask if self.regions else np.zeros(self.photo_size, bool)
        union = self.regions[0].mask.copy()
        for region in self.regions[1:]:
            union |= region.mask
        return union

    def mask_at(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """The mask at another size (height, width), bool; without one at the photo's full size, as
        it was before it was downscaled. Raises `CoPRSError` where that is not known."""
        size = size or self.full_size
        if size is None:
            raise CoPRSError("This answer does not tell its photo's full size: ask again.")
        return resize_mask(self.mask, size)

    def to_frame(self, array: np.ndarray, frame: str) -> np.ndarray:
        """A mask, prior or picture [H, W, …] of the photo as it is shown, "upright", or turned as
        its file stores it, "stored". Raises `CoPRSError` where that is not known."""
        return to_stored_array(array, self._orientation_in(frame))

    def _orientation_in(self, frame: str) -> int:
        """EXIF's orientation of the pixels in a frame."""
        if frame == UPRIGHT:
            return 1
        if self.orientation is None:
            raise CoPRSError("This answer does not tell how its photo was turned: ask again.")
        return self.orientation

    def to_dict(self, with_priors: bool = False, frame: str = UPRIGHT) -> dict:
        """The answer in plain values, as this module's docstring says; `with_priors` adds each
        region's prior as a PNG."""
        turn = self._orientation_in(frame)
        return {
            "schema_version": SCHEMA_VERSION,
            "outcome": self.outcome,
            "reason": self.reason,
            "instruction": self.instruction,
            "reasoning": self.reasoning,
            "reply": self.reply,
            "photo_size": list(self.photo_size),
            "full_size": None if self.full_size is None else list(self.full_size),
            "orientation": self.orientation,
            "frame": frame,
            "stretched": None if self.stretched is None else list(self.stretched),
            "prior_kind": self.prior_kind,
            "prior_iou": self.prior_iou,
            "regions": [region_to_dict(r, turn, with_priors) for r in self.regions],
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

    def to_json(self, frame: str = UPRIGHT) -> str:
        """The answer as JSON; masks as uncompressed COCO RLE, priors by their figures alone (they
        are saved as `.npy`)."""
        return json.dumps(self.to_dict(frame=frame), ensure_ascii=False, indent=2)

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
                "This is not an answer of CoPRS with schema version {version}: give the "
                "result.json of `segment --out`, of a downloaded zip or of the endpoint.",
                version=SCHEMA_VERSION,
            )
        try:
            # whole characters, real numbers
            json.dumps(values, ensure_ascii=False, allow_nan=False).encode("utf-8")
            return _parse_result(cls, values, priors, photo_size)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            RecursionError,
            MemoryError,
        ) as problem:
            # the text of other exceptions is about this code, not about the answer
            if not isinstance(problem, ValueError | KeyError):
                raise CoPRSError("This answer of CoPRS is broken: save it again.") from problem
            raise CoPRSError(
                "This answer of CoPRS is broken ({reason}): save it again.",
                reason=strip_markup(problem),
            ) from problem


def is_unfamiliar(distance: float | None) -> bool | None:
    """What a distance (see `ood_statistics.OodStatistics`) means; None where there is none."""
    return None if distance is None else distance > 1


def _parse_result(
    cls,
    values: dict,
    priors: Iterable[np.ndarray] | None,
    photo_size: tuple[int, int] | None,
) -> Result:
    """Check all that is small first, then decode the regions, one at a time: a broken answer is
    refused before its large parts take memory."""
    size = _parse_photo_size(values, photo_size)
    orientation, is_stored = as_orientation(values)
    turn = orientation if is_stored and orientation else 1
    texts = {
        k: as_text(values[k])
        for k in ("reason", "instruction", "reasoning", "reply", "model", "prior_kind")
    }
    if len(texts["instruction"]) > MAX_INSTRUCTION_CHARACTERS:
        raise ValueError("an instruction that is too long")
    if len(values["reply_ids"]) > MAX_REPLY_IDS:
        raise ValueError(f"{len(values['reply_ids'])} tokens")
    if any(len(values.get(k, ())) > MAX_TABLE_ENTRIES for k in ("seconds", "settings", "versions")):
        raise ValueError("a table with too many entries")
    if texts["prior_kind"] not in PRIOR_KINDS:
        raise ValueError(f"a prior of kind {texts['prior_kind']!r}")
    reply_ids = tuple(as_count(i) for i in values["reply_ids"])
    is_found, count = values["outcome"] == FOUND, len(values["regions"])
    if values["outcome"] not in (FOUND, NOTHING_FOUND, UNFINISHED) or bool(count) != is_found:
        raise ValueError(f"outcome {values['outcome']!r} with {count} regions")
    if priors is None:
        own_size = to_stored_size(size, turn)
        priors = (decode_prior(r["prior"], own_size) for r in values["regions"])
    pairs = zip(values["regions"], priors, strict=True)
    regions = tuple(region_from_dict(r, p, size, turn) for r, p in pairs)
    return cls(
        outcome=values["outcome"],
        regions=regions,
        photo_size=size,
        seconds={as_text(k): as_finite(v) for k, v in values["seconds"].items()},
        tokens=as_count(values["tokens"]),
        photo_reused=bool(values["photo_reused"]),
        settings=dict(values["settings"]),
        reply_ids=reply_ids,
        versions=dict(values.get("versions", {})),
        distance=as_distance(values.get("distance")),
        seen_size=as_size(values.get("seen_size")),
        is_thought_given=bool(values.get("thought_given")),
        full_size=as_full_size(values.get("full_size"), size),
        orientation=orientation,
        stretched=as_levels(values.get("stretched")),
        **texts,
    )


def check_photo_size(answer_size: tuple[int, int], photo_size: tuple[int, int]) -> None:
    """Raises `CoPRSError` where a photo, (height, width), is not the one of an answer."""
    if answer_size != photo_size:
        raise CoPRSError("This photo is not the one that the answer is about: give the same photo.")


def _parse_photo_size(values: dict, photo_size: tuple[int, int] | None) -> tuple[int, int]:
    """The photo's size as an answer tells it, where its regions are not too many for it."""
    height, width = (as_count(v) for v in values["photo_size"])
    if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
        raise ValueError(f"a photo of {height}×{width} pixels")
    if photo_size is not None:
        check_photo_size((height, width), photo_size)
    count, pixels = len(values["regions"]), height * width
    max_regions = max_objects((height, width))
    if photo_size is None:
        max_regions = min(max_regions, MAX_PIXELS_WITHOUT_PHOTO // pixels)
    if count > max_regions:
        raise CoPRSError(
            "This answer has {count} regions of {width}×{height} pixels and at most {most} "
            "are opened: ask again about a smaller copy of the photo.",
            count=count,
            width=width,
            height=height,
            most=max_regions,
        )
    return height, width
