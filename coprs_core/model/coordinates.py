"""The other kind of model, whole: one that writes boxes and points instead of a focus token.

Qwen2.5-VL, Seg-Zero and VisionReasoner write JSON in pixels of the picture that they saw, Qwen3-VL
in thousandths of its sides. It is read here, brought to the photo, and drawn as a prior: 1 at the
point, 0.5 on an ellipse that touches the box's four sides, 0 outside the box. That picture says
what the model *wrote*, not where it looked. SAM as published, prompted by the same boxes and
points, draws the masks.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from coprs_core.geometry import to_square
from coprs_core.model.attention import Looks, as_prior
from coprs_core.model.language import LanguageModel
from coprs_core.model.mllm import Mllm, Reading, VisualTokens
from coprs_core.model.sam import PromptedSam
from coprs_core.model.segmenter import Located, Place, Transcript, Written
from coprs_core.photos import Photo
from coprs_core.prompts import (
    ATTENTION_PRIOR,
    FOUND,
    IMAGE_SLOT,
    INSTRUCTION_SLOT,
    NOTHING_FOUND,
    UNFINISHED,
    PriorKind,
)

QUESTION_SLOT = "{question}"
_QUESTION = (
    f"Find everything that this instruction means in the picture: {INSTRUCTION_SLOT}\n"
    "First think aloud, in at most three short sentences between <think> and </think>: compare the "
    "candidates and say which fits and why. "
    "Then write, between <answer> and </answer>, a JSON list with one object for each thing that "
    'fits: its bounding box "bbox_2d": [x1, y1, x2, y2]'
)
_PIXELS = (
    f"{_QUESTION}"
    ' and a point inside it "point_2d": [x, y], in pixels. Write an empty list if nothing fits. '
    'Example: <think> thinking </think> <answer>[{"bbox_2d": [10, 100, 200, 210], '
    '"point_2d": [30, 110]}]</answer>'
)
_THOUSANDTHS = (
    f"{_QUESTION}"
    ' and its "label", in thousandths of the picture\'s width and height. Write an empty list if '
    'nothing fits. Example: <think> thinking </think> <answer>[{"bbox_2d": [110, 320, 540, 900], '
    '"label": "dog"}]</answer>'
)
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<|vision_start|>{IMAGE_SLOT}<|vision_end|>{QUESTION_SLOT}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""How Qwen2.5-VL is spoken to, for a folder that brings no chat template."""


MAX_OBJECTS = 32
"""More things than this in one answer are left out, and the answer says so."""
THOUSANDTHS = (1000, 1000)


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
        max_pixels: largest area that the image processor may give it.
        max_new_tokens: bound of a reply.
    """

    question: str = _PIXELS
    thousandths: bool = False
    square: int | None = None
    max_pixels: int = 1280 * 28 * 28
    max_new_tokens: int = 2000

    def show(self, photo: Image.Image) -> Image.Image:
        """What the model's image processor is given of a photo."""
        return to_square(photo, self.square) if self.square else photo

    def template(self, chat: str) -> str:
        """The whole prompt: a chat template with {question} in it, and the question."""
        return chat.replace(QUESTION_SLOT, self.question)


STOCK = CoordinatePrompt()
SEG_ZERO = CoordinatePrompt(square=840)
"""Seg-Zero and VisionReasoner were trained on 840×840 pixels."""
QWEN3 = CoordinatePrompt(_THOUSANDTHS, thousandths=True, max_pixels=1280 * 32 * 32)
PROMPTS = {"qwen2_5_vl": STOCK, "qwen3_vl": QWEN3}
"""By `model_type`: how a model that is not listed is asked."""


class CoordinateModel(nn.Module):
    """`mllm` (a Hugging Face model) and `sam` (a published one)."""

    mllm: Mllm
    sam: Any

    def __init__(self, sam: nn.Module, mllm: Mllm):
        super().__init__()
        self.mllm, self.sam = mllm, sam


@dataclass(frozen=True, eq=False)
class CoordinateFeatures:
    """The `Features` of such a model: SAM's `embedding`, what the language model sees (`visual`),
    and the photo's (height, width)."""

    embedding: tuple[Tensor, ...]
    visual: VisualTokens
    photo_size: tuple[int, int]

    def to(self, device: torch.device | str) -> "CoordinateFeatures":
        """The same on another device."""
        embedding = tuple(t.to(device) for t in self.embedding)
        return CoordinateFeatures(embedding, self.visual.to(device), self.photo_size)


