"""The published SAMs by name: where they come from, what they weigh, and how they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coprs_core.checkpoints.downloads import (
    SAM_FILES,
    Report,
    cached_sam,
    cached_snapshot,
    sam_file,
    sam_path,
    snapshot,
)
from coprs_core.checkpoints.memory import LIBRARIES, room_for_encoding
from coprs_core.model.vision import SAM_SIZES

if TYPE_CHECKING:
    import torch

    from coprs_core.machine import DeviceName
    from coprs_core.model.backends.sam import Sam1, Sam2


@dataclass(frozen=True)
class PublishedSam:
    """A SAM that can be chosen by name.

    Attributes:
        parameters: how many weights it has.
        download: bytes.
        room: bytes that it takes while it works, beside its weights.
        repo: on Hugging Face; None for segment_anything's own files.
    """

    parameters: int
    download: int
    room: int
    repo: str | None = None


def _sam1(name: str, parameters: int) -> PublishedSam:
    size = SAM_SIZES[name]
    return PublishedSam(parameters, SAM_FILES[name][1], room_for_encoding(size.grid, size.width))


def _sam2(size: str, parameters: int) -> PublishedSam:
    download = 4 * (parameters + _OF_VIDEOS)
    return PublishedSam(parameters, download, ROOM_SAM2, f"facebook/sam2.1-hiera-{size}")


_OF_VIDEOS = 7_521_777
"""Weights in each file of SAM 2.1 that follow things from frame to frame; they are not loaded."""
ROOM_SAM2 = 400_000_000 + LIBRARIES
SAMS = {
    "sam2.1-tiny": _sam2("tiny", 31_440_721),
    "sam2.1-small": _sam2("small", 38_538_577),
    "sam2.1-base-plus": _sam2("base-plus", 73_328_401),
    "sam2.1-large": _sam2("large", 216_924_865),
    "vit_b": _sam1("vit_b", 93_735_472),
    "vit_l": _sam1("vit_l", 312_342_832),
    "vit_h": _sam1("vit_h", 641_090_608),
}


def choose_sam(name: str, device: torch.device | DeviceName) -> str:
    """The SAM of a name; "auto" is SAM 2.1 large on a GPU, and its tiny on a CPU, where it takes a
    tenth of ViT-H's time."""
    if name != "auto":
        return name
    return "sam2.1-tiny" if device.type == "cpu" else "sam2.1-large"


def is_cached(name: str) -> bool:
    """Whether a published SAM is in its cache."""
    sam = SAMS[name]
    return bool(cached_snapshot(sam.repo) if sam.repo else cached_sam(name))


def place_of(name: str) -> Path:
    """Where a SAM lies or would lie: a folder or a file, for messages and checks."""
    known = SAMS.get(name)
    if known and known.repo:
        cached = cached_snapshot(known.repo)
        return (cached or Path(known.repo)) / "model.safetensors"
    return sam_path(name)


@dataclass(frozen=True)
class SamFile:
    """A SAM on this disk, not loaded yet: what it weighs and takes, and how it is loaded."""

    path: Path
    weights: int
    room: int

    def load(self, device: torch.device, dtype: torch.dtype) -> Sam1 | Sam2:
        """The SAM, strictly: every tensor has its place; raises `CoPRSError` where it is broken."""
        import torch

        from coprs_core.checkpoints.tensors import place_sam, read_sam, sam_configs
        from coprs_core.model.backends.sam import Sam1

        if self.path.is_dir():
            return _load_sam2(self.path, device, dtype)
        state = read_sam(self.path)
        vision, decoder = sam_configs(state, self.path)
        with torch.device("meta"):
            sam = Sam1(vision, decoder)
        place_sam(sam, state, self.path, device, dtype)
        return sam


def open_sam(name: str, report: Report | None = None) -> SamFile:
    """A SAM by name, downloaded where it is not cached, or by its path (a .pth file of SAM, a
    folder of SAM 2); raises `CoPRSError` where there is none or it is broken."""
    from coprs_core.checkpoints.hugging_face import weight_files
    from coprs_core.checkpoints.tensors import count_weights, read_sam, sam_configs

    known = SAMS.get(name)
    if known and known.repo:
        folder = snapshot(known.repo, report)
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        path = sam_file(name, report)
        state = read_sam(path)
        vision, _ = sam_configs(state, path)
        weights = sum(v.numel() for v in state.values())
        return SamFile(path, weights, room_for_encoding(vision.grid, vision.width))
    weights = sum(sum(count_weights(path)) for path in weight_files(folder))
    return SamFile(folder, weights, SAMS["sam2.1-tiny"].room)


def _load_sam2(folder: Path, device: torch.device, dtype: torch.dtype) -> Sam2:
    from transformers import AutoImageProcessor, Sam2Config, Sam2Model

    from coprs_core.checkpoints.hugging_face import LOCAL, load_strictly, quietly
    from coprs_core.checkpoints.remedies import remedy
    from coprs_core.errors import Phrase
    from coprs_core.machine import as_user_error
    from coprs_core.model.backends.sam import COORDINATE_ENCODERS, Sam2

    class _Sam2Model(Sam2Model):
        _keep_in_fp32_modules_strict = COORDINATE_ENCODERS

    fault = Phrase("SAM 2 in {folder} cannot be loaded", folder=folder)
    with as_user_error(fault, remedy(folder)):
        with quietly():  # published files name the model that also follows things through videos
            config = Sam2Config.from_pretrained(folder, **LOCAL)
        model = load_strictly(_Sam2Model, folder, device, dtype, config=config)
        image_processor = AutoImageProcessor.from_pretrained(folder, **LOCAL)
    return Sam2(model.eval().requires_grad_(False), image_processor)
