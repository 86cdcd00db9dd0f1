"""Estimate what a run needs before anything is loaded: memory by part, steps, disk."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from coprs_core.checkpoints.adapters import AdapterSource
from coprs_core.checkpoints.hugging_face import weight_files
from coprs_core.checkpoints.load import find_source
from coprs_core.checkpoints.sources import CHECKPOINT_PARTS, CoPRSSource, ModelSource
from coprs_core.checkpoints.tensors import count_parameters, open_safetensors
from coprs_core.errors import CoPRSError
from coprs_core.machine import choose_device, free_memory, rank_and_world_size
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.storage import format_bytes, free_disk
from coprs_core.training.data import open_training_data
from coprs_core.training.embedding_cache import embedding_bytes
from coprs_core.training.recipe import JointRecipe

ADAPTED_LAYERS = r".*language_model.*\.(?:[qkvo]_proj|gate_proj|up_proj|down_proj)"
"""The layers that get adapters: all linear ones of the language model."""
_NF4_BYTES = 0.5 + 4 / 64  # a weight's four bits, and float32 for every block of 64
_TRAINED_BYTES = 4 + 4 + 8  # a weight in float32, its gradient, and AdamW's two moments


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will take.

    Attributes:
        parts: name → bytes of memory; an estimate from the sizes of the tensors. Activations are
            not among them: they depend on photos and replies.
        free: bytes of memory that are free on the device now.
        saved: bytes on disk at most: three saved steps (the oldest goes when a new one is written),
            what was learnt, and the checkpoint; of a warm-up what it leaves.
        disk: bytes that are free there.
        steps, replies: of the whole run.
        embeddings: bytes on disk at most for SAM's embeddings of its photos, where those come
            again: several items may be about one photo.
        alternatives: what takes less memory → bytes of it before any activation.
    """

    parts: dict[str, int]
    free: int
    saved: int
    disk: int
    steps: int
    replies: int
    embeddings: int = 0
    alternatives: dict[str, int] = field(default_factory=dict)

    def to_text(self) -> str:
        """As text for a terminal."""
        total = sum(self.parts.values())
        lines = [f"{name:34} {format_bytes(size):>9}" for name, size in self.parts.items()]
        return "\n".join(
            [
                *lines,
                f"{'together, without activations':34} {format_bytes(total):>9}",
                f"{'free on the device':34} {format_bytes(self.free):>9}",
                f"{'embeddings of the photos, on disk':34} {format_bytes(self.embeddings):>9}",
                f"{'checkpoints, on disk':34} {format_bytes(self.saved):>9}",
                f"{'free on disk':34} {format_bytes(self.disk):>9}",
                f"{self.steps} steps, {self.replies:,} replies. Memory is an estimate; activations "
                "come on top.",
            ]
        )

    def check(self) -> None:
        """Raises `CoPRSError` where the run cannot fit."""
        total = sum(self.parts.values())
        if total > self.free:
            fitting = [
                f"set {way} ({format_bytes(n)})"
                for way, n in self.alternatives.items()
                if n < self.free
            ]
            raise CoPRSError(
                f"This run needs {format_bytes(total)} before any activation and "
                f"{format_bytes(self.free)} are free: "
                f"{' or '.join([*fitting, 'take a smaller model'])}."
            )
        written = self.saved + self.embeddings
        if written > self.disk:
            raise CoPRSError(
                f"This run writes {format_bytes(written)} and {format_bytes(self.disk)} are free "
                "on that disk: choose another --out."
            )


