"""The tabs below an answer, one function each: what stands in it, and which event calls which
handler."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from app.actions import AnswerActions, answer_label
from app.handlers import Frame, Handlers, Values
from app.server.answers import StoredAnswer
from app.server.uploads import limit_paintings, set_reader
from app.texts import I18N, say
from app.views import page
from app.visitors import request_language
from coprs_core.probes import PROBES

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of events that are done at once."""
LAST: dict[str, Any] = {"trigger_mode": "always_last"}
"""Triggered again while it runs, it runs once more after; Gradio would drop that by default."""
MODEL: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model"}
"""Of events that the model works for: so many at a time as `ServerOptions.at_once` says."""
NO_AUTOCOMPLETE = gr.InputHTMLAttributes(autocomplete="off", spellcheck=False)
Recent = tuple[StoredAnswer, ...]


@dataclass(frozen=True, eq=False)
class TabContext:
    """What tabs are refreshed for: the current answer, the visitor's language, the recent answers;
    `is_same_photo`: as that of the answer before."""

    lang: str
    answer: StoredAnswer | None
    recent: Recent
    is_same_photo: bool


@dataclass(frozen=True)
class Tab:
    """A tab of the page.

    Attributes:
        components: what `refresh` fills.
        refresh: values for another answer.
        answer_events: events of this tab after which there is another answer.
    """

    components: list
    refresh: Callable[[TabContext], Values] = field(repr=False)
    answer_events: list = field(default_factory=list)


def build_tabs(frame: Frame, handlers: Handlers, may_switch: bool) -> tuple[list[Tab], list]:
    """Every tab, in order: one a probe, but for the words, which the thought itself shows; and the
    events after which another model may be in use."""
    actions, tabs = AnswerActions(handlers.server, handlers.gate), []
    with gr.Tabs(elem_id="probes", overflow_behavior="wrap"):
        for name in PROBES:
            if name != "words":
                tabs.append(probe_tab(name, frame, handlers, actions))
        tabs.append(compare_tab(frame, actions))
        tabs.append(truth_tab(frame, actions))
        tabs.append(export_tab(frame, handlers, actions))
        tabs.append(history_tab(frame))
        switched = models_tab(frame, handlers, may_switch)
        tabs.append(help_tab())
    return tabs, switched


def probe_tab(name: str, frame: Frame, handlers: Handlers, actions: AnswerActions) -> Tab:
    """A probe that needs nothing but the answer: what it is about, its button, or why it cannot be
    asked, and what it finds."""
    with gr.Tab(I18N(name), elem_id=f"tab-{name}"):
        tab_description(name)
        with gr.Row(elem_classes="asking"):
            button = gr.Button(I18N(f"{name}_go"), elem_id=f"ask-{name}", size="sm")
            reason = gr.HTML()
        view = gr.HTML(elem_id=f"{name}-view")

    def ask(answer: StoredAnswer | None, request: gr.Request) -> str:
        return actions.run_probe(name, answer, request)

    asked = button.click(ask, frame.answer, view, **MODEL)
    if name == "sentences":  # the strip shows them too
        asked.success(handlers.thought_actions.show_trace, frame.answer, frame.trace, **QUIET)

    def refresh(now: TabContext) -> Values:
        why_not = actions.why_probe_unavailable(now.lang, name, now.answer)
        enabled = gr.update(interactive=not why_not)
        return {button: enabled, view: "", **reason_values(now.lang, reason, why_not)}

    return Tab([button, reason, view], refresh)


def reason_values(lang: str, reason: gr.HTML, why_not: str) -> Values:
    """The reason why a button is disabled, for the place beside it."""
    return {reason: page.disabled_reason(lang, why_not)}


def compare_tab(frame: Frame, actions: AnswerActions) -> Tab:
    """Compare: every earlier answer about the same photo; choosing one compares."""
    with gr.Tab(I18N("compare"), elem_id="tab-compare"):
        tab_description("compare")
        earlier = gr.Radio([], label=I18N("compare_pick"), elem_id="earlier", visible=False)
        reason = gr.HTML()
        view = gr.HTML(elem_id="compare-view")
    inputs = [frame.answer, earlier, frame.recent]
    earlier.input(actions.compare, inputs, view, **QUIET)

    def refresh(now: TabContext) -> Values:
        lang, answer = now.lang, now.answer
        others = [
            (answer_label(lang, one), i)
            for i, one in enumerate(now.recent)
            if answer
            and one.photo_key == answer.photo_key
            and one is not answer
            and not one.is_dropped
        ]
        names = [name for name, _ in others]
        choices = [
            (f"{name} · {names[n:].count(name)}" if names.count(name) > 1 else name, i)
            for n, (name, i) in enumerate(others)
        ]  # the oldest of the same name is 1
        why_not = "" if choices else say(lang, "reason_alone")
        shown = gr.update(choices=choices, value=None, visible=bool(choices))
        return {earlier: shown, view: "", **reason_values(lang, reason, why_not)}

    return Tab([earlier, reason, view], refresh)


