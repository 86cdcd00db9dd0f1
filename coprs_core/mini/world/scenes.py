"""Picture-book scenes: the world that the miniature learns from, drawn by our own code and
deterministic by seed.

A scene is a picture of 256×256 pixels, or one side shorter, of one to seven objects on a plain,
graded or textured ground. The masks are exact: the visible pixels of each object, taken from the
same polygons as the colours.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from coprs_core.mini.world.drawings import COLOURS, shade_colour
from coprs_core.mini.world.kinds import CATEGORIES, KIND_BY_NAME, KINDS, kind_polygons

SIDE = 256
"""Width and height of a scene in pixels; the longest side of one that is no square."""
SQUARE = (SIDE, SIDE)
SPLITS = ("train", "validation", "test")
MIN_AREA_SHARE, MAX_AREA_SHARE = 0.004, 0.25
"""Visible area of an object, as a share of the picture."""
UNSEEN_PAIRS = frozenset(
    (kind, list(COLOURS)[(3 * i) % len(COLOURS)]) for i, kind in enumerate(KINDS[::2])
)
"""Kind-and-colour pairs that only the test split draws."""
PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the middle",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)

_OVERSAMPLING = 2  # smooth edges; the masks take one of the four samples, so that they stay exact
_MAX_RADIUS = {
    1: 0.36,
    2: 0.32,
    3: 0.27,
    4: 0.23,
    5: 0.2,
    6: 0.18,
    7: 0.165,
}  # share of the side, by count


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene, as far as it is visible.

    `centre` (x, y), that of the `box`, and `box` (x0, y0, x1, y1; the last exclusive) are pixels of
    the image, whose (height, width) is `image_size`; `area` is a number of pixels.
    """

    kind: str
    colour: str
    centre: tuple[float, float]
    box: tuple[int, int, int, int]
    area: int
    image_size: tuple[int, int] = SQUARE

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"

    @property
    def cell(self) -> int:
        """Which ninth of the picture holds the centre, 0 to 8 in reading order."""
        (x, y), (height, width) = self.centre, self.image_size
        return 3 * min(2, int(3 * y / height)) + min(2, int(3 * x / width))

    @property
    def place(self) -> str:
        return PLACES[self.cell]


@dataclass(frozen=True, eq=False)
class Scene:
    """`image` uint8 [H, W, 3]; `instance_map` uint8 [H, W], 0 for the background, i + 1 where
    `objects[i]` is visible. H and W are 256, or the longer of them is."""

    seed: int | str
    split: str
    image: np.ndarray
    instance_map: np.ndarray
    objects: tuple[SceneObject, ...]

    def mask(self, *indices: int) -> np.ndarray:
        """Visible pixels of those objects as bool [H, W]; all False for none."""
        return np.isin(self.instance_map, [i + 1 for i in indices])


@dataclass
class _PlacedObject:
    """An object before it is drawn: its place and rotation."""

    kind: str
    colour: str
    radius: float
    angle: float
    stretch: float
    x: float = 0.0
    y: float = 0.0

    def polygons(self):
        """(points [P, 2] in picture pixels, shade), back to front."""
        cos, sin = math.cos(self.angle) * self.radius, math.sin(self.angle) * self.radius
        turn = np.array([[cos * self.stretch, sin * self.stretch], [-sin, cos]])
        for points, shade in kind_polygons(self.kind):
            yield points @ turn + (self.x, self.y), shade


def draw_scene(
    seed: int | str,
    split: str = "train",
    with_image: bool = True,
    size: tuple[int, int] = SQUARE,
) -> Scene:
    """The scene of a seed; the same seed, split and size (height, width) always give the same
    scene, and no two splits share one.

    `with_image=False` leaves `image` empty ([0, 0, 3]) and is three times as fast; `instance_map`
    and `objects` are the same.
    """
    # the split is part of the seed: no scene of the test can come up in training
    rng = random.Random(f"coprs scene {split} {seed}")
    while True:
        placed = _place_objects(rng, split, size)
        instance_map = _draw_instance_map(placed, size)
        objects = _visible_objects(placed, instance_map)
        if objects is not None:
            break
    objects, instance_map = _sort_in_reading_order(objects, instance_map)
    image = _draw_image(rng, placed, size) if with_image else np.zeros((0, 0, 3), np.uint8)
    return Scene(seed, split, image, instance_map, objects)


