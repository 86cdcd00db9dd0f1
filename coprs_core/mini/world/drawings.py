"""How each kind of object in a picture-book scene is drawn: a few filled polygons, back to front.

Each function gives the parts of one kind; `kinds.KIND_TABLE` is the table of them.

A part is `(points, shade)`. Points are (x, y) in the object's own frame, about [-1, 1] on both axes
with y pointing down. A shade is one of "main", "dark", "light" (variants of the object's own
colour) or a fixed colour of `FIXED_SHADES`.
"""

import math

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (216, 42, 40),
    "orange": (246, 142, 28),
    "yellow": (246, 216, 50),
    "green": (48, 158, 72),
    "blue": (44, 96, 216),
    "purple": (134, 60, 182),
    "pink": (246, 134, 184),
    "brown": (124, 78, 44),
}
FIXED_SHADES: dict[str, tuple[int, int, int]] = {
    "black": (34, 34, 42),
    "white": (246, 246, 246),
    "wood": (112, 76, 46),
    "leaf": (72, 150, 72),
    "beak": (240, 160, 40),
    "steel": (150, 156, 168),
}


def _ellipse(cx, cy, rx, ry, start=0, end=360, steps=22):
    angles = np.radians(np.linspace(start, end, steps))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _box(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def _line(x0, y0, x1, y1, width):
    length = math.hypot(x1 - x0, y1 - y0)
    nx, ny = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
    return [(x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny)]


def _rays(inner, outer, count, spread):
    for i in range(count):
        a = 2 * math.pi * i / count
        yield [
            (r * math.cos(b), r * math.sin(b))
            for r, b in ((inner, a - spread), (outer, a), (inner, a + spread))
        ]


def fish():
    return [
        ([(0.4, 0), (0.98, -0.52), (0.98, 0.52)], "dark"),
        (_ellipse(-0.15, 0, 0.78, 0.48), "main"),
        ([(-0.25, -0.4), (0.15, -0.78), (0.28, -0.36)], "dark"),
        (_ellipse(0.05, 0.05, 0.2, 0.24, 90, 270), "light"),
        (_ellipse(-0.6, -0.1, 0.13, 0.13), "white"),
        (_ellipse(-0.62, -0.1, 0.06, 0.06), "black"),
    ]


def bird():
    return [
        (_line(-0.05, 0.4, -0.1, 0.92, 0.09), "black"),
        (_line(0.2, 0.4, 0.2, 0.92, 0.09), "black"),
        ([(0.45, 0), (0.99, -0.3), (0.95, 0.25), (0.5, 0.3)], "dark"),
        (_ellipse(0.05, 0.12, 0.62, 0.42), "main"),
        (_ellipse(-0.48, -0.35, 0.34, 0.34), "main"),
        ([(-0.74, -0.48), (-1, -0.26), (-0.74, -0.18)], "beak"),
        ([(-0.2, -0.05), (0.5, -0.05), (0.2, 0.4)], "dark"),
        (_ellipse(-0.56, -0.42, 0.08, 0.08), "black"),
    ]


def butterfly():
    return [
        (_ellipse(-0.5, -0.4, 0.48, 0.52), "main"),
        (_ellipse(0.5, -0.4, 0.48, 0.52), "main"),
        (_ellipse(-0.4, 0.48, 0.36, 0.42), "dark"),
        (_ellipse(0.4, 0.48, 0.36, 0.42), "dark"),
        (_ellipse(-0.52, -0.42, 0.2, 0.22), "light"),
        (_ellipse(0.52, -0.42, 0.2, 0.22), "light"),
        (_line(0, -0.5, -0.3, -0.98, 0.07), "black"),
        (_line(0, -0.5, 0.3, -0.98, 0.07), "black"),
        (_ellipse(0, 0.08, 0.12, 0.7), "black"),
    ]


def car():
    return [
        ([(-0.62, -0.04), (-0.4, -0.56), (0.36, -0.56), (0.66, -0.04)], "dark"),
        (
            [
                (-0.98, 0.42),
                (-0.98, 0.02),
                (-0.8, -0.08),
                (0.75, -0.08),
                (0.98, 0.05),
                (0.98, 0.42),
            ],
            "main",
        ),
        ([(-0.46, -0.08), (-0.3, -0.44), (-0.04, -0.44), (-0.04, -0.08)], "white"),
        ([(0.06, -0.08), (0.06, -0.44), (0.29, -0.44), (0.48, -0.08)], "white"),
        (_ellipse(-0.55, 0.42, 0.26, 0.26), "black"),
        (_ellipse(0.55, 0.42, 0.26, 0.26), "black"),
        (_ellipse(-0.55, 0.42, 0.1, 0.1), "steel"),
        (_ellipse(0.55, 0.42, 0.1, 0.1), "steel"),
    ]


def boat():
    return [
        (_line(0, 0.35, 0, -0.98, 0.1), "wood"),
        ([(0.09, -0.94), (0.09, 0.2), (0.86, 0.2)], "light"),
        ([(-0.09, -0.66), (-0.09, 0.2), (-0.6, 0.2)], "white"),
        ([(-0.98, 0.3), (0.98, 0.3), (0.62, 0.86), (-0.62, 0.86)], "main"),
        ([(-0.9, 0.42), (0.9, 0.42), (0.84, 0.54), (-0.84, 0.54)], "dark"),
    ]


def plane():
    return [
        ([(0.7, -0.05), (0.98, -0.6), (0.72, -0.6), (0.45, -0.05)], "dark"),
        (_ellipse(0, 0, 0.98, 0.22), "main"),
        ([(-0.25, 0.02), (0.2, 0.02), (0.55, 0.78), (0.28, 0.78)], "dark"),
        ([(-0.2, -0.14), (0.12, -0.14), (0.36, -0.62), (0.16, -0.62)], "light"),
        (_ellipse(-0.7, -0.06, 0.1, 0.08), "white"),
        (_ellipse(-0.38, -0.06, 0.07, 0.07), "white"),
        (_ellipse(0.2, -0.06, 0.07, 0.07), "white"),
    ]


def apple():
    return [
        (_line(0, -0.5, 0.1, -0.95, 0.12), "wood"),
        (_ellipse(0.34, -0.8, 0.26, 0.11), "leaf"),
        (_ellipse(-0.28, 0.12, 0.54, 0.66), "main"),
        (_ellipse(0.28, 0.12, 0.54, 0.66), "main"),
        (_ellipse(-0.4, -0.1, 0.13, 0.18), "light"),
    ]


def banana():
    return [
        (_ellipse(0, -0.52, 0.98, 1.16, 15, 165) + _ellipse(0, -0.55, 0.86, 0.62, 165, 15), "main"),
        (_ellipse(0, -0.53, 0.9, 0.85, 40, 140) + _ellipse(0, -0.55, 0.86, 0.62, 140, 40), "light"),
        (_box(-0.99, -0.46, -0.82, -0.16), "wood"),
    ]


def carrot():
    return [
        (_line(0, -0.4, -0.34, -0.95, 0.16), "leaf"),
        (_line(0, -0.4, 0, -0.98, 0.16), "leaf"),
        (_line(0, -0.4, 0.34, -0.95, 0.16), "leaf"),
        (
            _ellipse(0, -0.32, 0.4, 0.22, 180, 360)
            + [(0.38, -0.2), (0.04, 0.98), (-0.04, 0.98), (-0.38, -0.2)],
            "main",
        ),
        (_box(-0.34, -0.12, -0.05, -0.03), "dark"),
        (_box(0.02, 0.18, 0.24, 0.27), "dark"),
        (_box(-0.18, 0.44, 0.02, 0.52), "dark"),
    ]


def hammer():
    return [
        (_box(-0.11, -0.5, 0.11, 0.98), "wood"),
        ([(-0.62, -0.9), (0.4, -0.9), (0.4, -0.42), (-0.62, -0.42)], "main"),
        (_box(-0.82, -0.98, -0.58, -0.34), "dark"),
        ([(0.4, -0.9), (0.88, -0.62), (0.4, -0.42)], "light"),
    ]


def key():
    return [
        (_box(-0.25, -0.12, 0.98, 0.12), "main"),
        (_box(0.5, 0.1, 0.66, 0.46), "main"),
        (_box(0.78, 0.1, 0.94, 0.54), "main"),
        (_ellipse(-0.56, 0, 0.43, 0.43), "main"),
        (_ellipse(-0.56, 0, 0.19, 0.19), "white"),
    ]


def chair():
    return [
        (_box(-0.62, -0.98, -0.38, 0.98), "main"),
        (_box(-0.38, -0.88, -0.18, 0.05), "light"),
        (_box(0.38, 0.2, 0.6, 0.98), "main"),
        (_box(-0.62, 0.02, 0.64, 0.28), "dark"),
    ]


def table():
    return [
        (_box(-0.86, -0.2, -0.64, 0.78), "dark"),
        (_box(0.64, -0.2, 0.86, 0.78), "dark"),
        (_box(-0.98, -0.46, 0.98, -0.14), "main"),
        (_box(-0.9, -0.42, 0.9, -0.34), "light"),
    ]


def tree():
    return [
        (_box(-0.15, 0.2, 0.15, 0.98), "wood"),
        (_ellipse(-0.42, 0.02, 0.42, 0.38), "main"),
        (_ellipse(0.42, 0.02, 0.42, 0.38), "main"),
        (_ellipse(0, -0.38, 0.62, 0.6), "main"),
        (_ellipse(-0.2, -0.52, 0.2, 0.17), "light"),
        (_ellipse(0.3, -0.1, 0.18, 0.15), "dark"),
    ]


def flower():
    petals = [
        (_ellipse(0.38 * math.cos(a), -0.4 + 0.38 * math.sin(a), 0.27, 0.27, steps=14), "main")
        for a in np.arange(6) * math.pi / 3
    ]
    return [
        (_line(0, 0, 0, 0.98, 0.12), "leaf"),
        (_ellipse(0.28, 0.62, 0.28, 0.12), "leaf"),
        (_ellipse(-0.26, 0.76, 0.26, 0.11), "leaf"),
        *petals,
        (_ellipse(0, -0.4, 0.22, 0.22), "white"),
    ]


def hat():
    return [
        (_ellipse(0, 0.5, 0.99, 0.28), "main"),
        ([(-0.54, 0.48), (-0.46, -0.68), (0.46, -0.68), (0.54, 0.48)], "main"),
        (_ellipse(0, -0.68, 0.46, 0.13), "light"),
        (_box(-0.53, 0.1, 0.53, 0.36), "black"),
    ]


def shirt():
    return [
        (
            [
                (-0.42, -0.8),
                (-0.98, -0.36),
                (-0.76, 0.06),
                (-0.46, -0.14),
                (-0.46, 0.92),
                (0.46, 0.92),
                (0.46, -0.14),
                (0.76, 0.06),
                (0.98, -0.36),
                (0.42, -0.8),
            ],
            "main",
        ),
        (_ellipse(0, -0.8, 0.24, 0.24, 0, 180), "white"),
        (_box(-0.46, 0.2, 0.46, 0.38), "light"),
        (_box(-0.46, 0.56, 0.46, 0.74), "light"),
    ]


def sun():
    return [
        *((ray, "dark") for ray in _rays(0.6, 0.98, 10, 0.2)),
        (_ellipse(0, 0, 0.62, 0.62), "main"),
        (_ellipse(-0.16, -0.16, 0.26, 0.26), "light"),
    ]


def moon():
    return [
        (_ellipse(0, 0, 0.95, 0.95, 60, 300) + _ellipse(0.32, 0, 0.82, 0.82, 275, 85), "main"),
        (_ellipse(-0.7, 0.1, 0.11, 0.11), "dark"),
        (_ellipse(-0.55, -0.4, 0.08, 0.08), "dark"),
    ]


def cloud():
    return [
        (_box(-0.6, 0, 0.6, 0.44), "main"),
        (_ellipse(-0.58, 0.12, 0.4, 0.33), "main"),
        (_ellipse(0.58, 0.12, 0.4, 0.33), "main"),
        (_ellipse(-0.18, -0.16, 0.42, 0.42), "main"),
        (_ellipse(0.26, -0.06, 0.36, 0.36), "main"),
        (_ellipse(-0.26, -0.26, 0.2, 0.16), "light"),
    ]


def house():
    return [
        (_box(0.4, -0.85, 0.62, -0.2), "dark"),
        (_box(-0.76, -0.12, 0.76, 0.95), "main"),
        ([(-0.98, -0.08), (0, -0.95), (0.98, -0.08)], "dark"),
        (_box(-0.18, 0.35, 0.18, 0.95), "black"),
        (_box(-0.6, 0.1, -0.3, 0.42), "white"),
        (_box(0.3, 0.1, 0.6, 0.42), "white"),
    ]


def cup():
    return [
        (_ellipse(0.6, 0, 0.38, 0.44), "dark"),
        (_ellipse(0.6, 0, 0.2, 0.25), "white"),
        ([(-0.7, -0.7), (0.62, -0.7), (0.5, 0.84), (-0.58, 0.84)], "main"),
        (_ellipse(-0.04, -0.7, 0.66, 0.18), "light"),
        (_ellipse(-0.04, -0.68, 0.5, 0.1), "black"),
    ]


def umbrella():
    return [
        (_line(0, -0.2, 0, 0.86, 0.1), "black"),
        (_line(0, 0.86, 0.28, 0.86, 0.1), "black"),
        (_line(0.28, 0.9, 0.28, 0.62, 0.1), "black"),
        (_ellipse(0, 0.02, 0.99, 0.9, 180, 360), "main"),
        (_ellipse(0, 0.02, 0.36, 0.9, 180, 360), "light"),
        (_line(0, -0.85, 0, -0.99, 0.1), "black"),
    ]


def clock():
    return [
        (_ellipse(-0.55, -0.74, 0.24, 0.2), "dark"),
        (_ellipse(0.55, -0.74, 0.24, 0.2), "dark"),
        (_line(-0.4, 0.6, -0.62, 0.98, 0.18), "dark"),
        (_line(0.4, 0.6, 0.62, 0.98, 0.18), "dark"),
        (_ellipse(0, 0.06, 0.84, 0.84, steps=30), "main"),
        (_ellipse(0, 0.06, 0.6, 0.6, steps=26), "white"),
        (_line(0, 0.1, 0, -0.4, 0.11), "black"),
        (_line(-0.04, 0.06, 0.36, 0.24, 0.11), "black"),
    ]


def shade_colour(colour: tuple[int, int, int], shade: str) -> tuple[int, int, int]:
    """The RGB of a shade for an object whose own colour is `colour` (both 0 to 255)."""
    if shade == "main":
        return colour
    if shade == "dark":
        red, green, blue = (int(v * 0.66) for v in colour)
        return red, green, blue
    if shade == "light":
        red, green, blue = (int(v + (255 - v) * 0.45) for v in colour)
        return red, green, blue
    return FIXED_SHADES[shade]
