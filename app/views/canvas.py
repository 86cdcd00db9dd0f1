"""HTML of <coprs-view> (static/view.js): priors and masks as data, with figures and controls."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from markupsafe import Markup
from PIL import Image

from app.texts import say
from app.views.render import render
from coprs_core.answer.compare import AnswerMove, describe_move
from coprs_core.answer.pictures import (
    HEAT_OPACITY,
    REGION_COLOURS,
    downscale_mask,
    downscale_prior,
    heatmap_colours,
    mask_overlay,
    thumbnail,
)
from coprs_core.answer.results import Result
from coprs_core.masks import data_url, encode_prior
from coprs_core.metrics import PRIOR_THRESHOLD, iou_curve
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR

VIEW_SIDE, SMALL_SIDE, STRIP_SIDE = 1024, 448, 160
"""Pictures on the page are at most this long a side, small ones in probes and strips; files keep
the photo's size."""


@cache
def _colour_scale() -> list[str]:
    """Nine colours of the heatmap, from none to all."""
    return ["#{:02x}{:02x}{:02x}".format(*heatmap_colours()[min(32 * i, 255)]) for i in range(9)]


@dataclass(frozen=True, eq=False)
class CanvasView:
    """One view as the page's canvases take it.

    Attributes:
        label: of its button, where there are several.
        prior: float32 [H, W].
        numbers: uint8 [H, W]: 0 or the number of a region; in a comparison 1 both, 2 only the
            first, 3 only the second.
        curve: IoU of prior and mask at each threshold, [101].
    """

    label: str
    prior: np.ndarray | None = field(default=None, repr=False)
    numbers: np.ndarray | None = field(default=None, repr=False)
    curve: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Badge:
    """A region's number at the middle of its mask; `left` and `top` in percent."""

    number: int
    left: str
    top: str
    colour: str


@dataclass(frozen=True)
class Box:
    """A box that a model wrote, over the prior; all in percent of the picture."""

    left: str
    top: str
    width: str
    height: str


class Canvas:
    """A photo uint8 [H, W, 3] on the page, brought down to at most `side` pixels; figures over it
    are made here."""

    def __init__(self, lang: str, pixels: np.ndarray, side: int = VIEW_SIDE):
        self.lang, self.side = lang, side
        self.photo = thumbnail(pixels, side)
        self.height, self.width = self.photo.shape[:2]
        self.scale = pixels.shape[1] / self.width

    def prior_figure(
        self,
        prior_kind: str,
        caption: str | None = None,
        controls: bool = True,
        boxes: Sequence[Box] = (),
    ) -> Markup:
        """A figure of the prior: canvas, readout, colours, and its sliders; outlines of `boxes`
        over it."""
        return render(
            self.lang,
            "prior_figure",
            caption=say(self.lang, f"prior_{prior_kind}") if caption is None else caption,
            meaning="means_prior"
            if prior_kind == FOCUS_TOKEN_PRIOR
            else f"means_prior_{prior_kind}",
            colours=_colour_scale(),
            controls=controls,
            boxes=boxes,
            opacity=round(100 * HEAT_OPACITY),
            threshold=round(100 * PRIOR_THRESHOLD),
            width=self.width,
            height=self.height,
        )

    def mask_figure(self, caption: str | None = None, badges: Sequence[Badge] = ()) -> Markup:
        """A figure of the mask: canvas, the slider from photo to mask, and the cut-out."""
        return render(
            self.lang,
            "mask_figure",
            caption=say(self.lang, "mask") if caption is None else caption,
            badges=badges,
            width=self.width,
            height=self.height,
        )

    def render_views(
        self,
        views: Sequence[CanvasView],
        figures: Markup,
        classes: str = "",
        chips: bool = False,
        above: str = "",
        which: bool = False,
        **options,
    ) -> Markup:
        """The <coprs-view> of some views; `figures` stand in it, `options` go to its script.

        With `chips` each view has a button, with the line `above` before them; `which` lets a
        narrow screen show one figure at a time.
        """
        data = {
            "width": self.width,
            "height": self.height,
            "scale": self.scale,
            "photo": image_data_url(self.photo),
            **options,
            "looks": [self.view_data(view) for view in views],
        }
        return render(
            self.lang,
            "view",
            classes=classes,
            width=self.width,
            height=self.height,
            data=json.dumps(data),
            figures=figures,
            labels=[view.label for view in views] if chips else [],
            above=above,
            which=which,
        )

    def view_data(self, view: CanvasView) -> dict:
        """A view as the script takes it: its pictures as data URLs."""
        values: dict = {"label": view.label}
        if view.prior is not None:
            values["prior"] = encode_prior(downscale_prior(view.prior, self.side))
        if view.numbers is not None:
            file = io.BytesIO()
            Image.fromarray(downscale_mask(view.numbers, self.side)).save(file, "PNG")
            values["mask"] = data_url("png", file)
        if view.curve is not None:
            values["curve"] = [round(float(v), 4) for v in view.curve]
        return values


