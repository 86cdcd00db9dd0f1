"""What can be loaded by name: what it is, what it downloads and needs, and whether it fits here,
read live; `--model auto` takes the best that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from coprs_core.checkpoints.downloads import cached_snapshot
from coprs_core.checkpoints.options import API_KEY_VARIABLE, REMOTE_NAME_FORMAT, LoadOptions
from coprs_core.checkpoints.plan import (
    LoadPlan,
    Machine,
    ModelSize,
    choose_detail,
    choose_sam,
    inspect_machine,
    make_plan,
    sam_encoder_memory,
)
from coprs_core.checkpoints.sam_models import LARGEST_SAM, PUBLISHED_SAMS, plan_with_sam
from coprs_core.errors import CoPRSError
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR, PriorKind
from coprs_core.storage import format_bytes

if TYPE_CHECKING:
    from coprs_core.checkpoints.sources import ModelSource

GPU_CANDIDATES = ("qwen3-vl-8b", "qwen3-vl-4b", "qwen3-vl-2b")
"""What "auto" chooses among, all under a licence that is fit for everyone, Apache-2.0."""
CPU_CANDIDATES = ("qwen3-vl-2b",)
"""A larger one would keep a person waiting for minutes."""
FALLBACK_SAMS = ("sam2.1-base-plus", "sam2.1-tiny")


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that can be loaded by name.

    Attributes:
        name, about, licence: for the table.
        repo: on Hugging Face; None where nothing of its kind is public.
        prompt: how it is asked, where it writes coordinates (a name in
            `model.backends.coordinates`); empty for a CoPRS checkpoint.
        download: bytes, without SAM.
        size: what it weighs, with its own image encoder where it has one, without SAM.
    """

    name: str
    about: str
    licence: str
    repo: str | None = None
    prompt: str = ""
    download: int = 0
    size: ModelSize = ModelSize()

    @property
    def prior_kind(self) -> PriorKind:
        return ATTENTION_PRIOR if self.prompt else FOCUS_TOKEN_PRIOR

    def to_source(self, folder: Path) -> ModelSource:
        """The model in a folder where it was downloaded."""
        from coprs_core.checkpoints.sources import CoordinateSource, CoPRSSource
        from coprs_core.model.backends import coordinates

        if self.prompt:
            return CoordinateSource(self.name, folder, getattr(coordinates, self.prompt))
        return CoPRSSource(self.name, folder)

    def plan(self, options: LoadOptions, machine: Machine) -> LoadPlan:
        """How it would be loaded, as its source plans it when it is here."""
        if not self.prompt:
            return make_plan(self.name, self.size, options, machine, licence=self.licence)
        return plan_with_sam(
            self.name,
            self.size,
            options,
            machine,
            download=0 if self.repo and cached_snapshot(self.repo) else self.download,
            detail=choose_detail(options.detail, machine.device_type),
            licence=self.licence,
        )


_QWEN3_2B = {"download": 4_260_000_000, "size": ModelSize(1_409_286_144, 718_245_888)}
_QWEN3_4B = {"download": 8_890_000_000, "size": ModelSize(3_633_315_840, 804_499_968)}
_QWEN3_8B = {"download": 17_540_000_000, "size": ModelSize(6_945_767_424, 1_821_356_272)}
_QWEN2_5_3B = {"download": 7_509_000_000, "size": ModelSize(2_774_532_096, 980_090_880)}
_QWEN2_5_7B = {"download": 16_585_000_000, "size": ModelSize(6_525_288_448, 1_766_878_208)}
CATALOGUE = (
    CatalogueEntry(
        "mini",
        "the bundled miniature: picture-book scenes only",
        "Apache-2.0",
        size=ModelSize(2_727_936, 3_151_165, sam_encoder_memory(20, 128)),
    ),
    CatalogueEntry(
        "coprs",
        "a CoPRS checkpoint of yours: give its folder or hub id instead of this name",
        "its own",
        size=_QWEN2_5_3B["size"] + ModelSize(other=1_100_000) + PUBLISHED_SAMS[LARGEST_SAM].size,
    ),
    CatalogueEntry(
        "qwen3-vl-2b",
        "Qwen3-VL-2B-Instruct as published: the one for a machine without a GPU",
        "Apache-2.0",
        "Qwen/Qwen3-VL-2B-Instruct",
        "QWEN3_PROMPT",
        **_QWEN3_2B,
    ),
    CatalogueEntry(
        "qwen3-vl-4b",
        "Qwen3-VL-4B-Instruct as published",
        "Apache-2.0",
        "Qwen/Qwen3-VL-4B-Instruct",
        "QWEN3_PROMPT",
        **_QWEN3_4B,
    ),
    CatalogueEntry(
        "qwen3-vl-8b",
        "Qwen3-VL-8B-Instruct as published",
        "Apache-2.0",
        "Qwen/Qwen3-VL-8B-Instruct",
        "QWEN3_PROMPT",
        **_QWEN3_8B,
    ),
    CatalogueEntry(
        "egm-4b",
        "EGM: Qwen3-VL-4B, trained to think briefly",
        "Apache-2.0",
        "nvidia/EGM-4B",
        "QWEN3_PROMPT",
        **_QWEN3_4B,
    ),
    CatalogueEntry(
        "qwen2.5-vl-3b",
        "Qwen2.5-VL-3B-Instruct as published",
        "Qwen Research (non-commercial)",
        "Qwen/Qwen2.5-VL-3B-Instruct",
        "QWEN2_5_PROMPT",
        **_QWEN2_5_3B,
    ),
    CatalogueEntry(
        "qwen2.5-vl-7b",
        "Qwen2.5-VL-7B-Instruct as published",
        "Apache-2.0",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "QWEN2_5_PROMPT",
        **_QWEN2_5_7B,
    ),
    CatalogueEntry(
        "seg-zero-7b",
        "Seg-Zero, trained to reason and point",
        "see its model card",
        "Ricky06662/Seg-Zero-7B",
        "SEG_ZERO_PROMPT",
        **_QWEN2_5_7B,
    ),
    CatalogueEntry(
        "visionreasoner-7b",
        "VisionReasoner, several things at once",
        "see its model card",
        "Ricky06662/VisionReasoner-7B",
        "SEG_ZERO_PROMPT",
        **_QWEN2_5_7B,
    ),
)
MODEL_NAMES = tuple(m.name for m in CATALOGUE)


