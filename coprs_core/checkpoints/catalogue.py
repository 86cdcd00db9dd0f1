"""What can be loaded by name: what it is, what it downloads and needs, and whether it fits this machine, read live."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants

from coprs_core.coordinates import SEG_ZERO, STOCK, Dialect
from coprs_core.checkpoints.downloads import SAM_FILES, cached_sam, cached_snapshot, sam_cache
from coprs_core.machine import free_disk, free_memory, in_words
from coprs_core.answer.results import COORDINATES_PRIOR, FOCUS_TOKEN_PRIOR

BYTES_PER_LINEAR_WEIGHT = {"nf4": 0.5625, "int8": 1.01}
"""NF4 keeps 4 bits a weight and one float32 scale for 64 of them; int8 one scale a row."""
SAM_PARAMETERS = {"vit_b": 93_735_472, "vit_l": 312_342_832, "vit_h": 641_090_608}


@dataclass(frozen=True)
class Listed:
    """A model that can be loaded by name.

    `linear` weights of the language model can be quantised, `other` weights of the whole model (without SAM) cannot.
    `download` is in bytes, without SAM. `repo` is None where nothing of its kind is public.
    """

    name: str
    prior: str
    about: str
    licence: str
    repo: str | None = None
    dialect: Dialect | None = None
    download: int = 0
    linear: int = 0
    other: int = 0


_3B = dict(download=7_509_000_000, linear=2_774_532_096, other=980_090_880)
_7B = dict(download=16_585_000_000, linear=6_525_288_448, other=1_766_878_208)
CATALOGUE = (
    Listed("mini", FOCUS_TOKEN_PRIOR, "the bundled miniature: picture-book scenes only", "Apache-2.0"),
    Listed("coprs", FOCUS_TOKEN_PRIOR, "a CoPRS checkpoint of yours: give its folder or hub id instead of this name",
           "its own", linear=_3B["linear"], other=_3B["other"] + 1_100_000),
    Listed("qwen2.5-vl-3b", COORDINATES_PRIOR, "Qwen2.5-VL-3B-Instruct as published", "Qwen Research (non-commercial)",
           "Qwen/Qwen2.5-VL-3B-Instruct", STOCK, **_3B),
    Listed("qwen2.5-vl-7b", COORDINATES_PRIOR, "Qwen2.5-VL-7B-Instruct as published", "Apache-2.0",
           "Qwen/Qwen2.5-VL-7B-Instruct", STOCK, **_7B),
    Listed("seg-zero-7b", COORDINATES_PRIOR, "Seg-Zero, trained to reason and point", "see its model card",
           "Ricky06662/Seg-Zero-7B", SEG_ZERO, **_7B),
    Listed("visionreasoner-7b", COORDINATES_PRIOR, "VisionReasoner, several things at once", "see its model card",
           "Ricky06662/VisionReasoner-7B", SEG_ZERO, **_7B),
)  # fmt: skip
NAMES = tuple(m.name for m in CATALOGUE)


@dataclass(frozen=True)
class Row:
    """A listed model on this machine. Sizes are bytes. `reason` says why it cannot be loaded as asked; "" if it can."""

    name: str
    prior: str
    about: str
    files: str
    download: int
    memory_bf16: int
    memory_nf4: int
    licence: str
    cached: bool
    fits: bool
    reason: str


def listed(name: str) -> Listed | None:
    """The listed model of a name or of a Hugging Face repository."""
    return next((m for m in CATALOGUE if name in (m.name, m.repo)), None)


def memory_needed(model: Listed, quantization: str, sam: str, bytes_per_weight: int = 2) -> int:
    """Bytes on the device while answering: weights, and room for one answer."""
    if model.name == "mini":
        return 300_000_000
    linear = BYTES_PER_LINEAR_WEIGHT.get(quantization, bytes_per_weight) * model.linear
    return int(linear + bytes_per_weight * (model.other + SAM_PARAMETERS[sam])) + working_memory(64, 16)


def working_memory(grid: int, heads: int) -> int:
    """Room for one answer beside the weights: SAM's global attention (three maps of heads × cells² in two bytes), the
    language model's cache, and what the libraries hold."""
    return 3 * 2 * heads * grid**4 + 700_000_000 * (grid >= 64)


def rows(device: torch.device, quantization: str = "none", sam: str = "vit_h") -> list[Row]:
    """The table of models for this machine as it is now."""
    return [_row(m, device, quantization, sam) for m in CATALOGUE]


def _row(model: Listed, device: torch.device, quantization: str, sam: str) -> Row:
    sam_name, sam_bytes = SAM_FILES[sam]
    have_llm = model.repo is None or cached_snapshot(model.repo) is not None
    have_sam = model.repo is None or cached_sam(sam) is not None
    missing = (0 if have_llm else model.download) + (0 if have_sam else sam_bytes)
    bf16, nf4 = (memory_needed(model, q, sam) for q in ("none", "nf4"))
    reason = _reason(model, device, quantization, sam, missing)
    files = (
        f"{model.repo} + {sam_name}" if model.repo else "in this repository" if model.name == "mini" else "your folder"
    )
    return Row(
        model.name, model.prior, model.about, files, model.download + (sam_bytes if model.repo else 0), bf16, nf4,
        model.licence, have_llm and have_sam and model.name != "coprs", not reason, reason,
    )  # fmt: skip


def _reason(model: Listed, device: torch.device, quantization: str, sam: str, missing: int) -> str:
    """Why a model cannot be loaded here, with the way out; "" if it can."""
    for folder in (Path(constants.HF_HUB_CACHE), sam_cache()):
        if missing > free_disk(folder):
            return f"needs {in_words(missing)} of disk, {in_words(free_disk(folder))} free: set HF_HOME and TORCH_HOME to a larger one"
    needed, free = memory_needed(model, quantization, sam), free_memory(device)
    if needed <= free:
        return ""
    smaller = memory_needed(model, "nf4", sam)
    way_out = f"--quantize nf4 needs {in_words(smaller)}" if smaller <= free else "choose a smaller model"
    return f"needs {in_words(needed)} of memory on {device}, {in_words(free)} free: {way_out}"


def table(listed_rows: list[Row]) -> str:
    """The rows as text for a terminal."""
    head = ("name", "prior", "download", "GPU memory bf16 / 4-bit", "licence", "cached", "fits this machine")
    body = [
        (
            r.name,
            r.prior,
            in_words(r.download) if r.download else "–",
            f"{in_words(r.memory_bf16)} / {in_words(r.memory_nf4)}",
            r.licence,
            "yes" if r.cached else "no" if r.download else "–",
            "yes" if r.fits else f"no: {r.reason}",
        )
        for r in listed_rows
    ]
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head) - 1)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, (*widths, 0), strict=True)).rstrip() for line in (head, *body)]
    about = "\n".join(f"  {r.name:<18} {r.about} ({r.files})" for r in listed_rows)
    sam = " · ".join(f"{name} {file} {in_words(size)}" for name, (file, size) in SAM_FILES.items())
    return "\n".join(lines) + f"\n\n{about}\n\nSAM (--sam, for models without a CoPRS folder): {sam}"
