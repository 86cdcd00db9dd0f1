"""FSDP shards of the authors' training, written by any number of processes, as whole tensors."""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import (  # importing it also lets weights_only read DTensors
    DTensor,
    Shard,
)

from coprs_core.checkpoints.tensors import LazyTensors, read_torch_file
from coprs_core.errors import CoPRSError

_SHARD_FILE_NAME = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_NOISY_LOGGER = "torch.distributed.device_mesh"


def read_shards(folder: Path) -> list[dict[str, Tensor]]:
    """The FSDP shards in the order of their ranks, read lazily; [] where there are none."""
    paths = {
        tuple(map(int, m.groups())): p
        for p in folder.glob("*.pt")
        if (m := _SHARD_FILE_NAME.fullmatch(p.name))
    }
    if not paths:
        return []
    # it warns that shards are read without their process group
    logging.getLogger(_NOISY_LOGGER).setLevel(logging.ERROR)
    world_size, *others = sorted({size for size, _ in paths})
    if others:
        raise CoPRSError(
            f"{folder} mixes shards of {world_size} and {others[0]} processes: keep those of one "
            "checkpoint."
        )
    for rank in range(world_size):
        if (world_size, rank) not in paths:
            raise CoPRSError(
                f"{folder} lacks model_world_size_{world_size}_rank_{rank}.pt (it has {len(paths)} "
                f"of {world_size} shards): copy it from the training machine."
            )
    shards = [
        read_torch_file(paths[world_size, rank], "a shard of an FSDP checkpoint")
        for rank in range(world_size)
    ]
    for rank, shard in enumerate(shards):
        if differing := sorted(shard.keys() ^ shards[0].keys()):
            raise CoPRSError(
                f"The shards of rank 0 and {rank} differ in {differing[0]}: they are of different "
                "checkpoints."
            )
    return shards


def merge_shards(
    shards: list[dict[str, Tensor]], prefixes: tuple[str, ...], folder: Path
) -> LazyTensors:
    """The whole tensors whose names begin with one of `prefixes`, each merged when it is read."""
    if not shards:
        raise CoPRSError(
            f"{folder} holds neither weights in llm_hf/ nor FSDP shards "
            "model_world_size_W_rank_R.pt: copy them too."
        )
    shapes = {k: (v.shape, v.dtype) for k, v in shards[0].items() if k.startswith(prefixes)}
    return LazyTensors(folder, shapes, lambda name: _merge_tensor([s[name] for s in shards], name))


def _merge_tensor(parts: list[Tensor], name: str) -> Tensor:
    """One tensor from its shards, by their own account of how they were laid out (DTensor's mesh
    and placements)."""
    if not isinstance(parts[0], DTensor):
        return parts[0]
    spec = parts[0]._spec
    local = {i: part._local_tensor for i, part in enumerate(parts) if isinstance(part, DTensor)}
    merged = _merge_along_mesh(spec.mesh.mesh, list(spec.placements), local)
    if merged.shape != parts[0].shape:
        raise CoPRSError(
            f"The shards of {name} make {list(merged.shape)} and {list(parts[0].shape)} was "
            "expected: they are damaged."
        )
    return merged


def _merge_along_mesh(ranks: Tensor, placements: list, local: dict[int, Tensor]) -> Tensor:
    """One tensor from the pieces of a device mesh (`ranks`, any number of dimensions), merged along
    its first dimension once the others are."""
    if not placements:
        return local[int(ranks)]
    parts = [_merge_along_mesh(r, placements[1:], local) for r in ranks]
    return torch.cat(parts, placements[0].dim) if isinstance(placements[0], Shard) else parts[0]
