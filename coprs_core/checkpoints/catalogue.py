"""What can be loaded by name: what it is, what it downloads and needs, and whether it fits here,
read live."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants

from coprs_core.checkpoints.downloads import cached_snapshot, sam_cache
from coprs_core.checkpoints.memory import memory_needed
from coprs_core.checkpoints.options import FORM, KEY, LoadOptions
from coprs_core.checkpoints.quantization import choose_quantization
from coprs_core.checkpoints.sams import SAMS, choose_sam, is_cached
from coprs_core.machine import free_memory
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR, PriorKind
from coprs_core.sizes import free_disk, in_words

if TYPE_CHECKING:
    import torch

    from coprs_core.checkpoints.source import Source
    from coprs_core.machine import DeviceName

OWN_SAM = "vit_h"
"""With which a CoPRS checkpoint is reckoned: it brings its own image encoder and decoder."""


@dataclass(frozen=True)
class Listed:
    """A model that can be loaded by name.

    Attributes:
        name, about, licence: for the table.
        repo: on Hugging Face; None where nothing of its kind is public.
        prompt: how it is asked, where it writes coordinates (a name in `model.coordinates`); empty
            for a CoPRS checkpoint.
        download: bytes, without SAM.
        linear: weights of the language model that can be quantized.
        other: all its other weights, without SAM.
    """

    name: str
    about: str
    licence: str
    repo: str | None = None
    prompt: str = ""
    download: int = 0
    linear: int = 0
    other: int = 0

    @property
    def prior_kind(self) -> PriorKind:
        return ATTENTION_PRIOR if self.prompt else FOCUS_TOKEN_PRIOR

    def source(self, folder: Path) -> Source:
        """The model in a folder where it was downloaded."""
        from coprs_core.checkpoints.source import CoordinateSource, CoPRSSource
        from coprs_core.model.backends import coordinates

        if self.prompt:
            return CoordinateSource(self.name, folder, getattr(coordinates, self.prompt))
        return CoPRSSource(self.name, folder)

    def memory_needed(self, quantization: str, sam: str, bytes_per_weight: int = 2) -> int:
        """Bytes on the device while answering; `bytes_per_weight` of what is not quantized."""
        if self.name == "mini":
            return 300_000_000
        used = SAMS[sam if self.repo else OWN_SAM]
        other = self.other + used.parameters
        return memory_needed(self.linear, other, quantization, bytes_per_weight, used.room)


_2B_QWEN3 = {"download": 4_260_000_000, "linear": 1_409_286_144, "other": 718_245_888}
_4B_QWEN3 = {"download": 8_890_000_000, "linear": 3_633_315_840, "other": 804_499_968}
_8B_QWEN3 = {"download": 17_540_000_000, "linear": 6_945_767_424, "other": 1_821_356_272}
_3B = {"download": 7_509_000_000, "linear": 2_774_532_096, "other": 980_090_880}
_7B = {"download": 16_585_000_000, "linear": 6_525_288_448, "other": 1_766_878_208}
CATALOGUE = (
    Listed("mini", "the bundled miniature: picture-book scenes only", "Apache-2.0"),
    Listed(
        "coprs",
        "a CoPRS checkpoint of yours: give its folder or hub id instead of this name",
        "its own",
        linear=_3B["linear"],
        other=_3B["other"] + 1_100_000,
    ),
    Listed(
        "qwen3-vl-2b",
        "Qwen3-VL-2B-Instruct as published: the one for a machine without a GPU",
        "Apache-2.0",
        "Qwen/Qwen3-VL-2B-Instruct",
        "QWEN3",
        **_2B_QWEN3,
    ),
    Listed(
        "qwen3-vl-4b",
        "Qwen3-VL-4B-Instruct as published",
        "Apache-2.0",
        "Qwen/Qwen3-VL-4B-Instruct",
        "QWEN3",
        **_4B_QWEN3,
    ),
    Listed(
        "qwen3-vl-8b",
        "Qwen3-VL-8B-Instruct as published",
        "Apache-2.0",
        "Qwen/Qwen3-VL-8B-Instruct",
        "QWEN3",
        **_8B_QWEN3,
    ),
    Listed(
        "egm-4b",
        "EGM: Qwen3-VL-4B, trained to think briefly",
        "Apache-2.0",
        "nvidia/EGM-4B",
        "QWEN3",
        **_4B_QWEN3,
    ),
    Listed(
        "qwen2.5-vl-3b",
        "Qwen2.5-VL-3B-Instruct as published",
        "Qwen Research (non-commercial)",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "STOCK",
        **_3B,
    ),
    Listed(
        "qwen2.5-vl-7b",
        "Qwen2.5-VL-7B-Instruct as published",
        "Apache-2.0",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "STOCK",
        **_7B,
    ),
    Listed(
        "seg-zero-7b",
        "Seg-Zero, trained to reason and point",
        "see its model card",
        "Ricky06662/Seg-Zero-7B",
        "SEG_ZERO",
        **_7B,
    ),
    Listed(
        "visionreasoner-7b",
        "VisionReasoner, several things at once",
        "see its model card",
        "Ricky06662/VisionReasoner-7B",
        "SEG_ZERO",
        **_7B,
    ),
)
NAMES = tuple(m.name for m in CATALOGUE)


@dataclass(frozen=True)
class Row:
    """A listed model on this machine. Sizes are bytes. `reason` says why it cannot be loaded as
    asked; "" if it can."""

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


def rows(device: torch.device | DeviceName, options: LoadOptions | None = None) -> list[Row]:
    """The table of models for this machine as it is now.

    `options` say how they would be loaded; a SAM file of one's own counts as vit_h.
    """
    options = options or LoadOptions()
    sam = reckoned(choose_sam(options.sam, device))
    return [_row(m, device, options.quantization, sam) for m in CATALOGUE]


def reckoned(sam: str) -> str:
    """The published SAM by which sizes are reckoned: itself, or vit_h for a file of one's own."""
    return sam if sam in SAMS else OWN_SAM


