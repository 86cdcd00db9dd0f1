"""Pictures of an answer: heatmap, overlays, and one figure of the whole chain. RGB uint8 arrays [H, W, 3] throughout."""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

from coprs_core.results import Region, Result

COLOUR_MAP = "inferno"
"""Perceptually uniform and safe for colour-blind eyes."""
MASK_COLOUR = np.array((0, 190, 170), np.float32)


def heatmap(prior: np.ndarray) -> np.ndarray:
    """The prior float [H, W] in [0, 1] in the colours of `COLOUR_MAP`."""
    return (matplotlib.colormaps[COLOUR_MAP](prior)[..., :3] * 255).round().astype(np.uint8)


def prior_overlay(photo: np.ndarray, prior: np.ndarray, opacity: float = 0.85) -> np.ndarray:
    """The prior's heatmap over the photo in greys: the warmer a place, the less of the photo shows through."""
    grey = np.asarray(Image.fromarray(photo).convert("L").convert("RGB"), np.float32) * 0.55
    share = opacity * (0.25 + 0.75 * np.sqrt(prior.astype(np.float32)))[..., None]
    return (grey * (1 - share) + heatmap(prior) * share).astype(np.uint8)


def mask_overlay(photo: np.ndarray, mask: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """The mask tinted and outlined over the photo, the rest dimmed."""
    share = np.where(mask, opacity, 0).astype(np.float32)[..., None]
    picture = photo * np.where(mask, 1, 0.72)[..., None] * (1 - share) + MASK_COLOUR * share
    picture[outline(mask)] = (255, 255, 255)
    return picture.astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """The border of a bool mask [H, W], inside it, about a two-hundredth of the picture wide."""
    width = 2 * max(1, min(mask.shape) // 250) + 1
    inner = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(width))) > 0
    return mask & ~inner


def cut_out(photo: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """RGBA uint8 [H, W, 4]: the photo where the mask is, transparent elsewhere."""
    return np.dstack([photo, mask.astype(np.uint8) * 255])


def chain_figure(photo: np.ndarray, result: Result) -> Figure:
    """Photo and instruction, thought, prior and mask in one figure, for a page or a paper."""
    figure = Figure(figsize=(13, 4.2), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 4, width_ratios=(1, 1.1, 1.08, 1))
    for ax in axes:
        ax.set_axis_off()
    region = result.regions[0] if result.regions else None
    axes[0].imshow(photo)
    axes[0].set_title(_wrapped(f"“{result.instruction}”", 34, 3), fontsize=10, parse_math=False)
    axes[1].text(0, 0.97, _wrapped(result.reasoning or result.reason, 42, 17), va="top", fontsize=9.5, parse_math=False)
    axes[1].set_title("thought", fontsize=10)
    if region is None:
        axes[2].text(0.5, 0.5, result.outcome, ha="center", fontsize=13)
        axes[3].text(0.5, 0.5, _wrapped(result.reason, 30, 6), ha="center", va="center", fontsize=9.5, parse_math=False)
        return figure
    axes[2].imshow(prior_overlay(photo, region.prior))
    axes[2].set_title("positional prior", fontsize=10)
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), COLOUR_MAP)
    figure.colorbar(scale, ax=axes[2], fraction=0.046, pad=0.02)
    axes[3].imshow(mask_overlay(photo, region.mask))
    axes[3].set_title(f"mask · IoU of prior and mask {result.prior_iou:.2f}", fontsize=10)
    return figure


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