def combined_view(lang: str, result: Result) -> CanvasView:
    """All regions of an answer, numbered."""
    numbers = np.zeros(result.photo_size, np.uint8)
    for i, region in enumerate(result.regions, start=1):
        numbers[region.mask] = i
    prior, mask = result.prior, result.mask
    curve = iou_curve(prior, mask) if prior is not None and mask.any() else None
    return CanvasView(say(lang, "all_regions"), prior, numbers, curve)


def result_views(lang: str, result: Result) -> list[CanvasView]:
    """All regions together, and where there are several each alone."""
    views = [combined_view(lang, result)]
    if len(result.regions) > 1:
        for i, r in enumerate(result.regions, start=1):
            its_numbers = r.mask.astype(np.uint8) * i
            its_curve = iou_curve(r.prior, r.mask) if r.mask.any() else None
            views.append(CanvasView(f"{i} {r.label}".strip(), r.prior, its_numbers, its_curve))
    return views


def empty_view(lang: str, prior_kind: str = FOCUS_TOKEN_PRIOR) -> Markup:
    """The places of prior, IoU and mask before there is anything in them."""
    prior = _empty_figure(lang, "prior", f"prior_{prior_kind}")
    figures = prior + _agreement(lang, "–") + _empty_figure(lang, "mask", "mask")
    return render(lang, "empty_view", figures=figures)


def _empty_figure(lang: str, name: str, caption: str) -> Markup:
    return render(lang, "empty_figure", name=name, caption=say(lang, caption))


def _agreement(lang: str, figure: str) -> Markup:
    """How far prior and mask agree, between the two."""
    return render(lang, "agreement", figure=figure, threshold=PRIOR_THRESHOLD)


def prior_view(lang: str, pixels: np.ndarray, prior: np.ndarray, prior_kind: str) -> Markup:
    """The prior alone, while the mask is still being drawn."""
    canvas = Canvas(lang, pixels)
    waiting = _agreement(lang, "…") + _empty_figure(lang, "mask", "mask")
    return canvas.render_views([CanvasView("", prior)], canvas.prior_figure(prior_kind) + waiting)


def answer_view(lang: str, pixels: np.ndarray, result: Result) -> Markup:
    """Prior, mask and their IoU of an answer."""
    if not result.regions:
        return empty_view(lang, result.prior_kind)
    canvas, views = Canvas(lang, pixels), result_views(lang, result)
    mask = canvas.mask_figure(badges=_badges(result))
    figures = _figures(canvas, result, mask)
    return canvas.render_views(views, figures, chips=len(views) > 1, which=True)


def changed_view(lang: str, pixels: np.ndarray, before: Result, after: Result) -> Markup:
    """An answer over the one before it: both masks in two colours, and each alone."""
    canvas = Canvas(lang, pixels)
    difference = Difference.between(lang, before, after)
    numbers = difference.numbers
    now, was = combined_view(lang, after), combined_view(lang, before)
    views = [replace(now, label=say(lang, "both"), numbers=numbers)]
    for name, view, result in (("change_after", now, after), ("change_before", was, before)):
        if result.regions:  # in the colours of the legend
            views.append(replace(view, label=say(lang, name), numbers=numbers * result.mask))
    mask = canvas.mask_figure(difference.legend(lang))
    words = move_sentence(lang, describe_move(before, after))
    figures = _figures(canvas, after, mask)
    return canvas.render_views(views, figures, chips=True, above=words, which=True)