def missing_bytes(model: Listed, sam: str) -> int:
    """What is still to be downloaded of a model and its SAM, in bytes."""
    if model.repo is None:
        return 0
    language = 0 if cached_snapshot(model.repo) else model.download
    return language + (0 if is_cached(sam) else SAMS[sam].download)


def _row(model: Listed, device: torch.device | DeviceName, quantization: str, sam: str) -> Row:
    missing = missing_bytes(model, sam)
    wanted = choose_quantization(quantization, device, 2 * (model.linear + model.other))
    reason = _reason(model, device, wanted, sam, missing)
    if model.repo:
        files = f"{model.repo} + {SAMS[sam].repo or sam}"
    else:
        files = "in this repository" if model.name == "mini" else "your folder"
    return Row(
        name=model.name,
        prior=model.prior_kind,
        about=model.about,
        files=files,
        download=model.download + (SAMS[sam].download if model.repo else 0),
        memory_bf16=model.memory_needed("none", sam),
        memory_nf4=model.memory_needed("nf4", sam),
        licence=model.licence,
        cached=not missing and model.name != "coprs",
        fits=not reason,
        reason=reason,
    )


def _reason(
    model: Listed, device: torch.device | DeviceName, quantization: str, sam: str, missing: int
) -> str:
    """Why a model cannot be loaded here, with the way out; "" if it can."""
    for folder in (Path(constants.HF_HUB_CACHE), sam_cache()):
        free = free_disk(folder)
        if missing > free:
            return (
                f"needs {in_words(missing)} of disk, {in_words(free)} free: "
                "set HF_HOME and TORCH_HOME to a larger one"
            )
    needed, free = model.memory_needed(quantization, sam), free_memory(device)
    if needed <= free:
        return ""
    smaller = model.memory_needed("nf4", sam)
    quantized = f"--quantize nf4 needs {in_words(smaller)}"
    is_fit = smaller <= free and device.type in ("cpu", "cuda")
    way_out = quantized if is_fit else "choose a smaller model"
    return f"needs {in_words(needed)} of memory on {device}, {in_words(free)} free: {way_out}"


def table(listed_rows: list[Row]) -> str:
    """The rows as text for a terminal."""
    head = (
        "name",
        "prior",
        "download",
        "memory bf16 / 4-bit",
        "licence",
        "cached",
        "fits this machine",
    )
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
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, (*widths, 0), strict=True)).rstrip()
        for line in (head, *body)
    ]
    about = "\n".join(f"  {r.name:<18} {r.about} ({r.files})" for r in listed_rows)
    sam = " · ".join(f"{name} {in_words(s.download)}" for name, s in SAMS.items())
    return (
        "\n".join(lines) + f"\n\n{about}\n\nSAM (--sam, for models without a CoPRS folder): {sam}\n"
        f"On another machine: --model {FORM}, its key in {KEY}"
    )
