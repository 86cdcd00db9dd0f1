"""What a model is trained on: a photo, an instruction, and the masks of what it means."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from coprs_core.errors import CoPRSError
from coprs_core.geometry import unpadded_size
from coprs_core.model.vision import VisionConfig
from coprs_core.photos import open_photo
from coprs_core.prompts import check_instruction
from coprs_core.world.questions import USUAL, Asking, ask
from coprs_core.world.scenes import SQUARE, draw_scene, random_size

LISTING = "items.jsonl"
_FORM = '{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}'


@dataclass(frozen=True, eq=False)
class Item:
    """One thing to learn from.

    Attributes:
        photo: RGB.
        instruction: what to look for.
        masks: bool [H, W] each, of the things that are meant, in reading order; none where nothing
            fits.
        reply: a reply to imitate, where one is known.
    """

    photo: Image.Image = field(repr=False)
    instruction: str
    masks: tuple[np.ndarray, ...] = field(repr=False)
    reply: str | None = None


class Items(Protocol):
    """Items by number, the same in every run."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Item: ...


@dataclass(frozen=True)
class SceneItems:
    """Drawn scenes of the training split with a question each."""

    count: int
    asking: Asking = USUAL
    other_shapes: float = 0.0
    name: str = "joint items"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        rng = random.Random(f"{self.name} {index}")
        size = random_size(rng) if rng.random() < self.other_shapes else SQUARE
        scene = draw_scene(f"{self.name} {index}", size=size)
        question = ask(scene, rng, None, self.asking)
        masks = tuple(scene.mask(i) for i in question.targets)
        return Item(Image.fromarray(scene.image), question.instruction, masks, question.reply)


class FolderItems:
    """A folder of photos and masks with an `items.jsonl`: a line an item, paths from the folder.

    `{"photo": "a.jpg", "instruction": "the cat", "masks": ["a_cat.png"]}`: a mask is a picture of
    the photo's size, white where the thing is; `[]` where nothing fits. `"reply"` may hold a reply
    to imitate. Raises `CoPRSError` where a line is none, or a file is missing.
    """

    def __init__(self, root: Path):
        self.root, listing = root, root / LISTING
        if not listing.is_file():
            raise CoPRSError(f"There is no {listing}: write one line an item, such as {_FORM}.")
        lines = listing.read_text(encoding="utf-8").splitlines()
        self.rows = [_row(listing, n, line) for n, line in enumerate(lines, 1) if line.strip()]
        if not self.rows:
            raise CoPRSError(f"{listing} holds no items: write lines such as {_FORM}.")
        for n, row in enumerate(self.rows, 1):
            for name in (row["photo"], *row["masks"]):
                if not (root / name).is_file():
                    raise CoPRSError(f"Item {n} of {listing} names {name}, which is not there.")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row = self.rows[index]
        photo = open_photo(self.root / row["photo"]).image
        masks = tuple(_mask(self.root / name, photo) for name in row["masks"])
        return Item(photo, row["instruction"], masks, row.get("reply"))


def _row(listing: Path, number: int, line: str) -> dict:
    try:
        row = json.loads(line)
        is_one = isinstance(row["photo"], str) and isinstance(row["instruction"], str)
        is_one = is_one and all(isinstance(name, str) for name in row["masks"])
    except (ValueError, KeyError, TypeError):
        is_one = False
    if not is_one:
        raise CoPRSError(f"Line {number} of {listing} is no item: write it like {_FORM}.")
    check_instruction(row["instruction"])
    return row


def _mask(path: Path, photo: Image.Image) -> np.ndarray:
    mask = open_photo(path).image.convert("L")
    if mask.size != photo.size:
        raise CoPRSError(
            f"The mask {path} is {mask.width}×{mask.height} and its photo "
            f"{photo.width}×{photo.height}: give them one size."
        )
    return np.asarray(mask) >= 128


def target_of(mask: np.ndarray, vision: VisionConfig) -> Tensor:
    """A mask bool [H, W] at decoding size: resized and padded like the photo, float32
    [1, prior side, prior side], soft in [0, 1] at its border."""
    size = unpadded_size(mask.shape, vision.side)
    inside = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], size)
    padded = F.pad(inside, (0, vision.side - size[1], 0, vision.side - size[0]))
    return F.adaptive_avg_pool2d(padded, vision.prior_side)[0]
