"""What is seen, for <coprs-view> (app/view.js): priors and masks as data, and the figures and controls around them."""

import base64
import io
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from app.views.page import empty_verdict, verdict
from app.texts import say
from coprs_core.metrics import iou_curve
from coprs_core.answer.pictures import COLOUR_MAP, REGION_COLOURS, mask_overlay, small_mask, small_prior, thumbnail
from coprs_core.probes import Look
from coprs_core.answer.results import FOCUS_TOKEN_PRIOR, Result, encode_prior

SHOWN_SIDE, SMALL_SIDE, STRIP_SIDE = 1024, 448, 160
"""Pictures on the page are at most this long a side, small ones in probes and strips; files keep the photo's size."""


@dataclass(frozen=True)
class Shown:
    """One look as the page's canvases take it: a prior [H, W], and `numbers` uint8 [H, W]: 0 or the number of a region; in a
    comparison 1 both, 2 only the first, 3 only the second. `curve`: IoU of prior and mask at each threshold, [101]."""

    label: str
    prior: np.ndarray | None = field(default=None, repr=False)
    numbers: np.ndarray | None = field(default=None, repr=False)
    curve: np.ndarray | None = field(default=None, repr=False)


def of_look(look: Look, label: str, curve_with: np.ndarray | None = None) -> Shown:
    """A probe's look; the curve is of its prior with a mask, its own unless another is given."""
    with_mask = look.mask if curve_with is None else curve_with
    return Shown(label, look.prior, look.mask.astype(np.uint8), iou_curve(look.prior, with_mask))


def of_result(lang: str, result: Result) -> list[Shown]:
    """All regions together, numbered, and where there are several each alone."""
    numbers = np.zeros(result.photo_size, np.uint8)
    for i, region in enumerate(result.regions, start=1):
        numbers[region.mask] = i
    curve = iou_curve(result.prior, result.mask) if result.mask.any() else None
    shown = [Shown(say(lang, "all_regions"), result.prior, numbers, curve)]
    if len(result.regions) > 1:
        shown += [
            Shown(f"{i} {r.label}".strip(), r.prior, r.mask.astype(np.uint8) * i, iou_curve(r.prior, r.mask))
            for i, r in enumerate(result.regions, start=1)
        ]
    return shown


def waiting_view(lang: str, prior_kind: str = FOCUS_TOKEN_PRIOR) -> str:
    """The places of prior, mask and verdict before there is anything in them."""
    return _empty_view(lang, prior_kind, empty_verdict(lang, "–"))


def _empty_view(lang: str, prior_kind: str, verdict_html: str) -> str:
    figures = _empty_figure("prior", say(lang, f"prior_{prior_kind}")) + _empty_figure("mask", say(lang, "mask"))
    return f'<div class="view">{figures}{verdict_html}</div>'


def _empty_figure(name: str, caption: str) -> str:
    return f'<figure class="{name}-figure empty"><figcaption>{caption}</figcaption><div class="frame"></div></figure>'


def prior_view(lang: str, pixels: np.ndarray, prior: np.ndarray, prior_kind: str) -> str:
    """The prior alone, while the mask is still being drawn."""
    inside = prior_figure(lang, prior_kind) + _empty_figure("mask", say(lang, "mask")) + empty_verdict(lang, "…")
    return canvases(pixels, [Shown("", prior)], inside)


def answer_view(lang: str, pixels: np.ndarray, result: Result) -> str:
    """Prior, mask and verdict of an answer."""
    if not result.regions:
        return _empty_view(lang, result.prior_kind, verdict(lang, result))
    shown = of_result(lang, result)
    inside = prior_figure(lang, result.prior_kind) + mask_figure(lang, _badges(result)) + verdict(lang, result)
    return canvases(pixels, shown, inside + (chips(shown) if len(shown) > 1 else ""))


def canvases(
    pixels: np.ndarray, shown: list[Shown], inside: str, classes: str = "", side: int = SHOWN_SIDE, **more
) -> str:
    """A <coprs-view> (app/view.js) over a photo [H, W, 3] with its looks; `inside` holds its figures and controls."""
    small = thumbnail(pixels, side)
    height, width = small.shape[:2]
    data = {"width": width, "height": height, "scale": pixels.shape[1] / width, "photo": photo_url(small), **more}
    data["looks"] = [_look_data(s, side) for s in shown]
    shape = f'class="view {classes} {"wide" if width >= height else "tall"}" style="--ratio:{width}/{height}"'
    inside = inside.replace("<canvas ", f'<canvas width="{width}" height="{height}" ')
    return f'<coprs-view {shape} data-view="{escape(json.dumps(data))}">{inside}</coprs-view>'


