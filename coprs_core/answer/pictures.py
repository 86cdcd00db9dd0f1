"""Pictures of an answer: heatmap, overlays, cut-out, figures. RGB uint8 arrays [H, W, 3]
throughout."""

from __future__ import annotations

import textwrap
import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from coprs_core.answer.compare import TruthComparison
from coprs_core.answer.results import Result
from coprs_core.metrics import PRIOR_THRESHOLDS
from coprs_core.prompts import ATTENTION_PRIOR, COORDINATES_PRIOR, FOCUS_TOKEN_PRIOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# a letter that the figures' font lacks is drawn as a box: no warning for each of them
warnings.filterwarnings("ignore", message="Glyph .* missing from font")
COLOUR_MAP = "inferno"
"""Perceptually uniform and safe for colour-blind eyes."""
MASK_COLOUR = (0, 190, 170)
REGION_COLOURS = (
    MASK_COLOUR,
    (255, 140, 40),
    (200, 90, 240),
    (250, 220, 60),
    (80, 150, 255),
    (255, 90, 130),
)
"""Of several regions in one answer, in turn."""
FIGURE_SIDE = 1024
"""Pictures in figures are at most this long a side, in pixels."""
_PRIOR_TITLES = {
    FOCUS_TOKEN_PRIOR: "positional prior",
    ATTENTION_PRIOR: "where its words looked, and the box written",
    COORDINATES_PRIOR: "prior from coordinates",
}
HEAT_OPACITY, MIN_HEAT, MASK_OPACITY = 0.85, 0.25, 0.5
GREY_BRIGHTNESS, DIMMED_BRIGHTNESS = 0.55, 0.72
"""How strong the heatmap is over the photo, its share where the prior is 0, and how strong a mask's
colour is; how bright the photo is under a heatmap and beside a mask. The page draws with the same
numbers."""


@cache
def heatmap_colours() -> np.ndarray:
    """The colours of `COLOUR_MAP`, uint8 [256, 3]."""
    import matplotlib

    return (matplotlib.colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def heatmap(prior: np.ndarray) -> np.ndarray:
    """The prior float [H, W] in [0, 1] in the colours of `COLOUR_MAP`."""
    return heatmap_colours()[(prior * 255).round().astype(np.uint8)]


def prior_overlay(
    photo: np.ndarray, prior: np.ndarray, opacity: float = HEAT_OPACITY
) -> np.ndarray:
    """The prior's heatmap over the photo in dark greys: the warmer a place, the less of the photo
    shows through."""
    grey = Image.fromarray(photo).convert("L").point(lambda v: int(v * GREY_BRIGHTNESS))
    # the square root keeps weak places visible, which a linear share would hide under the photo
    alpha = (255 * opacity * (MIN_HEAT + (1 - MIN_HEAT) * np.sqrt(prior))).astype(np.uint8)
    heat = Image.fromarray(heatmap(prior))
    return np.asarray(Image.composite(heat, grey.convert("RGB"), Image.fromarray(alpha)))


def mask_overlay(
    photo: np.ndarray, *masks: np.ndarray, opacity: float = MASK_OPACITY
) -> np.ndarray:
    """Masks tinted and outlined over the photo, the rest dimmed; several each in a colour of
    `REGION_COLOURS`."""
    image = Image.fromarray(photo)
    picture = image.point(lambda v: int(v * DIMMED_BRIGHTNESS))
    for i, mask in enumerate(masks):
        colour = REGION_COLOURS[i % len(REGION_COLOURS)]
        tinted = Image.blend(image, Image.new("RGB", image.size, colour), opacity)
        picture.paste(tinted, mask=Image.fromarray(mask))
        picture.paste((255, 255, 255), mask=Image.fromarray(mask_outline(mask)))
    return np.asarray(picture)


def cut_out(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The photo where the mask is, transparent elsewhere: RGBA uint8 [H, W, 4]."""
    return np.dstack([photo, mask.astype(np.uint8) * 255])


def difference_overlay(photo: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two masks over the photo: what both hold in `MASK_COLOUR`, only `a` orange, only `b`
    violet."""
    return mask_overlay(photo, a & b, a & ~b, b & ~a)


def mask_outline(mask: np.ndarray) -> np.ndarray:
    """The border of a bool mask [H, W], inside it, about a two-hundredth of the picture wide."""
    width = max(1, min(mask.shape) // 250)
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(width))
    return mask & (np.asarray(blurred) < 255)


def chain_figure(photo: np.ndarray, result: Result) -> Figure:
    """Photo and instruction, thought, prior and mask in one figure, for a page or a paper."""
    photo = thumbnail(photo, FIGURE_SIDE)
    shape = min(1.6, max(0.5, photo.shape[0] / photo.shape[1]))
    instruction = _wrap_text(f"“{result.instruction}”", 34, 3)
    height = 3.3 * shape + 0.5 + 0.2 * len(instruction.splitlines())
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(14, height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 4)
    for ax in axes:
        ax.set_axis_off()
        ax.set_box_aspect(shape)
    axes[0].imshow(photo)
    axes[0].set_title(instruction, fontsize=10, parse_math=False)
    lines = max(6, round(15 * shape))
    axes[1].text(
        0,
        1,
        _wrap_text(result.reasoning or result.reason, 44, lines),
        va="top",
        fontsize=9,
        parse_math=False,
    )
    axes[1].set_title("thought", fontsize=10)
    if result.prior is None:
        axes[2].text(0.5, 0.5, result.outcome, ha="center", fontsize=13)
        axes[3].text(
            0.5,
            0.5,
            _wrap_text(result.reason, 30, 6),
            ha="center",
            va="center",
            fontsize=9.5,
            parse_math=False,
        )
        return figure
    axes[2].imshow(prior_overlay(photo, downscale_prior(result.prior, FIGURE_SIDE)))
    axes[2].set_title(_PRIOR_TITLES[result.prior_kind], fontsize=10)
    for region in result.regions:
        if region.box:
            scale = photo.shape[1] / result.photo_size[1]
            left, top, right, bottom = (scale * v for v in region.box)
            size = right - left, bottom - top
            axes[2].add_patch(Rectangle((left, top), *size, fill=False, ec="white", lw=1.2))
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), COLOUR_MAP)
    figure.colorbar(scale, cax=axes[2].inset_axes([1.02, 0, 0.04, 1])).ax.tick_params(labelsize=8)
    axes[3].imshow(
        mask_overlay(photo, *(downscale_mask(r.mask, FIGURE_SIDE) for r in result.regions))
    )
    axes[3].set_title(f"mask · IoU of prior and mask {result.prior_iou:.2f}", fontsize=10)
    return figure


