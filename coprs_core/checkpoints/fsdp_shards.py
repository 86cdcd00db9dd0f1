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

_NAME = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_LOUD = "torch.distributed.device_mesh"


def read_shards(folder: Path) -> list[dict[str, Tensor]]:
    """The FSDP shards by rank, read lazily; [] where there are none."""
    found = {
        tuple(map(int, m.groups())): p
        for p in folder.glob("*.pt")
        if (m := _NAME.fullmatch(p.name))
    }
    if not found:
        return []
    # it warns that shards are read without their process group
    logging.getLogger(_LOUD).setLevel(logging.ERROR)
    worlds = sorted({w for w, _ in found})
    if len(worlds) > 1:
        raise CoPRSError(
            f"{folder} mixes shards of {worlds[0]} and {worlds[1]} processes: keep those of one "
            "checkpoint."
        )
    for rank in range(worlds[0]):
        if (worlds[0], rank) not in found:
            raise CoPRSError(
                f"{folder} lacks model_world_size_{worlds[0]}_rank_{rank}.pt (it has {len(found)} "
                f"of {worlds[0]} shards): copy it from the training machine."
            )
    shards = [
        read_torch_file(found[worlds[0], rank], "a shard of an FSDP checkpoint")
        for rank in range(worlds[0])
    ]
    for rank, shard in enumerate(shards):
        if odd := sorted(shard.keys() ^ shards[0].keys()):
            raise CoPRSError(
                f"The shards of rank 0 and {rank} differ in {odd[0]}: they are of different "
                "checkpoints."
            )
    return shards


def merge_shards(
    shards: list[dict[str, Tensor]], prefixes: tuple[str, ...], folder: Path
) -> LazyTensors:
    """The whole tensors of the shards whose names begin so."""
    if not shards:
        raise CoPRSError(
            f"{folder} holds neither weights in llm_hf/ nor FSDP shards "
            "model_world_size_W_rank_R.pt: copy them too."
        )
    shapes = {k: (v.shape, v.dtype) for k, v in shards[0].items() if k.startswith(prefixes)}
    return LazyTensors(folder, shapes, lambda name: _merged([s[name] for s in shards], name))


def _merged(parts: list[Tensor], name: str) -> Tensor:
    """One tensor from its shards, by their own account of how they were laid out (DTensor's mesh
    and placements)."""
    if not isinstance(parts[0], DTensor):
        return parts[0]
    spec = parts[0]._spec
    local = {i: part._local_tensor for i, part in enumerate(parts) if isinstance(part, DTensor)}
    whole = _along(spec.mesh.mesh, list(spec.placements), local)
    if whole.shape != parts[0].shape:
        raise CoPRSError(
            f"The shards of {name} make {list(whole.shape)} and {list(parts[0].shape)} was "
            "expected: they are damaged."
        )
    return whole


def _along(ranks: Tensor, placements: list, local: dict[int, Tensor]) -> Tensor:
    if not placements:
        return local[int(ranks)]
    parts = [_along(r, placements[1:], local) for r in ranks]
    return torch.cat(parts, placements[0].dim) if isinstance(placements[0], Shard) else parts[0]
