"""Parse the boxes and points that models write as JSON, and scale them to the photo.

Qwen2.5-VL, Seg-Zero and VisionReasoner write them in pixels of the image that they were given,
Qwen3-VL in thousandths of its sides.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from coprs_core.model.backends.json_in_text import JsonInText

MAX_OBJECTS, MAX_OBJECT_PIXELS = 32, 100_000_000
"""More objects than this in one answer, or of more pixels together, are left out, and the answer
says so: each has a prior and a mask of the photo's size."""
THOUSANDTHS = (1000, 1000)
"""In place of an image's size, for coordinates in thousandths of its sides."""


@dataclass(frozen=True)
class ParsedObject:
    """One object that a model wrote coordinates of, in pixels of the photo.

    `box` XYXY or None, `points` XY; at least one of them.
    """

    box: tuple[float, float, float, float] | None
    points: tuple[tuple[float, float], ...] = ()
    label: str = ""


@dataclass(frozen=True)
class ParsedCoordinates:
    """The coordinates of a reply. `is_readable` is False where there are none to read;
    `problem` says why."""

    objects: tuple[ParsedObject, ...] = ()
    is_readable: bool = True
    problem: str = ""


def max_objects(photo_size: tuple[int, int]) -> int:
    """How many objects an answer has at most, on a photo of (height, width) pixels."""
    return min(MAX_OBJECTS, max(1, MAX_OBJECT_PIXELS // (photo_size[0] * photo_size[1])))


def parse_coordinates(
    reply: str, image_size: tuple[int, int], photo_size: tuple[int, int]
) -> ParsedCoordinates:
    """The boxes and points of a reply, scaled from the image that the model was given to the photo;
    sizes are (height, width).

    Takes what models write: an <answer>, a fenced block or bare JSON, text around it, floats,
    swapped corners, several objects, a box or a point alone. Numbers outside the image are clipped
    to its border; what then has no area is dropped.
    """
    objects = _find_json(_answer_text(reply))
    if objects is None:
        return ParsedCoordinates(
            is_readable=False, problem="The reply holds no coordinates that can be read."
        )
    if not objects:
        return ParsedCoordinates()
    scale = photo_size[1] / image_size[1], photo_size[0] / image_size[0]
    parsed = [_parse_object(o, image_size, scale) for o in objects]
    usable = tuple(o for o in parsed if o is not None)
    if not usable:
        return ParsedCoordinates(
            is_readable=False,
            problem="The coordinates in the reply lie outside the picture, have no area or are no "
            "numbers.",
        )
    most = max_objects(photo_size)
    shown = f"the first {most} are" if most > 1 else "the first is"
    problem = f"{len(usable)} things, {shown} shown." if len(usable) > most else ""
    return ParsedCoordinates(usable[:most], problem=problem)


def coordinates_to_prior(parsed: ParsedObject, photo_size: tuple[int, int]) -> np.ndarray:
    """Draw coordinates as a prior, float32 [H, W] in [0, 1]: what a model wrote, not its attention.

    With u and v the distances from the point (else the box's centre) in units of its distance to
    the box's side on that side: 2^−(u² + v²) inside the box, 0 outside. A point without a box is a
    round spot of a twentieth of the photo.
    """
    height, width = photo_size
    box = parsed.box
    if box is None:
        (x, y), reach = parsed.points[0], max(height, width) / 20
        sides = (reach, reach, reach, reach)
    else:
        centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        x, y = parsed.points[0] if parsed.points else centre
        x, y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
        sides = (x - box[0], box[2] - x, y - box[1], box[3] - y)
    left, right, up, down = (max(s, 0.5) for s in sides)
    dx, dy = np.arange(width) + 0.5 - x, np.arange(height) + 0.5 - y
    u, v = dx / np.where(dx < 0, left, right), dy / np.where(dy < 0, up, down)
    prior = 2.0 ** -(v[:, None] ** 2 + u[None] ** 2)
    if box is not None:
        prior[(np.abs(v)[:, None] > 1) | (np.abs(u)[None] > 1)] = 0
    return prior.astype(np.float32)


def coordinate_token_indices(token_texts: tuple[str, ...], count: int) -> list[list[int]]:
    """The tokens that wrote the numbers of each of `count` objects, by their index in a reply."""
    text = "".join(token_texts)
    start = text.find("</think>")
    for length in (4, 2):  # boxes, else points
        spans = [m.span() for m in _NUMBER_LISTS[length].finditer(text, max(start, 0))]
        if len(spans) >= count:
            break
    if len(spans) < count:
        spans = [(max(start, 0), len(text))]
    if len(spans) != count:  # some were left out, and which is not known here
        spans = [(spans[0][0], spans[-1][1])] * count
    ends = list(accumulate(map(len, token_texts)))
    starts = [0, *ends[:-1]]
    return [
        [i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < last and b > first]
        for first, last in spans
    ]


_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"
_NUMBER_LISTS = {n: re.compile(r"\[" + ",".join([_NUMBER] * n) + r"\]") for n in (4, 2)}


def is_coordinate_list_cut_off(reply: str) -> bool:
    """Whether the list of coordinates in a reply was not written to its end."""
    text = _answer_text(reply)
    return text.count("[") > text.count("]") or text.count("{") > text.count("}")


def _answer_text(reply: str) -> str:
    text = reply.rpartition("</think>")[2]
    if "<answer>" in text:
        text = text.partition("<answer>")[2].partition("</answer>")[0]
    fenced = re.findall(r"```(?:json)?\s*(.*?)(?:```|$)", text, re.DOTALL)
    return "\n".join(fenced) if fenced else text


def _find_json(text: str) -> list | None:
    """The objects of the first JSON list in a text; [] where the model says that there are none.
    Of a list that breaks off, or of objects without one, all that are whole, each once."""
    # some models quote keys as Python does
    spellings = [JsonInText(spelt) for spelt in dict.fromkeys((text, text.replace("'", '"')))]
    all_objects, seen, end = [], set(), 0
    for bracket in re.finditer(r"[\[{]", text):
        start = bracket.start()
        if start < end:  # inside of what was parsed
            continue
        parsed = next((p for text in spellings if (p := text.parse_at(start))), None)
        objects = None if parsed is None else _to_object_list(parsed[0])
        if parsed is None or objects is None:
            continue
        if not all_objects and not _is_single_object(parsed[0]):
            return objects
        end = parsed[1]
        all_objects += [o for o in objects if _hashable(o) not in seen]
        seen.update(map(_hashable, objects))
    return all_objects or None


def _hashable(value: Any) -> Any:
    """Stands for a JSON value in a set: equal where the values are."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _is_single_object(value: Any) -> bool:
    """Whether a value is one object by itself, no list of them."""
    return _is_number_list(value, 4) or (
        isinstance(value, dict) and _to_object_list(value) == [value]
    )


def _to_object_list(value) -> list | None:
    if isinstance(value, dict):
        if any("bbox" in k.lower() or "point" in k.lower() for k in value):
            return [value]
        return next(
            (
                o
                for v in value.values()
                if isinstance(v, list) and (o := _to_object_list(v)) is not None
            ),
            None,
        )
    if _is_number_list(value, 4):
        return [{"bbox_2d": value}]
    if all(isinstance(v, dict) for v in value):
        return value
    return [{"bbox_2d": v} for v in value] if all(_is_number_list(v, 4) for v in value) else None


def _is_number_list(value, count: int) -> bool:
    """Whether a value is a list of that many finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(
            isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e12 for v in value
        )  # nor NaN
    )


def _widen_flat_box(xs: list[float], ys: list[float]) -> tuple[list[float], list[float]]:
    """Widen a box to one pixel where it has no width, or no height, but has the other: models
    write thin objects so."""
    flat = [corners[1] - corners[0] < 1 for corners in (xs, ys)]
    if flat == [True, False]:
        xs = [xs[0] - 0.5, xs[1] + 0.5]
    elif flat == [False, True]:
        ys = [ys[0] - 0.5, ys[1] + 0.5]
    return xs, ys


def _parse_object(
    values: dict, image_size: tuple[int, int], scale: tuple[float, float]
) -> ParsedObject | None:
    height, width = image_size
    box, points = None, []
    for key, value in values.items():
        if "bbox" in key.lower() and _is_number_list(value, 4):
            (x1, x2), (y1, y2) = _widen_flat_box(sorted(value[0::2]), sorted(value[1::2]))
            x1, x2 = (min(max(v, 0), width) for v in (x1, x2))
            y1, y2 = (min(max(v, 0), height) for v in (y1, y2))
            if x2 - x1 >= 1 and y2 - y1 >= 1:
                box = (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1])
        elif "point" in key.lower():
            pairs = (
                [value] if _is_number_list(value, 2) else value if isinstance(value, list) else []
            )
            points += [
                p
                for p in pairs
                if _is_number_list(p, 2) and 0 <= p[0] <= width and 0 <= p[1] <= height
            ]
    if box is None and not points:
        return None
    return ParsedObject(
        box, tuple((x * scale[0], y * scale[1]) for x, y in points), str(values.get("label", ""))
    )
