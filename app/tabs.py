"""The tabs below an answer, one function each: what stands in it, and which event calls which
handler."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import gradio as gr

from app.handlers import Frame, Handlers, Values
from app.texts import I18N
from app.uploads import bound_paintings
from app.views import page
from app.visitors import Answered, language
from coprs_core.probes import PROBES
from coprs_core.prompts import MAX_INSTRUCTION_CHARACTERS, MAX_READ_CHARACTERS

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Of events that are done at once."""
MODEL: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "model"}
"""Of events that the model works for: so many at a time as `Listening.at_once` says."""
NO_AUTOCOMPLETE = gr.InputHTMLAttributes(autocomplete="off", spellcheck=False)
_WORD_CLICKED = """element.addEventListener("click", (event) => {
  const word = event.target.closest("[data-word]");
  if (!word) return;
  for (const other of element.querySelectorAll("[data-word]"))
    other.setAttribute("aria-pressed", other === word);
  trigger("select", { index: Number(word.dataset.word) });
});"""

Recent = tuple[Answered, ...]


@dataclass(frozen=True)
class Tab:
    """A tab that stands.

    Attributes:
        components: what `refresh` fills.
        refresh: (language, answer, recent answers) → values for another answer.
        brings_answer: events of this tab after which there is another answer.
    """

    components: list
    refresh: Callable[[str, Answered | None, Recent], Values] = field(repr=False)
    brings_answer: list = field(default_factory=list)


def cleared(*components: Any) -> Tab:
    """A tab whose HTML goes when there is another answer."""
    return Tab(list(components), lambda *_: dict.fromkeys(components, ""))


def build_tabs(frame: Frame, handlers: Handlers, may_switch: bool) -> list[Tab]:
    """Every tab, in order; a probe without a tab of its own gets the plain one."""
    tabs = []
    with gr.Tabs(elem_id="probes"):
        for name in PROBES:
            build = _OWN_TABS.get(name, partial(probe_tab, name))
            tabs.append(build(frame, handlers))
        for build in (thought_tab, compare_tab, truth_tab, export_tab):
            tabs.append(build(frame, handlers))
        models_tab(frame, handlers, may_switch)
    return tabs


def probe_tab(name: str, frame: Frame, handlers: Handlers) -> Tab:
    """A probe that needs nothing but the answer: what it is about, its button, and what it
    finds."""
    with gr.Tab(I18N(name), elem_id=f"tab-{name}"):
        about(name)
        button = gr.Button(I18N(f"{name}_go"), elem_id=f"ask-{name}", size="sm")
        view = gr.HTML(elem_id=f"{name}-view")

    def ask(answered: Answered | None, request: gr.Request) -> str:
        return handlers.ask_probe(name, answered, request)

    button.click(ask, frame.answered, view, **MODEL)
    return cleared(view)


def words_tab(frame: Frame, handlers: Handlers) -> Tab:
    """Word by word: every word of the reply is a button."""
    with gr.Tab(I18N("words"), elem_id="tab-words"):
        about("words")
        words = gr.HTML(page.words("en", []), elem_id="words", js_on_load=_WORD_CLICKED)
        view = gr.HTML(elem_id="word-view")
    words.select(handlers.word, frame.answered, view, **MODEL)

    def refresh(lang: str, answered: Answered | None, recent: Recent) -> Values:
        return {words: page.words(lang, handlers.pieces(answered)), view: ""}

    return Tab([words, view], refresh)


def thought_tab(frame: Frame, handlers: Handlers) -> Tab:
    """Another thought: the model's own, to be changed."""
    with gr.Tab(I18N("again"), elem_id="tab-again"):
        about("again")
        thought = gr.Textbox(
            label=I18N("again_thought"),
            lines=3,
            max_lines=8,
            max_length=MAX_READ_CHARACTERS,
            elem_id="other-thought",
        )
        button = gr.Button(I18N("again_go"), elem_id="focus-again", size="sm")
        view = gr.HTML(elem_id="again-view")
    button.click(handlers.focus_again, [frame.answered, thought], view, **MODEL)

    def refresh(lang: str, answered: Answered | None, recent: Recent) -> Values:
        return {thought: answered.result.reasoning if answered else "", view: ""}

    return Tab([thought, view], refresh)


