"""How a model will be loaded on a machine, and whether it fits: one `LoadPlan`, printed by `models`
and `doctor`, chosen from by `--model auto`, carried out by the loader.

Loads no torch: `models` answers at once.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from coprs_core.checkpoints.downloads import sam_cache_folder
from coprs_core.checkpoints.options import DETAIL_LEVELS, QUANTIZATIONS, LoadOptions
from coprs_core.errors import CoPRSError, Phrase, first_line, truncate
from coprs_core.machine import (
    DeviceName,
    free_memory,
    has_native_bfloat16,
    resolve_device_name,
    resolve_dtype_name,
    total_memory,
)
from coprs_core.prompts import Detail
from coprs_core.storage import GB, format_bytes, free_disk

if TYPE_CHECKING:
    import torch

BYTES_PER_LINEAR_WEIGHT = {"nf4": 0.5625, "int8": 1.01}
"""NF4 keeps 4 bits a weight and one float32 scale for 64 of them; int8 one scale a row."""
QUANTIZATION_OVERHEAD = 400_000_000
"""Bytes that a quantized model takes beside its weights: on a CPU its output layer once more, in 8
bits; elsewhere one layer at a time, dequantized to 16."""
MIN_WEIGHTS_WITH_OVERHEAD = 100_000_000
"""Linear weights from which on `QUANTIZATION_OVERHEAD` counts: a small model has none worth it."""
LIBRARY_MEMORY = 700_000_000
"""Bytes of the libraries, and of the key-value cache of a language model for photos."""


@dataclass(frozen=True)
class Machine:
    """What a plan depends on: a `device` such as "cpu" or "cuda:1", free bytes of its `memory` and
    of the `disk` that downloads go to, and whether it has instructions for bfloat16."""

    device: str
    memory: int
    disk: int
    has_bfloat16: bool = True

    @property
    def device_type(self) -> str:
        """ "cpu", "cuda" or "mps"."""
        return self.device.partition(":")[0]


def inspect_machine(device: str = "auto") -> Machine:
    """The machine as it is now; raises `CoPRSError` where it has no such device."""
    resolved = resolve_device_name(device)
    disk = min(free_disk(folder) for folder in (Path(constants.HF_HUB_CACHE), sam_cache_folder()))
    return Machine(str(resolved), free_memory(resolved), disk, has_native_bfloat16(resolved))


@dataclass(frozen=True)
class ModelSize:
    """What a model weighs.

    Attributes:
        linear: how many weights its language model's linear layers have, which can be quantized.
        other: how many all its other parts have, SAM among them.
        working: bytes that SAM and the libraries take while they work.
    """

    linear: int = 0
    other: int = 0
    working: int = 0

    def __add__(self, other: ModelSize) -> ModelSize:
        return ModelSize(
            self.linear + other.linear, self.other + other.other, self.working + other.working
        )

    @property
    def bytes_in_16bit(self) -> int:
        """Bytes of all weights in 16 bits each, by which "auto" tells large models from small."""
        return 2 * (self.linear + self.other)

    def memory_needed(self, quantization: str, bytes_per_weight: int = 2) -> int:
        """Bytes on the device while answering: the weights, and room for one answer;
        `bytes_per_weight` of what is not quantized. The only formula."""
        bytes_per_linear_weight = BYTES_PER_LINEAR_WEIGHT.get(quantization, bytes_per_weight)
        overhead = (
            QUANTIZATION_OVERHEAD
            if bytes_per_linear_weight != bytes_per_weight
            and self.linear > MIN_WEIGHTS_WITH_OVERHEAD
            else 0
        )
        weights = int(bytes_per_linear_weight * self.linear + bytes_per_weight * self.other)
        return weights + overhead + self.working


@dataclass(frozen=True)
class LoadPlan:
    """How one model will be loaded on one machine.

    Attributes:
        model: its name.
        machine: where, as it was then.
        dtype: "float32", "bfloat16" or "float16".
        quantization: "none", "nf4" or "int8".
        size: what it weighs, SAM included.
        memory: bytes that it needs on the device.
        sam: name or path of the SAM that it prompts; "" where it has its own.
        detail: how closely it sees a photo; "" where that is its own.
        download: bytes that are still to be downloaded.
        licence: of a listed model.
    """

    model: str
    machine: Machine
    dtype: str
    quantization: str
    size: ModelSize
    memory: int
    sam: str = ""
    detail: str = ""
    download: int = 0
    licence: str = ""

    @property
    def device(self) -> str:
        """As torch names it."""
        return self.machine.device

    @property
    def problem(self) -> str:
        """Why it cannot be loaded so, with the way out, as the end of a sentence; "" if it can."""
        if self.download > self.machine.disk:
            return Phrase(
                "needs {needed} of disk, {free} free: set HF_HOME and TORCH_HOME to a larger one",
                needed=format_bytes(self.download),
                free=format_bytes(self.machine.disk),
            )
        if self.memory > self.machine.memory:
            return Phrase(
                "in {precision} needs about {needed} and {device} has {free} free: {hint}",
                precision=self.dtype,
                needed=format_bytes(self.memory),
                device=self.device,
                free=format_bytes(self.machine.memory),
                hint=self._first_fitting_choice(),
            )
        return ""

    @property
    def precision(self) -> str:
        """The number formats of its weights: "bfloat16", "nf4 and bfloat16"."""
        return (
            self.dtype if self.quantization == "none" else f"{self.quantization} and {self.dtype}"
        )

    @property
    def summary(self) -> str:
        """Every choice, in words."""
        sam = f", {self.sam}" if self.sam else ""
        detail = f", detail {self.detail}" if self.detail else ""
        return f"{self.precision} on {self.device}{sam}{detail}"

    @property
    def smaller_choice_hint(self) -> Phrase:
        """What to try where memory runs out all the same."""
        return Phrase(
            "try {quantize}--sam sam2.1-tiny, --model auto, which takes what fits, or mini",
            quantize="--quantize nf4, " if self._can_be_nf4 else "",
        )

    @property
    def _can_be_nf4(self) -> bool:
        return bool(self.size.linear) and self.quantization != "nf4"

    def check(self) -> None:
        """Raises `CoPRSError` where it does not fit, before anything is loaded: a CPU that runs out
        of memory kills the process without a word."""
        if self.problem:
            raise CoPRSError("{name} {problem}.", name=self.model, problem=self.problem)

    def _first_fitting_choice(self) -> Phrase:
        """The first smaller choice that would fit."""
        choices = []
        bf16_option = " --dtype bf16" if self.dtype == "float32" else ""
        if bf16_option:
            quantize_option = (
                "" if self.quantization == "none" else f" --quantize {self.quantization}"
            )
            choices.append(
                (f"--dtype bf16{quantize_option}", self.size.memory_needed(self.quantization))
            )
        if self._can_be_nf4 and self.machine.device_type in ("cpu", "cuda"):
            choices.append((f"--quantize nf4{bf16_option}", self.size.memory_needed("nf4")))
        for choice, size in choices:
            if size <= self.machine.memory:
                return Phrase("{choice} needs {size}", choice=choice, size=format_bytes(size))
        return self.smaller_choice_hint

    def describe(self) -> Phrase:
        """What a listed model is, takes and asks for, in one line."""
        download = Phrase("downloaded")
        if self.download:
            download = Phrase("{size} to download", size=format_bytes(self.download))
        return Phrase(
            "{model} with {sam}{quantized}: {fetched}, about {memory} of memory ({licence})",
            model=self.model,
            sam=self.sam,
            quantized="" if self.quantization == "none" else f", {self.quantization}",
            fetched=download,
            memory=format_bytes(self.memory),
            licence=self.licence,
        )


def make_plan(
    model: str, size: ModelSize, options: LoadOptions, machine: Machine, **details: Any
) -> LoadPlan:
    """The plan of a model of that size, every "auto" of `options` resolved; `details` are further
    fields of it. Raises `CoPRSError` for a precision that is not known."""
    dtype = choose_dtype(options.dtype, machine, size.bytes_in_16bit)
    quantization = choose_quantization(options.quantization, machine, size.bytes_in_16bit)
    memory = size.memory_needed(quantization, 4 if dtype == "float32" else 2)
    return LoadPlan(model, machine, dtype, quantization, size, memory, **details)


# --- what "auto" stands for


def choose_dtype(dtype: str, machine: Machine, weight_bytes: int) -> str:
    """The precision of a name, as torch calls it.

    "auto" is bfloat16 on a GPU; on a CPU it is float32, but bfloat16 from 1 GB of weights on.
    """
    if dtype == "auto":
        return "float32" if machine.device_type == "cpu" and weight_bytes < GB else "bfloat16"
    return resolve_dtype_name(dtype)


def choose_sam(name: str, device_kind: str) -> str:
    """The SAM of a name; "auto" is SAM 2.1 large on a GPU, and its tiny on a CPU, where it takes a
    tenth of ViT-H's time."""
    if name != "auto":
        return name
    return "sam2.1-tiny" if device_kind == "cpu" else "sam2.1-large"


