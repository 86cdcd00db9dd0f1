"""The page: what stands where, and which event calls which handler."""

import base64
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import matplotlib
import numpy as np

from app.views import canvas as canvases
from app.views import page as panels
from app.api import Endpoints
from app.handlers import Page, language
from app.texts import LANGUAGES, say
from coprs_core.errors import CoPRSError
from coprs_core.answer.pictures import COLOUR_MAP, REGION_COLOURS
from coprs_core.prompts import MAX_INSTRUCTION_CHARACTERS
from app.serving import Shelf

ROOT = Path(__file__).resolve().parent
EXAMPLES = ROOT.parent / "assets" / "examples"
I18N = gr.I18n(**LANGUAGES)
_NO_AUTOCOMPLETE = gr.InputHTMLAttributes(autocomplete="off", spellcheck=False)
_WORD_CLICKED = """element.addEventListener("click", (event) => {
  const word = event.target.closest("[data-word]");
  if (!word) return;
  for (const other of element.querySelectorAll("[data-word]")) other.setAttribute("aria-pressed", other === word);
  trigger("select", { index: Number(word.dataset.word) });
});"""


_TO_THE_THOUGHT = (
    "() => { if (innerWidth < 900) document.querySelector('#thought').scrollIntoView({ behavior: 'smooth' }) }"
)


@dataclass(frozen=True)
class Example:
    """A bundled picture with an instruction; where the answer is no plain success, `note` says so in a word or two and
    `explanation` in each language of the page why."""

    file: str
    instruction: str
    note: str = ""
    explanation: dict[str, str] = field(default_factory=dict)


def examples() -> list[Example]:
    listed = json.loads((EXAMPLES / "examples.json").read_text())
    return [
        Example(str(EXAMPLES / e["file"]), e["instruction"], e.get("note", ""), e.get("explanation", {}))
        for e in listed
    ]


