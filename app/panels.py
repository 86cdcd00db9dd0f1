"""The page's own panels as HTML. Whatever a person or a model wrote is escaped here and nowhere else."""

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

from app.texts import say
from coprs_core.catalogue import Row
from coprs_core.compare import AgainstTruth
from coprs_core.engine import Update
from coprs_core.machine import in_words
from coprs_core.metrics import iou_curve
from coprs_core.pictures import COLOUR_MAP, REGION_COLOURS, heatmap, mask_overlay, thumbnail
from coprs_core.probes import Look
from coprs_core.prompts import FOCUS_TOKEN, parse_reply
from coprs_core.results import FOCUS_TOKEN_PRIOR, FOUND, NOTHING_FOUND, Region, Result, encode_prior
from coprs_core.verdict import DISAGREE, flags

STAGES = ("reading", "thinking", "focusing", "drawing")
SHOWN_SIDE, SMALL_SIDE = 1024, 448
"""Pictures on the page are at most this long a side, small ones in probes; files and figures keep the photo's size."""
_CARET = '<i class="caret" aria-hidden="true"></i>'
_REACHED = {"reading": 0, "thinking": 1, "focus": 3, "done": 4}  # index of the stage under way at each update


# --- masthead


def header(lang: str, engine) -> str:
    """The masthead; `engine` is None while the model is being loaded."""
    if engine is None:
        line = f"<b>{say(lang, 'loading')}</b>"
    else:
        settings = engine.settings
        precision = ", ".join([settings["dtype"]] + [settings["quantization"]] * (settings["quantization"] != "none"))
        parts = (engine.prior_kind, settings["device"], precision)
        line = " · ".join([f"<b>{escape(engine.name)}</b>", *map(escape, parts)])
    return (
        f'<header class="masthead"><h1>CoPRS</h1><p>{say(lang, "tagline")}</p>'
        f'<div class="model-line" title="{say(lang, "model_line")}">{line}</div></header>'
    )


def notice(lang: str, model_note: str) -> str:
    """What the model at hand knows, and what to do for photos."""
    if not model_note:
        return ""
    words = say(lang, "notice", note=escape(model_note))
    return f'<div class="notice">{words} <code>python app.py --model qwen2.5-vl-3b</code></div>'


def explanation(words: str) -> str:
    """Why a bundled example comes out as it does."""
    return f'<div class="notice" role="note">{escape(words)}</div>' if words else ""


# --- stages and thought


def steps(lang: str, update: Update | None = None) -> str:
    """The four stages, each over its column: waiting, under way, or done with its time."""
    result = update.result if update else None
    laps = result.seconds if result else update.laps if update else {}
    reached = _REACHED[update.stage] if update else -1
    items = []
    for i, stage in enumerate(STAGES):
        state, note = "waiting", ""
        if stage in laps:
            state, note = "done", in_seconds(laps[stage])
        elif result:
            state, note = "skipped", "–"
        elif i == reached:
            state, note = "active", in_seconds(update.seconds - sum(laps.values()))
        if stage == "reading" and update and update.photo_reused:
            note = say(lang, "already_read")
        if stage == "thinking" and state in ("active", "done") and update.rate:
            note += f" · {say(lang, 'tokens_per_second', rate=update.rate)}"
        items.append(f'<li class="{state}"><span>{i + 1} {say(lang, stage)}</span><small>{note}</small></li>')
    return f'<ol class="steps" aria-label="{say(lang, "stages")}">{"".join(items)}</ol>'


def thought(lang: str, update: Update | None = None) -> str:
    """The thought while it comes, word by word; when the answer is there, its last sentence over the whole, folded."""
    if update is None:
        return f'<div class="thought empty">{say(lang, "thought_empty")}</div>'
    reply, result = parse_reply(update.text), update.result
    words = escape(reply.reasoning)
    tail = f'<p class="answer">{escape(reply.answer)}</p>' if reply.answer else ""
    if result is None:
        caret = _CARET if update.stage == "thinking" else ""
        return f'<div class="thought" aria-live="polite"><p>{words or "…"}{caret}</p>{tail}</div>'
    return answered_thought(lang, result)


def answered_thought(lang: str, result: Result) -> str:
    reply = parse_reply(result.reply)
    answer = f'<p class="answer">{escape(reply.answer)}</p>' if reply.answer else ""
    token = result.outcome == FOUND and result.prior_kind == FOCUS_TOKEN_PRIOR
    token = f' <span class="token">{escape(FOCUS_TOKEN)}</span>' if token else ""
    sentences = re.split(r"(?<=[.!?。！？])\s+", result.reasoning.strip())
    seconds = result.seconds.get("thinking", 0.0)
    summary = say(lang, "thought_for", seconds=seconds, tokens=result.tokens)
    return (
        f'<div class="thought"><p class="last">{escape(sentences[-1] or result.reason)}{token}</p><details>'
        f"<summary>{summary}</summary><p>{escape(result.reasoning)}</p>{answer}</details></div>"
    )


