"""The other kind of model, whole: one that writes boxes and points instead of a focus token.

Its prior is where the words that wrote a box looked: the language model's own attention. SAM as
published, prompted by the same boxes and points, draws the masks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from coprs_core.geometry import to_square
from coprs_core.model.backends.attention import as_prior
from coprs_core.model.backends.boxes import THOUSANDTHS, Answer, read_answer, words_of_numbers
from coprs_core.model.backends.language import LanguageModel
from coprs_core.model.backends.mllm import Mllm, Reading
from coprs_core.model.backends.sam import PromptedSam
from coprs_core.model.segmenter import Located, PhotoFeatures, Place, Step, Transcript
from coprs_core.photos.photo import Photo
from coprs_core.prompts import (
    ATTENTION_PRIOR,
    FOUND,
    IMAGE_SLOT,
    INSTRUCTION_SLOT,
    NOTHING_FOUND,
    UNFINISHED,
    Detail,
    PriorKind,
)

QUESTION_SLOT = "{question}"
_QUESTION = (
    "Find what the instruction at the end means in the picture.\n"
    "First think, in one or two short sentences between <think> and </think>: which things could "
    "be meant, which fits, and why. "
)
_INSTRUCTION = f"\nInstruction: {INSTRUCTION_SLOT}"
"""It stands last, so that all before it is the same for every question and read once a photo."""
_PIXELS = (
    f"{_QUESTION}"
    "Then write, between <answer> and </answer>, a JSON list of all that fits, with box and a "
    'point inside it in pixels, such as [{"bbox_2d": [10, 100, 200, 210], "point_2d": [30, 110]}], '
    f"or [] if nothing fits.{_INSTRUCTION}"
)
_THOUSANDTHS = (
    f"{_QUESTION}"
    "Then write a JSON list of all that fits, in thousandths of width and height, such as "
    f'[{{"bbox_2d": [110, 320, 540, 900], "label": "dog"}}], or [] if nothing fits.{_INSTRUCTION}'
)
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<|vision_start|>{IMAGE_SLOT}<|vision_end|>{QUESTION_SLOT}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""How Qwen2.5-VL is spoken to, for a folder that brings no chat template."""


@dataclass(frozen=True)
class CoordinatePrompt:
    """How a family of models is asked, and what it is shown.

    Attributes:
        question: what the model is asked, with {instruction}; the rest of the prompt is the
            checkpoint's own chat template.
        thousandths: it writes coordinates in thousandths of width and height; else in pixels of
            the picture that it was shown.
        square: the photo is squeezed to so many pixels a side; None: its own image processor
            decides.
        max_new_tokens: bound of a reply.
    """

    question: str = _PIXELS
    thousandths: bool = False
    square: int | None = None
    max_new_tokens: int = 2000

    def template(self, chat: str) -> str:
        """The whole prompt: a chat template with {question} in it, and the question."""
        return chat.replace(QUESTION_SLOT, self.question)


VISUAL_TOKENS: dict[Detail, int] = {"low": 300, "normal": 1280, "high": 2560}
"""Most tokens that a photo becomes. One stands for 28×28 pixels in Qwen2.5-VL, 32×32 in
Qwen3-VL."""
STOCK = CoordinatePrompt()
SEG_ZERO = CoordinatePrompt(square=840)
"""Seg-Zero and VisionReasoner were trained on 840×840 pixels."""
QWEN3 = CoordinatePrompt(_THOUSANDTHS, thousandths=True)
PROMPTS = {"qwen2_5_vl": STOCK, "qwen3_vl": QWEN3}
"""By `model_type`: how a model that is not listed is asked."""


class CoordinateModel(nn.Module):
    """`mllm` (a Hugging Face model) and `sam` (a published one)."""

    mllm: Mllm
    sam: Any

    def __init__(self, sam: nn.Module, mllm: Mllm):
        super().__init__()
        self.mllm, self.sam = mllm, sam


