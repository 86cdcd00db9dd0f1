"""The page: its frame, what follows what, and how it is launched."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.route_utils import CustomCORSMiddleware
from PIL import Image
from starlette.middleware import Middleware

from app import api
from app.examples import examples
from app.handlers import Frame, Handlers, Values
from app.options import ServerOptions
from app.server.answers import StoredAnswer
from app.server.guard import Guard
from app.server.model import ModelServer
from app.server.uploads import CheckedBlocks, set_max_bytes, set_reader, use_private_folder
from app.tabs import LAST, MODEL, NO_AUTOCOMPLETE, QUIET, Recent, Tab, TabContext, build_tabs
from app.texts import I18N, say
from app.theme import theme
from app.views import canvas, findings, page
from app.views.standalone import script
from app.visitors import request_language, selected_index, user_errors_as_gr_error
from coprs_core.errors import CoPRSError
from coprs_core.model.backends.remote.proxies import bypass_proxies
from coprs_core.prompts import MAX_INSTRUCTION_CHARACTERS

ROOT = Path(__file__).resolve().parent
_THOUGHT_EVENTS_JS = """
element.addEventListener("coprs-edit", (event) => trigger("submit", event.detail));
element.addEventListener("coprs-words", () => trigger("select"));
"""


@dataclass(frozen=True, eq=False)
class Buttons:
    """What starts and stops an answer."""

    find: gr.Button
    stop: gr.Button
    examples: gr.Gallery
    anyway: gr.Button


def build(server: ModelServer, may_switch: bool = False) -> gr.Blocks:
    """The page for the model in use; opens nothing and listens to nothing yet.

    `may_switch`: whoever sees the page may switch the model for everybody, so only on one's own
    machine.
    """
    use_private_folder()
    with CheckedBlocks(
        title=say("en", "title"),
        analytics_enabled=False,
        delete_cache=(3600, 3600),
        fill_width=True,
    ) as demo:
        api.add_endpoints(server, may_switch)  # first, so that the names are theirs
        frame, buttons = _frame()
        handlers = Handlers(server, frame, may_switch)
        tabs, switched = build_tabs(frame, handlers, may_switch)
        prepare, prepare_again = _tab_updates(frame, tabs)
        asking = _wire_answers(frame, buttons, handlers)
        answer_events = [*asking, *_wire_restores(frame, handlers, tabs, asking)]
        _wire_traces(frame, handlers, answer_events)
        begun = _wire_photo_changes(frame, handlers, asking)
        for event in (*answer_events, *begun):
            event.then(**prepare, **LAST)
            event.failure(**prepare_again, **LAST)
        for event in switched:
            event.then(handlers.thought_actions.refresh, frame.answer, frame.thought, **QUIET).then(
                **prepare
            )
        loaded = demo.load(
            handlers.models.show_model, outputs=[frame.header, frame.notice], **QUIET
        )
        opened = demo.load(handlers.opening.open_page, outputs=frame.restore_outputs, **QUIET)
        for event in (loaded, opened):
            event.then(**prepare, **LAST)
    return demo


def _frame() -> tuple[Frame, Buttons]:
    """Everything above the tabs: what is asked, the thought and its pictures, the verdict."""
    header = gr.HTML(page.header("en", None), elem_id="header")
    with gr.Row(elem_id="ask", equal_height=False):
        photo = _photo_input()
        with gr.Column(elem_id="question", min_width=0):
            with gr.Row(elem_id="buttons", equal_height=False):
                instruction = gr.Textbox(
                    show_label=False,
                    label=I18N("instruction"),
                    placeholder=I18N("placeholder"),
                    lines=1,
                    max_lines=3,
                    elem_id="instruction",
                    max_length=MAX_INSTRUCTION_CHARACTERS,
                    html_attributes=NO_AUTOCOMPLETE,
                    submit_btn=False,
                    container=False,
                    scale=1,
                )
                find = gr.Button(
                    I18N("find"), variant="primary", elem_id="find", scale=0, min_width=0
                )
                stop = gr.Button(I18N("stop"), elem_id="stop", scale=0, min_width=0)
            notice = gr.HTML(elem_id="notice")
            explained = gr.HTML(elem_id="explained")
            # as pictures, not files: Gradio sends them as WebP, a tenth of the bytes
            pictures = [(Image.open(e.file), e.caption) for e in examples()]
            gallery = _gallery(pictures, I18N("examples"), "examples")
    with gr.Row(elem_id="ways", visible=False) as ways:
        unfamiliar = gr.HTML()
        photo_model = gr.Button("", variant="primary", elem_id="photo-model", min_width=0)
        anyway = gr.Button(I18N("anyway"), elem_id="anyway", min_width=0)
    steps = gr.HTML(page.stages("en"), elem_id="steps")
    with gr.Row(elem_id="stage", equal_height=False):
        thought = gr.HTML(page.thought("en"), elem_id="thought", js_on_load=_THOUGHT_EVENTS_JS)
        view = gr.HTML(canvas.empty_view("en"), elem_id="view")
    trace = gr.HTML(findings.empty_strip("en"), elem_id="trace")
    verdict = gr.HTML(page.empty_verdict("en"), elem_id="verdict")
    recent_gallery = _gallery([], I18N("history"), "recent", visible=False, render=False)
    answer, recent = gr.State(time_to_live=3600), gr.State(time_to_live=3600)
    frame = Frame(
        header=header,
        notice=notice,
        steps=steps,
        thought=thought,
        view=view,
        trace=trace,
        verdict=verdict,
        explained=explained,
        ways=ways,
        unfamiliar=unfamiliar,
        photo_model=photo_model,
        photo=photo,
        instruction=instruction,
        recent_gallery=recent_gallery,
        answer=answer,
        recent=recent,
    )
    return frame, Buttons(find, stop, gallery, anyway)


def _photo_input() -> gr.Image:
    photo = gr.Image(
        label=I18N("photo"),
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        format="png",
        height=168,
        scale=0,
        min_width=210,
        elem_id="photo",
        buttons=["fullscreen"],
    )
    # the core reads files itself: every mode, every error as a sentence
    set_reader(photo, _path_of)
    return photo


def _path_of(payload: Any) -> str | None:
    """The uploaded file as it came; `CheckedBlocks` has checked that it was uploaded."""
    return None if payload is None else payload.path


def _wire_answers(frame: Frame, buttons: Buttons, handlers: Handlers) -> list:
    """Everything that asks, and Stop; the events after which there is an answer."""
    ask: dict[str, Any] = {
        "fn": handlers.answer,
        "inputs": [frame.photo, frame.instruction, frame.recent],
        "outputs": frame.answer_outputs,
        "show_progress": "minimal",
        "show_progress_on": frame.steps,
        "trigger_mode": "multiple",  # what is asked while it answers ends that (`RequestGate`)
        **MODEL,
    }
    starts = [buttons.find.click, frame.instruction.submit]
    answers = [start(**ask) for start in starts]
    ask_anyway: dict[str, Any] = ask | {"fn": handlers.answer_anyway}
    answers.append(buttons.anyway.click(**ask_anyway))
    if handlers.models.may_switch:
        outputs = [frame.unfamiliar, frame.header, frame.notice, frame.ways]
        loaded = frame.photo_model.click(handlers.models.load_photo_model, outputs=outputs, **MODEL)
        answers.append(loaded.success(**ask | {"fn": handlers.answer_or_read_ahead}))
    shown = examples()

    def pick(event: gr.EventData, request: gr.Request) -> Values:
        lang = request_language(request)
        with user_errors_as_gr_error(lang):
            example = shown[selected_index(event, len(shown))]
        # they tell what the miniature answers
        words = example.explanation.get(lang, "") if handlers.server.name == "mini" else ""
        return {
            frame.photo: example.file,
            frame.instruction: example.instruction,
            frame.explained: page.explanation(lang, words, example.repair),
        }

    picking = buttons.examples.select(
        pick, outputs=[frame.photo, frame.instruction, frame.explained], **QUIET
    )
    answers.append(picking.then(**ask))
    edit = {"inputs": [frame.answer, frame.recent], "outputs": frame.answer_outputs, **MODEL}
    each: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}
    answers.append(frame.thought.submit(handlers.thought_actions.edit_sentence, **each, **edit))
    answers[-1].success(lambda: "", outputs=frame.explained, js="() => COPRS.edited()", **QUIET)
    answers[-1].failure(fn=None, js="() => COPRS.refused()", **QUIET)
    asked_words = frame.thought.select(
        handlers.thought_actions.show_words,
        frame.answer,
        frame.thought,
        show_progress="hidden",
        **MODEL,
    )
    for ends in (asked_words.then, asked_words.failure):
        ends(fn=None, js="() => COPRS.rested()", **QUIET)
    gr.on(starts, lambda: "", outputs=frame.explained, **QUIET)
    stopped = buttons.stop.click(handlers.supersede, cancels=answers, queue=False, **QUIET)
    at_hand, outputs = [frame.thought, frame.answer], [frame.steps, frame.thought]
    stopped.then(handlers.stop, at_hand, outputs, queue=False, **QUIET)
    gr.on(starts, fn=None, js="() => COPRS.toTheThought('asked')", **QUIET)
    shows = [buttons.examples.select, frame.recent_gallery.select]
    gr.on(shows, fn=None, js="() => COPRS.toTheThought()", **QUIET)
    return answers


def _wire_traces(frame: Frame, handlers: Handlers, events: list) -> None:
    """After an answer its thought is traced."""
    for event in events:
        event.then(handlers.thought_actions.show_trace, frame.answer, frame.trace, **LAST, **MODEL)


def _wire_photo_changes(frame: Frame, handlers: Handlers, answers: list) -> list:
    """Another photo ends what is being answered; the events after which there is no answer.

    What runs ends by `Handlers.gate`; what still waits for the model is cancelled here.
    """
    changes = [frame.photo.upload, frame.photo.clear]
    gr.on(changes, None, cancels=answers, queue=False, **QUIET)
    begin: dict[str, Any] = {"outputs": frame.reset_outputs, "queue": False, **QUIET}
    given, cleared = (change(handlers.reset, None, **begin) for change in changes)
    ahead = {"outputs": frame.read_ahead_outputs, "concurrency_id": "ahead", **LAST, **QUIET}
    given.then(handlers.read_ahead, frame.photo, **ahead)
    return [given, cleared]


def _wire_restores(frame: Frame, handlers: Handlers, tabs: list[Tab], answers: list) -> list:
    """An earlier answer, a saved one, that came back, ends what is being answered; the events after
    which another answer is at hand."""
    restored = frame.recent_gallery.select(
        handlers.opening.restore, frame.recent, frame.restore_outputs, **QUIET
    )
    frame.recent_gallery.select(lambda: "", outputs=frame.explained, **QUIET)
    brought = [restored, *(event for tab in tabs for event in tab.answer_events)]
    for event in brought:
        event.success(None, cancels=answers, queue=False, **QUIET)
    return brought


def _tab_updates(frame: Frame, tabs: list[Tab]) -> tuple[dict[str, Any], dict[str, Any]]:
    """After an answer: every tab is filled from it, and what it showed of the one before goes. The
    second one is for after a failure, where the answer before may still be at hand."""
    filled_for = gr.State(time_to_live=3600)

    def prepare(
        answer: StoredAnswer | None,
        recent: Recent | None,
        before: StoredAnswer | None,
        request: gr.Request,
    ) -> Values:
        if answer and answer.is_dropped:
            answer = None
        is_same_photo = bool(answer and before and answer.photo_key == before.photo_key)
        now = TabContext(request_language(request), answer, recent or (), is_same_photo)
        values: Values = {filled_for: answer}
        with user_errors_as_gr_error(now.lang):  # it may go meanwhile
            for tab in tabs:
                values |= tab.refresh(now)
        return values

    def prepare_again(
        answer: StoredAnswer | None,
        recent: Recent | None,
        before: StoredAnswer | None,
        request: gr.Request,
    ) -> Values:
        if answer is before:
            return {filled_for: gr.skip()}
        if answer is None:  # the question failed: what was painted over its photo stays
            values: Values = {filled_for: gr.skip()}
            for tab in tabs:
                values |= tab.refresh(
                    TabContext(request_language(request), None, recent or (), True)
                )
            return values
        return prepare(answer, recent, before, request)

    both: dict[str, Any] = {
        "inputs": [frame.answer, frame.recent, filled_for],
        "outputs": [filled_for, *(component for tab in tabs for component in tab.components)],
        **QUIET,
    }
    return {"fn": prepare, **both}, {"fn": prepare_again, **both}


@bypass_proxies()  # Gradio asks its own page whether it answers
def launch(demo: gr.Blocks, server_options: ServerOptions | None = None, **options: Any):
    """Start listening and return; `demo.block_thread()` waits.

    Raises `CoPRSError` where port or password is not what `ServerOptions` says, or the address
    cannot be listened on.
    """
    to = server_options or ServerOptions()
    if to.port and not (to.port.isdecimal() and 0 < int(to.port) < 65536):
        raise CoPRSError(
            f"Port {to.port!r} is not a number from 1 to 65535: choose another --port."
        )
    name, _, secret = to.password.partition(":")
    if to.password and not (name and secret):
        raise CoPRSError(
            "The password has to be NAME:PASSWORD, such as --password me:secret: give both."
        )
    set_max_bytes(to.uploads)
    # by default Gradio sums up all past events after each one, for a dashboard that is off here
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(sys.maxsize))
    demo.queue(max_size=to.queue, default_concurrency_limit=to.at_once, api_open=False)
    try:
        launched = demo.launch(
            server_name=to.host,
            server_port=int(to.port) if to.port else None,
            auth=(name, secret) if to.password else None,
            prevent_thread_lock=True,
            theme=theme(),
            css_paths=ROOT / "static" / "style.css",
            head=str(script()),
            i18n=I18N,
            max_file_size="40mb",
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            footer_links=["api"],
            app_kwargs={
                "middleware": [Middleware(Guard, options=to, page=demo)],
                **dict.fromkeys(("openapi_url", "docs_url", "redoc_url")),
            },
            **options,
        )
        _without_cors(demo.app)
        return launched
    except OSError as problem:
        raise CoPRSError(
            f"cannot listen on {to.host}, port {to.port or 'any'}: choose another --host or --port."
        ) from problem


def _without_cors(app: Any) -> None:
    """Gradio lets pages of any origin read its answers; no other page has a reason to."""
    kept = [m for m in app.user_middleware if m.cls is not CustomCORSMiddleware]
    app.user_middleware = kept
    app.middleware_stack = app.build_middleware_stack()


def _gallery(
    shown: list, label, elem_id: str, visible: bool = True, render: bool = True
) -> gr.Gallery:
    """A row of small whole pictures with captions, each a button."""
    return gr.Gallery(
        shown,
        label=label,
        show_label=False,
        columns=10,
        rows=1,
        height=104,
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        elem_id=elem_id,
        buttons=[],
        visible=visible,
        render=render,
        min_width=0,
    )
