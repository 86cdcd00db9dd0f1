"""The data of a recipe, and the soft masks that are trained towards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from coprs_core.datasets import DATASETS, open_dataset
from coprs_core.datasets.dataset import Dataset
from coprs_core.errors import CoPRSError
from coprs_core.geometry import unpadded_size
from coprs_core.model.vision import VisionConfig
from coprs_core.training.recipe import JointRecipe


def open_training_data(recipe: JointRecipe) -> Dataset:
    """Open the data set of a recipe, with decoded photos: each is used more than once."""
    dataset = _open_dataset(recipe)

    def item(number: int):
        example = dataset[number]
        return replace(example, photo=example.load_photo())

    return replace(dataset, item=item)


def _open_dataset(recipe: JointRecipe) -> Dataset:
    if recipe.data == "scenes":
        from coprs_core.datasets.scenes import training_scenes

        count = max(recipe.steps, recipe.warmup_steps) * recipe.questions
        return training_scenes(count, recipe.other_shapes)
    if recipe.data in DATASETS and recipe.data != "folder":
        root = Path(recipe.root).expanduser() if recipe.root else None
        return open_dataset(recipe.data, root, recipe.split)
    if recipe.data != "folder" and recipe.root:
        raise CoPRSError(
            "root is the folder of a data set that has a name, and data is the folder "
            f"{recipe.data}: leave root out."
        )
    return open_dataset("folder", Path(recipe.root or recipe.data).expanduser())


def to_soft_target(mask: np.ndarray, vision: VisionConfig) -> Tensor:
    """Resize a mask bool [H, W] to decoding size: resized and padded like the photo, float32
    [1, prior side, prior side], soft in [0, 1] at its border."""
    size = unpadded_size(mask.shape, vision.side)
    inside = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], size)
    padded = F.pad(inside, (0, vision.side - size[1], 0, vision.side - size[0]))
    return F.adaptive_avg_pool2d(padded, vision.prior_side)[0]
