"""Models that write boxes and points instead of a focus token, as a `Segmenter`.

The prior is the language model's own attention while it wrote the numbers of a box. SAM as
published, prompted by the same boxes and points, predicts the masks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from coprs_core.geometry import to_square
from coprs_core.model.backends.attention import attention_to_prior
from coprs_core.model.backends.boxes import (
    THOUSANDTHS,
    ParsedCoordinates,
    coordinate_token_indices,
    parse_coordinates,
)
from coprs_core.model.backends.language import LanguageModel
from coprs_core.model.backends.mllm import Mllm, PromptSession
from coprs_core.model.backends.sam import PromptedSam
from coprs_core.model.segmenter import Localization, PhotoFeatures, RegionProposal, Step, Transcript
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
_QUESTION_START = (
    "Find what the instruction at the end means in the picture.\n"
    "First think, in one or two short sentences between <think> and </think>: which things could "
    "be meant, which fits, and why. "
)
_QUESTION_END = f"\nInstruction: {INSTRUCTION_SLOT}"
"""It stands last, so that all before it is the same for every question and read once a photo."""
_PIXEL_QUESTION = (
    f"{_QUESTION_START}"
    "Then write, between <answer> and </answer>, a JSON list of all that fits, with box and a "
    'point inside it in pixels, such as [{"bbox_2d": [10, 100, 200, 210], "point_2d": [30, 110]}], '
    f"or [] if nothing fits.{_QUESTION_END}"
)
_THOUSANDTHS_QUESTION = (
    f"{_QUESTION_START}"
    "Then write a JSON list of all that fits, in thousandths of width and height, such as "
    f'[{{"bbox_2d": [110, 320, 540, 900], "label": "dog"}}], or [] if nothing fits.{_QUESTION_END}'
)
DEFAULT_CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<|vision_start|>{IMAGE_SLOT}<|vision_end|>{QUESTION_SLOT}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""Of Qwen2.5-VL, for a folder that brings no chat template."""


@dataclass(frozen=True)
class CoordinatePrompt:
    """How a family of models is prompted, and in what units it answers.

    Attributes:
        question: the text of the prompt, with {instruction}; the rest of the prompt is the
            checkpoint's own chat template.
        in_thousandths: it writes coordinates in thousandths of width and height; else in pixels of
            the image that it was given.
        square_side: the photo is squeezed to so many pixels a side; None: its own image processor
            decides.
        max_new_tokens: bound of a reply.
    """

    question: str = _PIXEL_QUESTION
    in_thousandths: bool = False
    square_side: int | None = None
    max_new_tokens: int = 2000

    def fill_chat_template(self, chat_template: str) -> str:
        """The prompt template: the question in place of {question} in a chat template."""
        return chat_template.replace(QUESTION_SLOT, self.question)


MAX_VISUAL_TOKENS: dict[Detail, int] = {"low": 300, "normal": 1280, "high": 2560}
"""Most tokens that a photo becomes. One stands for 28×28 pixels in Qwen2.5-VL, 32×32 in
Qwen3-VL."""
QWEN2_5_PROMPT = CoordinatePrompt()
SEG_ZERO_PROMPT = CoordinatePrompt(square_side=840)
"""Seg-Zero and VisionReasoner were trained on 840×840 pixels."""
QWEN3_PROMPT = CoordinatePrompt(_THOUSANDTHS_QUESTION, in_thousandths=True)
PROMPTS_BY_MODEL_TYPE = {"qwen2_5_vl": QWEN2_5_PROMPT, "qwen3_vl": QWEN3_PROMPT}
"""By `model_type`, for models that are not listed."""


class CoordinateModel(nn.Module):
    """`mllm` (a Hugging Face model) and `sam` (a published one)."""

    mllm: Mllm
    sam: Any

    def __init__(self, sam: nn.Module, mllm: Mllm):
        super().__init__()
        self.mllm, self.sam = mllm, sam


class BaseCoordinateSegmenter:
    """What models that write coordinates share, wherever they run: SAM predicts the masks here,
    prompted by what they wrote."""

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

    def ood_distance(self, features: PhotoFeatures) -> float | None:
        return None  # such models are trained on photos of all kinds

    def parse_coordinates(
        self, transcript: Transcript, features: PhotoFeatures
    ) -> ParsedCoordinates:
        """The coordinates of a reply, in pixels of the photo."""
        image_size = THOUSANDTHS if self.prompt.in_thousandths else features.mllm_image_size
        return parse_coordinates(transcript.text, image_size, features.photo_size)

    def predict_mask(self, proposal: RegionProposal, features: PhotoFeatures) -> np.ndarray:
        """The mask that SAM predicts when prompted by a proposal's box and points."""
        return self.sam.predict_mask(
            features.image_embedding, proposal.box, proposal.points, features.photo_size
        )


