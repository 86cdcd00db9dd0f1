"""Pictures of an answer: heatmap, overlays, and one figure of the whole chain. RGB uint8 arrays [H, W, 3] throughout."""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

from coprs_core.results import FOCUS_TOKEN_PRIOR, Region, Result

COLOUR_MAP = "inferno"
"""Perceptually uniform and safe for colour-blind eyes."""
MASK_COLOUR = (0, 190, 170)
_COLOURS = (matplotlib.colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def heatmap(prior: np.ndarray) -> np.ndarray:
    """The prior float [H, W] in [0, 1] in the colours of `COLOUR_MAP`."""
    return _COLOURS[(prior * 255).round().astype(np.uint8)]


def prior_overlay(photo: np.ndarray, prior: np.ndarray, opacity: float = 0.85) -> np.ndarray:
    """The prior's heatmap over the photo in dark greys: the warmer a place, the less of the photo shows through."""
    grey = Image.fromarray(photo).convert("L").point(lambda v: int(v * 0.55)).convert("RGB")
    share = (255 * opacity * (0.25 + 0.75 * np.sqrt(prior))).astype(np.uint8)
    return np.asarray(Image.composite(Image.fromarray(heatmap(prior)), grey, Image.fromarray(share)))


def mask_overlay(photo: np.ndarray, mask: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """The mask tinted and outlined over the photo, the rest dimmed."""
    image = Image.fromarray(photo)
    tinted = Image.blend(image, Image.new("RGB", image.size, MASK_COLOUR), opacity)
    picture = np.array(Image.composite(tinted, image.point(lambda v: int(v * 0.72)), Image.fromarray(mask)))
    picture[outline(mask)] = 255
    return picture


def outline(mask: np.ndarray) -> np.ndarray:
    """The border of a bool mask [H, W], inside it, about a two-hundredth of the picture wide."""
    width = max(1, min(mask.shape) // 250)
    share_inside = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.BoxBlur(width))
    return mask & (np.asarray(share_inside) < 255)


def chain_figure(photo: np.ndarray, result: Result) -> Figure:
    """Photo and instruction, thought, prior and mask in one figure, for a page or a paper."""
    photo, region = thumbnail(photo, Region(result.prior, result.mask) if result.regions else None, 1024)
    shape = min(1.6, max(0.5, photo.shape[0] / photo.shape[1]))
    figure = Figure(figsize=(14, 3.1 * shape + 0.9), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 4)
    for ax in axes:
        ax.set_axis_off()
        ax.set_box_aspect(shape)
    axes[0].imshow(photo)
    axes[0].set_title(_wrapped(f"“{result.instruction}”", 34, 3), fontsize=10, parse_math=False)
    lines = max(6, round(15 * shape))
    axes[1].text(0, 1, _wrapped(result.reasoning or result.reason, 44, lines), va="top", fontsize=9, parse_math=False)
    axes[1].set_title("thought", fontsize=10)
    if region is None:
        axes[2].text(0.5, 0.5, result.outcome, ha="center", fontsize=13)
        axes[3].text(0.5, 0.5, _wrapped(result.reason, 30, 6), ha="center", va="center", fontsize=9.5, parse_math=False)
        return figure
    axes[2].imshow(prior_overlay(photo, region.prior))
    axes[2].set_title(
        "positional prior" if result.prior_kind == FOCUS_TOKEN_PRIOR else "prior from coordinates", fontsize=10
    )
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), COLOUR_MAP)
    figure.colorbar(scale, cax=axes[2].inset_axes([1.02, 0, 0.04, 1])).ax.tick_params(labelsize=8)
    axes[3].imshow(mask_overlay(photo, region.mask))
    axes[3].set_title(f"mask · IoU of prior and mask {result.prior_iou:.2f}", fontsize=10)
    return figure