class Pointing:
    """What models that write coordinates share, wherever they run: SAM, prompted by what they
    wrote, draws here."""

    note: str = ""

    def __init__(self, sam: PromptedSam, prompt: CoordinatePrompt):
        self.sam, self.prompt = sam, prompt
        self.max_new_tokens = prompt.max_new_tokens

    @property
    def device(self) -> torch.device:
        return self.sam.device

    @property
    def dtype(self) -> torch.dtype:
        return self.sam.dtype

    def distance(self, features: PhotoFeatures) -> float | None:
        return None  # it was trained on photos of all kinds

    def answer(self, transcript: Transcript, features: PhotoFeatures) -> Answer:
        """The coordinates of a reply, in pixels of the photo."""
        unit = THOUSANDTHS if self.prompt.thousandths else features.seen_size
        return read_answer(transcript.text, unit, features.photo_size)

    def draw(self, place: Place, features: PhotoFeatures) -> np.ndarray:
        """The mask that SAM draws when prompted by a place's box and points."""
        return self.sam.mask(features.image_embedding, place.box, place.points, features.photo_size)


class CoordinateSegmenter(Pointing):
    """A model that writes coordinates, in use; implements `Segmenter`.

    `chat` is its chat template with one {image} and one {question}; `detail` says how many visual
    tokens a photo may become.
    """

    prior_kind: PriorKind = ATTENTION_PRIOR

    def __init__(
        self,
        model: CoordinateModel,
        tokenizer: Any,
        image_processor: Any,
        prompt: CoordinatePrompt,
        chat: str = CHATML,
        detail: Detail = "normal",
    ):
        super().__init__(model.sam, prompt)
        self.model, self.detail = model, detail
        self.template = prompt.template(chat)
        self.language = LanguageModel(model.mllm, tokenizer, image_processor)

    @torch.no_grad()
    def read(self, photo: Photo, detail: Detail | None = None) -> PhotoFeatures:
        tokens = VISUAL_TOKENS[detail or self.detail]
        if self.prompt.square:  # it was trained on pictures of one size
            visual = self.language.see(to_square(photo.image, self.prompt.square))
        else:
            visual = self.language.see(photo.image, tokens)
        prefix = self.language.prefix(self.template, visual)
        return PhotoFeatures(photo.size, visual, prefix, self.sam.embed(photo.image))

    def think(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Step]:
        reading = self.reading(instruction, features)
        looks = self.language.looks(features.visual)
        return self.language.write(reading, None, max_new_tokens, looks)

    def reading(self, instruction: str, features: PhotoFeatures) -> Reading:
        """The question about a photo, read and ready for a reply."""
        return self.language.reading(self.template, instruction, features.visual, features.prefix)

    @property
    def ends(self) -> set[int]:
        """The tokens that end a thought at the latest."""
        return self.language.stop_ids

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Located:
        answer = self.answer(transcript, features)
        priors = where_it_looked(transcript, len(answer.objects), features.photo_size)
        return located(answer, transcript, priors)


def located(answer: Answer, transcript: Transcript, priors: list[np.ndarray]) -> Located:
    """What coordinates amount to, with a prior for each thing."""
    if answer.objects:
        count = len(answer.objects)
        thing = "thing" if count == 1 else "things"
        reason = f"The model wrote the coordinates of {count} {thing}. {answer.problem}"
        if not transcript.is_finished:
            limit = f"its {transcript.max_new_tokens:,} tokens"
            reason = f"{reason.strip()} It used up {limit} before the end: there may be more."
        places = tuple(
            Place(prior, None, o.box, o.points, o.label)
            for o, prior in zip(answer.objects, priors, strict=True)
        )
        return Located(FOUND, reason.strip(), places)
    if not transcript.is_finished:
        limit = f"{transcript.max_new_tokens:,} tokens"
        return Located(UNFINISHED, f"The model used up its {limit} before it wrote coordinates.")
    if answer.readable:
        return Located(NOTHING_FOUND, "The model wrote an empty list: nothing fits.")
    return Located(UNFINISHED, answer.problem)


def where_it_looked(
    transcript: Transcript, count: int, photo_size: tuple[int, int]
) -> list[np.ndarray]:
    """The prior of each of `count` things, float32 [H, W] in [0, 1]: the attention, by the heads
    that tell a place, of the tokens that wrote its numbers.

    Where the things cannot be told apart in the text, each gets the attention of all of them.
    """
    looks = transcript.looks
    if looks is None or not len(looks):
        return [np.zeros(photo_size, np.float32)] * count
    heads = looks.heads()
    return [
        as_prior(looks.map(words, heads), photo_size)
        for words in words_of_numbers(transcript.pieces, count)
    ]
