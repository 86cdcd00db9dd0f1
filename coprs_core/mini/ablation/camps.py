"""The three camps on equal terms: one language model and image encoder, new segmentation heads, the
same scenes and steps.

Only how the language model tells the decoder where differs: by a focus token whose prior is drawn
(CoPRS), by the same token's hidden state as a prompt embedding (LISA), by coordinates in its text
that prompt SAM's decoder as a box (Seg-Zero). All learn by imitation: words and segmentation.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.sources import Checkpoint
from coprs_core.errors import CoPRSError
from coprs_core.mini.ablation.arms import Arm
from coprs_core.mini.train.build import build_miniature, build_processor
from coprs_core.mini.train.data import Batch, Collator
from coprs_core.mini.train.recipe import MINI_RECIPE, Recipe, Stage
from coprs_core.mini.train.run import run_stage
from coprs_core.mini.train.stages import Scaffold
from coprs_core.mini.world.questions import Question
from coprs_core.mini.world.scenes import Scene, SceneObject
from coprs_core.model.backends.coordinates import (
    QUESTION_SLOT,
    CoordinateModel,
    CoordinatePrompt,
    CoordinateSegmenter,
)
from coprs_core.model.backends.sam import Sam1
from coprs_core.model.coprs import CoPRS
from coprs_core.model.decoder import PriorDecoder
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.model.prior import mask_padding
from coprs_core.model.segmenter import Segmenter
from coprs_core.prompts import INSTRUCTION_SLOT

STAGE = Stage("joint", steps=600, scenes=12, questions=3, rate=1e-3, adam_rate=5e-4, hold=0.3)
_MAX_NEW_TOKENS = 320
_BOX_JITTER = 0.05
"""Boxes are taught a little off, by this share of their sides: written ones are, too."""


class HiddenStatePrompt(nn.Module):
    """In the prior's place: a hidden state becomes a prompt embedding of the decoder, as in LISA;
    mask logits come out, and there is no map."""

    def __init__(self, width: int, decoder: PriorDecoder):
        super().__init__()
        channels: int = decoder.prompt_encoder.embed_dim
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, channels))
        self.decoder = decoder

    def forward(self, focus_embedding: Tensor, image_embedding: Tensor, valid_size: Tensor):
        """As `PositionalPrior.forward`."""
        prompt = self.mlp(focus_embedding)[:, None]
        return mask_padding(self.decoder.decode_embedding(image_embedding, prompt), valid_size)


class _IdentityDecoder(nn.Module):
    """A decoder with nothing left to do."""

    def forward(self, mask_logits: Tensor, image_embedding: Tensor) -> Tensor:
        return mask_logits


class CampScaffold(Scaffold):
    """A miniature of one camp in training: language model and heads learn, the eyes stay as they
    are, but for an image encoder from nothing."""

    query_weight = recall_weight = 0.0  # nothing is told of the oracle

    def __init__(self, recipe: Recipe, model: Any, tokenizer: Any, arm: Arm):
        super().__init__(recipe, model, tokenizer)
        self.arm = arm

    def parts(self, stage: str) -> dict[str, nn.Module]:
        m = self.model
        parts = {"language_model": m.mllm.model.language_model, "decoder": m.decoder}
        if self.arm.camp != "coordinates":
            parts["prior"] = m.prior
        if self.arm.vision is not None:
            parts |= {"image_encoder": m.image_encoder, "encoder_reader": self.encoder_reader}
        return {name: part for name, part in parts.items() if any(True for _ in part.parameters())}

    def loss(self, stage: str, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            visual = self.visual_tokens(batch)
        is_learning_to_see = self.arm.vision is not None
        with torch.set_grad_enabled(is_learning_to_see):
            embedding = self.image_embeddings(batch)
        words, scores, focus_embedding = self.reply_loss(batch.packed, visual)
        if is_learning_to_see:
            words = words + 0.5 * self.cell_loss(embedding, batch)
        if not batch.targets:
            return words, scores
        draw = self.box_loss if self.arm.camp == "coordinates" else self.focus_loss
        segmentation, masks = draw(focus_embedding, embedding, batch)
        return words + segmentation, scores | masks

    def box_loss(
        self, _: Tensor, embedding: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        """As `focus_loss`, by the true boxes, a little off."""
        rows = torch.tensor([i for i, _ in batch.targets], device=self.device)
        boxes = torch.tensor([obj.box for _, obj in batch.targets]).float()
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = (boxes + _BOX_JITTER * sides * torch.randn_like(boxes)).to(self.device)
        logits = self.model.decoder.decode_coordinates(embedding[rows], boxes, None)
        return self.mask_loss(logits, logits, batch)


class CampCollator(Collator):
    """Batches whose replies end as the camp's do; the targets are those of the questions."""

    def __init__(self, recipe: Recipe, stage: Stage, tokenizer, image_processor, seed, arm: Arm):
        super().__init__(recipe, stage, tokenizer, image_processor, seed)
        self.arm = arm

    def __call__(self, drawn: list[tuple[Scene, list[Question]]]) -> Batch:
        if self.arm.camp == "coordinates":
            side = self.recipe.mllm_side
            drawn = [(s, [_question_with_boxes(q, s, side) for q in asked]) for s, asked in drawn]
        return super().__call__(drawn)