def _figures(canvas: Canvas, result: Result, mask: Markup) -> Markup:
    agreement = f"{result.prior_iou or 0.0:.2f}" if result.mask.any() else "–"
    prior = canvas.prior_figure(result.prior_kind, boxes=_box_outlines(result))
    return prior + _agreement(canvas.lang, agreement) + mask


def move_sentence(lang: str, change: AnswerMove) -> str:
    """What became of an answer, in a line."""
    places = {
        name: say(lang, f"place_{place}") if place else ""
        for name, place in (("before", change.before), ("after", change.after))
    }
    return say(lang, f"move_{change.move}", iou=f"{change.mask_iou:.2f}", **places)


@dataclass(frozen=True, eq=False)
class Difference:
    """Two masks bool [H, W] of one photo, with what each is called."""

    first: np.ndarray
    second: np.ndarray
    first_name: str
    second_name: str

    @classmethod
    def between(cls, lang: str, before: Result, after: Result) -> "Difference":
        """Of an answer and the one after it."""
        names = (say(lang, f"only_{name}") for name in ("before", "after"))
        return cls(before.mask, after.mask, *names)

    @property
    def numbers(self) -> np.ndarray:
        """uint8 [H, W]: 1 where both are, 2 only the first, 3 only the second."""
        numbers = np.zeros(self.first.shape, np.uint8)
        numbers[self.first & self.second] = 1
        numbers[self.first & ~self.second] = 2
        numbers[self.second & ~self.first] = 3
        return numbers

    def legend(self, lang: str) -> Markup:
        """Its three colours and what they stand for."""
        names = (say(lang, "both"), self.first_name, self.second_name)
        swatches = [(css_colour(i), name) for i, name in enumerate(names, start=1)]
        return render(lang, "legend", swatches=swatches)


def _badges(result: Result) -> list[Badge]:
    """The number of each of several regions."""
    badges = []
    for i, region in enumerate(result.regions if len(result.regions) > 1 else (), start=1):
        y, x = np.nonzero(region.mask)
        if len(y):
            height, width = region.mask.shape
            left, top = 100 * float(np.median(x)) / width, 100 * float(np.median(y)) / height
            badges.append(Badge(i, f"{left:.1f}", f"{top:.1f}", css_colour(i)))
    return badges


def _box_outlines(result: Result) -> list[Box]:
    """The boxes that the model wrote, where the prior is not drawn from them."""
    height, width = result.photo_size
    boxes = []
    for region in result.regions if result.prior_kind == ATTENTION_PRIOR else ():
        if region.box:
            left, top, right, bottom = region.box
            percents = 100 * left / width, 100 * top / height
            percents += 100 * (right - left) / width, 100 * (bottom - top) / height
            boxes.append(Box(*(f"{percent:.2f}" for percent in percents)))
    return boxes


def image_data_url(pixels: np.ndarray) -> str:
    """A picture for the page as a data URL: PNG where it is small, else JPEG."""
    file, image = io.BytesIO(), Image.fromarray(pixels)
    if pixels.size < 3 * 512 * 512:
        image.save(file, "png")
        return data_url("png", file)
    image.save(file, "jpeg", quality=90)
    return data_url("jpeg", file)


def answer_thumbnail(pixels: np.ndarray, result: Result) -> np.ndarray:
    """A small picture of an answer for the strip of recent ones."""
    small = thumbnail(pixels, STRIP_SIDE)
    if not result.regions:
        return small
    return mask_overlay(small, downscale_mask(result.mask, STRIP_SIDE))


def css_colour(number: int) -> str:
    """The colour of a region by its number, from 1."""
    return "rgb({},{},{})".format(*REGION_COLOURS[(number - 1) % len(REGION_COLOURS)])
