"""SAMs: the published ones by name, others by file or folder; where they lie, what they weigh, and
how they are loaded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coprs_core.checkpoints.downloads import (
    SAM_FILES,
    ProgressCallback,
    cached_sam_file,
    cached_snapshot,
    download_sam_file,
    download_snapshot,
    sam_file_path,
)
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import (
    LIBRARY_MEMORY,
    LoadPlan,
    Machine,
    ModelSize,
    choose_sam,
    make_plan,
    sam_encoder_memory,
)
from coprs_core.errors import CoPRSError, Phrase, truncate
from coprs_core.files import read_text
from coprs_core.model.vision import SAM_SIZES
from coprs_core.parsing import parse_json
from coprs_core.storage import expand_home

if TYPE_CHECKING:
    import torch

    from coprs_core.model.backends.sam import Sam1, Sam2

SAM_CLASSES = {
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
    "sam3_tracker": "Sam3TrackerModel",
    "sam3_tracker_video": "Sam3TrackerModel",
}
"""Class of transformers by the `model_type` of a folder's config. Published files name the model
that also follows objects through videos; what it has for that is not loaded."""
LARGEST_SAM = "vit_h"
"""The size that is assumed of a SAM which cannot be measured."""


@dataclass(frozen=True)
class PublishedSam:
    """A SAM that can be chosen by name.

    Attributes:
        size: what it weighs and takes while it works.
        download: bytes.
        repo: on Hugging Face; None for segment_anything's own files.
    """

    size: ModelSize
    download: int
    repo: str | None = None


def _sam1(name: str, weights: int) -> PublishedSam:
    vision = SAM_SIZES[name]
    size = ModelSize(other=weights, working=sam_encoder_memory(vision.grid, vision.width))
    return PublishedSam(size, SAM_FILES[name][1])


def _sam2(name: str, weights: int) -> PublishedSam:
    size = ModelSize(other=weights, working=_TRANSFORMERS_WORKING_MEMORY)
    file_bytes = 4 * (weights + _VIDEO_WEIGHTS)  # published in float32
    return PublishedSam(size, file_bytes, f"facebook/sam2.1-hiera-{name}")


_VIDEO_WEIGHTS = 7_521_777
"""Weights in each file of SAM 2.1 that follow objects from frame to frame; they are not loaded."""
_TRANSFORMERS_WORKING_MEMORY = 400_000_000 + LIBRARY_MEMORY
PUBLISHED_SAMS = {
    "sam2.1-tiny": _sam2("tiny", 31_440_721),
    "sam2.1-small": _sam2("small", 38_538_577),
    "sam2.1-base-plus": _sam2("base-plus", 73_328_401),
    "sam2.1-large": _sam2("large", 216_924_865),
    "vit_b": _sam1("vit_b", 93_735_472),
    "vit_l": _sam1("vit_l", 312_342_832),
    "vit_h": _sam1("vit_h", 641_090_608),
}


def sam_size(name: str) -> ModelSize:
    """What a SAM weighs: a published one is known, another is measured; one that cannot be read
    counts as the largest (`load_sam` says what is wrong with it)."""
    if name in PUBLISHED_SAMS:
        return PUBLISHED_SAMS[name].size
    with suppress(CoPRSError):
        return _measure_sam(expand_home(name))
    return PUBLISHED_SAMS[LARGEST_SAM].size


def remaining_sam_download(name: str) -> int:
    """What is still to be downloaded of a SAM, in bytes."""
    if name not in PUBLISHED_SAMS:
        return 0
    sam = PUBLISHED_SAMS[name]
    is_cached = cached_snapshot(sam.repo) if sam.repo else cached_sam_file(name)
    return 0 if is_cached else sam.download


def plan_with_sam(
    model: str,
    size: ModelSize,
    options: LoadOptions,
    machine: Machine,
    download: int = 0,
    **details: Any,
) -> LoadPlan:
    """The plan (see `make_plan`) of a model that prompts a SAM; `size` and `download` are without
    that SAM's."""
    sam = choose_sam(options.sam, machine.device_type)
    download += remaining_sam_download(sam)
    size += sam_size(sam)
    return make_plan(model, size, options, machine, sam=sam, download=download, **details)


