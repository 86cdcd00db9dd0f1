"""Why this region? The panels of the probes."""

from html import escape

import numpy as np

from app.views.canvas import SMALL_SIDE, Shown, canvases, css, mask_figure, of_look, of_result, photo_url, prior_figure
from app.views.page import verdict
from app.texts import say
from coprs_core.answer.compare import AgainstAnswer, AgainstTruth
from coprs_core.answer.pictures import REGION_COLOURS, heatmap, stretched, thumbnail
from coprs_core.probes import Look
from coprs_core.answer.results import FOCUS_TOKEN_PRIOR, Result


def trace(lang: str, pixels: np.ndarray, result: Result, looks: tuple[Look, ...], settled: int | None) -> str:
    """Sentence by sentence: the sentences to choose from, a slider, a chart, prior and mask after each."""
    shown = [of_look(x, f"{i + 1}. {x.text}", result.mask if result.regions else None) for i, x in enumerate(looks)]
    mark = f' <em class="settled">⚑ {say(lang, "settles")}</em>'
    rows = "".join(
        f'<li><button type="button" data-look="{i}"><span>{escape(x.text)}{mark if i == settled else ""}</span>'
        f"{f'<small>IoU {x.iou:.2f}</small>' * bool(result.regions)}</button></li>"
        for i, x in enumerate(looks)
    )
    lines = [("#b5315f", say(lang, "chart_iou"), [x.iou for x in looks])] * bool(result.regions)
    lines += [("#8a7a2c", say(lang, "chart_spread"), [x.spread for x in looks])]
    slider = (
        f'<label class="slider"><span>{say(lang, "sentence")}</span><input type="range" min="0" max="{len(looks) - 1}" '
        f'value="{len(looks) - 1}" data-control="look"></label>'
    )
    left = f'<div class="told"><ol class="sentences">{rows}</ol>{slider}{chart(lines, settled)}</div>'
    inside = left + prior_figure(lang, result.prior_kind) + mask_figure(lang)
    return canvases(pixels, shown, inside, "probe", SMALL_SIDE, start=len(looks) - 1)


def chart(lines: list[tuple[str, str, list[float]]], mark: int | None = None, points: bool = True) -> str:
    """Lines (colour, name, values in [0, 1]) in one small drawing; `mark` is the place of an upright line."""
    width, height, count = 320, 96, len(lines[0][2])
    at = lambda i, v: (20 + (width - 32) * (i / max(count - 1, 1)), 8 + (height - 20) * (1 - v))  # noqa: E731
    parts = [
        f'<line x1="20" x2="{width - 12}" y1="{at(0, v)[1]}" y2="{at(0, v)[1]}" class="grid"/>' for v in (0, 0.5, 1)
    ]
    parts += [f'<text x="14" y="{at(0, v)[1] + 3}" text-anchor="end">{v:g}</text>' for v in (0, 1)]
    if mark is not None:
        parts.append(f'<line x1="{at(mark, 0)[0]}" x2="{at(mark, 0)[0]}" y1="6" y2="{height - 10}" class="mark"/>')
    for colour, _, values in lines:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(i, v) for i, v in enumerate(values)))
        parts.append(f'<polyline points="{path}" style="stroke:{colour}"/>')
        for i, v in enumerate(values if points else ()):
            x, y = at(i, v)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:{colour}" data-look="{i}"/>')
    legend = "".join(f'<span><i style="background:{c}"></i>{escape(name)}</span>' for c, name, _ in lines)
    names = escape("; ".join(f"{name}: {', '.join(f'{v:.2f}' for v in values[:12])}" for _, name, values in lines))
    return (
        f'<div class="chart"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{names}">{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div></div>'
    )


def one_look(lang: str, pixels: np.ndarray, look: Look, caption: str) -> str:
    """Prior and mask of one look, the prior named for what it is."""
    inside = prior_figure(lang, FOCUS_TOKEN_PRIOR, caption=escape(caption)) + mask_figure(lang)
    return canvases(pixels, [of_look(look, "")], inside, "probe", SMALL_SIDE)


