"""The page's own parts: masthead, stages, thought, verdict, models."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from app.texts import say, translate
from app.views.render import render
from coprs_core.answer.flags import find_flags
from coprs_core.answer.results import Result
from coprs_core.answer.updates import Update
from coprs_core.answer.verdict import diagnose, first_broken_link, restated_question
from coprs_core.errors import CoPRSError
from coprs_core.prompts import (
    FOCUS_TOKEN,
    FOCUS_TOKEN_PRIOR,
    FOUND,
    NOTHING_FOUND,
    parse_reply,
    split_sentences,
)

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine
    from coprs_core.checkpoints.catalogue import ModelRow
    from coprs_core.checkpoints.plan import LoadPlan

STAGES = ("reading", "thinking", "focusing", "drawing")
_ACTIVE_STAGE = {"reading": 0, "thinking": 1, "focus": 3, "done": 4}
"""Index of the stage that is under way at each update."""
_FLAGS_IN_LINKS = ("disagree", "elsewhere")
"""Warnings that a link of the chain says already."""
_FLAGS_WITHOUT_MASK = ("stretched",)
"""Warnings that are said of an answer without a mask, too, and by no link."""
_CARET = Markup('<i class="caret" aria-hidden="true"></i>')


@dataclass(frozen=True)
class Repair:
    """A sentence of a thought, and the one that would mend the answer."""

    said: str
    instead: str


@dataclass(frozen=True)
class Word:
    """A word of a reply; `nowhere` says so of one that looks nowhere."""

    text: str
    nowhere: str


@dataclass(frozen=True)
class WordViews:
    """The words of a reply, what view.js draws of each, as JSON, and the text about them."""

    pieces: list[Word]
    looks: str
    about: str


@dataclass(frozen=True)
class StageView:
    """A stage as it is shown: `state` is waiting, active, done or skipped."""

    stage: str
    state: str
    note: str


def header(lang: str, engine: "Engine | None") -> Markup:
    """The masthead; `engine` is None while the model is being loaded."""
    if engine is None:
        return render(lang, "masthead", model=say(lang, "loading"), parts=())
    settings = engine.settings
    precision = settings["dtype"]
    if settings["quantization"] != "none":
        precision += f", {settings['quantization']}"
    parts = (engine.prior_kind, settings["device"], precision)
    return render(lang, "masthead", model=engine.name, parts=parts)


def notice(lang: str, model_note: str, may_switch: bool = False) -> str:
    """What the model in use knows, and what to do for photos; empty where it has no such limit."""
    note = translate(lang, model_note)
    return render(lang, "notice", note=note, may_switch=may_switch) if note else ""


def unfamiliar(lang: str, note: str, choice: "LoadPlan | None", problem: str | None) -> Markup:
    """What a model says before it answers about a picture that it does not know: what it knows,
    and the `choice` of a model for photos, or the `problem` why there is none."""
    words = translate(lang, choice.describe()) if choice else ""
    known = {"note": translate(lang, note), "choice": choice, "words": words}
    return render(lang, "unfamiliar", problem=problem, **known)


def explanation(lang: str, words: str, repair: Repair | None = None) -> str:
    """Why a bundled example comes out as it does, and the sentence that would mend it."""
    return render(lang, "explanation", words=words, repair=repair) if words else ""


def stages(lang: str, update: Update | None = None, is_ahead: bool = False) -> Markup:
    """The four stages, each over its column: waiting, under way, or done with its time; `is_ahead`:
    of a photo alone, which nobody can stop."""
    shown = [_stage(lang, i, stage, update) for i, stage in enumerate(STAGES)]
    return render(lang, "steps", steps=shown, is_ahead=is_ahead)


def _stage(lang: str, index: int, stage: str, update: Update | None) -> StageView:
    if update is None:
        return StageView(stage, "waiting", "")
    result = update.result
    finished = result.seconds if result else update.stage_seconds
    state, note = "waiting", ""
    if stage in finished:
        state, note = "done", format_seconds(finished[stage])
    elif result:
        state, note = "skipped", "–"
    elif index == _ACTIVE_STAGE[update.stage]:
        state, note = "active", format_seconds(update.seconds - sum(finished.values()))
    if stage == "reading" and update.photo_reused:
        note = say(lang, "already_read")
    if stage == "thinking" and state in ("active", "done") and update.rate:
        note += f" · {say(lang, 'tokens_per_second', rate=update.rate)}"
    return StageView(stage, state, note)


def thought(lang: str, update: Update | None = None) -> Markup:
    """The thought while it comes, word by word; its place before."""
    if update is None:
        return render(lang, "thought_empty")
    reply = parse_reply(update.text)
    return render(
        lang,
        "thought",
        reasoning=reply.reasoning,
        answer=reply.answer,
        is_thinking=update.stage == "thinking",
        caret=_CARET,
    )


@dataclass(frozen=True)
class AllowedActions:
    """What can be done with a finished thought: its sentences be changed, its words be asked
    where they look."""

    edit: bool = False
    words: bool = False


def finished_thought(
    lang: str,
    result: Result,
    offers: AllowedActions | None = None,
    words: WordViews | None = None,
    changed: int | None = None,
    recorded: bool = False,
) -> Markup:
    """The whole thought, a sentence a line, each a button of the pictures, and what followed it.

    `words` stand below it once they were asked for; `changed` is the sentence that a person wrote;
    a `recorded` answer is replayed as it comes.
    """
    has_token = result.outcome == FOUND and result.prior_kind == FOCUS_TOKEN_PRIOR
    offers = offers or AllowedActions()
    return render(
        lang,
        "thought_done",
        sentences=split_sentences(result.reasoning) or [result.reason],
        token=FOCUS_TOKEN if has_token else "",
        answer=parse_reply(result.reply).answer,
        looks_after=bool(result.regions) and result.prior_kind != FOCUS_TOKEN_PRIOR,
        note=say(lang, "recorded", model=result.model)
        if recorded
        else _thinking_note(lang, result),
        asked=result.instruction,
        recorded=recorded,
        can_edit=offers.edit and bool(result.reasoning.strip()),
        can_ask_words=offers.words,
        words=words,
        changed=changed,
        autoplay=recorded,
    )


def _thinking_note(lang: str, result: Result) -> str:
    """How long it thought; of a thought that it was given, that it was."""
    if result.is_thought_given:
        return say(lang, "yours")
    seconds = result.seconds.get("thinking", 0.0)
    if not result.tokens:
        return say(lang, "thought_took", seconds=seconds)
    return say(lang, "thought_for", seconds=seconds, tokens=result.tokens)


def stopped_thought(lang: str, thought_html: str) -> str:
    """The thought after Stop: what was thought so far stays."""
    mark = render(lang, "stopped_mark")
    if _CARET in thought_html:
        return thought_html.replace(_CARET, mark)
    if 'class="thought empty"' in thought_html:
        return render(lang, "thought_stopped", mark=mark)
    thought, end, rest = thought_html.rpartition("</p>")  # it had finished thinking
    return f"{thought}{mark}{end}{rest}" if end else thought_html


def verdict(
    lang: str,
    result: Result,
    recorded: bool = False,
    true_iou: float | None = None,
    full_size: tuple[int, int] | None = None,
) -> Markup:
    """The outcome in words, how it understood the question, the links of the chain, and warnings;
    `true_iou` once the truth was given, `full_size` (see `Photo`) where the photo was brought
    down."""
    links = diagnose(result, true_iou)
    shown = [link for link in links if link.text_key != "finished_broken"]  # the reason says it
    if result.outcome != FOUND:
        answer = parse_reply(result.reply).answer
        quotes = result.outcome == NOTHING_FOUND and answer
        words = say(lang, "says", answer=answer) if quotes else result.reason
        return render(
            lang,
            "verdict_none",
            outcome=result.outcome,
            words=words,
            links=shown,
            broken=first_broken_link(links),
            understood=restated_question(result),
            flags=[name for name in find_flags(result) if name in _FLAGS_WITHOUT_MASK],
            seen=_resolution_note(lang, result, full_size),
            recorded=recorded,
        )
    share = result.mask.mean() * 100
    return render(
        lang,
        "verdict_found",
        share=f"{share:.1f}" if share >= 0.1 else f"{share:.3f}",
        links=shown,
        broken=first_broken_link(links),
        understood=restated_question(result),
        flags=[name for name in find_flags(result) if name not in _FLAGS_IN_LINKS],
        is_guess=bool(result.unfamiliar),
        recorded=recorded,
        seen=_resolution_note(lang, result, full_size),
    )


def _resolution_note(lang: str, result: Result, full_size: tuple[int, int] | None) -> str:
    """How much of the photo was kept, and how much of it the language model was given, where that
    is not all."""
    height, width = result.photo_size
    told, kept = [], 1.0
    if full_size:
        kept = height * width / (full_size[0] * full_size[1])
        full = {"full_width": full_size[1], "full_height": full_size[0]}
        told.append(say(lang, "brought_down", width=width, height=height, **full))
    if result.is_seen_downscaled and result.seen_size and result.seen_pixel_share:
        height, width = result.seen_size
        share = 100 * result.seen_pixel_share * kept
        share_told = f"{share:.0f}" if share >= 1 else f"{share:.1f}"
        told.append(say(lang, "seen", width=width, height=height, share=share_told))
        if result.regions:
            told.append(say(lang, "seen_small"))
    return " ".join(told)


def empty_verdict(lang: str) -> Markup:
    """The verdict's place before there is one."""
    return render(lang, "verdict_empty")


