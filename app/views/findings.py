"""What probes found, as HTML. A finding without a view of its own is shown by its pictures."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from app.server.answers import StoredAnswer
from app.texts import say
from app.views.canvas import (
    SMALL_SIDE,
    STRIP_SIDE,
    Canvas,
    CanvasView,
    Difference,
    answer_view,
    combined_view,
    image_data_url,
    move_sentence,
)
from app.views.page import Word, WordViews, verdict
from app.views.render import render
from coprs_core.answer.compare import (
    AnswerComparison,
    TruthComparison,
    compare_answers,
    describe_move,
)
from coprs_core.answer.pictures import downscale_prior, prior_overlay, thumbnail
from coprs_core.answer.results import Result
from coprs_core.masks import encode_prior
from coprs_core.metrics import PRIOR_THRESHOLD
from coprs_core.photos.photo import Photo
from coprs_core.probes.finding import Finding
from coprs_core.probes.trace import FocusView, SentenceTrace
from coprs_core.probes.words import WordMaps
from coprs_core.probes.zoom import ZoomedAnswer
from coprs_core.prompts import FOCUS_TOKEN_PRIOR

EMPTY_HTML = Markup("")
MIN_WORD_PRIOR = 0.1
"""A word whose prior is nowhere as high as this looks nowhere."""
IOU_COLOUR, SPREAD_COLOUR = "#b5315f", "#8a7a2c"


def finding_view(lang: str, name: str, photo: Photo, result: Result, finding: Finding) -> Markup:
    """What a probe found about an answer."""
    view = VIEW_BY_PROBE.get(name, pictures_view)
    return view(lang, photo, result, finding)


def pictures_view(lang: str, photo: Photo, result: Result, finding: Finding) -> Markup:
    """The pictures of a finding in a row, each with its caption."""
    pictures = [
        {
            "url": image_data_url(thumbnail(p.pixels, SMALL_SIDE)),
            "caption": say(lang, p.caption, **p.values),
        }
        for p in finding.pictures(photo)
    ]
    return render(lang, "pictures", pictures=pictures)


def numbers_view(lang: str, photo: Photo, result: Result, finding: SentenceTrace) -> Markup:
    """The figures of each sentence, as a table and as lines; the pictures stand in the strip."""
    views, settled, has_mask = finding.views, finding.settles_at, bool(result.regions)
    lines = [ChartLine(SPREAD_COLOUR, say(lang, "chart_spread"), [v.spread for v in views])]
    if has_mask:
        lines.insert(0, ChartLine(IOU_COLOUR, say(lang, "chart_iou"), [v.iou for v in views]))
    return render(
        lang,
        "numbers",
        views=views,
        moves=finding.has_moved,
        settled=settled,
        has_mask=has_mask,
        chart=chart(lang, lines, settled),
    )


def strip_view(lang: str, photo: Photo, finding: SentenceTrace) -> Markup:
    """A thought's sentences as a strip of small heatmaps; they drive the answer's canvases
    (view.js). One line says after which of them the focus came to rest."""
    pixels, views = np.asarray(photo.image), finding.views
    canvas, small = Canvas(lang, pixels, SMALL_SIDE), thumbnail(pixels, STRIP_SIDE)
    settled, count = finding.settles_at, len(views)
    is_focus = views[0].prior_kind == FOCUS_TOKEN_PRIOR
    says = "rested_last" if settled == count - 1 else "rested_first" if not settled else "rested"
    words = ""
    if is_focus and settled is not None and count > 1:
        words = say(lang, says, n=settled + 1, count=count, rest=count - settled - 1)
    label = "look_after" if is_focus else "look_words"
    looks, shown = [], []
    for i, (view, moves) in enumerate(zip(views, finding.has_moved, strict=True)):
        called = say(lang, label, n=i + 1)
        look = canvas.view_data(CanvasView(called, view.prior, view.mask.astype(np.uint8)))
        agreement = _agreement(view)
        looks.append(look | {"iou": agreement, "moved": moves, "settled": i == settled})
        picture = prior_overlay(small, downscale_prior(view.prior, STRIP_SIDE))
        iou = "–" if agreement is None else f"{agreement:.2f}"
        values = {"text": view.text, "iou": iou, "moved": moves and is_focus}
        shown.append(values | {"url": image_data_url(picture)})
    return render(
        lang,
        "strip",
        looks=json.dumps(looks),
        sentences=shown,
        settled=settled if is_focus else None,
        words=words,
        about=say(lang, "strip_about" if is_focus else "strip_attention"),
    )


def _agreement(view: FocusView) -> float | None:
    """The IoU of a look with the answer's mask; None where both are empty, which is no
    agreement."""
    is_empty = view.iou == 1 and view.prior.max() < PRIOR_THRESHOLD
    return None if is_empty else round(view.iou, 2)


def empty_strip(lang: str, says: str = "strip_empty") -> Markup:
    """The strip's place before a thought is traced, or why it is not."""
    return untraced_strip(lang, say(lang, says))


