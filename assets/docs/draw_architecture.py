"""Draws the picture of the method: `python assets/docs/draw_architecture.py`.

Writes architecture-light.png and architecture-dark.png beside this file. The boxes are the paper's
(figure 2); the small pictures are what the bundled miniature answers.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from coprs_core import load  # noqa: E402
from coprs_core.answer.pictures import mask_overlay, prior_overlay  # noqa: E402

WIDTH, HEIGHT, SIDE = 1180, 420, 132
EXAMPLE, INSTRUCTION = ROOT / "assets/examples/rain.png", "the thing that keeps the rain off"


@dataclass(frozen=True)
class Theme:
    ink: str
    soft: str
    line: str
    card: str
    accent: str
    accent_card: str


THEMES = {
    "light": Theme("#241b2b", "#645a6b", "#8d8490", "#ffffff", "#5b1a6b", "#f3eaf6"),
    "dark": Theme("#f3eef5", "#b9aec0", "#8d8490", "#1e1a22", "#d9a8e8", "#2d2035"),
}


def text(ax: Axes, x: float, y: float, words: str, colour: str, size: float = 8.5, **style) -> None:
    ax.text(x, y, words, color=colour, fontsize=size, ha="center", va="center", **style)


def box(
    ax: Axes, t: Theme, place: tuple[float, float, float, float], *lines: str, strong: bool = False
) -> None:
    """A box of the figure: its name, then what it does in smaller letters."""
    x, y, w, h = place
    fill, edge = (t.accent_card, t.accent) if strong else (t.card, t.line)
    style = "round,pad=0,rounding_size=10"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=fill, ec=edge))
    top = y + h / 2 - 9 * (len(lines) - 1)
    text(ax, x + w / 2, top, lines[0], t.ink, 10, weight="bold")
    for i, line in enumerate(lines[1:], start=1):
        text(ax, x + w / 2, top + 18 * i, line, t.soft)


def arrow(ax: Axes, t: Theme, *points: tuple[float, float]) -> None:
    x, y = zip(*points, strict=True)
    ax.plot(x[:-1], y[:-1], color=t.line, lw=1.2, solid_joinstyle="miter")
    tip = {"arrowstyle": "-|>", "mutation_scale": 9, "color": t.line, "lw": 1.2}
    ax.add_patch(FancyArrowPatch(points[-2], points[-1], shrinkA=0, shrinkB=0, **tip))


def picture(ax: Axes, t: Theme, x: float, y: float, pixels: np.ndarray, caption: str) -> None:
    ax.imshow(pixels, extent=(x, x + SIDE, y + SIDE, y), interpolation="bilinear")
    text(ax, x + SIDE / 2, y + SIDE + 15, caption, t.ink, 10, weight="bold")


def draw(t: Theme, photo: np.ndarray, prior: np.ndarray, mask: np.ndarray) -> Figure:
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100))
    ax = figure.add_axes((0, 0, 1, 1))
    picture(ax, t, 16, 140, photo, "photo")
    picture(ax, t, 812, 98, prior_overlay(photo, prior), "positional prior")
    picture(ax, t, 1032, 258, mask_overlay(photo, mask), "mask")
    box(
        ax,
        t,
        (196, 12, 268, 104),
        "language model  $π_θ$",
        "reads photo and instruction,",
        "thinks aloud, then writes",
        "one focus token <REF_POS>",
    )
    text(ax, 330, 133, f"“{INSTRUCTION}”", t.soft, style="italic")
    box(ax, t, (196, 242, 268, 74), "SAM's image encoder  $F_{enc}$", "keys $K$ of every place")
    heads = "query head  $F_{head}$", "focus query · keys, 4 heads"
    box(ax, t, (574, 52, 190, 74), *heads, strong=True)
    box(ax, t, (574, 172, 190, 58), "fusion  $F_{fuse}$", "4 maps become one", strong=True)
    decoder = "mask decoder  $F_{dec}$", "SAM's, prompted by", "the prior alone"
    box(ax, t, (782, 290, 192, 74), *decoder)
    arrow(ax, t, (148, 180), (170, 180), (170, 62), (195, 62))
    arrow(ax, t, (148, 230), (170, 230), (170, 279), (195, 279))
    arrow(ax, t, (464, 62), (520, 62), (520, 80), (573, 80))
    text(ax, 520, 48, "its hidden state", t.soft)
    arrow(ax, t, (464, 264), (520, 264), (520, 106), (573, 106))
    arrow(ax, t, (669, 126), (669, 171))
    arrow(ax, t, (764, 201), (788, 201), (788, 164), (811, 164))
    arrow(ax, t, (878, 256), (878, 289))
    arrow(ax, t, (464, 294), (520, 294), (520, 340), (781, 340))
    text(ax, 650, 329, "image embedding", t.soft)
    arrow(ax, t, (974, 327), (1031, 327))
    ax.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    ax.set_aspect("equal")
    ax.set_axis_off()
    return figure


def main() -> None:
    photo = np.asarray(Image.open(EXAMPLE).convert("RGB"))
    result = load("mini", device="cpu").segment(photo, INSTRUCTION)
    if result.prior is None:
        raise SystemExit("the miniature found nothing in its own example")
    for name, theme in THEMES.items():
        figure = draw(theme, photo, result.prior, result.mask)
        figure.savefig(HERE / f"architecture-{name}.png", dpi=150, transparent=True)


if __name__ == "__main__":
    main()