def help_text(lang: str) -> Markup:
    """What the words of this page mean, and what is asked most."""
    return render(lang, "help")


def disabled_reason(lang: str, words: str) -> str:
    """Why something cannot be asked yet, beside its button."""
    return render(lang, "reason", words=words) if words else ""


def link_note(lang: str, token: str) -> Markup:
    """The address at which an answer is kept."""
    return render(lang, "taken", href=f"?answer={token}")


def models_table(lang: str, rows: "list[ModelRow]") -> Markup:
    """The table of models, as `coprs models` prints it."""
    return render(lang, "models", rows=rows)


def model_choices(rows: "list[ModelRow]") -> list[tuple[str, str]]:
    """(label, name) of every model that has a name of its own to load; one that does not fit says
    why."""
    return [
        (r.name if r.fits else f"{r.name} (does not fit: {r.reason})", r.name)
        for r in rows
        if r.cached or r.download
    ]


def loading_progress(lang: str, line: str | CoPRSError, failed: bool = False) -> str:
    """What is going on while a model is loaded."""
    return render(lang, "loading", line=translate(lang, line), failed=failed) if line else ""


def format_seconds(seconds: float) -> str:
    """A time as a person reads it: 340 ms, 2.4 s."""
    return f"{seconds:.1f} s" if seconds >= 0.95 else f"{max(seconds, 0) * 1000:.0f} ms"