def random_size(rng: random.Random) -> tuple[int, int]:
    """(height, width) of a picture that is no square: one side 256, the other 128 to 240."""
    other = 16 * rng.randint(8, 15)
    return rng.choice(((SIDE, other), (other, SIDE)))


def _place_objects(rng: random.Random, split: str, size: tuple[int, int]) -> list[_PlacedObject]:
    height, width = size
    count = rng.choices(range(1, 8), (3, 10, 18, 22, 20, 15, 12))[0]
    placed: list[_PlacedObject] = []
    for _ in range(count * 6):
        if len(placed) == count:
            break
        obj = _choose_object(rng, split, placed, count)
        obj.radius *= math.sqrt(height * width) / SIDE
        if any((obj.kind, obj.colour) == (p.kind, p.colour) for p in placed):
            continue
        # now and then objects may overlap: masks must be learnt for covered ones, too
        closeness = 0.55 if rng.random() < 0.15 else 0.85
        for _ in range(12):
            margin = 0.9 * obj.radius
            obj.x, obj.y = (rng.uniform(margin, side - margin) for side in (width, height))
            if all(
                math.hypot(obj.x - p.x, obj.y - p.y) > closeness * (obj.radius + p.radius)
                for p in placed
            ):
                placed.append(obj)
                break
    # large ones are drawn first, so that small ones are not hidden
    return sorted(placed, key=lambda p: -p.radius)


def _choose_object(
    rng: random.Random, split: str, placed: list[_PlacedObject], count: int
) -> _PlacedObject:
    """An object that often repeats the kind, the category or the colour of one already there:
    questions need rivals."""
    kind, colour, echo = rng.choice(KINDS), rng.choice(list(COLOURS)), rng.random()
    if placed and echo < 0.2:
        kind = rng.choice(placed).kind
    elif placed and echo < 0.45:
        rival = rng.choice(placed).kind
        kind = rng.choice(next((kinds for kinds in CATEGORIES.values() if rival in kinds), KINDS))
    elif placed and echo < 0.65:
        colour = rng.choice(placed).colour
    unseen = [c for k, c in UNSEEN_PAIRS if k == kind]
    if split == "test" and unseen and rng.random() < 0.3:
        colour = unseen[0]
    while split != "test" and colour in unseen:
        colour = rng.choice(list(COLOURS))
    smallest, largest = math.log(0.046), math.log(_MAX_RADIUS[count])
    radius = SIDE * math.exp(smallest + (largest - smallest) * rng.random() ** 0.35)
    angle = math.radians(
        rng.uniform(-50, 50) if KIND_BY_NAME[kind].may_be_rotated else rng.gauss(0, 10)
    )
    return _PlacedObject(kind, colour, radius, angle, rng.choice((-1, 1)) * rng.uniform(0.85, 1.1))


def _draw_instance_map(placed: list[_PlacedObject], size: tuple[int, int]) -> np.ndarray:
    height, width = size
    canvas = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for i, obj in enumerate(placed):
        for points, _ in obj.polygons():
            pen.polygon((points * _OVERSAMPLING).ravel().tolist(), fill=i + 1)
    return np.asarray(canvas)[1::_OVERSAMPLING, 1::_OVERSAMPLING].copy()


def _visible_objects(
    placed: list[_PlacedObject], instance_map: np.ndarray
) -> list[SceneObject] | None:
    """What can be seen of each object; None where one is too small, too hidden, or so near to the
    border of two places that a person could name either."""
    objects: list[SceneObject] = []
    (height, width), whole_picture = instance_map.shape, instance_map.size
    for i, p in enumerate(placed):
        visible = instance_map == i + 1
        area = int(visible.sum())
        if not MIN_AREA_SHARE <= area / whole_picture <= MAX_AREA_SHARE:
            return None
        whole = (
            int((_draw_instance_map([p], (height, width)) == 1).sum())
            if _may_be_covered(i, placed)
            else area
        )
        if area < 0.65 * whole:
            return None
        ys, xs = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        x0, y0, x1, y1 = int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
        centre = (x0 + x1) / 2, (y0 + y1) / 2
        obj = SceneObject(p.kind, p.colour, centre, (x0, y0, x1, y1), area, (height, width))
        axes = zip(centre, (width, height), strict=True)
        if any(abs(v - n * side / 3) < 4 for v, side in axes for n in (1, 2)):
            return None
        if any(t.cell == obj.cell and abs(t.centre[0] - obj.centre[0]) < 8 for t in objects):
            return None
        objects.append(obj)
    return objects


