"""Between the core's updates and the page's components. Nothing is kept here from one call to the next."""

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
import numpy as np

from app import panels
from coprs_core.engine import Engine, Update
from coprs_core.errors import CoPRSError
from coprs_core.photos import open_photo
from coprs_core.pictures import mask_overlay, prior_overlay, thumbnail
from coprs_core.results import Region

SHOWN_SIDE = 1024
"""Pictures on the page are at most this long a side; files and masks keep the photo's size."""


@dataclass
class View:
    """New values of the page's output components, in the order of `ui.build`; None leaves a component as it is."""

    steps: str | None = None
    thought: str | None = None
    prior: np.ndarray | None = None
    mask: np.ndarray | None = None
    verdict: str | None = None

    def values(self) -> tuple:
        return tuple(
            gr.skip() if v is None else v for v in (self.steps, self.thought, self.prior, self.mask, self.verdict)
        )


def answer(engine: Engine, photo_path: str | None, instruction: str) -> Iterator[tuple]:
    """Stream an answer as component values; a user's mistake becomes one sentence and leaves the inputs alone."""
    try:
        photo = open_photo(photo_path)
        updates = engine.stream(photo, instruction)
        pixels = np.asarray(photo.image)
        yield (panels.steps(None), panels.thought(None), None, None, panels.verdict(None))
        for update in updates:
            yield _view(update, pixels).values()
    except CoPRSError as problem:
        raise gr.Error(str(problem), title="That did not work", print_exception=False) from None


def segment(engine: Engine, upload: dict, instruction: str) -> Iterator[dict]:
    """Stream an answer for programs: one dict an update, with stage, text and new; the last one has the whole result."""
    try:
        for update in engine.stream(open_photo(_uploaded(upload)), instruction):
            told = {"stage": update.stage, "text": update.text, "new": update.new, "seconds": round(update.seconds, 4)}
            yield told | ({"result": update.result.to_dict()} if update.result else {})
    except CoPRSError as problem:
        raise gr.Error(str(problem), print_exception=False) from None


def _uploaded(upload: dict) -> str:
    """The path of an uploaded file. Gradio checks only files that say what they are: without that, the path might be
    any on this server."""
    if not isinstance(upload, dict) or (upload.get("meta") or {}).get("_type") != "gradio.FileData":
        raise CoPRSError("The photo is no uploaded file: pass handle_file(path) of gradio_client.")
    return upload["path"]


def _view(update: Update, pixels: np.ndarray) -> View:
    view = View(steps=panels.steps(update))
    if update.stage in ("thinking", "focus", "done"):
        view.thought = panels.thought(update)
    if update.stage == "focus":
        small, region = thumbnail(pixels, Region(update.prior, update.prior >= 0.5), SHOWN_SIDE)
        view.prior = prior_overlay(small, region.prior)
    if update.stage == "done":
        view.verdict = panels.verdict(update.result)
        for region in update.result.regions:
            small, region = thumbnail(pixels, region, SHOWN_SIDE)
            view.mask = mask_overlay(small, region.mask)
    return view