class CoordinateSegmenter(BaseCoordinateSegmenter):
    """A model that writes coordinates, in use; implements `Segmenter`.

    `chat_template` has one {image} and one {question}; `detail` says how many visual tokens a photo
    may become.
    """

    prior_kind: PriorKind = ATTENTION_PRIOR

    def __init__(
        self,
        model: CoordinateModel,
        tokenizer: Any,
        image_processor: Any,
        prompt: CoordinatePrompt,
        chat_template: str = DEFAULT_CHAT_TEMPLATE,
        detail: Detail = "normal",
    ):
        super().__init__(model.sam, prompt)
        self.model, self.detail = model, detail
        self.template = prompt.fill_chat_template(chat_template)
        self.language = LanguageModel(model.mllm, tokenizer, image_processor)

    @torch.no_grad()
    def encode_photo(self, photo: Photo, detail: Detail | None = None) -> PhotoFeatures:
        tokens = MAX_VISUAL_TOKENS[detail or self.detail]
        if self.prompt.square_side:  # it was trained on images of one size
            visual = self.language.encode_image(to_square(photo.image, self.prompt.square_side))
        else:
            visual = self.language.encode_image(photo.image, tokens)
        prefix = self.language.prefill_prefix(self.template, visual)
        return PhotoFeatures(photo.size, visual, prefix, self.sam.embed(photo.image))

    def generate(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Step]:
        session = self.start_session(instruction, features)
        trace = self.language.new_attention_trace(features.visual)
        return self.language.generate(session, None, max_new_tokens, trace)

    def start_session(self, instruction: str, features: PhotoFeatures) -> PromptSession:
        """Feed the prompt for an instruction about a photo, ready for a reply."""
        return self.language.start_session(
            self.template, instruction, features.visual, features.prefix
        )

    @property
    def thought_stop_ids(self) -> set[int]:
        """The tokens that end a thought at the latest."""
        return self.language.stop_ids

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Localization:
        coordinates = self.parse_coordinates(transcript, features)
        priors = attention_priors(transcript, len(coordinates.objects), features.photo_size)
        return localization_of(coordinates, transcript, priors)


def localization_of(
    coordinates: ParsedCoordinates, transcript: Transcript, priors: list[np.ndarray]
) -> Localization:
    """What coordinates amount to, with a prior for each object."""
    if coordinates.objects:
        count = len(coordinates.objects)
        noun = "thing" if count == 1 else "things"
        reason = f"The model wrote the coordinates of {count} {noun}. {coordinates.problem}"
        if not transcript.is_finished:
            limit = f"its {transcript.max_new_tokens:,} tokens"
            reason = f"{reason.strip()} It used up {limit} before the end: there may be more."
        proposals = tuple(
            RegionProposal(prior, None, o.box, o.points, o.label)
            for o, prior in zip(coordinates.objects, priors, strict=True)
        )
        return Localization(FOUND, reason.strip(), proposals)
    if not transcript.is_finished:
        limit = f"{transcript.max_new_tokens:,} tokens"
        return Localization(
            UNFINISHED, f"The model used up its {limit} before it wrote coordinates."
        )
    if coordinates.is_readable:
        return Localization(NOTHING_FOUND, "The model wrote an empty list: nothing fits.")
    return Localization(UNFINISHED, coordinates.problem)


def attention_priors(
    transcript: Transcript, count: int, photo_size: tuple[int, int]
) -> list[np.ndarray]:
    """The prior of each of `count` objects, float32 [H, W] in [0, 1]: the attention of the tokens
    that wrote its numbers, by the localization heads.

    Where the objects cannot be told apart in the text, each gets the attention of all of them.
    """
    trace = transcript.attention
    if trace is None or not len(trace):
        return [np.zeros(photo_size, np.float32)] * count
    heads = trace.localization_heads()
    return [
        attention_to_prior(trace.attention_map(tokens, heads), photo_size)
        for tokens in coordinate_token_indices(transcript.token_texts, count)
    ]
