"""Training-only scaffolding: a fixed code for what an object is, so that the boxes can learn apart
and then be joined.

Kind, colour, centre and size of an object become a feature vector; two fixed orthonormal frames
carry it into the language model's width, one for visual tokens, one for focus queries. Nothing of
this is in the shipped model.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from coprs_core.mini.world.drawings import COLOURS
from coprs_core.mini.world.kinds import KINDS
from coprs_core.mini.world.scenes import SIDE, SceneObject

_COLOUR_NAMES = list(COLOURS)
_POSITIONS, _POSITION_WIDTH = torch.linspace(0, SIDE - 1, 12), 20.0
_LOG_AREAS, _LOG_AREA_WIDTH = torch.linspace(5.5, 9.7, 6), 0.7
KIND_SLICE = slice(0, len(KINDS))
COLOUR_SLICE = slice(KIND_SLICE.stop, KIND_SLICE.stop + len(COLOURS))
CENTRE_SLICE = slice(COLOUR_SLICE.stop, COLOUR_SLICE.stop + 24)
AREA_SLICE = slice(CENTRE_SLICE.stop, CENTRE_SLICE.stop + 6)
NUM_OBJECT_FEATURES = AREA_SLICE.stop
GROUND_FLAG = NUM_OBJECT_FEATURES
NUM_CELL_FEATURES = (
    NUM_OBJECT_FEATURES + 2
)  # … and the flag "ground", and the share of the cell that is covered
IMAGE_SCALE, QUERY_SCALE = 0.6, 4.0


def object_features(obj: SceneObject) -> Tensor:
    """float32 [62]: one-hot kind and colour, radial bases of the centre's x and y and of the log
    area, as in a picture of 256×256 whatever its shape."""
    f = torch.zeros(NUM_OBJECT_FEATURES)
    f[KINDS.index(obj.kind)] = 1
    f[COLOUR_SLICE.start + _COLOUR_NAMES.index(obj.colour)] = 1
    (x, y), (height, width) = obj.centre, obj.image_size
    f[CENTRE_SLICE] = torch.cat(
        [
            torch.exp(-((v - _POSITIONS) ** 2) / (2 * _POSITION_WIDTH**2))
            for v in (x * SIDE / width, y * SIDE / height)
        ]
    )
    log_area = math.log(obj.area * SIDE**2 / (height * width))
    f[AREA_SLICE] = torch.exp(-((log_area - _LOG_AREAS) ** 2) / (2 * _LOG_AREA_WIDTH**2))
    return f


def stack_object_features(objects: Sequence[SceneObject]) -> Tensor:
    """float32 [N, 62]: `object_features` of each."""
    return torch.stack([torch.zeros(NUM_OBJECT_FEATURES), *map(object_features, objects)])[1:]


def cell_features(
    instance_map: Tensor, objects: tuple[SceneObject, ...], grid: tuple[int, int], least: float
) -> Tensor:
    """float32 [rows · columns, 64]: each cell of the `grid` tells of the object that covers most of
    it, if that is at least a share `least`.

    `instance_map` is the scene's uint8 [H, W].
    """
    # every second pixel is enough for shares, at a quarter of the cost
    shares = F.adaptive_avg_pool2d(
        F.one_hot(instance_map[::2, ::2].long(), len(objects) + 1).permute(2, 0, 1).float(), grid
    )
    covered, which = shares[1:].flatten(1).max(0)
    table = stack_object_features(objects)
    f = torch.zeros(grid[0] * grid[1], NUM_CELL_FEATURES)
    occupied = covered >= least
    f[occupied, :NUM_OBJECT_FEATURES] = table[which[occupied]]
    f[:, GROUND_FLAG] = (~occupied).float()
    f[:, GROUND_FLAG + 1] = covered
    return f


def orthogonal_frames(width: int) -> tuple[Tensor, Tensor]:
    """The image frame [width, 64] and the query frame [width, 62]: fixed, with orthogonal
    columns."""

    def orthonormal(seed: int) -> Tensor:
        return torch.linalg.qr(
            torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
        )[0]

    return orthonormal(7)[:, :NUM_CELL_FEATURES] * IMAGE_SCALE, orthonormal(8)[
        :, :NUM_OBJECT_FEATURES
    ] * QUERY_SCALE


def cell_losses(cells: Tensor, target: Tensor, image_frame: Tensor) -> tuple[Tensor, Tensor]:
    """How far visual tokens [B, N, D] are from the code of their cells [B, N, 64]: squared error,
    cross-entropy.

    Ground cells count 0.15 each: most of a picture is ground.
    """
    flat, target = cells.float().flatten(0, 1), target.flatten(0, 1)
    weight = torch.where(target[:, GROUND_FLAG] > 0.5, 0.15, 1.0)
    error = ((flat - target @ image_frame.T) ** 2).sum(-1) / IMAGE_SCALE**2
    read = flat @ image_frame / IMAGE_SCALE**2
    return (error * weight).sum() / weight.sum(), cell_class_loss(read, target)


def cell_class_loss(read: Tensor, target: Tensor, sharpness: float = 8.0) -> Tensor:
    """Cross-entropy of kind and colour on the cells [N, 64] that hold an object, read as logits
    `sharpness` × feature."""
    occupied = target[:, GROUND_FLAG] < 0.5
    if not occupied.any():
        return read.sum() * 0
    kind = F.cross_entropy(
        sharpness * read[occupied, KIND_SLICE], target[occupied, KIND_SLICE].argmax(-1)
    )
    return kind + 0.5 * F.cross_entropy(
        sharpness * read[occupied, COLOUR_SLICE], target[occupied, COLOUR_SLICE].argmax(-1)
    )