def thumbnail(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture uint8 [H, W, 3] brought down to at most `side` pixels a side, for the screen."""
    size = downscaled_size(picture.shape[:2], side)
    if size == picture.shape[:2]:
        return picture
    return np.asarray(
        Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC, reducing_gap=2.0)
    )


def downscale_prior(prior: np.ndarray, side: int) -> np.ndarray:
    """A prior float32 [H, W] for the `thumbnail` of its photo."""
    size = downscaled_size(prior.shape, side)
    return np.asarray(Image.fromarray(prior).resize(size[::-1], Image.Resampling.BILINEAR)).clip(
        0, 1
    )


def downscale_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask bool [H, W], or numbers of regions uint8 [H, W], for the `thumbnail` of its photo."""
    return np.asarray(
        Image.fromarray(mask).resize(
            downscaled_size(mask.shape, side)[::-1], Image.Resampling.NEAREST
        )
    )


def downscaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) brought down to at most `side`, its shape kept; as it is where it is small
    enough."""
    ratio = min(1, side / max(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def normalize_map(head: np.ndarray) -> np.ndarray:
    """An attention map float [H, W], unbounded, from its least (0) to its most (1)."""
    low, high = float(head.min()), float(head.max())
    return (head - low) / max(high - low, 1e-9)


def _wrap_text(text: str, width: int, lines: int) -> str:
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …")


def truth_figure(
    photo: np.ndarray, result: Result, truth: np.ndarray, comparison: TruthComparison
) -> Figure:
    """Truth and mask over the photo, and the prior's IoU with the truth over the threshold, the
    best marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    picture, ax = figure.subplots(1, 2)
    picture.imshow(difference_overlay(photo, result.mask, truth))
    picture.set_axis_off()
    picture.set_title("both · only the mask (orange) · only the truth (violet)", fontsize=9)
    ax.plot(PRIOR_THRESHOLDS, comparison.prior_curve, color="#5b1a6b")
    best = f"best: {comparison.best_iou:.2f} at {comparison.best_threshold:.2f}"
    ax.plot(comparison.best_threshold, comparison.best_iou, "o", color="#b8420f", label=best)
    ax.set(
        xlim=(0, 1), ylim=(0, 1.02), xlabel="threshold of the prior", ylabel="IoU with the truth"
    )
    ax.legend(fontsize=8, frameon=False)
    return figure