def sam_weights_path(name: str) -> Path:
    """The weights of a SAM where they lie or would lie, for messages and checks."""
    published = PUBLISHED_SAMS.get(name)
    if published and published.repo:
        cached = cached_snapshot(published.repo)
        return (cached or Path(published.repo)) / "model.safetensors"
    path = sam_file_path(name)
    return path / "model.safetensors" if path.is_dir() else path


def load_sam(
    name: str, device: torch.device, dtype: torch.dtype, report: ProgressCallback | None = None
) -> Sam1 | Sam2:
    """A SAM by name, downloaded where it is not cached; or by its path: a .pth file of
    segment_anything, or a folder of transformers (see `SAM_CLASSES`).

    Every tensor has its place; raises `CoPRSError` where there is no such SAM or it is broken.
    """
    published = PUBLISHED_SAMS.get(name)
    if published and published.repo:
        return _load_transformers_folder(download_snapshot(published.repo, report), device, dtype)
    if expand_home(name).is_dir():
        return _load_transformers_folder(expand_home(name), device, dtype)
    return _load_sam1_file(download_sam_file(name, report), device, dtype)


def _measure_sam(path: Path) -> ModelSize:
    """The size of a SAM of one's own, from its file or folder."""
    from coprs_core.checkpoints.hugging_face import weight_files
    from coprs_core.checkpoints.tensors import count_parameters, infer_sam_configs, read_sam_file

    if path.is_dir():
        weights = sum(sum(count_parameters(file)) for file in weight_files(path))
        return ModelSize(other=weights, working=_TRANSFORMERS_WORKING_MEMORY)
    state = read_sam_file(path)
    vision, _ = infer_sam_configs(state, path)
    weights = sum(tensor.numel() for tensor in state.values())
    return ModelSize(other=weights, working=sam_encoder_memory(vision.grid, vision.width))


def _load_sam1_file(path: Path, device: torch.device, dtype: torch.dtype) -> Sam1:
    import torch

    from coprs_core.checkpoints.tensors import infer_sam_configs, load_sam_modules, read_sam_file
    from coprs_core.model.backends.sam import Sam1

    state = read_sam_file(path)
    vision, decoder = infer_sam_configs(state, path)
    with torch.device("meta"):
        sam = Sam1(vision, decoder)
    load_sam_modules(sam, state, path, device, dtype)
    return sam


def _load_transformers_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Sam2:
    import transformers

    from coprs_core.checkpoints.folder_checks import suggest_fix
    from coprs_core.checkpoints.hugging_face import LOCAL_ONLY, load_strictly, silence_transformers
    from coprs_core.machine import as_user_error
    from coprs_core.model.backends.sam import COORDINATE_ENCODERS, Sam2

    fault = Phrase("The SAM in {folder} cannot be loaded", folder=folder)
    with as_user_error(fault, suggest_fix(folder)):
        transformers_class: Any = getattr(transformers, SAM_CLASSES[_read_model_type(folder)])
        # named as of transformers' own module, for which alone it renames SAM 3's tensors
        attributes = {
            "__module__": transformers_class.__module__,
            "_keep_in_fp32_modules_strict": COORDINATE_ENCODERS,
        }
        model_class = type(transformers_class)(
            transformers_class.__name__, (transformers_class,), attributes
        )
        with silence_transformers():  # the config may be of the model for videos
            config = transformers_class.config_class.from_pretrained(folder, **LOCAL_ONLY)
        model = load_strictly(model_class, folder, device, dtype, config=config)
        image_processor = transformers.AutoImageProcessor.from_pretrained(folder, **LOCAL_ONLY)
    return Sam2(model.eval().requires_grad_(False), image_processor)


def _read_model_type(folder: Path) -> str:
    """The type of a SAM's folder; raises `CoPRSError` where it is none of `SAM_CLASSES`."""
    path = folder / "config.json"
    values = parse_json(read_text(path))
    found = values.get("model_type") if isinstance(values, dict) else None
    if found not in SAM_CLASSES:
        raise CoPRSError(
            "{path} is of type {found!r} and a SAM of type {names} was expected: give the folder "
            "of one, or segment_anything's .pth file.",
            path=path,
            found=truncate(found),
            names=", ".join(SAM_CLASSES),
        )
    return found
