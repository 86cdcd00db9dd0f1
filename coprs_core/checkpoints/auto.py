"""`--model auto`: the best listed model for photos that fits this machine."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import constants

from coprs_core.checkpoints.catalogue import Listed, listed, missing_bytes, reckoned
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.sams import choose_sam
from coprs_core.errors import CoPRSError, Phrase
from coprs_core.machine import DTYPES, computes_in_bfloat16, free_memory
from coprs_core.sizes import free_disk, in_words

BEST_FIRST = ("qwen3-vl-8b", "qwen3-vl-4b", "qwen3-vl-2b")
"""Models under a licence that is fit for everyone, Apache-2.0."""
ON_A_CPU = ("qwen3-vl-2b",)
"""A larger one would keep a person waiting for minutes."""
SMALLER_SAMS = ("sam2.1-base-plus", "sam2.1-tiny")


@dataclass(frozen=True)
class Machine:
    """What a choice depends on: `device` ("cpu", "cuda" or "mps"), free bytes of its `memory` and
    of the `disk`, and whether it has instructions for bfloat16 (4 bits are slow on a CPU without).
    """

    device: str
    memory: int
    disk: int
    has_bfloat16: bool = True


@dataclass(frozen=True)
class Choice:
    """A model with the SAM and the quantization it is loaded with on a kind of device; `download`
    and `memory` in bytes."""

    model: Listed
    sam: str
    quantization: str
    download: int
    memory: int
    device: str

    def loading(self, options: LoadOptions) -> LoadOptions:
        """The options with which it is loaded; device and precision are those given."""
        return replace(options, sam=self.sam, quantization=self.quantization)

    def in_words(self) -> Phrase:
        """What it is, takes and asks for, in one line."""
        fetched = Phrase("downloaded")
        if self.download:
            fetched = Phrase("{size} to download", size=in_words(self.download))
        return Phrase(
            "{model} with {sam}{quantized}: {fetched}, about {memory} of memory ({licence})",
            model=self.model.name,
            sam=self.sam,
            quantized="" if self.quantization == "none" else f", {self.quantization}",
            fetched=fetched,
            memory=in_words(self.memory),
            licence=self.model.licence,
        )

    def __str__(self) -> str:
        return str(self.in_words())


def this_machine(device: torch.device) -> Machine:
    """The machine as it is now."""
    disk = free_disk(Path(constants.HF_HUB_CACHE))
    return Machine(device.type, free_memory(device), disk, computes_in_bfloat16(device))


def choose(machine: Machine, options: LoadOptions | None = None) -> Choice:
    """The best listed model that fits: the largest, first in 16 bits, then in 4; on a CPU the
    smallest, in 4 bits, or in 8 where the CPU is slow in 4. A SAM or a quantization that `options`
    name is kept.

    Raises `CoPRSError` where none fits, with what is missing.
    """
    options = options or LoadOptions()
    choices = _choices(machine, options)
    for choice in choices:
        if choice.memory <= machine.memory and choice.download <= machine.disk:
            return choice
    least = choices[-1]
    raise CoPRSError(
        "No listed model for photos fits: {model} needs {memory} of memory on {device} "
        "and {download} of disk, and {free_memory} and {free_disk} are free: close other "
        "programs, make room, or stay with mini.",
        model=least.model.name,
        memory=in_words(least.memory),
        device=machine.device,
        download=in_words(least.download),
        free_memory=in_words(machine.memory),
        free_disk=in_words(machine.disk),
    )


def _choices(machine: Machine, options: LoadOptions) -> list[Choice]:
    """Everything that may be chosen on such a machine, the best first."""
    is_cpu = machine.device == "cpu"
    preferred = choose_sam(options.sam, torch.device(machine.device))
    sams = [preferred, *(SMALLER_SAMS if options.sam == "auto" and not is_cpu else ())]
    can_quantize = machine.device in ("cpu", "cuda")
    quantizations = ("none", "nf4") if can_quantize else ("none",)
    if is_cpu:
        quantizations = ("nf4",) if machine.has_bfloat16 else ("int8", "nf4")
    if options.quantization != "auto":
        quantizations = (options.quantization,)
    whole = 4 if DTYPES.get(options.dtype) == "float32" else 2
    models = [m for name in (ON_A_CPU if is_cpu else BEST_FIRST) if (m := listed(name))]
    return [
        Choice(
            model,
            sam,
            quantization,
            missing_bytes(model, reckoned(sam)),
            model.memory_needed(quantization, reckoned(sam), whole),
            machine.device,
        )
        for model in models
        for quantization in quantizations
        for sam in sams
    ]