def choose_detail(detail: str, device_kind: str) -> Detail:
    """The detail of a name; "auto" is low on a CPU, where each visual token is waited for, and
    normal on a GPU. Raises `CoPRSError` for any other."""
    if detail == "auto":
        return "low" if device_kind == "cpu" else "normal"
    if detail not in DETAIL_LEVELS:
        raise CoPRSError(
            "Detail {detail!r} is not known: choose auto, {names}.",
            detail=truncate(detail, 40),
            names=", ".join(DETAIL_LEVELS),
        )
    return detail


def choose_quantization(quantization: str, machine: Machine, weight_bytes: int) -> str:
    """The quantization of a name.

    "auto" on a CPU from 1 GB of weights (16 bits each) on is nf4, which reads a word three times as
    fast there; on a CPU without bfloat16 instructions, where a layer takes twelve times as long for
    a word in nf4 as in bfloat16, and half as long in int8, it is int8. Elsewhere it is none.
    """
    if quantization != "auto":
        return quantization
    if machine.device_type != "cpu" or weight_bytes < GB:
        return "none"
    if not machine.has_bfloat16:
        return "int8"
    return "nf4" if _bitsandbytes_works() else "none"


def _bitsandbytes_works() -> bool:
    if "torch" not in sys.modules:  # to try it is to load torch, which takes seconds
        return find_spec("bitsandbytes") is not None
    try:
        check_quantization("nf4", DeviceName("cpu"))
    except CoPRSError:
        return False
    return True


