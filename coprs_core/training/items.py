"""What a model is trained on: a photo, an instruction, and the masks of what it means."""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from coprs_core.datasets import DATASETS, open_dataset
from coprs_core.datasets.example import Dataset
from coprs_core.datasets.folder import photo_of
from coprs_core.errors import CoPRSError
from coprs_core.geometry import unpadded_size
from coprs_core.mini.world.questions import FAMILY_WEIGHTS, USUAL, Asking, ask
from coprs_core.mini.world.scenes import SQUARE, draw_scene, random_size
from coprs_core.model.vision import VisionConfig
from coprs_core.photos.photo import open_photo
from coprs_core.training.recipe import JointRecipe

_MIX = Asking(
    FAMILY_WEIGHTS | {"relation": 2.0, "two steps": 2.0, "exclusion": 1.5, "several": 1.0}, 0.1
)


@dataclass(frozen=True, eq=False)
class Item:
    """One thing to learn from.

    Attributes:
        photo: RGB.
        instruction: what to look for.
        masks: bool [H, W] each, of the things that are meant, in reading order; none where nothing
            fits.
        reply: a reply to imitate, where one is known.
        key: names the content of the photo; empty where it is not known to come again.
    """

    photo: Image.Image = field(repr=False)
    instruction: str
    masks: tuple[np.ndarray, ...] = field(repr=False)
    reply: str | None = None
    key: str = ""


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
        drawn = f"{self.name} {index}"
        rng = random.Random(drawn)
        size = random_size(rng) if rng.random() < self.other_shapes else SQUARE
        scene = draw_scene(drawn, size=size)
        question = ask(scene, rng, None, self.asking)
        masks = tuple(scene.mask(i) for i in question.targets)
        return Item(
            Image.fromarray(scene.image), question.instruction, masks, question.reply, drawn
        )


class DatasetItems:
    """A split of a data set (see `datasets`)."""

    def __init__(self, dataset: Dataset):
        if dataset.size is None:
            raise CoPRSError("This data set has no end: train on scenes by data=scenes.")
        self.dataset, self.size = dataset, dataset.size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        example = self.dataset.item(index)
        if example is None:
            raise IndexError(index)
        photo = example.photo
        photo = photo_of(photo) if isinstance(photo, Path) else open_photo(photo)
        return Item(photo.image, example.instruction, example.masks, example.reply, photo.key)


def items_of(recipe: JointRecipe) -> Items:
    """What a recipe trains on."""
    if recipe.data == "scenes":
        count = max(recipe.steps, recipe.warmup_steps) * recipe.questions
        return SceneItems(count, _MIX, recipe.other_shapes)
    if recipe.data in DATASETS and recipe.data != "folder":
        root = Path(recipe.root).expanduser() if recipe.root else None
        return DatasetItems(open_dataset(recipe.data, root, recipe.split))
    if recipe.data != "folder" and recipe.root:
        raise CoPRSError(
            "root is the folder of a data set that has a name, and data is the folder "
            f"{recipe.data}: leave root out."
        )
    folder = Path(recipe.root or recipe.data).expanduser()
    return DatasetItems(open_dataset("folder", folder))


def target_of(mask: np.ndarray, vision: VisionConfig) -> Tensor:
    """A mask bool [H, W] at decoding size: resized and padded like the photo, float32
    [1, prior side, prior side], soft in [0, 1] at its border."""
    size = unpadded_size(mask.shape, vision.side)
    inside = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], size)
    padded = F.pad(inside, (0, vision.side - size[1], 0, vision.side - size[0]))
    return F.adaptive_avg_pool2d(padded, vision.prior_side)[0]