def _look_data(shown: Shown, side: int) -> dict:
    told = {"label": shown.label}
    if shown.prior is not None:
        told["prior"] = encode_prior(small_prior(shown.prior, side))
    if shown.numbers is not None:
        file = io.BytesIO()
        Image.fromarray(small_mask(shown.numbers, side)).save(file, "PNG")
        told["mask"] = _data_url("png", file)
    if shown.curve is not None:
        told["curve"] = [round(float(v), 4) for v in shown.curve]
    return told


def photo_url(pixels: np.ndarray) -> str:
    """A picture for the page as a data URL: PNG where it is small, else JPEG."""
    file, kind = io.BytesIO(), "png" if pixels.size < 3 * 512 * 512 else "jpeg"
    Image.fromarray(pixels).save(file, kind, **({"quality": 90} if kind == "jpeg" else {}))
    return _data_url(kind, file)


def _data_url(kind: str, file: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def prior_figure(lang: str, prior_kind: str, controls: bool = True, caption: str | None = None) -> str:
    """A figure of the prior: canvas, readout, colours, and its sliders."""
    caption = say(lang, f"prior_{prior_kind}") if caption is None else caption
    sliders = _slider("opacity", say(lang, "opacity"), 85) + _slider("threshold", say(lang, "threshold"), 50)
    return (
        f'<figure class="prior-figure"><figcaption><span>{caption}</span>{_enlarge(lang)}</figcaption><div class="frame"><div class="fit">'
        f'<canvas class="prior" tabindex="0" role="img" aria-label="{escape(re.sub("<[^>]*>", "", caption))}. {say(lang, "hover")}">'
        '</canvas><i class="crosshair" hidden></i></div></div>'
        f'<div class="under">{scale(lang)}{sliders if controls else ""}</div></figure>'
    )


def mask_figure(lang: str, badges: str = "", caption: str | None = None, wipe: str | None = None) -> str:
    """A figure of the mask: canvas, the slider from photo to mask, and the cut-out."""
    caption = say(lang, "mask") if caption is None else caption
    cut = (
        f'<label class="check"><input type="checkbox" data-control="cut"> {say(lang, "cut_out")}</label>'
        if wipe is None
        else ""
    )
    slider = _slider("wipe", wipe or say(lang, "wipe"), 50 if wipe else 100, shown=False)
    return (
        f'<figure class="mask-figure"><figcaption><span>{caption}</span>{_enlarge(lang)}</figcaption><div class="frame"><div class="fit">'
        f'<canvas class="mask" role="img" aria-label="{escape(re.sub("<[^>]*>", "", caption))}"></canvas>{badges}</div></div>'
        f'<div class="under">{slider}{cut}</div></figure>'
    )


def _enlarge(lang: str) -> str:
    words = say(lang, "enlarge")
    return f'<button type="button" data-enlarge title="{words}" aria-label="{words}">⤢</button>'


def _slider(control: str, label: str, value: int, shown: bool = True) -> str:
    output = f'<output data-of="{control}"></output>' if shown else ""
    return (
        f'<label class="slider"><span>{label}</span><input type="range" min="0" max="100" value="{value}" '
        f'data-control="{control}">{output}</label>'
    )


def scale(lang: str) -> str:
    """The heatmap's colours from 0 to 1, and what the pointer reads."""
    stops = ", ".join(to_hex(matplotlib.colormaps[COLOUR_MAP](i / 8)) for i in range(9))
    return (
        f'<div class="scale" role="img" aria-label="{say(lang, "scale")}"><span>0</span>'
        f'<i style="background:linear-gradient(90deg,{stops})"></i><span>1</span></div>'
        '<output class="readout" aria-live="polite"></output>'
    )


def _badges(result: Result) -> str:
    """The number of each of several regions, at the middle of its mask."""
    if len(result.regions) < 2:
        return ""
    badges = []
    for i, region in enumerate(result.regions, start=1):
        y, x = np.nonzero(region.mask)
        if len(y):
            height, width = region.mask.shape
            place = f"left:{100 * float(np.median(x)) / width:.1f}%;top:{100 * float(np.median(y)) / height:.1f}%"
            badges.append(
                f'<b class="badge" style="{place};background:{css(REGION_COLOURS[(i - 1) % len(REGION_COLOURS)])}">{i}</b>'
            )
    return "".join(badges)


def chips(shown: Iterable[Shown]) -> str:
    """A button for each look."""
    buttons = (f'<button type="button" data-look="{i}">{escape(s.label)}</button>' for i, s in enumerate(shown))
    return f'<div class="chips">{"".join(buttons)}</div>'


def thumbnail_of(pixels: np.ndarray, result: Result) -> np.ndarray:
    """A small picture of an answer for the strip of recent ones."""
    small = thumbnail(pixels, STRIP_SIDE)
    return mask_overlay(small, small_mask(result.mask, STRIP_SIDE)) if result.regions else small


def css(colour: tuple[int, int, int]) -> str:
    return "rgb({},{},{})".format(*colour)