def uses_own_int8(quantization: str, device: torch.device | DeviceName) -> bool:
    """Whether layers are quantized by `backends.cpu.int8`, not by bitsandbytes: its int8 is slow on
    a CPU without bfloat16 instructions."""
    return quantization == "int8" and not has_native_bfloat16(device)


def check_quantization(quantization: str, device: torch.device | DeviceName) -> None:
    """Raises `CoPRSError` where a quantization is not known or cannot work on a device."""
    if quantization not in ("auto", *QUANTIZATIONS):
        raise CoPRSError(
            "Quantization {quantization!r} is not known: choose auto, {names}.",
            quantization=quantization,
            names=", ".join(QUANTIZATIONS),
        )
    if quantization in ("auto", "none") or uses_own_int8(quantization, device):
        return
    if device.type not in ("cuda", "cpu"):
        raise CoPRSError(
            "Quantization {quantization} works on CUDA and on the CPU, not on {device}: "
            "choose --quantize none.",
            quantization=quantization,
            device=device,
        )
    # it warns of a faster kernel that is not published
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401  (its native part may be missing)
    except Exception as problem:  # a broken install raises anything at all
        raise CoPRSError(
            "bitsandbytes, which quantizes, does not work here ({reason}): choose --quantize none.",
            reason=first_line(problem),
        ) from problem


# --- memory beside the model


MAX_CACHED_PHOTOS = 8
PHOTO_CACHE_SHARE = 0.05
"""Share of a device's memory that the features of photos may take."""
ANSWER_CACHE_SHARE = 0.01
"""Share of the machine's memory that the answers of visitors' pages may take: of 16 GB, at 5 MB
each, some 30 packed answers about photos of 12 megapixels."""


def photo_cache_budget(device: torch.device) -> int:
    """Bytes that the cached features of photos may take together on a device; those of the last
    photo stay whatever they take."""
    return int(PHOTO_CACHE_SHARE * total_memory(device))


def answer_cache_budget() -> int:
    """Bytes that the answers of all visitors of a page may take together."""
    return int(ANSWER_CACHE_SHARE * total_memory(DeviceName("cpu")))


def sam_encoder_memory(grid: int, width: int) -> int:
    """Bytes that the image encoder of SAM takes while it works, for a grid of so many cells a side:
    40 maps of cells × width in float32, as measured of ViT-B and ViT-H on a CPU; and the libraries,
    where it is not tiny."""
    return 40 * 4 * width * grid**2 + (LIBRARY_MEMORY if grid >= 64 else 0)