class CoordinateSegmenter:
    """A model that writes coordinates, in use; implements `Segmenter`.

    `chat` is its chat template with one {image} and one {question}.
    """

    prior_kind: PriorKind = ATTENTION_PRIOR
    note: str = ""

    def __init__(
        self,
        model: CoordinateModel,
        tokenizer: Any,
        image_processor: Any,
        prompt: CoordinatePrompt,
        chat: str = CHATML,
    ):
        self.model, self.prompt = model, prompt
        self.sam: PromptedSam = model.sam
        self.template = prompt.template(chat)
        self.language = LanguageModel(model.mllm, tokenizer, image_processor)
        self.max_new_tokens = prompt.max_new_tokens

    @property
    def device(self) -> torch.device:
        return self.sam.device

    @property
    def dtype(self) -> torch.dtype:
        return self.sam.dtype

    @torch.no_grad()
    def read(self, photo: Photo) -> CoordinateFeatures:
        visual = self.language.see(self.prompt.show(photo.image))
        return CoordinateFeatures(self.sam.embed(photo.image), visual, photo.size)

    def distance(self, features: CoordinateFeatures) -> float | None:
        return None  # it was trained on photos of all kinds

    def think(
        self, instruction: str, features: CoordinateFeatures, max_new_tokens: int
    ) -> Iterator[Written]:
        reading = self.reading(instruction, features)
        looks = Looks(features.visual.cells(self.language.mllm))
        return self.language.write(reading, None, max_new_tokens, looks)

    def reading(self, instruction: str, features: CoordinateFeatures) -> Reading:
        """The question about a photo, read and ready for a reply."""
        return self.language.reading(self.template, instruction, features.visual)

    @property
    def ends(self) -> set[int]:
        """The tokens that end a thought at the latest."""
        return self.language.stop_ids

    def locate(self, transcript: Transcript, features: CoordinateFeatures) -> Located:
        seen_size = features.visual.seen_size(self.language.mllm)
        unit = THOUSANDTHS if self.prompt.thousandths else seen_size
        answer = read_answer(transcript.text, unit, features.photo_size)
        if answer.objects:
            count = len(answer.objects)
            thing = "thing" if count == 1 else "things"
            reason = f"The model wrote the coordinates of {count} {thing}. {answer.problem}"
            priors = where_it_looked(transcript, len(answer.objects), features.photo_size)
            places = tuple(
                Place(prior, None, o.box, o.points, o.label)
                for o, prior in zip(answer.objects, priors, strict=True)
            )
            return Located(FOUND, reason.strip(), places)
        if not transcript.is_finished:
            limit = f"{transcript.max_new_tokens:,} tokens"
            return Located(
                UNFINISHED, f"The model used up its {limit} before it wrote coordinates."
            )
        if answer.readable:
            return Located(NOTHING_FOUND, "The model wrote an empty list: nothing fits.")
        return Located(UNFINISHED, answer.problem)

    def draw(self, place: Place, features: CoordinateFeatures) -> np.ndarray:
        """The mask that SAM draws when prompted by a place's box and points."""
        return self.sam.mask(features.embedding, place.box, place.points, features.photo_size)


# --- reading what such a model writes