def answer_and_strip(lang: str, answer: StoredAnswer) -> tuple[str, str]:
    """The canvases of an answer, and the strip of its trace."""
    photo, trace = answer.photo, answer.trace
    view = answer_view(lang, np.asarray(photo.image), answer.result)
    if trace and answer.region_count:
        return view, strip_view(lang, photo, trace)
    return view, empty_strip(lang)


def untraced_strip(lang: str, words: str) -> Markup:
    """In the strip's place, why a thought is not traced."""
    return render(lang, "strip_empty", words=words)


def word_views(lang: str, finding: WordMaps) -> WordViews:
    """The words of a reply as buttons of the answer's canvases, each prior on a scale of its
    own."""
    is_focus = finding.prior_kind == FOCUS_TOKEN_PRIOR
    pieces, looks = [], []
    found = zip(finding.words, finding.maps, finding.highest, finding.trained, strict=True)
    for text, seen, highest, trained in found:
        word, nowhere = text.strip(), ""
        if not is_focus:
            called = say(lang, "attention_word", word=word, share=f"{100 * highest:.0f}")
        elif trained:
            called = say(lang, "focus_word")
        else:
            if highest < MIN_WORD_PRIOR:
                nowhere = say(lang, "nowhere", highest=f"{highest:.3f}")
            at_most = nowhere or say(lang, "at_most", highest=f"{highest:.2f}")
            called = f"{say(lang, 'probe_word', word=word)} · {at_most}"
        most = float(seen.max())
        own_scale = seen / max(most, 1e-9)
        scale = "" if not is_focus else f"{most:.2g}"
        looks.append({"label": called, "prior": encode_prior(own_scale), "most": scale})
        pieces.append(Word(text, nowhere))
    about = "words_about" if is_focus else "words_attention"
    return WordViews(pieces, json.dumps(looks), about)


def zoom_view(lang: str, photo: Photo, result: Result, finding: ZoomedAnswer) -> Markup:
    """The answer before and after zooming in, side by side."""
    captions = say(lang, "before"), say(lang, "after")
    return side_by_side(lang, photo, (result, finding.result), captions)


VIEW_BY_PROBE: dict[str, Callable[[str, Photo, Result, Any], Markup]] = {
    "sentences": numbers_view,
    "zoom": zoom_view,
}


# --- two answers


def side_by_side(
    lang: str, photo: Photo, results: tuple[Result, Result], captions: tuple[str, str]
) -> Markup:
    """Two answers side by side, each with prior and mask, and how far they agree."""
    sides = Markup("").join(
        _one_side(lang, photo, result, caption)
        for result, caption in zip(results, captions, strict=True)
    )
    if any(r.regions for r in results):
        summary = agreement_sentence(lang, compare_answers(*results))
    else:
        summary = say(lang, "both_nothing")
    return render(lang, "pair", summary=summary, sides=sides)


def comparison_view(
    lang: str, photo: Photo, results: tuple[Result, Result], names: tuple[str, str]
) -> Markup:
    """Two answers side by side, and both masks in two colours."""
    only = (say(lang, "only", name=name) for name in names)
    difference = Difference(results[0].mask, results[1].mask, *only)
    words = move_sentence(lang, describe_move(*results))
    return difference_view(lang, photo, difference, words) + side_by_side(
        lang, photo, results, names
    )


