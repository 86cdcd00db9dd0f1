"""What an answer is: its outcome, regions and timings; to and from files."""

import json
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from coprs_core.metrics import iou

SCHEMA_VERSION = 1
FOUND, NOTHING_FOUND, UNFINISHED = "found", "nothing found", "unfinished"
FOCUS_TOKEN_PRIOR, COORDINATES_PRIOR = "focus token", "coordinates"
Outcome = Literal["found", "nothing found", "unfinished"]


@dataclass(frozen=True)
class Region:
    """One answer in the picture: `prior` float32 [H, W] in [0, 1] and `mask` bool [H, W], both at the photo's size.

    Where the model wrote coordinates: `box` XYXY or None, `points` XY, in pixels of the photo, and its `label`.
    """

    prior: np.ndarray = field(repr=False)
    mask: np.ndarray = field(repr=False)
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    label: str = ""

    @property
    def prior_iou(self) -> float:
        """IoU of the prior, where it is at least 0.5, with the mask."""
        return iou(self.prior >= 0.5, self.mask)


@dataclass(frozen=True)
class Result:
    """The answer to one instruction about one photo.

    Attributes:
        outcome: "found", "nothing found" (the model says so) or "unfinished" (it ran out of tokens or broke off).
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
        prior_kind: "focus token" (where the model looked) or "coordinates" (drawn from what it wrote).
        reply_ids: the reply's token ids, for `probes`.
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
    prior_kind: str = FOCUS_TOKEN_PRIOR
    reply_ids: tuple[int, ...] = ()

    @property
    def prior_iou(self) -> float | None:
        """IoU of the union of the priors (≥ 0.5) with the union of the masks; None where nothing was found."""
        if not self.regions:
            return None
        return iou(self.prior >= 0.5, self.mask)

    @property
    def prior(self) -> np.ndarray | None:
        """float32 [H, W] in [0, 1]: the highest of all regions' priors; None where nothing was found."""
        return np.maximum.reduce([r.prior for r in self.regions]) if self.regions else None

    @property
    def mask(self) -> np.ndarray:
        """bool [H, W]: the union of all regions; empty where nothing was found."""
        return np.any([r.mask for r in self.regions], axis=0) if self.regions else np.zeros(self.photo_size, bool)

    def to_dict(self) -> dict:
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
            "regions": [
                {
                    "mask": encode_rle(r.mask),
                    "area": int(r.mask.sum()),
                    "prior_iou": r.prior_iou,
                    "prior_max": float(r.prior.max()),
                }
                | ({"box": r.box, "points": r.points, "label": r.label} if r.box or r.points else {})
                for r in self.regions
            ],
            "seconds": {k: round(v, 4) for k, v in self.seconds.items()},
            "tokens": self.tokens,
            "photo_reused": self.photo_reused,
            "model": self.model,
            "settings": self.settings,
            "reply_ids": list(self.reply_ids),
        }

    def to_json(self) -> str:
        """The answer as JSON; masks as uncompressed COCO RLE, priors by their figures alone (they are saved as `.npy`)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)


def encode_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run-length encoding of a bool mask [H, W]: column by column, runs of 0 and 1 in turn, 0 first."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [not mask[-1, -1]]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def decode_rle(rle: dict) -> np.ndarray:
    """The bool mask [H, W] of `encode_rle`."""
    counts = np.asarray(rle["counts"])
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rle["size"], order="F")