def truth_tab(frame: Frame, actions: AnswerActions) -> Tab:
    """Ground truth: painted over the photo, or from a file."""
    with gr.Tab(I18N("truth"), elem_id="tab-truth"):
        tab_description("truth")
        with gr.Row():
            paint = gr.ImageEditor(
                label=I18N("truth_paint"),
                type="pil",
                sources=[],
                transforms=[],
                height=360,
                elem_id="paint",
                brush=gr.Brush(default_size=12, colors=["#00bea8"], color_mode="fixed"),
                layers=False,
                format="png",
            )
            limit_paintings(paint)
            # read later, when it is known how large a layer may be
            set_reader(paint, _layer_paths)
            with gr.Column():
                file = gr.File(
                    label=I18N("truth_file"),
                    file_types=[".png", ".json"],
                    height=120,
                    elem_id="truth-file",
                )
                button = gr.Button(I18N("truth_go"), elem_id="measure", size="sm")
                reason = gr.HTML()
        view = gr.HTML(elem_id="truth-view")
    button.click(
        actions.compare_with_truth, [frame.answer, paint, file], [view, frame.verdict], **QUIET
    )

    def refresh(now: TabContext) -> Values:
        why_not = "" if now.answer else say(now.lang, "reason_no_answer")
        enabled = gr.update(interactive=not why_not)
        values = {button: enabled, view: "", **reason_values(now.lang, reason, why_not)}
        if now.is_same_photo:  # its truth is the same
            return values
        canvas = None
        if now.answer:
            canvas = {"background": now.answer.photo.image, "layers": [], "composite": None}
        return values | {paint: canvas, file: None}

    return Tab([paint, file, button, reason, view], refresh)


def export_tab(frame: Frame, handlers: Handlers, actions: AnswerActions) -> Tab:
    """Take away: the answer as a zip, one web page, a moving picture or a link; and a saved one
    back."""
    with gr.Tab(I18N("export"), elem_id="tab-export"):
        tab_description("export")
        with gr.Row():
            with gr.Column():
                with gr.Row(elem_classes="asking"):
                    buttons = [
                        gr.Button(I18N(label), elem_id=elem_id, size="sm")
                        for label, elem_id in (
                            ("export_go", "download"),
                            ("take_page", "take-page"),
                            ("take_replay", "take-replay"),
                            ("take_link", "take-link"),
                        )
                    ]
                    reason = gr.HTML()
                file = gr.File(
                    label=I18N("export_file"), interactive=False, elem_id="zipped", height=90
                )
                link = gr.HTML(elem_id="link")
            saved = gr.File(
                label=I18N("open_file"), file_types=[".zip"], height=160, elem_id="saved"
            )
    files = actions.export_zip, actions.export_page, actions.export_replay
    for button, take in zip(buttons, files, strict=False):
        button.click(take, frame.answer, file, **MODEL)
    buttons[-1].click(actions.create_link, frame.answer, link, **MODEL)
    opening = saved.upload(
        handlers.opening.open_file, [saved, frame.recent], frame.restore_outputs, **QUIET
    )
    opening.success(lambda: ("", None), outputs=[frame.explained, saved], **QUIET)

    def refresh(now: TabContext) -> Values:
        why_not = "" if now.answer else say(now.lang, "reason_no_answer")
        enabled = {button: gr.update(interactive=not why_not) for button in buttons}
        if now.answer and (still := actions.why_replay_unavailable(now.lang, now.answer)):
            enabled[buttons[2]], why_not = gr.update(interactive=False), still
        return {file: None, link: "", **enabled, **reason_values(now.lang, reason, why_not)}

    return Tab([file, link, *buttons, reason], refresh, [opening])


def history_tab(frame: Frame) -> Tab:
    """The answers of this visit; choosing one brings it back."""
    with gr.Tab(I18N("history"), elem_id="history"):
        tab_description("recent")
        frame.recent_gallery.render()
        none = gr.HTML()

    def refresh(now: TabContext) -> Values:
        return reason_values(now.lang, none, "" if now.recent else say(now.lang, "recent_none"))

    return Tab([none], refresh)


def models_tab(frame: Frame, handlers: Handlers, may_switch: bool) -> list:
    """Models: the table, and on one's own machine the choice; the events that make it."""
    with gr.Tab(I18N("models"), elem_id="models") as tab:
        with gr.Row(visible=may_switch):
            name = gr.Dropdown(
                [], allow_custom_value=True, elem_id="model", scale=4, label=I18N("model_name")
            )
            button = gr.Button(I18N("use_model"), elem_id="use-model", scale=1)
        loading = gr.HTML(elem_id="loading")
        table = gr.HTML()

    def show(request: gr.Request) -> Values:
        lang, rows = request_language(request), handlers.server.model_rows()
        return {
            table: page.models_table(lang, rows),
            name: gr.update(choices=page.model_choices(rows)),
        }

    tab.select(show, outputs=[table, name], **QUIET)

    def use_model(chosen: str | None, request: gr.Request):
        for html, values in handlers.models.switch(chosen, request):
            yield {loading: html, **values}

    if not may_switch:
        return []
    outputs = [loading, frame.header, frame.notice, frame.ways]
    return [button.click(use_model, name, outputs, concurrency_id="model", **QUIET)]


def help_tab() -> Tab:
    """What the words of the page mean, and what is asked most."""
    with gr.Tab(I18N("help"), elem_id="help"):
        shown = gr.HTML(page.help_text("en"))
    return Tab([shown], lambda now: {shown: page.help_text(now.lang)})


def _layer_paths(payload: Any) -> list[str]:
    """The files of what was painted, as they came."""
    return [layer.path for layer in payload.layers] if payload else []


def tab_description(name: str) -> None:
    """Add a line on what a tab is about."""
    key = name if name == "recent" else f"{name}_about"
    gr.Markdown(I18N(key), elem_classes="about")