def find_in_catalogue(name: str) -> CatalogueEntry | None:
    """The listed model of a name or of a Hugging Face repository."""
    return next((m for m in CATALOGUE if name in (m.name, m.repo)), None)


def choose_model(machine: Machine, options: LoadOptions | None = None) -> LoadPlan:
    """`--model auto`: the plan of the best listed model for photos that fits: the largest, first in
    16 bits, then in 4; on a CPU the smallest, in 4 bits, or in 8 where the CPU is slow in 4. A SAM
    or a quantization that `options` name is kept.

    Raises `CoPRSError` where none fits, with what is missing.
    """
    plans = _candidate_plans(machine, options or LoadOptions())
    for plan in plans:
        if not plan.problem:
            return plan
    smallest = plans[-1]
    raise CoPRSError(
        "No listed model for photos fits: {model} needs {memory} of memory on {device} "
        "and {download} of disk, and {free_memory} and {free_disk} are free: close other "
        "programs, make room, or stay with mini.",
        model=smallest.model,
        memory=format_bytes(smallest.memory),
        device=machine.device,
        download=format_bytes(smallest.download),
        free_memory=format_bytes(machine.memory),
        free_disk=format_bytes(machine.disk),
    )


def _candidate_plans(machine: Machine, options: LoadOptions) -> list[LoadPlan]:
    """Everything that "auto" may choose on such a machine, the best first."""
    is_cpu = machine.device_type == "cpu"
    preferred_sam = choose_sam(options.sam, machine.device_type)
    sams = [preferred_sam, *(FALLBACK_SAMS if options.sam == "auto" and not is_cpu else ())]
    quantizations = ("none", "nf4") if machine.device_type in ("cpu", "cuda") else ("none",)
    if is_cpu:
        quantizations = ("nf4",) if machine.has_bfloat16 else ("int8", "nf4")
    if options.quantization != "auto":
        quantizations = (options.quantization,)
    models = [
        m
        for name in (CPU_CANDIDATES if is_cpu else GPU_CANDIDATES)
        if (m := find_in_catalogue(name))
    ]
    return [
        model.plan(replace(options, quantization=quantization, sam=sam), machine)
        for model in models
        for quantization in quantizations
        for sam in sams
    ]


# --- the table


@dataclass(frozen=True)
class ModelRow:
    """A listed model on this machine. Sizes are bytes. `reason` says why it cannot be loaded as
    asked; "" if it can. `plan`: how it would be loaded."""

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
    plan: LoadPlan


def list_models(options: LoadOptions | None = None) -> list[ModelRow]:
    """The table of models for this machine as it is now, as `options` would load them."""
    options = options or LoadOptions()
    machine = inspect_machine(options.device)
    return [_make_row(m, m.plan(options, machine)) for m in CATALOGUE]


def _make_row(model: CatalogueEntry, plan: LoadPlan) -> ModelRow:
    sam = PUBLISHED_SAMS.get(plan.sam)
    if model.repo:
        files = f"{model.repo} + {(sam and sam.repo) or plan.sam}"
    else:
        files = "in this repository" if model.name == "mini" else "your folder"
    return ModelRow(
        name=model.name,
        prior=model.prior_kind,
        about=model.about,
        files=files,
        download=model.download + (sam.download if sam else 0),
        memory_bf16=plan.size.memory_needed("none"),
        memory_nf4=plan.size.memory_needed("nf4"),
        licence=model.licence,
        cached=not plan.download and model.name != "coprs",
        fits=not plan.problem,
        reason=plan.problem,
        plan=plan,
    )


def _describe_fit(row: ModelRow) -> str:
    if row.reason:
        return f"no: {row.reason}"
    return f"yes, about {format_bytes(row.plan.memory)} in {row.plan.precision}"


def format_table(rows: list[ModelRow]) -> str:
    """The rows as text for a terminal."""
    header = (
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
            format_bytes(r.download) if r.download else "–",
            f"{format_bytes(r.memory_bf16)} / {format_bytes(r.memory_nf4)}",
            r.licence,
            "yes" if r.cached else "no" if r.download else "–",
            _describe_fit(r),
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header) - 1)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(line, (*widths, 0), strict=True)).rstrip()
        for line in (header, *body)
    ]
    about = "\n".join(f"  {r.name:<18} {r.about} ({r.files})" for r in rows)
    sam = " · ".join(f"{name} {format_bytes(s.download)}" for name, s in PUBLISHED_SAMS.items())
    return (
        "\n".join(lines) + f"\n\n{about}\n\nSAM (--sam, for models without a CoPRS folder): {sam}\n"
        f"On another machine: --model {REMOTE_NAME_FORMAT}, its key in {API_KEY_VARIABLE}"
    )