def stopped(lang: str, thought_html: str) -> str:
    """The thought after Stop: what was thought so far stays."""
    mark = f"<small> … {say(lang, 'stopped')}</small>"
    if _CARET in thought_html:
        return thought_html.replace(_CARET, mark)
    return f'<div class="thought empty">{mark}</div>' if "empty" in thought_html else thought_html


# --- what is seen: prior, mask, verdict


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
    figures = "".join(
        f'<figure class="{name}-figure empty"><figcaption>{say(lang, key)}</figcaption><div class="frame"></div></figure>'
        for name, key in (("prior", f"prior_{prior_kind}"), ("mask", "mask"))
    )
    return f'<div class="view">{figures}{_empty_verdict(lang, "–")}</div>'


def prior_view(lang: str, pixels: np.ndarray, prior: np.ndarray, prior_kind: str) -> str:
    """The prior alone, while the mask is still being drawn."""
    empty = f'<figure class="mask-figure empty"><figcaption>{say(lang, "mask")}</figcaption><div class="frame"></div></figure>'
    return canvases(pixels, [Shown("", prior)], prior_figure(lang, prior_kind) + empty + _empty_verdict(lang, "…"))


def answer_view(lang: str, pixels: np.ndarray, result: Result) -> str:
    """Prior, mask and verdict of an answer."""
    if not result.regions:
        waiting = waiting_view(lang, result.prior_kind)
        return waiting[: waiting.index('<div class="verdict')] + verdict(lang, result) + "</div>"
    shown = of_result(lang, result)
    inside = prior_figure(lang, result.prior_kind) + mask_figure(lang, _badges(result)) + verdict(lang, result)
    return canvases(pixels, shown, inside + (chips(shown) if len(shown) > 1 else ""))


def canvases(
    pixels: np.ndarray, shown: list[Shown], inside: str, classes: str = "", side: int = SHOWN_SIDE, **more
) -> str:
    """A <coprs-view> (app/view.js) over a photo [H, W, 3] with its looks; `inside` holds its figures and controls."""
    small, _ = thumbnail(pixels, None, side)
    height, width = small.shape[:2]
    data = {"width": width, "height": height, "scale": pixels.shape[1] / width, "photo": photo_url(small), **more}
    data["looks"] = [_look_data(s, (height, width)) for s in shown]
    shape = f'class="view {classes} {"wide" if width >= height else "tall"}" style="--ratio:{width}/{height}"'
    inside = inside.replace("<canvas ", f'<canvas width="{width}" height="{height}" ')
    return f'<coprs-view {shape} data-view="{escape(json.dumps(data))}">{inside}</coprs-view>'


def _look_data(shown: Shown, size: tuple[int, int]) -> dict:
    told = {"label": shown.label}
    if shown.prior is not None:
        prior = Image.fromarray(shown.prior).resize(size[::-1], Image.Resampling.BILINEAR)
        told["prior"] = encode_prior(np.asarray(prior).clip(0, 1))
    if shown.numbers is not None:
        file = io.BytesIO()
        Image.fromarray(shown.numbers).resize(size[::-1], Image.Resampling.NEAREST).save(file, "PNG")
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
            badges.append(f'<b class="badge" style="{place};background:{_css(REGION_COLOURS[(i - 1) % 6])}">{i}</b>')
    return "".join(badges)


def chips(shown: Iterable[Shown]) -> str:
    """A button for each look."""
    buttons = (f'<button type="button" data-look="{i}">{escape(s.label)}</button>' for i, s in enumerate(shown))
    return f'<div class="chips">{"".join(buttons)}</div>'


def verdict(lang: str, result: Result) -> str:
    """The outcome in words, the IoU of prior and mask at the threshold chosen, and what to be wary of."""
    title = say(lang, result.outcome)
    if result.outcome == FOUND:
        drawn = bool(result.mask.any())
        agree = f"<p>{say(lang, 'agree')}</p>" if drawn and result.prior_iou >= DISAGREE else ""
        agreement = f"{result.prior_iou:.2f}" if drawn else "–"
        share = result.mask.mean() * 100
        share = f"{share:.1f}" if share >= 0.1 else f"{share:.3f}"
        wary = "".join(f'<li data-flag="{name}">{say(lang, f"flag_{name}")}</li>' for name in flags(result))
        return _verdict_of(
            "found",
            f"<h3>{title}</h3><small>{say(lang, 'iou')}<br>{say(lang, 'at_threshold')} <output data-of='threshold'>0.50</output>"
            f'</small><b class="iou">{agreement}</b>{agree}<p>{say(lang, "covers", share=share)}</p>'
            f"{f'<ul>{wary}</ul>' if wary else ''}",
        )
    if result.outcome == NOTHING_FOUND:
        answer = parse_reply(result.reply).answer
        words = say(lang, "says", answer=answer) if answer else result.reason
        return _verdict_of("none", f"<h3>{title}</h3><p>{escape(words)}</p><p>{say(lang, 'no_region')}</p>")
    return _verdict_of("none", f"<h3>{title}</h3><p>{escape(result.reason)}</p>")


