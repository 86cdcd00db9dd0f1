"""The page's own panels as HTML. Whatever a person or a model wrote is escaped here and nowhere else."""

from html import escape

import matplotlib
from matplotlib.colors import to_hex

from coprs_core.catalogue import Row
from coprs_core.engine import Update
from coprs_core.machine import in_words
from coprs_core.probes import Look
from coprs_core.prompts import FOCUS_TOKEN, parse_reply
from coprs_core.results import COORDINATES_PRIOR, FOCUS_TOKEN_PRIOR, FOUND, NOTHING_FOUND, Result

STAGES = (("reading", "Read"), ("thinking", "Think"), ("focusing", "Focus"), ("drawing", "Draw"))
_CARET = '<i class="caret" aria-hidden="true"></i>'
_REACHED = {"reading": 0, "thinking": 1, "focus": 3, "done": 4}  # index of the stage under way at each update


PRIOR_LABELS = {
    FOCUS_TOKEN_PRIOR: "Prior: where the focus token looks",
    COORDINATES_PRIOR: "Prior: drawn from the coordinates that the model wrote",
}


def header(name: str, settings: dict, prior_kind: str) -> str:
    precision = (
        settings["dtype"] if settings["quantization"] == "none" else f"{settings['dtype']}, {settings['quantization']}"
    )
    return (
        '<header class="masthead"><div><h1>CoPRS</h1>'
        "<p>Ask for a thing in words. Watch the model think, see where it focuses, and get the mask.</p></div>"
        f'<div class="model-line" title="model · kind of prior · device · precision"><b>{escape(name)}</b>'
        f" · {prior_kind} · {escape(settings['device'])} · {escape(precision)}</div></header>"
    )


def notice(model_note: str) -> str:
    """What the model at hand knows, and what to do for photos."""
    if not model_note:
        return ""
    return (
        f'<div class="notice">This miniature knows <b>{escape(model_note)}</b> only: try the ones below. '
        "For photos, start another model: <code>python app.py --model qwen2.5-vl-3b</code></div>"
    )


def steps(update: Update | None) -> str:
    """The four stages as a line: waiting, under way, or done with its time."""
    result = update.result if update else None
    reached = _REACHED[update.stage] if update else -1
    items = []
    for i, (stage, label) in enumerate(STAGES):
        seconds = result.seconds.get(stage) if result else None
        if result and seconds is None:
            state, note = "skipped", "–"
        elif seconds is not None:
            state, note = "done", f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
        elif i == reached:
            state, note = "active", f"{update.seconds:.1f} s"
        else:
            state, note = ("done", "✓") if i < reached else ("waiting", "")
        if stage == "reading" and update and update.photo_reused:
            note = "already read"
        items.append(f'<li class="{state}"><span>{label}</span><small>{note}</small></li>')
    return f'<ol class="steps" aria-label="stages">{"".join(items)}</ol>'


def thought(update: Update | None) -> str:
    """The thought while it comes, word by word; when the answer is there, folded under its last sentence."""
    if update is None:
        return '<div class="thought empty">The thought appears here, word by word.</div>'
    reply, result = parse_reply(update.text), update.result
    words = escape(reply.reasoning)
    tail = f'<p class="answer">{escape(reply.answer)}</p>' if reply.answer else ""
    if result is None:
        caret = _CARET if update.stage == "thinking" else ""
        return f'<div class="thought" aria-live="polite"><p>{words or "…"}{caret}</p>{tail}</div>'
    rate = result.tokens / max(result.seconds["thinking"], 1e-6)
    token = (
        f' <span class="token">{escape(FOCUS_TOKEN)}</span>'
        if result.outcome == FOUND and result.prior_kind == FOCUS_TOKEN_PRIOR
        else ""
    )
    last = escape(_last_sentence(reply.reasoning) or result.reason)
    summary = f"Thought for {result.seconds['thinking']:.1f} s · {result.tokens} tokens · {rate:.0f} tokens/s"
    return (
        f'<div class="thought"><p class="last">{last}{token}</p><details><summary>{summary}</summary>'
        f"<p>{words}</p>{tail}</details></div>"
    )


def stopped(thought_html: str) -> tuple[str, str]:
    """Stages and thought after Stop: what was thought so far stays."""
    return steps(None), thought_html.replace(_CARET, "<small> … stopped</small>")


def verdict(result: Result | None) -> str:
    """The outcome in words and the IoU of prior and mask in figures."""
    if result is None:
        return '<div class="verdict empty"><small>IoU of prior and mask</small><b>–</b></div>'
    if result.outcome == FOUND:
        agreement = result.prior_iou
        words = (
            "Prior and mask agree." if agreement >= 0.5 else "Prior and mask disagree: do not trust the mask unseen."
        )
        share = result.mask.mean() * 100
        return (
            f'<div class="verdict found"><small>IoU of prior and mask</small><b>{agreement:.2f}</b>'
            f"<h3>Found</h3><p>{words}</p><p>The mask covers {share:.1f} % of the picture.</p></div>"
        )
    title = "Nothing found" if result.outcome == NOTHING_FOUND else "The model did not finish"
    return f'<div class="verdict none"><h3>{title}</h3><p>{escape(result.reason)}</p></div>'


def settled(looks: tuple[Look, ...], index: int | None) -> str:
    """After which sentence the focus stays where it ends, in words."""
    if index is None:
        return ""
    return (
        f'<p class="settled">The focus settles after sentence {index + 1} of {len(looks)}: '
        f"“{escape(looks[index].text)}” Each picture is a real focus: the thought was cut there and the focus token read.</p>"
    )


def models(rows: list[Row]) -> str:
    """The table of models, as `python -m coprs_core models` prints it."""
    head = "".join(
        f"<th>{h}</th>" for h in ("model", "prior", "download", "GPU memory bf16 / 4-bit", "licence", "here")
    )
    body = "".join(
        f"<tr><td><b>{escape(r.name)}</b><small>{escape(r.about)} ({escape(r.files)})</small></td><td>{r.prior}</td>"
        f"<td>{('in the cache' if r.cached else in_words(r.download)) if r.download else '–'}</td>"
        f"<td>{in_words(r.memory_bf16)} / {in_words(r.memory_nf4)}</td><td>{escape(r.licence)}</td>"
        f"<td>{'fits' if r.fits else escape(r.reason)}</td></tr>"
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


def scale(colour_map: str) -> str:
    """The heatmap's colours from 0 to 1."""
    stops = ", ".join(to_hex(matplotlib.colormaps[colour_map](i / 8)) for i in range(9))
    return (
        '<div class="scale" role="img" aria-label="colours of the prior, from 0 to 1"><span>0</span>'
        f'<i style="background:linear-gradient(90deg,{stops})"></i><span>1</span></div>'
    )


def _last_sentence(text: str) -> str:
    sentences = [s for s in text.strip().split(". ") if s]
    return sentences[-1] if sentences else ""
