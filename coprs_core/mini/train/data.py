"""Endless batches of freshly drawn scenes: what each stage needs of them, as tensors."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from coprs_core.mini.train import oracle
from coprs_core.mini.train.recipe import Recipe, Stage
from coprs_core.mini.world.kinds import KINDS
from coprs_core.mini.world.questions import Question, draw_question
from coprs_core.mini.world.scenes import SIDE, SQUARE, Scene, SceneObject, draw_scene, random_size
from coprs_core.prompts import FOCUS_TOKEN, encode_prompt
from coprs_core.training.data import to_soft_target

PREFIX_END = "<|vision_end|>"


@dataclass
class PackedQuestions:
    """K questions about each of B scenes in one row: the image prefix once, then a branch for every
    question.

    A branch attends to the prefix and itself. The k-th branches of all rows begin in the same
    column, the longest of each row first.

    Attributes:
        ids: int [B, L].
        section_lengths: of the prefix and of the branches' columns, with padding at the end of
            each.
        position_offset: int [B, L], where a token would stand if its question stood alone.
        labels: [B, L], −100 where nothing is learnt; `weights`: [B, L].
        focus: int [M, 2], (row, column) of focus tokens.
        focus_features: float32 [M, 62], the oracle's code of the objects that they stand for.
        kind_words: int [N, 2], (row, column) of the nouns in the lists of what is seen.
        kind_features: float32 [N, 62], the code of the objects that they name.
        grid: (rows, columns) of visual tokens.
    """

    ids: Tensor
    section_lengths: list[int]
    position_offset: Tensor
    labels: Tensor
    weights: Tensor
    focus: Tensor
    focus_features: Tensor
    kind_words: Tensor
    kind_features: Tensor
    grid: tuple[int, int]


@dataclass
class Batch:
    """Scenes as tensors, all of one size; each stage fills what it needs.

    Attributes:
        count: B, how many scenes.
        grid: (rows, columns) of visual tokens.
        image: uint8 [B, 3, H, W].
        pixel_values: float32 [B·patches, values], for the vision tower.
        tower_cells: float32 [B, tokens, 64]; `encoder_cells`: float32 [B, grid², 64].
        packed: the questions about every scene, a `PackedQuestions`.
        targets: (row of the batch, object to segment).
        masks: float32 [M, 1, prior side, prior side] in [0, 1], of `targets`.
    """

    count: int
    grid: tuple[int, int]
    image: Any = None
    pixel_values: Any = None
    tower_cells: Any = None
    encoder_cells: Any = None
    packed: Any = None
    targets: list[tuple[int, SceneObject]] = field(default_factory=list)
    masks: Any = None


class SceneQuestions(torch.utils.data.Dataset):
    """Item i is scene i of the training split with its questions, the same in every run of a seed;
    the scenes of a batch have one size."""

    def __init__(self, recipe: Recipe, stage: Stage, seed: int = 0):
        self.recipe, self.stage = recipe, stage
        self.name = f"{stage.name}/{seed}" if seed else stage.name
        weights = recipe.asking.weights | stage.families
        self.asking = replace(recipe.asking, weights=weights, other_verbs=stage.other_verbs)

    def __getitem__(self, index: int) -> tuple[Scene, list[Question]]:
        seed = f"{self.name} {index}"
        # the seed is the batch's number: all scenes of a batch must have one size
        rng = random.Random(f"size {self.name} {index // self.stage.scenes}")
        size = random_size(rng) if rng.random() < self.recipe.other_shapes else SQUARE
        scene = draw_scene(seed, with_image=self.stage.kind != "language", size=size)
        rng = random.Random(f"questions {seed}")
        return scene, [
            draw_question(scene, rng, None, self.asking) for _ in range(self.stage.questions)
        ]


class Collator:
    """Turns drawn scenes into a `Batch` with what the stage needs; another `seed` has other
    scenes."""

    def __init__(self, recipe: Recipe, stage: Stage, tokenizer, image_processor, seed: int = 0):
        self.recipe, self.stage, self.seed = recipe, stage, seed
        self.tokenizer, self.image_processor = tokenizer, image_processor

    def __call__(self, drawn: list[tuple[Scene, list[Question]]]) -> Batch:
        scenes, name = [s for s, _ in drawn], self.stage.kind
        rng = random.Random(str(scenes[0].seed))
        area = self.recipe.mllm_side**2
        height, width = smart_resize(*scenes[0].instance_map.shape, 28, area, area)
        batch = Batch(len(scenes), (height // 28, width // 28))
        if name != "language":
            batch.image = torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in scenes])
        if name in ("eyes", "joint"):
            batch.pixel_values = self.image_processor(
                images=list(batch.image), return_tensors="pt"
            )["pixel_values"]
        if name != "focus":
            batch.tower_cells = _stack_cell_features(scenes, batch.grid, 0.15)
        if name in ("focus", "joint"):
            grid = self.recipe.vision.grid
            batch.encoder_cells = _stack_cell_features(scenes, (grid, grid), 0.3, _pad_to_square)
        if self.stage.questions:
            batch.packed = pack_questions(self.recipe, drawn, self.tokenizer, batch.grid)
        if name == "focus":
            batch.targets = [
                (i, t)
                for i, s in enumerate(scenes)
                for t in rng.sample(s.objects, min(3, len(s.objects)))
            ]
        if name == "joint":
            batch.targets = [
                (i, s.objects[k])
                for i, (s, asked) in enumerate(drawn)
                for q in asked
                for k in q.targets
            ]
        if batch.targets:
            batch.masks = torch.stack(
                [
                    to_soft_target(scenes[i].mask(scenes[i].objects.index(t)), self.recipe.vision)
                    for i, t in batch.targets
                ]
            )
        return batch


def batches(
    collate: Collator, start: int, workers: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """A stage's batches from step `start` on, the same whatever the number of workers.

    Of `world` processes each one takes every `world`-th batch.
    """
    stage, count = collate.stage, collate.stage.scenes
    numbers = (step * world + rank for step in range(start, stage.steps))
    rows = [list(range(n * count, (n + 1) * count)) for n in numbers]
    scenes = SceneQuestions(collate.recipe, stage, collate.seed)
    return iter(DataLoader(scenes, batch_sampler=rows, collate_fn=collate, num_workers=workers))


def _stack_cell_features(
    scenes: list[Scene], grid: tuple[int, int], least: float, frame: Callable = torch.from_numpy
) -> Tensor:
    return torch.stack(
        [oracle.cell_features(frame(s.instance_map), s.objects, grid, least) for s in scenes]
    )


def _pad_to_square(picture: np.ndarray) -> Tensor:
    """A picture [H, W] in SAM's frame [256, 256]: nothing to its right and below."""
    height, width = picture.shape
    return torch.nn.functional.pad(torch.from_numpy(picture), (0, SIDE - width, 0, SIDE - height))


