"""The other kind of model, whole: one that writes boxes and points instead of a focus token.

Qwen2.5-VL, Seg-Zero and VisionReasoner write JSON in pixels of the picture that they saw. It is
read here, brought to the photo, and drawn as a prior: 1 at the point, 0.5 on an ellipse that
touches the box's four sides, 0 outside the box. That picture says what the model *wrote*, not where
it looked. SAM as published, prompted by the same boxes and points, draws the masks.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from coprs_core.geometry import to_photo_frame, to_sam_frame, to_sam_points, to_square
from coprs_core.model.decoder import DecoderConfig, PriorDecoder
from coprs_core.model.language import LanguageModel
from coprs_core.model.mllm import Mllm
from coprs_core.model.segmenter import Located, PhotoFeatures, Place, Transcript, Written
from coprs_core.model.vision import VisionConfig, build_image_encoder
from coprs_core.photos import Photo
from coprs_core.prompts import (
    COORDINATES_PRIOR,
    FOUND,
    IMAGE_SLOT,
    INSTRUCTION_SLOT,
    NOTHING_FOUND,
    UNFINISHED,
    PriorKind,
)

_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<|vision_start|>{IMAGE_SLOT}<|vision_end|>"
    f"Find everything that this instruction means in the picture: {INSTRUCTION_SLOT}\n"
    "First think aloud between <think> and </think>: compare the candidates and say which fits and "
    "why. "
    "Then write, between <answer> and </answer>, a JSON list with one object for each thing that "
    "fits: its bounding box "
    '"bbox_2d": [x1, y1, x2, y2] and a point inside it "point_2d": [x, y], in pixels. '
    "Write an empty list if nothing fits. Example: "
    '<think> thinking </think> <answer>[{"bbox_2d": [10, 100, 200, 210], "point_2d": [30, 110]}]'
    "</answer>"
    "<|im_end|>\n<|im_start|>assistant\n"
)


MAX_OBJECTS = 32
"""More things than this in one answer are left out, and the answer says so."""


@dataclass(frozen=True)
class CoordinatePrompt:
    """How a family of models is asked, and what it is shown.

    Attributes:
        template: the prompt, with {image} and {instruction}.
        square: the photo is squeezed to so many pixels a side; None: its own image processor
            decides.
        max_pixels: largest area that the image processor may give it.
        max_new_tokens: bound of a reply.

    The coordinates that it writes are pixels of the picture that it was shown.
    """

    template: str = _TEMPLATE
    square: int | None = None
    max_pixels: int = 1280 * 28 * 28
    max_new_tokens: int = 2000

    def show(self, photo: Image.Image) -> Image.Image:
        """What the model's image processor is given of a photo."""
        return to_square(photo, self.square) if self.square else photo


STOCK = CoordinatePrompt()
SEG_ZERO = CoordinatePrompt(square=840)
"""Seg-Zero and VisionReasoner were trained on 840×840 pixels."""


class CoordinateModel(nn.Module):
    """`mllm` (a Hugging Face model), `image_encoder` and `decoder` (SAM's own weights)."""

    mllm: Mllm
    image_encoder: Any
    decoder: PriorDecoder

    def __init__(self, vision: VisionConfig, decoder: DecoderConfig, mllm: Mllm):
        super().__init__()
        self.vision = vision
        self.mllm = mllm
        self.image_encoder = build_image_encoder(vision)
        self.decoder = PriorDecoder(decoder, vision)


class CoordinateSegmenter:
    """A model that writes coordinates, in use; implements `Segmenter`."""

    prior_kind: PriorKind = COORDINATES_PRIOR
    note: str = ""

    def __init__(
        self, model: CoordinateModel, tokenizer: Any, image_processor: Any, prompt: CoordinatePrompt
    ):
        self.model, self.prompt = model, prompt
        self.language = LanguageModel(model.mllm, tokenizer, image_processor)
        self.max_new_tokens = prompt.max_new_tokens

    @property
    def device(self) -> torch.device:
        return self.model.image_encoder.pos_embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.image_encoder.pos_embed.dtype

    @torch.no_grad()
    def read(self, photo: Photo) -> PhotoFeatures:
        pixels = to_sam_frame(photo.image, self.model.vision.side).to(self.device, self.dtype)
        image_embedding = self.model.image_encoder(pixels)
        visual = self.language.see(self.prompt.show(photo.image))
        return PhotoFeatures(image_embedding, visual, photo.size)

    def distance(self, features: PhotoFeatures) -> float | None:
        return None  # it was trained on photos of all kinds

    def think(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Written]:
        reading = self.language.reading(self.prompt.template, instruction, features.visual)
        return self.language.write(reading, None, max_new_tokens)

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Located:
        seen_size = features.visual.seen_size(self.language.mllm)
        answer = read_answer(transcript.text, seen_size, features.photo_size)
        if answer.objects:
            count = len(answer.objects)
            thing = "thing" if count == 1 else "things"
            reason = f"The model wrote the coordinates of {count} {thing}. {answer.problem}"
            places = tuple(
                Place(coordinates_prior(o, features.photo_size), None, o.box, o.points, o.label)
                for o in answer.objects
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

    @torch.no_grad()
    def draw(self, place: Place, features: PhotoFeatures) -> np.ndarray:
        """The mask that SAM draws when prompted by a place's box and points."""
        side, size = self.model.vision.side, features.photo_size
        box = points = None
        if place.box is not None:
            corners = np.array(place.box).reshape(2, 2)
            box = to_sam_points(corners, size, side).reshape(1, 4).to(self.device)
        if place.points:
            points = to_sam_points(np.array(place.points), size, side)[None].to(self.device)
        mask_logits = self.model.decoder.from_coordinates(features.image_embedding, box, points)
        return to_photo_frame(mask_logits, size, side)[0, 0].cpu().numpy() > 0


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


def coordinates_prior(written: WrittenObject, photo_size: tuple[int, int]) -> np.ndarray:
    """The prior of one thing, float32 [H, W] in [0, 1].

    With u and v the distances from the point (else the box's centre) in units of its distance to
    the box's side on that side: 2^−(u² + v²) inside the box, 0 outside. A point without a box is a
    round spot of a twentieth of the photo.
    """
    height, width = photo_size
    box = written.box
    if box is None:
        (x, y), reach = written.points[0], max(height, width) / 20
        sides = (reach, reach, reach, reach)
    else:
        x, y = (
            written.points[0] if written.points else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        )
        x, y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        sides = (x - box[0], box[2] - x, y - box[1], box[3] - y)
    left, right, up, down = (max(s, 0.5) for s in sides)
    dx, dy = np.arange(width) + 0.5 - x, np.arange(height) + 0.5 - y
    u, v = dx / np.where(dx < 0, left, right), dy / np.where(dy < 0, up, down)
    prior = 2.0 ** -(v[:, None] ** 2 + u[None] ** 2)
    if box is not None:
        prior[(np.abs(v)[:, None] > 1) | (np.abs(u)[None] > 1)] = 0
    return prior.astype(np.float32)


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