def trace_figure(photo: np.ndarray, steps: list[tuple[str, np.ndarray, float, float]], settled: int | None) -> Figure:
    """Sentence by sentence: (text, prior [H, W], IoU with the answer's mask, spread) each as a picture, and both as lines."""
    figure = Figure(figsize=(3.4 * max(3, len(steps)), 6.2), layout="constrained", facecolor="white")
    above, below = figure.subfigures(2, 1, height_ratios=(3.4, 2))
    for i, (ax, (text, prior, iou, _)) in enumerate(
        zip(np.atleast_1d(above.subplots(1, len(steps))), steps, strict=True)
    ):
        small, region = thumbnail(photo, Region(prior, prior >= 0.5), 640)
        ax.imshow(prior_overlay(small, region.prior))
        ax.set_axis_off()
        mark = " (the focus has settled)" if i == settled else ""
        ax.set_title(_wrapped(f"{i + 1}. {text}", 38, 5) + f"\nIoU {iou:.2f}{mark}", fontsize=9, parse_math=False)
    ax = below.subplots()
    numbers = range(1, len(steps) + 1)
    ax.plot(numbers, [s[2] for s in steps], "o-", color="#5b1a6b", label="IoU of prior and the answer's mask")
    ax.plot(numbers, [s[3] for s in steps], "s--", color="#b8420f", label="spread of the prior")
    ax.set(xticks=list(numbers), ylim=(0, 1.02), xlabel="sentence")
    ax.legend(fontsize=8, frameon=False)
    return figure


def heads_figure(photo: np.ndarray, prior: np.ndarray, heads: np.ndarray) -> Figure:
    """The heads [n, H, W] before they are fused (each from its least to its most), and the fused prior beside them."""
    figure = Figure(figsize=(3.2 * (len(heads) + 1), 3.5), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(heads) + 1)
    for i, (ax, head) in enumerate(zip(axes, heads, strict=False)):
        ax.imshow(head, cmap=COLOUR_MAP)
        ax.set_title(f"head {i + 1}: {head.min():.1f} to {head.max():.1f}", fontsize=9)
    axes[-1].imshow(prior_overlay(photo, prior))
    axes[-1].set_title("fused: the positional prior", fontsize=9)
    for ax in axes:
        ax.set_axis_off()
    return figure


def thumbnail(photo: np.ndarray, region: Region | None, side: int) -> tuple[np.ndarray, Region | None]:
    """Photo and region brought down to at most `side` pixels a side, for the screen."""
    if max(photo.shape[:2]) <= side:
        return photo, region
    image = Image.fromarray(photo)
    image.thumbnail((side, side))
    if region is None:
        return np.asarray(image), None
    prior = Image.fromarray(region.prior).resize(image.size, Image.Resampling.BILINEAR)
    mask = Image.fromarray(region.mask).resize(image.size, Image.Resampling.NEAREST)
    return np.asarray(image), Region(np.asarray(prior).clip(0, 1), np.asarray(mask))


def _wrapped(text: str, width: int, lines: int) -> str:
    return textwrap.fill(text, width, max_lines=lines, placeholder=" …")


def save_answer(folder: Path, photo: np.ndarray, result: Result) -> list[Path]:
    """Write an answer's files into a folder: `result.json`, `chain.png`, and, where there is a region, `prior.npy`
    (float32 [H, W]), `prior.png`, `mask.png` (1 bit) and `overlay.png`. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "result.json", folder / "chain.png"]
    written[0].write_text(result.to_json() + "\n", encoding="utf-8")
    chain_figure(photo, result).savefig(written[1], dpi=150)
    for i, region in enumerate(result.regions):
        tag = "" if len(result.regions) == 1 else f"_{i + 1}"
        written += _save_region(folder, tag, photo, region)
    return written


def _save_region(folder: Path, tag: str, photo: np.ndarray, region: Region) -> list[Path]:
    paths = [
        folder / f"{name}{tag}.{kind}"
        for name, kind in (("prior", "npy"), ("prior", "png"), ("mask", "png"), ("overlay", "png"))
    ]
    np.save(paths[0], region.prior)
    Image.fromarray(heatmap(region.prior)).save(paths[1])
    Image.fromarray(region.mask).save(paths[2])
    Image.fromarray(mask_overlay(photo, region.mask)).save(paths[3])
    return paths