def build(shelf: Shelf, may_choose: bool = False) -> gr.Blocks:
    """The page for the model on the shelf; opens nothing and listens to nothing yet. `may_choose`: whoever sees the page
    may exchange the model for everybody, so only on one's own machine."""
    page, shown = Page(shelf), examples()
    quiet = dict(api_visibility="private", show_progress="hidden")
    model = dict(api_visibility="private", concurrency_id="model")
    with gr.Blocks(
        title=say("en", "title"), analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True
    ) as demo:
        _offer(Endpoints(shelf), may_choose)  # first, so that the names are theirs
        header = gr.HTML(panels.header("en", None), elem_id="header")
        notice = gr.HTML()
        steps = gr.HTML(panels.steps("en"), elem_id="steps")
        with gr.Row(elem_id="stage", equal_height=False):
            with gr.Column(elem_id="ask", min_width=0):
                photo = gr.Image(
                    label=I18N("photo"), type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"],
                    format="png", height=270, elem_id="photo", buttons=["fullscreen"],
                )  # fmt: skip
                photo.preprocess = _path_of  # the core reads files itself: every mode, every error as a sentence
                instruction = gr.Textbox(
                    label=I18N("instruction"), placeholder=I18N("placeholder"), lines=1, max_lines=4, elem_id="instruction",
                    max_length=MAX_INSTRUCTION_CHARACTERS, html_attributes=_NO_AUTOCOMPLETE, submit_btn=False,
                )  # fmt: skip
                with gr.Row(elem_id="buttons"):
                    find = gr.Button(I18N("find"), variant="primary", elem_id="find", scale=3, min_width=0)
                    stop = gr.Button(I18N("stop"), elem_id="stop", scale=1, min_width=0)
            thought = gr.HTML(panels.thought("en"), elem_id="thought")
            view = gr.HTML(canvases.waiting_view("en"), elem_id="view")
        explained = gr.HTML(elem_id="explained")
        with gr.Row(elem_id="strips", equal_height=True):
            gallery = _strip([(e.file, _caption(e)) for e in shown], I18N("examples"), "examples", scale=7)
            strip = _strip([], I18N("recent"), "recent", scale=4, visible=False)
        answered, recent = gr.State(time_to_live=3600), gr.State(time_to_live=3600)

        with gr.Tabs(elem_id="why"):
            with gr.Tab(I18N("sentences"), elem_id="tab-sentences"):
                trace, traced = _question("sentences", "trace", "traced")
            with gr.Tab(I18N("words"), elem_id="tab-words"):
                _about("words")
                words = gr.HTML(panels.words("en", []), elem_id="words", js_on_load=_WORD_CLICKED)
                word_view = gr.HTML(elem_id="word-view")
            with gr.Tab(I18N("heads"), elem_id="tab-heads"):
                show_heads, heads_view = _question("heads", "show-heads", "heads-view")
            with gr.Tab(I18N("again"), elem_id="tab-again"):
                _about("again")
                other_thought = gr.Textbox(label=I18N("again_thought"), lines=3, max_lines=8, elem_id="other-thought")
                focus_again = gr.Button(I18N("again_go"), elem_id="focus-again", size="sm")
                again_view = gr.HTML(elem_id="again-view")
            with gr.Tab(I18N("compare"), elem_id="tab-compare"):
                _about("compare")
                with gr.Row():
                    with gr.Column():
                        other = gr.Textbox(
                            label=I18N("compare_instruction"), max_length=MAX_INSTRUCTION_CHARACTERS, elem_id="other-instruction",
                            html_attributes=_NO_AUTOCOMPLETE,
                        )  # fmt: skip
                        ask_again = gr.Button(I18N("compare_go"), elem_id="ask-again", size="sm")
                    with gr.Column():
                        earlier = gr.Dropdown([], label=I18N("compare_earlier"), elem_id="earlier")
                        compare = gr.Button(I18N("compare_pick"), elem_id="compare", size="sm")
                compare_view = gr.HTML(elem_id="compare-view")
            with gr.Tab(I18N("truth"), elem_id="tab-truth"):
                _about("truth")
                with gr.Row():
                    paint = gr.ImageEditor(
                        label=I18N("truth_paint"), type="pil", sources=[], transforms=[], height=360, elem_id="paint",
                        brush=gr.Brush(default_size=12, colors=["#00bea8"], color_mode="fixed"), layers=False, format="png",
                    )  # fmt: skip
                    with gr.Column():
                        truth_file = gr.File(
                            label=I18N("truth_file"), file_types=[".png", ".json"], height=120, elem_id="truth-file"
                        )
                        measure = gr.Button(I18N("truth_go"), elem_id="measure", size="sm")
                truth_view = gr.HTML(elem_id="truth-view")
            with gr.Tab(I18N("zoom"), elem_id="tab-zoom"):
                zoom, zoom_view = _question("zoom", "zoom", "zoom-view")
            with gr.Tab(I18N("take"), elem_id="tab-take"):
                _about("take")
                with gr.Row():
                    with gr.Column():
                        download = gr.Button(I18N("take_go"), elem_id="download", size="sm")
                        zipped = gr.File(label=I18N("take_file"), interactive=False, elem_id="zipped", height=120)
                    saved = gr.File(label=I18N("open_file"), file_types=[".zip"], height=160, elem_id="saved")
            with gr.Tab(I18N("models"), elem_id="models") as models_tab:
                listed = gr.HTML()
                with gr.Row(visible=may_choose):
                    name = gr.Dropdown([], allow_custom_value=True, elem_id="model", scale=4, label=I18N("model_name"))
                    take = gr.Button(I18N("use_model"), elem_id="take", scale=1)
                loading = gr.HTML(elem_id="loading")

        main = [steps, thought, view, answered, recent, strip]
        outputs = [traced, word_view, heads_view, again_view, compare_view, truth_view]
        prepared = dict(
            fn=page.prepare,
            inputs=[answered, recent],
            outputs=[words, other_thought, earlier, paint, *outputs, zipped],
            **quiet,
        )
        ask = dict(
            fn=page.answer,
            inputs=[photo, instruction, recent],
            outputs=main,
            show_progress="minimal",
            show_progress_on=steps,
            **model,
        )
        answers = [start(**ask) for start in (find.click, instruction.submit)]

        def pick(event: gr.SelectData, request: gr.Request) -> tuple[str, str, str]:
            example = shown[event.index]
            return example.file, example.instruction, panels.explanation(example.explanation.get(language(request), ""))

        picked = gallery.select(pick, outputs=[photo, instruction, explained], **quiet)
        gr.on([find.click, instruction.submit, strip.select, saved.upload], lambda: "", outputs=explained, **quiet)
        answers.append(picked.then(**ask))
        for answer in answers:
            answer.then(**prepared)
        stopped = stop.click(_until_quiet, cancels=answers, queue=False, **quiet)
        stopped.then(page.stop, thought, [steps, thought], queue=False, **quiet)
        gr.on([find.click, instruction.submit, gallery.select, strip.select], fn=None, js=_TO_THE_THOUGHT, **quiet)
        replaced = gr.on(
            [photo.upload, photo.clear], page.begin, None, [steps, thought, view, answered], queue=False, **quiet
        )
        replaced.then(**prepared)
        strip.select(page.restore, recent, [photo, instruction, *main], **quiet).then(**prepared)
        saved.upload(page.open_file, [saved, recent], [photo, instruction, *main], **quiet).then(**prepared)

        trace.click(page.trace, answered, [traced, answered], **model)
        words.select(page.word, answered, word_view, **model)
        show_heads.click(page.heads, answered, heads_view, **model)
        focus_again.click(page.focus_again, [answered, other_thought], again_view, **model)
        for start in (ask_again.click, other.submit):
            start(page.ask_again, [answered, other, recent], [compare_view, recent, strip], **model)
        compare.click(page.compare, [answered, earlier, recent], compare_view, **quiet)
        measure.click(page.truth, [answered, paint, truth_file], truth_view, **quiet)
        zoom.click(page.zoom, answered, zoom_view, **model)
        download.click(page.download, answered, zipped, **model)
        models_tab.select(page.models, outputs=[listed, name], **quiet)
        if may_choose:
            take.click(page.choose, name, [loading, header, notice], concurrency_id="model", **quiet)
        demo.load(page.opened, outputs=[header, notice, steps, thought, view, words], **quiet)
    return demo


