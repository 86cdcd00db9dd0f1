"""The page's own panels as HTML: masthead, stages, thought, verdict, models. Whatever a person or a model wrote is escaped
where it becomes HTML: here, in `canvases` and in `why`."""

from html import escape

from app.texts import say
from coprs_core.checkpoints.catalogue import Row
from coprs_core.answer.engine import Update
from coprs_core.machine import in_words
from coprs_core.prompts import FOCUS_TOKEN, last_sentence, parse_reply
from coprs_core.answer.results import FOCUS_TOKEN_PRIOR, FOUND, NOTHING_FOUND, Result
from coprs_core.answer.flags import DISAGREE, flags

STAGES = ("reading", "thinking", "focusing", "drawing")
_CARET = '<i class="caret" aria-hidden="true"></i>'
_REACHED = {"reading": 0, "thinking": 1, "focus": 3, "done": 4}  # index of the stage under way at each update


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
    seconds = result.seconds.get("thinking", 0.0)
    summary = say(lang, "thought_for", seconds=seconds, tokens=result.tokens)
    return (
        f'<div class="thought"><p class="last">{escape(last_sentence(result.reasoning) or result.reason)}{token}</p><details>'
        f"<summary>{summary}</summary><p>{escape(result.reasoning)}</p>{answer}</details></div>"
    )


def stopped(lang: str, thought_html: str) -> str:
    """The thought after Stop: what was thought so far stays."""
    mark = f"<small> … {say(lang, 'stopped')}</small>"
    if _CARET in thought_html:
        return thought_html.replace(_CARET, mark)
    return f'<div class="thought empty">{mark}</div>' if "empty" in thought_html else thought_html


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
        return verdict_of(
            "found",
            f"<h3>{title}</h3><small>{say(lang, 'iou')}<br>{say(lang, 'at_threshold')} <output data-of='threshold'>0.50</output>"
            f'</small><b class="iou">{agreement}</b>{agree}<p>{say(lang, "covers", share=share)}</p>'
            f"{f'<ul>{wary}</ul>' if wary else ''}",
        )
    if result.outcome == NOTHING_FOUND:
        answer = parse_reply(result.reply).answer
        words = say(lang, "says", answer=answer) if answer else result.reason
        return verdict_of("none", f"<h3>{title}</h3><p>{escape(words)}</p><p>{say(lang, 'no_region')}</p>")
    return verdict_of("none", f"<h3>{title}</h3><p>{escape(result.reason)}</p>")


def empty_verdict(lang: str, figure: str) -> str:
    return verdict_of("empty", f"<small>{say(lang, 'iou')}</small><b>{figure}</b>")


def verdict_of(state: str, inside: str) -> str:
    return f'<div class="verdict {state}" role="status">{inside}</div>'


def words(lang: str, pieces: list[str]) -> str:
    """The reply token by token, each a button."""
    if not pieces:
        return f'<p class="about">{say(lang, "words_empty")}</p>'
    buttons = "".join(f'<button type="button" data-word="{i}">{escape(p)}</button>' for i, p in enumerate(pieces))
    return f'<div class="words">{buttons}</div>'


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