def _may_be_covered(i: int, placed: list[_PlacedObject]) -> bool:
    p = placed[i]
    return any(
        math.hypot(p.x - q.x, p.y - q.y) < 1.2 * (p.radius + q.radius) for q in placed[i + 1 :]
    )


def _sort_in_reading_order(
    objects: list[SceneObject], instance_map: np.ndarray
) -> tuple[tuple[SceneObject, ...], np.ndarray]:
    order = sorted(range(len(objects)), key=lambda i: (objects[i].cell, objects[i].centre[0]))
    rank = np.zeros(len(objects) + 1, np.uint8)
    for new, old in enumerate(order):
        rank[old + 1] = new + 1
    return tuple(objects[i] for i in order), rank[instance_map]


def _draw_image(
    rng: random.Random, placed: list[_PlacedObject], size: tuple[int, int]
) -> np.ndarray:
    height, width = size
    canvas = Image.fromarray(_draw_background(rng, size)).resize(
        (width * _OVERSAMPLING, height * _OVERSAMPLING), Image.Resampling.NEAREST
    )
    pen = ImageDraw.Draw(canvas)
    for obj in placed:
        red, green, blue = (v + rng.randint(-14, 14) for v in COLOURS[obj.colour])
        own = _clip_channel(red), _clip_channel(green), _clip_channel(blue)
        for points, shade in obj.polygons():
            pen.polygon((points * _OVERSAMPLING).ravel().tolist(), fill=shade_colour(own, shade))
    image = np.asarray(canvas.reduce(_OVERSAMPLING))
    strength = rng.choice((0, 3, 6, 9))
    if not strength:
        return image.copy()
    noise = np.random.default_rng(rng.getrandbits(64)).integers(
        -strength, strength + 1, image.shape, dtype=np.int8
    )
    return np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def _clip_channel(value: int) -> int:
    return min(255, max(0, value))


def _draw_background(rng: random.Random, size: tuple[int, int]) -> np.ndarray:
    """A ground of little colour, uint8 [H, W, 3]: flat, graded, striped, dotted, checked or
    blotched."""
    level = rng.uniform(165, 245) if rng.random() < 0.8 else rng.uniform(50, 100)
    first = np.array([level + rng.uniform(-16, 16) for _ in range(3)])
    second = np.clip(
        first + rng.uniform(-45, 30) + np.array([rng.uniform(-10, 10) for _ in range(3)]), 20, 250
    )
    pattern = rng.choices(
        ("flat", "graded", "stripes", "dots", "checks", "blotches"), (30, 30, 10, 10, 8, 12)
    )[0]
    angle, period = rng.uniform(0, math.pi), rng.choice((12, 18, 28, 40))
    y, x = np.ogrid[0 : size[0], 0 : size[1]]
    along = (x * math.cos(angle)).astype(np.float32) + (y * math.sin(angle)).astype(np.float32)
    if pattern == "flat":
        blend = np.zeros(size, np.float32)
    elif pattern == "graded":
        blend = (along - along.min()) / (along.max() - along.min())
    elif pattern == "stripes":
        blend = 0.35 * (np.floor(along / period).astype(np.int16) & 1)
    elif pattern == "dots":
        blend = 0.5 * (
            ((x % period - period // 2) ** 2 + (y % period - period // 2) ** 2) < (period / 4) ** 2
        )
    elif pattern == "checks":
        blend = 0.3 * ((x // period + y // period) & 1)
    else:
        cells = np.random.default_rng(rng.getrandbits(64)).integers(
            0, 256, (rng.choice((6, 12, 24)),) * 2, dtype=np.uint8
        )
        blend = np.asarray(
            Image.fromarray(cells).resize(size[::-1], Image.Resampling.BICUBIC)
        ) * np.float32(1 / 400)
    palette = np.linspace(first, second, 256).astype(np.uint8)
    return palette.take((blend * 255).astype(np.uint8), axis=0)
