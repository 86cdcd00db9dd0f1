"""What a run will take, before anything is loaded: memory by part, steps, disk."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from coprs_core.checkpoints.hugging_face import weight_files
from coprs_core.checkpoints.load import find
from coprs_core.checkpoints.source import PARTS, CoPRSSource
from coprs_core.checkpoints.tensors import count_weights, open_safetensors
from coprs_core.errors import CoPRSError
from coprs_core.machine import choose_device, free_memory, process
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.sizes import free_disk, in_words
from coprs_core.training.embeddings import bytes_of
from coprs_core.training.items import items_of
from coprs_core.training.recipe import JointRecipe

ADAPTED = r".*language_model.*\.(?:[qkvo]_proj|gate_proj|up_proj|down_proj)"
"""The layers that get adapters: all linear ones of the language model."""
_NF4_BYTES = 0.5 + 4 / 64  # a weight's four bits, and float32 for every block of 64
_LEARNT_BYTES = 4 + 4 + 8  # a weight in float32, its gradient, and AdamW's two moments


@dataclass(frozen=True)
class Plan:
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
    """

    parts: dict[str, int]
    free: int
    saved: int
    disk: int
    steps: int
    replies: int
    embeddings: int = 0

    def table(self) -> str:
        """As text for a terminal."""
        total = sum(self.parts.values())
        lines = [f"{name:34} {in_words(size):>9}" for name, size in self.parts.items()]
        return "\n".join(
            [
                *lines,
                f"{'together, without activations':34} {in_words(total):>9}",
                f"{'free on the device':34} {in_words(self.free):>9}",
                f"{'embeddings of the photos, on disk':34} {in_words(self.embeddings):>9}",
                f"{'checkpoints, on disk':34} {in_words(self.saved):>9}",
                f"{'free on disk':34} {in_words(self.disk):>9}",
                f"{self.steps} steps, {self.replies:,} replies. Memory is an estimate; activations "
                "come on top.",
            ]
        )

    def check(self) -> None:
        """Raises `CoPRSError` where the run cannot fit."""
        total = sum(self.parts.values())
        if total > self.free:
            raise CoPRSError(
                f"This run needs {in_words(total)} before any activation and "
                f"{in_words(self.free)} are free: set lora=16, quantize=nf4, or take a smaller "
                "model."
            )
        written = self.saved + self.embeddings
        if written > self.disk:
            raise CoPRSError(
                f"This run writes {in_words(written)} and {in_words(self.disk)} are free on "
                "that disk: choose another --out."
            )


def plan(recipe: JointRecipe, out: Path, device: str = "auto") -> Plan:
    """The plan of a recipe; nothing is loaded but the names and shapes of the tensors.

    Raises `CoPRSError` where the model is no CoPRS checkpoint.
    """
    source, place = find(recipe.model), choose_device(device)
    if not isinstance(source, CoPRSSource):
        raise CoPRSError(
            f"{source.name} has no focus token to train: make a CoPRS checkpoint of it with "
            "`python -m coprs_core prepare`."
        )
    shapes = open_safetensors(weight_files(source.language_folder)).shapes
    counts = {name: torch.Size(shape).numel() for name, (shape, _) in shapes.items()}
    tower = sum(n for name, n in counts.items() if ".visual." in name or "visual." in name[:7])
    whole = sum(counts.values())
    layers = {n: s for n, (s, _) in shapes.items() if re.fullmatch(ADAPTED + r"\.weight", n)}
    linear = sum(counts[name] for name in layers)
    encoder, *heads = (sum(count_weights(source.folder / f"{part}.safetensors")) for part in PARTS)
    kept = 2 if place.type != "cpu" else 4
    learnt = sum(heads)
    if recipe.lora:
        adapters = sum(recipe.lora * sum(shape) for shape in layers.values())
        held = _NF4_BYTES if recipe.quantize == "nf4" else kept
        learnt += adapters
        parts = {
            "language model": int(linear * held + (whole - linear) * kept),
            "adapters, gradients, AdamW": adapters * _LEARNT_BYTES,
        }
    else:
        learnt += whole - tower
        cards = process()[1] if recipe.sharded else 1
        if recipe.sharded and cards == 1 and place.type == "cuda":
            cards = torch.cuda.device_count()  # a dry run stands for one process a card
        share = "language model, gradients, AdamW" + (f", over {cards} cards" if cards > 1 else "")
        parts = {
            share: ((whole - tower) * _LEARNT_BYTES + tower * 4) // cards,
            "its reference, for the KL": whole * 4,
        }
    parts["image encoder"] = encoder * (kept if recipe.lora else 4)
    parts["prior and decoder, AdamW"] = sum(heads) * _LEARNT_BYTES
    step = learnt * 12 + (whole * 4 if recipe.sharded else 0)  # all weights once more, by FSDP
    checkpoint = (whole + encoder + sum(heads)) * 2
    saved = 3 * step + learnt * 4 + checkpoint
    if recipe.warmup_steps:
        saved += 2 * step + learnt * 4 + checkpoint
    replies = -(-recipe.steps // recipe.iterations) * recipe.questions * recipe.objective.group
    embeddings = 0
    if recipe.data != "scenes":
        vision = CoPRSConfig.read(source.folder / "coprs.json").vision
        asked = (recipe.steps + recipe.warmup_steps) * recipe.questions
        embeddings = min(len(items_of(recipe)), asked) * bytes_of(vision)
    disk = free_disk(out)
    return Plan(parts, free_memory(place), saved, disk, recipe.steps, replies, embeddings)
