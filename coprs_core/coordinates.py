"""The coordinates prior: models that write boxes and points instead of a focus token (Qwen2.5-VL, Seg-Zero, VisionReasoner).

Such a model writes JSON in pixels of the picture that it saw. It is read here, brought to the photo, and drawn as a prior:
1 at the point, 0.5 on an ellipse that touches the box's four sides, 0 outside the box. That picture says what the model
*wrote*, not where it looked.
"""

import json
import re
from dataclasses import dataclass

import numpy as np

from coprs_core.prompts import IMAGE_SLOT, INSTRUCTION_SLOT

_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    f"<|im_start|>user\n<|vision_start|>{IMAGE_SLOT}<|vision_end|>"
    f"Find everything that this instruction means in the picture: {INSTRUCTION_SLOT}\n"
    "First think aloud between <think> and </think>: compare the candidates and say which fits and why. "
    "Then write, between <answer> and </answer>, a JSON list with one object for each thing that fits: its bounding box "
    '"bbox_2d": [x1, y1, x2, y2] and a point inside it "point_2d": [x, y], in pixels. '
    "Write an empty list if nothing fits. Example: "
    '<think> thinking </think> <answer>[{"bbox_2d": [10, 100, 200, 210], "point_2d": [30, 110]}]</answer>'
    "<|im_end|>\n<|im_start|>assistant\n"
)


MOST_OBJECTS = 32
"""More things than this in one answer are left out, and the answer says so."""


@dataclass(frozen=True)
class Dialect:
    """How a family is asked, and what it sees: the photo squeezed to `square`×`square` pixels, or (None) as its own image
    processor has it, with an area of at most `most_pixels`. Either way the coordinates are pixels of what it saw."""

    template: str = _TEMPLATE
    square: int | None = None
    most_pixels: int = 1280 * 28 * 28


STOCK = Dialect()
SEG_ZERO = Dialect(square=840)
"""Seg-Zero and VisionReasoner were trained on 840×840 pixels."""


@dataclass(frozen=True)
class Located:
    """One thing that a model located, in pixels of the photo: `box` XYXY or None, `points` XY; at least one of them."""

    box: tuple[float, float, float, float] | None
    points: tuple[tuple[float, float], ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Answer:
    """What a reply's coordinates amount to. `readable` is False where there are none to read; `problem` says why."""

    located: tuple[Located, ...] = ()
    readable: bool = True
    problem: str = ""


def read_answer(reply: str, seen_size: tuple[int, int], photo_size: tuple[int, int]) -> Answer:
    """The boxes and points of a reply, brought from the picture that the model saw to the photo; sizes are (height, width).

    Takes what models write: an <answer>, a fenced block or bare JSON, text around it, floats, swapped corners, several
    objects, a box or a point alone. Numbers outside the picture are moved to its border; what then has no area is dropped.
    """
    found = _find_json(_answer_text(reply))
    if found is None:
        return Answer(readable=False, problem="The reply holds no coordinates that can be read.")
    if not found:
        return Answer()
    scale = photo_size[1] / seen_size[1], photo_size[0] / seen_size[0]
    located = [_located(o, seen_size, scale) for o in found]
    kept = tuple(o for o in located if o is not None)
    if not kept:
        return Answer(
            readable=False, problem="The coordinates in the reply lie outside the picture or are not numbers."
        )
    return Answer(
        kept[:MOST_OBJECTS],
        problem=f"{len(kept)} things, the first {MOST_OBJECTS} are shown." if len(kept) > MOST_OBJECTS else "",
    )


def coordinates_prior(located: Located, photo_size: tuple[int, int]) -> np.ndarray:
    """The prior of one located thing, float32 [H, W] in [0, 1].

    With u and v the distances from the point (else the box's centre) in units of its distance to the box's side on that
    side: 2^−(u² + v²) inside the box, 0 outside. A point without a box is a round spot of a twentieth of the photo.
    """
    height, width = photo_size
    box = located.box
    if box is None:
        (x, y), reach = located.points[0], max(height, width) / 20
        sides = (reach, reach, reach, reach)
    else:
        x, y = located.points[0] if located.points else ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
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
    """The first JSON value in a text that is a list of objects; [] where the model says that there are none."""
    decoder, as_json = json.JSONDecoder(), text.replace("'", '"')  # some models quote keys as Python does
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
        return next((o for v in value.values() if isinstance(v, list) and (o := _as_objects(v)) is not None), None)
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
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e12 for v in value)  # nor NaN
    )


def _located(found: dict, seen_size: tuple[int, int], scale: tuple[float, float]) -> Located | None:
    height, width = seen_size
    box, points = None, []
    for key, value in found.items():
        if "bbox" in key.lower() and _numbers(value, 4):
            x1, x2 = sorted(min(max(v, 0), width) for v in value[0::2])
            y1, y2 = sorted(min(max(v, 0), height) for v in value[1::2])
            if x2 - x1 >= 1 and y2 - y1 >= 1:
                box = (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1])
        elif "point" in key.lower():
            written = [value] if _numbers(value, 2) else value if isinstance(value, list) else []
            points += [p for p in written if _numbers(p, 2) and 0 <= p[0] <= width and 0 <= p[1] <= height]
    if box is None and not points:
        return None
    return Located(box, tuple((x * scale[0], y * scale[1]) for x, y in points), str(found.get("label", "")))