def _empty_verdict(lang: str, figure: str) -> str:
    return _verdict_of("empty", f"<small>{say(lang, 'iou')}</small><b>{figure}</b>")


def _verdict_of(state: str, inside: str) -> str:
    return f'<div class="verdict {state}" role="status">{inside}</div>'


# --- probes


def about(lang: str, probe: str) -> str:
    return f'<p class="about">{say(lang, f"{probe}_about")}</p>'


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


def words(lang: str, pieces: list[str]) -> str:
    """The reply token by token, each a button."""
    if not pieces:
        return f'<p class="about">{say(lang, "words_empty")}</p>'
    buttons = "".join(f'<button type="button" data-word="{i}">{escape(p)}</button>' for i, p in enumerate(pieces))
    return f'<div class="words">{buttons}</div>'


def one_look(lang: str, pixels: np.ndarray, look: Look, caption: str) -> str:
    """Prior and mask of one look, the prior named for what it is."""
    inside = prior_figure(lang, FOCUS_TOKEN_PRIOR, caption=escape(caption)) + mask_figure(lang)
    return canvases(pixels, [of_look(look, "")], inside, "probe", SMALL_SIDE)


def heads(lang: str, pixels: np.ndarray, prior: np.ndarray, maps: np.ndarray) -> str:
    """The heads before they are fused, and the fused prior, as pictures."""
    shown = []
    for i, head in enumerate(maps, start=1):
        low, high = float(head.min()), float(head.max())
        picture = heatmap((head - low) / max(high - low, 1e-9))
        shown.append((say(lang, "head", number=i, low=low, high=high), picture))
    shown.append((say(lang, "fused"), heatmap(prior)))
    return '<div class="row-of-figures">' + "".join(_picture(caption, picture) for caption, picture in shown) + "</div>"


def _picture(caption: str, picture: np.ndarray) -> str:
    small, _ = thumbnail(picture, None, SMALL_SIDE)
    return f'<figure><img src="{photo_url(small)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'


def pair(lang: str, pixels: np.ndarray, results: tuple[Result, Result], captions: tuple[str, str], agreement) -> str:
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


def agreement_words(lang: str, agreement) -> str:
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
        f'<span><i style="background:{_css(c)}"></i>{escape(name)}</span>'
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


# --- models


def models(lang: str, rows: list[Row]) -> str:
    """The table of models, as `python -m coprs_core models` prints it."""
    columns = ("col_model", "col_prior", "col_download", "col_memory", "col_licence", "col_here")
    head = "".join(f"<th>{say(lang, c)}</th>" for c in columns)
    body = "".join(
        f"<tr><td><b>{escape(r.name)}</b><small>{escape(r.about)} ({escape(r.files)})</small></td><td>{r.prior}</td>"
        f"<td>{(say(lang, 'cached') if r.cached else in_words(r.download)) if r.download else '–'}</td>"
        f"<td>{in_words(r.memory_bf16)} / {in_words(r.memory_nf4)}</td><td>{escape(r.licence)}</td>"
        f"<td>{say(lang, 'fits') if r.fits else escape(r.reason)}</td></tr>"
        for r in rows
    )
    return f'<table class="models"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def choices(rows: list[Row]) -> list[tuple[str, str]]:
    """(label, name) of every model that has a name of its own to load; one that does not fit says why."""
    return [
        (r.name if r.fits else f"{r.name} (does not fit: {r.reason})", r.name) for r in rows if r.cached or r.download
    ]


def loading(line: str, failed: bool = False) -> str:
    return f'<div class="loading{" failed" if failed else ""}" role="status">{escape(line)}</div>' if line else ""


def in_seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 0.95 else f"{max(seconds, 0) * 1000:.0f} ms"


def thumbnail_of(pixels: np.ndarray, result: Result) -> np.ndarray:
    """A small picture of an answer for the strip of recent ones."""
    small, _ = thumbnail(pixels, None, 160)
    if not result.regions:
        return small
    _, region = thumbnail(pixels, Region(result.prior, result.mask), 160)
    return mask_overlay(small, region.mask)


def _css(colour: tuple[int, int, int]) -> str:
    return "rgb({},{},{})".format(*colour)
