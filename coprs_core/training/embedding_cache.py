"""A cache on disk of SAM's image embeddings, which stay the same while it is frozen."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coprs_core.checkpoints.tensors import write_errors_as_user_error
from coprs_core.example import Example
from coprs_core.model.vision import VisionConfig


def embedding_bytes(vision: VisionConfig) -> int:
    """Bytes of one embedding, float16 [channels, grid, grid]."""
    return 2 * vision.channels * vision.grid**2


class EmbeddingCache:
    """Embeddings [C, h, w] by photo and image encoder, float16, a file each, in 256 folders.

    The folder may be shared by runs and processes: a file is whole or not there.
    """

    def __init__(self, folder: Path, encoder: nn.Module, encode: Callable[[Example], Tensor]):
        self._folder, self._encode = folder / _hash_weights(encoder), encode

    def __call__(self, example: Example) -> Tensor:
        """The embedding of an example's photo, float16, on the CPU."""
        key = example.load_photo().key
        path = self._folder / key[:2] / f"{key}.safetensors"
        if path.is_file():
            return load_file(path)["embedding"]
        embedding = self._encode(example).half().cpu()
        path.parent.mkdir(parents=True, exist_ok=True)
        # written beside and renamed: other processes never read half a file
        part = path.with_suffix(f".{os.getpid()}")
        try:
            with write_errors_as_user_error(path):
                save_file({"embedding": embedding.contiguous()}, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return embedding


def _hash_weights(encoder: nn.Module) -> str:
    """A short hash of an image encoder's weights: other weights have other embeddings."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