def compare_tab(frame: Frame, handlers: Handlers) -> Tab:
    """Ask again: another instruction, or an earlier answer about the same photo."""
    with gr.Tab(I18N("compare"), elem_id="tab-compare"):
        about("compare")
        with gr.Row():
            with gr.Column():
                instruction = gr.Textbox(
                    label=I18N("compare_instruction"),
                    max_length=MAX_INSTRUCTION_CHARACTERS,
                    elem_id="other-instruction",
                    html_attributes=NO_AUTOCOMPLETE,
                )
                ask_button = gr.Button(I18N("compare_go"), elem_id="ask-again", size="sm")
            with gr.Column():
                earlier = gr.Dropdown([], label=I18N("compare_earlier"), elem_id="earlier")
                pick_button = gr.Button(I18N("compare_pick"), elem_id="compare", size="sm")
        view = gr.HTML(elem_id="compare-view")

    def ask_again(answered: Answered | None, text: str, recent: Recent | None, request: gr.Request):
        for html, kept in handlers.ask_again(answered, text, recent, request):
            yield {view: html, **(handlers.recalled(kept) if kept else {})}

    inputs = [frame.answered, instruction, frame.recent]
    for start in (ask_button.click, instruction.submit):
        start(ask_again, inputs, [view, frame.recent, frame.strip], **MODEL)
    inputs = [frame.answered, earlier, frame.recent]
    pick_button.click(handlers.compare, inputs, view, **QUIET)

    def refresh(lang: str, answered: Answered | None, recent: Recent) -> Values:
        choices = [
            (f"{one.result.instruction} ({one.result.model})", i)
            for i, one in enumerate(recent)
            if answered
            and one.photo.key == answered.photo.key
            and one.result is not answered.result
        ]
        return {earlier: gr.update(choices=choices, value=None), view: ""}

    return Tab([earlier, view], refresh)


def truth_tab(frame: Frame, handlers: Handlers) -> Tab:
    """Ground truth: painted over the photo, or from a file."""
    with gr.Tab(I18N("truth"), elem_id="tab-truth"):
        about("truth")
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
            bound_paintings(paint)
            # read later, when it is known how large a layer may be
            paint.preprocess = cast(Any, _paths_of_layers)
            with gr.Column():
                file = gr.File(
                    label=I18N("truth_file"),
                    file_types=[".png", ".json"],
                    height=120,
                    elem_id="truth-file",
                )
                button = gr.Button(I18N("truth_go"), elem_id="measure", size="sm")
        view = gr.HTML(elem_id="truth-view")
    button.click(handlers.truth, [frame.answered, paint, file], view, **QUIET)

    def refresh(lang: str, answered: Answered | None, recent: Recent) -> Values:
        canvas = None
        if answered:
            canvas = {"background": answered.photo.image, "layers": [], "composite": None}
        return {paint: canvas, view: ""}

    return Tab([paint, view], refresh)


def export_tab(frame: Frame, handlers: Handlers) -> Tab:
    """Take away: the answer as a zip, and a saved one back."""
    with gr.Tab(I18N("export"), elem_id="tab-export"):
        about("export")
        with gr.Row():
            with gr.Column():
                button = gr.Button(I18N("export_go"), elem_id="download", size="sm")
                zipped = gr.File(
                    label=I18N("export_file"), interactive=False, elem_id="zipped", height=120
                )
            saved = gr.File(
                label=I18N("open_file"), file_types=[".zip"], height=160, elem_id="saved"
            )
    button.click(handlers.export, frame.answered, zipped, **MODEL)
    opening = saved.upload(handlers.open_file, [saved, frame.recent], frame.of_restoring, **QUIET)
    opening.success(lambda: "", outputs=frame.explained, **QUIET)
    return Tab([zipped], lambda *_: {zipped: None}, [opening])


def models_tab(frame: Frame, handlers: Handlers, may_switch: bool) -> None:
    """Models: the table, and on one's own machine the choice."""
    with gr.Tab(I18N("models"), elem_id="models") as tab:
        table = gr.HTML()
        with gr.Row(visible=may_switch):
            name = gr.Dropdown(
                [], allow_custom_value=True, elem_id="model", scale=4, label=I18N("model_name")
            )
            button = gr.Button(I18N("use_model"), elem_id="use-model", scale=1)
        loading = gr.HTML(elem_id="loading")

    def show(request: gr.Request) -> Values:
        lang, rows = language(request), handlers.server.rows()
        return {table: page.models(lang, rows), name: gr.update(choices=page.choices(rows))}

    tab.select(show, outputs=[table, name], **QUIET)

    def use_model(chosen: str | None, request: gr.Request):
        for html, values in handlers.switch_model(chosen, request):
            yield {loading: html, **values}

    if may_switch:
        outputs = [loading, frame.header, frame.notice]
        button.click(use_model, name, outputs, concurrency_id="model", **QUIET)


def _paths_of_layers(payload: Any) -> list[str]:
    """The files of what was painted, as they came."""
    return [layer.path for layer in payload.layers] if payload else []


_OWN_TABS: dict[str, Callable[[Frame, Handlers], Tab]] = {"words": words_tab}
"""Probes that the page asks in a way of their own."""


def about(name: str) -> None:
    """A line on what a tab is about."""
    gr.Markdown(I18N(f"{name}_about"), elem_classes="about")