@dataclass(frozen=True)
class WrittenObject:
    """One thing that a model wrote coordinates of, in pixels of the photo.

    `box` XYXY or None, `points` XY; at least one of them.
    """

    box: tuple[float, float, float, float] | None
    points: tuple[tuple[float, float], ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Answer:
    """What a reply's coordinates amount to. `readable` is False where there are none to read;
    `problem` says why."""

    objects: tuple[WrittenObject, ...] = ()
    readable: bool = True
    problem: str = ""


def read_answer(reply: str, seen_size: tuple[int, int], photo_size: tuple[int, int]) -> Answer:
    """The boxes and points of a reply, brought from the picture that the model saw to the photo;
    sizes are (height, width).

    Takes what models write: an <answer>, a fenced block or bare JSON, text around it, floats,
    swapped corners, several objects, a box or a point alone. Numbers outside the picture are moved
    to its border; what then has no area is dropped.
    """
    found = _find_json(_answer_text(reply))
    if found is None:
        return Answer(readable=False, problem="The reply holds no coordinates that can be read.")
    if not found:
        return Answer()
    scale = photo_size[1] / seen_size[1], photo_size[0] / seen_size[0]
    read = [_written_object(o, seen_size, scale) for o in found]
    kept = tuple(o for o in read if o is not None)
    if not kept:
        return Answer(
            readable=False,
            problem="The coordinates in the reply lie outside the picture or are not numbers.",
        )
    return Answer(
        kept[:MAX_OBJECTS],
        problem=f"{len(kept)} things, the first {MAX_OBJECTS} are shown."
        if len(kept) > MAX_OBJECTS
        else "",
    )


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


def words_of_numbers(pieces: tuple[str, ...], count: int) -> list[list[int]]:
    """The tokens that wrote the numbers of each of `count` things, by their index in a reply."""
    text = "".join(pieces)
    start = text.find("</think>")
    for length in (4, 2):  # boxes, else points
        spans = [m.span() for m in _LISTS[length].finditer(text, max(start, 0))]
        if len(spans) >= count:
            break
    if len(spans) < count:
        spans = [(max(start, 0), len(text))]
    if len(spans) != count:  # some were left out
        spans = [(spans[0][0], spans[-1][1])] * count
    ends = list(accumulate(map(len, pieces)))
    starts = [0, *ends[:-1]]
    return [
        [i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < last and b > first]
        for first, last in spans
    ]


_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
_LISTS = {n: re.compile(r"\[" + ",".join([_NUMBER] * n) + r"\]") for n in (4, 2)}


def _answer_text(reply: str) -> str:
    text = reply.rpartition("</think>")[2]
    if "<answer>" in text:
        text = text.partition("<answer>")[2].partition("</answer>")[0]
    fenced = re.search(r"```(?:json)?\s*(.*?)(?:```|$)", text, re.DOTALL)
    return fenced.group(1) if fenced else text


def _find_json(text: str) -> list | None:
    """The first JSON value in a text that is a list of objects; [] where the model says that there
    are none."""
    decoder, as_json = (
        json.JSONDecoder(),
        text.replace("'", '"'),
    )  # some models quote keys as Python does
    for start in re.finditer(r"[\[{]", text):
        for candidate in (text, as_json):
            try:
                value, _ = decoder.raw_decode(candidate, start.start())
            except (ValueError, RecursionError):
                continue
            if (objects := _as_objects(value)) is not None:
                return objects
    return None


def _as_objects(value) -> list | None:
    if isinstance(value, dict):
        if any("bbox" in k.lower() or "point" in k.lower() for k in value):
            return [value]
        return next(
            (
                o
                for v in value.values()
                if isinstance(v, list) and (o := _as_objects(v)) is not None
            ),
            None,
        )
    if _numbers(value, 4):
        return [{"bbox_2d": value}]
    if all(isinstance(v, dict) for v in value):
        return value
    return [{"bbox_2d": v} for v in value] if all(_numbers(v, 4) for v in value) else None


def _numbers(value, count: int) -> bool:
    """Whether a value is a list of that many finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(
            isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e12 for v in value
        )  # nor NaN
    )


def _written_object(
    found: dict, seen_size: tuple[int, int], scale: tuple[float, float]
) -> WrittenObject | None:
    height, width = seen_size
    box, points = None, []
    for key, value in found.items():
        if "bbox" in key.lower() and _numbers(value, 4):
            x1, x2 = sorted(min(max(v, 0), width) for v in value[0::2])
            y1, y2 = sorted(min(max(v, 0), height) for v in value[1::2])
            if x2 - x1 >= 1 and y2 - y1 >= 1:
                box = (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1])
        elif "point" in key.lower():
            pairs = [value] if _numbers(value, 2) else value if isinstance(value, list) else []
            points += [
                p for p in pairs if _numbers(p, 2) and 0 <= p[0] <= width and 0 <= p[1] <= height
            ]
    if box is None and not points:
        return None
    return WrittenObject(
        box, tuple((x * scale[0], y * scale[1]) for x, y in points), str(found.get("label", ""))
    )