def pack_questions(
    recipe: Recipe,
    scenes: list[tuple[Scene, list[Question]]],
    tokenizer,
    grid: tuple[int, int],
) -> PackedQuestions:
    """Put the questions of every scene into one row (see `PackedQuestions`)."""
    image_ids = [tokenizer.convert_tokens_to_ids("<|image_pad|>")] * (grid[0] * grid[1])
    end = tokenizer.convert_tokens_to_ids(PREFIX_END)
    rows = [
        [_encode_branch(recipe, q, s, tokenizer, image_ids, end) for q in questions]
        for s, questions in scenes
    ]
    prefix = rows[0][0].prefix
    order_of_rows = [
        sorted(range(len(row)), key=lambda k, row=row: -len(row[k].ids)) for row in rows
    ]
    sizes = [[len(row[k].ids) for k in order] for row, order in zip(rows, order_of_rows)]
    parts = [len(prefix), *map(max, zip_longest(*sizes, fillvalue=0))]
    starts = list(accumulate(parts))
    ids = torch.full((len(rows), starts[-1]), tokenizer.pad_token_id)
    offset = torch.zeros_like(ids)
    labels, weights = torch.full_like(ids, -100), torch.zeros(ids.shape)
    ids[:, : parts[0]], offset[:, : parts[0]] = torch.tensor(prefix), torch.arange(parts[0])
    focus, focus_objects, listed, listed_objects = [], [], [], []
    for r, row in enumerate(rows):
        for k, b in enumerate(row):
            at = starts[order_of_rows[r].index(k)]
            span = slice(at, at + len(b.ids))
            ids[r, span] = torch.tensor(b.ids)
            offset[r, span] = parts[0] + torch.arange(len(b.ids))
            labels[r, at + b.reply_start : span.stop] = torch.tensor(b.ids[b.reply_start :])
            weights[r, at + b.reply_start : span.stop] = torch.tensor(b.weights)
            listed += [(r, at + i) for i in b.kind_words]
            listed_objects += b.listed_objects
            focus += [(r, at + i) for i in b.focus]
            focus_objects += b.targets
    return PackedQuestions(
        ids,
        parts,
        offset,
        labels,
        weights,
        torch.tensor(focus, dtype=torch.long).view(-1, 2),
        oracle.stack_object_features(focus_objects),
        torch.tensor(listed, dtype=torch.long).view(-1, 2),
        oracle.stack_object_features(listed_objects),
        grid,
    )


@dataclass
class _Branch:
    prefix: list[int]
    ids: list[int]  # from the end of the image on: instruction, reply, end of turn
    reply_start: int
    weights: list[float]
    kind_words: list[int]
    listed_objects: list[SceneObject]
    focus: list[int]
    targets: list[SceneObject]


def _encode_branch(
    recipe: Recipe,
    question: Question,
    scene: Scene,
    tokenizer,
    image_ids: list[int],
    prefix_end: int,
) -> _Branch:
    prompt = encode_prompt(tokenizer, recipe.prompt_template, question.instruction, image_ids)
    cut = prompt.index(prefix_end) + 1
    pieces = [tokenizer(p, add_special_tokens=False).input_ids for p in split_reply(question.reply)]
    pieces[-1] += [tokenizer.eos_token_id]
    levels = (recipe.list_weight, recipe.request_weight, recipe.decision_weight, recipe.list_weight)
    weights = [w for piece, w in zip(pieces, levels) for _ in piece]
    ids = prompt[cut:] + [i for piece in pieces for i in piece]
    kind_ids = {tokenizer.convert_tokens_to_ids("Ġ" + k) for k in KINDS}
    start = len(prompt) - cut
    listed = [i for i in range(start, start + len(pieces[0])) if ids[i] in kind_ids]
    focus_id = tokenizer.convert_tokens_to_ids(FOCUS_TOKEN)
    return _Branch(
        prompt[:cut],
        ids,
        start,
        weights,
        listed,
        list(scene.objects),
        [i for i in range(start, len(ids)) if ids[i] == focus_id],
        [scene.objects[i] for i in question.targets],
    )


_SECTIONS = re.compile(r"(<think>I see .*?\.)( You ask for .*?\.)( .*)(</think>.*)")


def split_reply(reply: str) -> list[str]:
    """A target reply in four: what is seen; what is asked; which one it is; the answer.

    Joined they are the reply. Raises `ValueError` for any other reply.
    """
    sections = _SECTIONS.fullmatch(reply)
    if sections is None:
        raise ValueError(f"not a target reply: {reply!r}")
    return list(sections.groups())