def _offer(endpoints: Endpoints, may_choose: bool) -> None:
    """The endpoints for programs, each under the name of its function."""
    e = endpoints
    for endpoint in (e.segment, e.sentences, e.word, e.heads, e.focus_again, e.compare, e.truth, e.zoom, e.download,
                     e.open, e.models, *[e.use_model] * may_choose):  # fmt: skip
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_id="model")


def launch(demo: gr.Blocks, host: str = "127.0.0.1", port: str = "", password: str = "", **options):
    """Listen, and go on (`demo.block_thread()` waits). `port` is empty for the first free one, `password` NAME:PASSWORD, or
    empty for everybody. Raises `CoPRSError` where either is something else."""
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise CoPRSError(f"Port {port!r} is no number from 1 to 65535: choose another --port.")
    name, colon, secret = password.partition(":")
    if password and not (name and secret):
        raise CoPRSError("The password has to be NAME:PASSWORD, such as --password me:secret: give both.")
    demo.queue(max_size=20, default_concurrency_limit=4)
    return demo.launch(
        server_name=host,
        server_port=int(port) if port else None,
        auth=(name, secret) if password else None,
        prevent_thread_lock=True,
        theme=theme(),
        css_paths=ROOT / "static" / "style.css",
        head=_head(),
        i18n=I18N,
        max_file_size="40mb",
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        **options,
    )


def _head() -> str:
    """The script of <coprs-view> and the colours that it shares with the core's pictures."""
    colours = (matplotlib.colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    return (
        f'<script>window.COPRS_HEATMAP="{base64.b64encode(colours.tobytes()).decode()}";window.COPRS_TINTS={json.dumps(REGION_COLOURS)};</script>'
        f'<script type="module">{(ROOT / "static" / "view.js").read_text(encoding="utf-8")}</script>'
    )


def _about(probe: str) -> None:
    gr.Markdown(I18N(f"{probe}_about"), elem_classes="about")


def _question(probe: str, button_id: str, view_id: str) -> tuple[gr.Button, gr.HTML]:
    """A probe that needs nothing but the answer: what it is about, its button, and where it is shown."""
    _about(probe)
    return gr.Button(I18N(f"{probe}_go"), elem_id=button_id, size="sm"), gr.HTML(elem_id=view_id)


def _strip(shown: list, label, elem_id: str, scale: int, visible: bool = True) -> gr.Gallery:
    """A row of small pictures with captions, each a button."""
    return gr.Gallery(
        shown, label=label, columns=10, rows=1, height=118, object_fit="cover", allow_preview=False, interactive=False,
        elem_id=elem_id, buttons=[], visible=visible, scale=scale, min_width=0,
    )  # fmt: skip


def _caption(example: Example) -> str:
    return f"{example.note}: {example.instruction}" if example.note else example.instruction


def _until_quiet() -> None:
    """Until what was on its way when the work was stopped has arrived."""
    time.sleep(0.3)


def theme() -> gr.themes.Base:
    """Our own colours and type: warm paper and ink, with the heatmap's violet and orange as accents. No web fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        font=["Inter", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
    ).set(
        body_background_fill="#faf8f4",
        body_background_fill_dark="#151217",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1e1a22",
        block_border_width="1px",
        block_border_color="#e7e1d8",
        block_border_color_dark="#372f3f",
        button_primary_background_fill="#5b1a6b",
        button_primary_background_fill_hover="#74248a",
        button_primary_background_fill_dark="#8a3aa3",
        button_primary_background_fill_hover_dark="#a04fba",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )


def _path_of(payload) -> str | None:
    """The uploaded file as it came; Gradio has checked that it lies in this visitor's uploads."""
    return None if payload is None else payload.path