def _question_with_boxes(question: Question, scene: Scene, side: int) -> Question:
    """A question whose reply ends in boxes, in pixels of the picture that the language model
    sees."""
    objects = [scene.objects[i] for i in question.targets]
    return replace(question, reply=reply_with_boxes(question.reply, objects, side))


def reply_with_boxes(reply: str, objects: list[SceneObject], side: int) -> str:
    """A reply with the boxes of its targets in place of its focus tokens, as Seg-Zero writes them,
    in pixels of the picture squeezed to so many pixels a side."""
    boxes = []
    for obj in objects:
        height, width = obj.image_size
        units = (side / width, side / height) * 2
        box = [round(v * unit) for v, unit in zip(obj.box, units, strict=True)]
        boxes.append({"bbox_2d": box})
    answer = json.dumps(boxes, separators=(",", ":"))
    return f"{reply.partition('</think>')[0]}</think><answer>{answer}</answer>"


def train_camp(
    arm: Arm, start: str, folder: Path, seed: int, steps: int, device: torch.device
) -> Engine:
    """Train an arm's camp, or go on where it was left; an engine that answers by it.

    Raises `CoPRSError` where the start is not of the miniature's sizes.
    """
    options = LoadOptions(device=str(device), dtype="fp32")
    loaded = load_checkpoint(start, options)
    given = loaded.segmenter
    if (
        not isinstance(given, FocusTokenSegmenter)
        or given.model.config.vision != MINI_RECIPE.vision
    ):
        raise CoPRSError(
            f"{start} is no miniature of this repository's sizes, and the camps are compared on "
            "it: leave --model out, or give a checkpoint that `train mini` made."
        )
    vision = replace(MINI_RECIPE.vision, **(arm.vision or {}))
    recipe = replace(
        MINI_RECIPE, vision=vision, other_shapes=0.0
    )  # boxes are squeezed with the picture
    stage = replace(STAGE, steps=steps)
    tokenizer: Any = given.language.tokenizer
    processor = build_processor(recipe, tokenizer)
    model = build_miniature(recipe, tokenizer, seed)
    model.mllm.load_state_dict(given.model.mllm.state_dict())
    if arm.vision is None:
        model.image_encoder.load_state_dict(given.model.image_encoder.state_dict())
    if arm.camp == "hidden state":
        head: Any = HiddenStatePrompt(model.config.llm_width, model.decoder)
        model.prior, model.decoder = head, _IdentityDecoder()  # ty: ignore[invalid-assignment]
    torch.manual_seed(seed)
    scaffold = CampScaffold(recipe, model, tokenizer, arm).to(device)
    model.mllm.set_attn_implementation("parts")
    images = processor.image_processor
    collate = CampCollator(recipe, stage, tokenizer, images, seed + 1, arm)
    run_stage(scaffold, collate, folder, workers=0)
    model.mllm.set_attn_implementation("sdpa")
    model.eval().requires_grad_(False)
    segmenter = _segmenter(arm, model, tokenizer, images, recipe)
    return Engine(Checkpoint(arm.name, segmenter))


def _segmenter(
    arm: Arm, model: CoPRS, tokenizer: Any, image_processor: Any, recipe: Recipe
) -> Segmenter:
    """A trained camp in use."""
    if arm.camp != "coordinates":
        return FocusTokenSegmenter(model, tokenizer, image_processor)
    sam = Sam1(recipe.vision, recipe.decoder)
    sam.image_encoder, sam.decoder = model.image_encoder, model.decoder
    chat = recipe.prompt_template.replace(INSTRUCTION_SLOT, QUESTION_SLOT)
    prompt = CoordinatePrompt(
        INSTRUCTION_SLOT, square_side=recipe.mllm_side, max_new_tokens=_MAX_NEW_TOKENS
    )
    both = CoordinateModel(sam.eval().requires_grad_(False), model.mllm)
    return CoordinateSegmenter(both, tokenizer, image_processor, prompt, chat)