@dataclass(frozen=True)
class _WeightCounts:
    """How many weights a checkpoint has, by part: `linear` are those of the layers that get
    adapters, `per_rank` those of adapters of rank 1. `frozen_bytes`: of one weight that is not
    trained; `num_devices`: over how many the language model is spread."""

    whole: int
    tower: int
    linear: int
    per_rank: int
    encoder: int
    heads: int
    frozen_bytes: int
    num_devices: int

    def parts(self, recipe: JointRecipe) -> dict[str, int]:
        """Name → bytes of memory."""
        if recipe.lora:
            held = _NF4_BYTES if recipe.quantize == "nf4" else self.frozen_bytes
            rest = (self.whole - self.linear) * self.frozen_bytes
            parts = {
                "language model": int(self.linear * held + rest),
                "adapters, gradients, AdamW": recipe.lora * self.per_rank * _TRAINED_BYTES,
            }
        else:
            over = f", over {self.num_devices} cards" if self.num_devices > 1 else ""
            learning = (self.whole - self.tower) * _TRAINED_BYTES + self.tower * 4
            parts = {f"language model, gradients, AdamW{over}": learning // self.num_devices}
            if recipe.steps and recipe.objective.kl:
                parts[f"its reference, for the KL{over}"] = self.whole * 4 // self.num_devices
        parts["image encoder"] = self.encoder * (self.frozen_bytes if recipe.lora else 4)
        return parts | {"prior and decoder, AdamW": self.heads * _TRAINED_BYTES}

    def alternatives(self, recipe: JointRecipe) -> dict[str, int]:
        """What is to be set → bytes of memory, where that may be fewer."""
        if recipe.vllm or recipe.quantize == "nf4":
            return {}
        ways = ["quantize=nf4"] if recipe.lora else ["lora=16", "quantize=nf4"]
        ways += ["sharded=false"] if recipe.sharded else []
        other = replace(recipe, lora=recipe.lora or 16, quantize="nf4", sharded=False)
        return {" and ".join(ways): sum(self.parts(other).values())}


def _count_weights(recipe: JointRecipe, source: CoPRSSource, place: torch.device) -> _WeightCounts:
    """Read off the names and shapes of the tensors."""
    shapes = open_safetensors(weight_files(source.language_folder)).shapes
    counts = {name: torch.Size(shape).numel() for name, (shape, _) in shapes.items()}
    layers = {n: s for n, (s, _) in shapes.items() if re.fullmatch(ADAPTED_LAYERS + r"\.weight", n)}
    encoder, *heads = (
        sum(count_parameters(source.folder / f"{part}.safetensors")) for part in CHECKPOINT_PARTS
    )
    cards = rank_and_world_size()[1] if recipe.sharded else 1
    if recipe.sharded and cards == 1 and place.type == "cuda":
        cards = torch.cuda.device_count()  # a dry run stands for one process a card
    return _WeightCounts(
        whole=sum(counts.values()),
        tower=sum(n for name, n in counts.items() if ".visual." in name or "visual." in name[:7]),
        linear=sum(counts[name] for name in layers),
        per_rank=sum(sum(shape) for shape in layers.values()),
        encoder=encoder,
        heads=sum(heads),
        frozen_bytes=2 if place.type != "cpu" else 4,
        num_devices=cards,
    )


def find_full_checkpoint(name: str) -> ModelSource:
    """The model that a run begins with, by name; raises `CoPRSError` where it is adapters."""
    source = find_source(name)
    if isinstance(source, AdapterSource):
        raise CoPRSError(
            f"{name} are adapters: train from a full checkpoint, made of them with "
            f"`coprs convert {name} --out DIR`."
        )
    return source


def plan_training(recipe: JointRecipe, out: Path, device: str = "auto") -> TrainingPlan:
    """The plan of a recipe; nothing is loaded but the names and shapes of the tensors.

    Raises `CoPRSError` where the model is no CoPRS checkpoint.
    """
    source, place = find_full_checkpoint(recipe.model), choose_device(device)
    if not isinstance(source, CoPRSSource):
        raise CoPRSError(
            f"{source.name} has no focus token to train: make a CoPRS checkpoint of it with "
            "`coprs prepare`."
        )
    sizes = _count_weights(recipe, source, place)
    language = recipe.lora * sizes.per_rank if recipe.lora else sizes.whole - sizes.tower
    num_trained = sizes.heads + language
    gathered = sizes.whole * 4 if recipe.sharded else 0  # all weights once more, by FSDP
    step = num_trained * 12 + gathered
    checkpoint = (sizes.whole + sizes.encoder + sizes.heads) * 2
    saved = 3 * step + num_trained * 4 + checkpoint
    if recipe.warmup_steps:
        saved += 2 * step + num_trained * 4 + checkpoint
    replies = -(-recipe.steps // recipe.iterations) * recipe.questions * recipe.objective.group
    embeddings = 0
    if recipe.data != "scenes":
        vision = CoPRSConfig.from_file(source.folder / "coprs.json").vision
        num_questions = (recipe.steps + recipe.warmup_steps) * recipe.questions
        embeddings = min(len(open_training_data(recipe)), num_questions) * embedding_bytes(vision)
    return TrainingPlan(
        parts=sizes.parts(recipe),
        free=free_memory(place),
        saved=saved,
        disk=free_disk(out),
        steps=recipe.steps,
        replies=replies,
        embeddings=embeddings,
        alternatives=sizes.alternatives(recipe),
    )