def heads(lang: str, pixels: np.ndarray, prior: np.ndarray, maps: np.ndarray) -> str:
    """The heads before they are fused, and the fused prior, as pictures."""
    shown = []
    for i, head in enumerate(maps, start=1):
        shown.append((say(lang, "head", number=i, low=head.min(), high=head.max()), heatmap(stretched(head))))
    shown.append((say(lang, "fused"), heatmap(prior)))
    return '<div class="row-of-figures">' + "".join(_picture(caption, picture) for caption, picture in shown) + "</div>"


def _picture(caption: str, picture: np.ndarray) -> str:
    return f'<figure><img src="{photo_url(thumbnail(picture, SMALL_SIDE))}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def pair(
    lang: str, pixels: np.ndarray, results: tuple[Result, Result], captions: tuple[str, str], agreement: AgainstAnswer
) -> str:
    """Two answers side by side, each with prior and mask, and how far they agree."""
    sides = []
    for result, caption in zip(results, captions, strict=True):
        kind = say(lang, f"prior_{result.prior_kind}").partition("：" if lang == "zh" else ":")[0]
        inside = prior_figure(lang, result.prior_kind, False, f"<b>{escape(caption)}</b> · {kind}")
        inside += mask_figure(lang, caption=f"IoU {result.prior_iou:.2f}") if result.regions else verdict(lang, result)
        shown = of_result(lang, result)[:1] if result.regions else [Shown("")]
        sides.append(canvases(pixels, shown, inside, "probe half", SMALL_SIDE))
    nothing = not any(r.regions for r in results)
    said = say(lang, "both_nothing") if nothing else agreement_words(lang, agreement)
    return f'<p class="said">{said}</p><div class="pair">{"".join(sides)}</div>'


def agreement_words(lang: str, agreement: AgainstAnswer) -> str:
    prior = "–" if agreement.prior_iou is None else f"{agreement.prior_iou:.2f}"
    return say(lang, "both_iou", mask=f"{agreement.mask_iou:.2f}", prior=prior)


def differences(
    lang: str, pixels: np.ndarray, first: np.ndarray, second: np.ndarray, names: tuple[str, str], slider: str, said: str, more: str = ""
) -> str:  # fmt: skip
    """Two masks bool [H, W] over one photo under one slider: what both hold, only the first, only the second, each coloured."""
    numbers = np.zeros(first.shape, np.uint8)
    numbers[first & second], numbers[first & ~second], numbers[second & ~first] = 1, 2, 3
    colours = REGION_COLOURS[:3]
    legend = "".join(
        f'<span><i style="background:{css(c)}"></i>{escape(name)}</span>'
        for c, name in zip(colours, (say(lang, "both"), *names), strict=True)
    )
    inside = mask_figure(lang, caption=f'<span class="legend">{legend}</span>', wipe=slider)
    view = canvases(pixels, [Shown("", None, numbers)], inside, "probe compared", compare=True)
    return f'<p class="said">{escape(said)}</p><div class="pair">{view}{more}</div>'


def against_truth(lang: str, pixels: np.ndarray, result: Result, truth: np.ndarray, measured: AgainstTruth) -> str:
    """The mask and the truth under one slider, and the prior's IoU with the truth over the threshold."""
    if measured.prior_curve is None:
        said, more = say(lang, "truth_words_mask", mask=f"{measured.mask_iou:.2f}"), ""
    else:
        figures = {k: f"{getattr(measured, k + '_iou'):.2f}" for k in ("mask", "prior", "best")}
        said = say(lang, "truth_words", threshold=f"{measured.best_threshold:.2f}", **figures)
        line = ("#b5315f", say(lang, "truth_curve"), [float(v) for v in measured.prior_curve])
        more = f'<div class="told">{chart([line], round(measured.best_threshold * 100), points=False)}</div>'
    names = (say(lang, "only_mask"), say(lang, "only_truth"))
    return differences(lang, pixels, result.mask, truth, names, say(lang, "truth_slider"), said, more)