def _one_side(lang: str, photo: Photo, result: Result, caption: str) -> Markup:
    canvas = Canvas(lang, np.asarray(photo.image), SMALL_SIDE)
    kind = re.split("[:：]", say(lang, f"prior_{result.prior_kind}"))[0]  # its name, not where
    title = render(lang, "pair_caption", caption=caption, kind=kind)
    prior = canvas.prior_figure(result.prior_kind, title, controls=False)
    if not result.regions:
        return canvas.render_views([CanvasView("")], prior + verdict(lang, result), "probe half")
    mask = canvas.mask_figure(f"IoU {result.prior_iou:.2f}")
    return canvas.render_views([combined_view(lang, result)], prior + mask, "probe half")


def agreement_sentence(lang: str, agreement: AnswerComparison) -> str:
    """How far two answers agree, in words."""
    prior = "–" if agreement.prior_iou is None else f"{agreement.prior_iou:.2f}"
    return say(lang, "both_iou", mask=f"{agreement.mask_iou:.2f}", prior=prior)


def difference_view(
    lang: str, photo: Photo, difference: Difference, summary: str, beside: Markup = EMPTY_HTML
) -> Markup:
    """Two masks over one photo, in three colours; `beside` stands next to them."""
    canvas = Canvas(lang, np.asarray(photo.image))
    figure = canvas.mask_figure(difference.legend(lang))
    views = [CanvasView("", None, difference.numbers)]
    view = canvas.render_views(views, figure, "probe compared")
    return render(lang, "pair", summary=summary, sides=view + beside)


def truth_view(
    lang: str, photo: Photo, result: Result, truth: np.ndarray, scores: TruthComparison
) -> Markup:
    """The mask and the truth in three colours, and the prior's IoU with the truth over the
    threshold."""
    names = say(lang, "only_mask"), say(lang, "only_truth")
    difference = Difference(result.mask, truth, *names)
    mask = f"{scores.mask_iou:.2f}"
    if scores.prior_curve is None:
        summary = say(lang, "truth_words_mask", mask=mask)
        return difference_view(lang, photo, difference, summary)
    summary = say(
        lang,
        "truth_words",
        mask=mask,
        prior=f"{scores.prior_iou:.2f}",
        best=f"{scores.best_iou:.2f}",
        threshold=f"{scores.best_threshold:.2f}",
    )
    line = ChartLine(IOU_COLOUR, say(lang, "truth_curve"), [float(v) for v in scores.prior_curve])
    best = int(scores.prior_curve.argmax())
    column = render(lang, "facts", inside=chart(lang, [line], best, with_points=False))
    return difference_view(lang, photo, difference, summary, column)


# --- a small drawing of lines


@dataclass(frozen=True)
class ChartLine:
    """One line of a chart; values in [0, 1]."""

    colour: str
    name: str
    values: list[float]


def chart(
    lang: str, lines: list[ChartLine], mark: int | None = None, with_points: bool = True
) -> Markup:
    """Lines in one small drawing; `mark` is the index of an upright line."""
    width, height, count = 320, 96, len(lines[0].values)

    def at(i: int, value: float) -> tuple[str, str]:
        x = 20 + (width - 32) * (i / max(count - 1, 1))
        return f"{x:.1f}", f"{8 + (height - 20) * (1 - value):.1f}"

    described = (f"{x.name}: {', '.join(f'{v:.2f}' for v in x.values[:12])}" for x in lines)
    return render(
        lang,
        "chart",
        width=width,
        height=height,
        left=20,
        right=width - 12,
        grid=[at(0, v)[1] for v in (0, 0.5, 1)],
        labels=[(f"{float(at(0, v)[1]) + 3:.1f}", f"{v:g}") for v in (0, 1)],
        mark=None if mark is None else at(mark, 0)[0],
        with_points=with_points,
        description="; ".join(described),
        lines=[
            {
                "colour": x.colour,
                "name": x.name,
                "points": [at(i, v) for i, v in enumerate(x.values)],
            }
            for x in lines
        ],
    )
