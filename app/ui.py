"""The page: what stands where, and which event calls which handler."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gradio as gr

from app import handlers, panels
from coprs_core.pictures import COLOUR_MAP
from coprs_core.prompts import MAX_INSTRUCTION_CHARACTERS
from coprs_core.shelf import Shelf

EXAMPLES = Path(__file__).resolve().parent.parent / "assets" / "examples"
STYLE = Path(__file__).with_name("style.css")
_OUTPUT = dict(interactive=False, buttons=["fullscreen", "download"])
_NO_AUTOCOMPLETE = gr.InputHTMLAttributes(autocomplete="off", spellcheck=False)


def examples() -> list[tuple[str, str]]:
    """(picture file, instruction) of every bundled example."""
    listed = json.loads((EXAMPLES / "examples.json").read_text())
    return [(str(EXAMPLES / e["file"]), e["instruction"]) for e in listed]


def build(shelf: Shelf, may_choose: bool = False) -> gr.Blocks:
    """The page for the model on the shelf; opens nothing and listens to nothing yet. `may_choose`: whoever sees the page
    may exchange the model for everybody, so only on one's own machine."""
    shown, engine = examples(), shelf.engine
    title = "CoPRS · ask, watch it think, see where it looks"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as demo:
        header = gr.HTML(panels.header(engine.name, engine.settings, engine.prior_kind))
        notice = gr.HTML(panels.notice(engine.model.config.note))
        with gr.Row(elem_id="stage", equal_height=False):
            with gr.Column(scale=4, min_width=300, elem_id="ask"):
                photo = gr.Image(
                    label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard", "webcam"],
                    height=278, elem_id="photo", buttons=["fullscreen"],
                )  # fmt: skip
                photo.preprocess = _path_of  # the core reads files itself: every mode, every error as a sentence
                instruction = gr.Textbox(
                    label="What to look for", placeholder="the thing that keeps the rain off", lines=1, max_lines=4,
                    max_length=MAX_INSTRUCTION_CHARACTERS, elem_id="instruction", html_attributes=_NO_AUTOCOMPLETE,
                )  # fmt: skip
                with gr.Row():
                    find = gr.Button("Find it", variant="primary", elem_id="find", scale=3)
                    stop = gr.Button("Stop", elem_id="stop", scale=1)
            with gr.Column(scale=9, min_width=320, elem_id="answer"):
                steps = gr.HTML(panels.steps(None), elem_id="steps")
                thought = gr.HTML(panels.thought(None), elem_id="thought")
                with gr.Row(elem_id="pictures", equal_height=False):
                    with gr.Column(scale=4, min_width=220):
                        prior = gr.Image(
                            label=panels.PRIOR_LABELS[engine.prior_kind], height=290, **_OUTPUT, elem_id="prior"
                        )
                        gr.HTML(panels.scale(COLOUR_MAP))
                    with gr.Column(scale=4, min_width=220):
                        mask = gr.Image(label="Mask: what the decoder draws", height=290, **_OUTPUT, elem_id="mask")
                    with gr.Column(scale=2, min_width=170):
                        verdict = gr.HTML(panels.verdict(None), elem_id="verdict")
        gallery = gr.Gallery(
            shown, label="Try one of these", columns=len(shown), rows=1, height=150, object_fit="cover", allow_preview=False,
            interactive=False, elem_id="examples", buttons=[],
        )  # fmt: skip
        with gr.Accordion("Why this region? Where it would have looked after each sentence", open=False, elem_id="why"):
            trace = gr.Button("Trace the thought", elem_id="trace", size="sm")
            settled = gr.HTML()
            traced = gr.Gallery(
                show_label=False, columns=3, height="auto", object_fit="contain", interactive=False, buttons=["fullscreen"],
                elem_id="traced",
            )  # fmt: skip
        with gr.Accordion("Models", open=False, elem_id="models") as shelf_panel:
            listed = gr.HTML()
            with gr.Row(visible=may_choose):
                name = gr.Dropdown(
                    [engine.name], value=engine.name, allow_custom_value=True, elem_id="model", scale=4,
                    label="A name from the table, a checkpoint folder or a Hugging Face id",
                )  # fmt: skip
                take = gr.Button("Use this model", elem_id="take", scale=1)
            loading = gr.HTML(elem_id="loading")
        answered = gr.State(time_to_live=3600)
        outputs = [steps, thought, prior, mask, verdict, answered]
        quiet = dict(api_visibility="private", show_progress="hidden")
        ask = dict(
            fn=partial(handlers.answer, shelf),
            inputs=[photo, instruction],
            outputs=outputs,
            concurrency_id="model",
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=steps,
        )
        answers = [start(**ask) for start in (find.click, instruction.submit)]

        def pick(event: gr.SelectData) -> tuple[str, str]:
            return shown[event.index]

        picked = gallery.select(pick, outputs=[photo, instruction], **quiet)
        answers.append(picked.then(**ask))
        stop.click(panels.stopped, inputs=thought, outputs=[steps, thought], cancels=answers, queue=False, **quiet)

        trace.click(
            partial(handlers.trace, shelf),
            answered,
            [traced, settled],
            concurrency_id="model",
            api_visibility="private",
        )

        def show_models() -> tuple:
            rows = shelf.rows()
            return panels.models(rows), gr.update(choices=panels.choices(rows))

        shelf_panel.expand(show_models, outputs=[listed, name], **quiet)
        if may_choose:
            changed = [loading, header, notice, prior]
            take.click(partial(handlers.choose, shelf), name, changed, concurrency_id="model", **quiet)
        demo.load(partial(handlers.in_use, shelf), outputs=[header, notice, prior], **quiet)

        def segment(photo: gr.FileData, instruction: str) -> Iterator[dict]:
            yield from handlers.segment(shelf, photo, instruction)

        gr.api(segment, api_name="segment", concurrency_id="model")
    return demo


def launch(demo: gr.Blocks, **options):
    """Listen. `options` go to gradio's `launch`; the page's looks and the limits are set here."""
    demo.queue(max_size=20, default_concurrency_limit=1)
    return demo.launch(
        theme=theme(),
        css_paths=STYLE,
        max_file_size="40mb",
        enable_monitoring=False,
        run_history=False,
        footer_links=["api"],
        **options,
    )


def theme() -> gr.themes.Base:
    """Our own colours and type: warm paper and ink, with the heatmap's violet and orange as accents. No web fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        font=["Inter", "system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif"],
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
