"""Between the core's updates and the page's components. Nothing is kept here from one call to the next."""

from collections.abc import Iterator
from dataclasses import dataclass

import gradio as gr
import numpy as np

from app import panels
from coprs_core import probes
from coprs_core.engine import Update
from coprs_core.errors import CoPRSError
from coprs_core.photos import open_photo
from coprs_core.pictures import mask_overlay, prior_overlay, thumbnail
from coprs_core.results import Region, Result
from coprs_core.shelf import Shelf

SHOWN_SIDE = 1024
"""Pictures on the page are at most this long a side; files and masks keep the photo's size."""


@dataclass(frozen=True)
class Answered:
    """What this visitor's last answer was, and about which upload; kept in the visitor's own session."""

    photo_path: str
    result: Result


@dataclass
class View:
    """New values of the page's output components, in the order of `ui.build`; None leaves a component as it is."""

    steps: str | None = None
    thought: str | None = None
    prior: np.ndarray | None = None
    mask: np.ndarray | None = None
    verdict: str | None = None
    answered: Answered | None = None

    def values(self) -> tuple:
        values = (self.steps, self.thought, self.prior, self.mask, self.verdict, self.answered)
        return tuple(gr.skip() if v is None else v for v in values)


def answer(shelf: Shelf, photo_path: str | None, instruction: str) -> Iterator[tuple]:
    """Stream an answer as component values; a user's mistake becomes one sentence and leaves the inputs alone."""
    try:
        photo = open_photo(photo_path)
        updates = shelf.engine.stream(photo, instruction)
        pixels = np.asarray(photo.image)
        yield (panels.steps(None), panels.thought(None), None, None, panels.verdict(None), None)
        for update in updates:
            view = _view(update, pixels)
            view.answered = Answered(photo_path, update.result) if update.result else None
            yield view.values()
    except CoPRSError as problem:
        raise gr.Error(str(problem), title="That did not work", print_exception=False) from None


def trace(shelf: Shelf, answered: Answered | None) -> tuple[list[tuple[np.ndarray, str]], str]:
    """Where the model would have focused after each sentence of its thought: pictures with captions, and a line of words."""
    try:
        if answered is None:
            raise CoPRSError("There is no answer to look into yet: ask for something first.")
        photo = open_photo(answered.photo_path)
        looks = probes.focus_after_each_sentence(shelf.engine, photo, answered.result)
    except CoPRSError as problem:
        raise gr.Error(str(problem), title="That did not work", print_exception=False) from None
    shown = []
    for i, look in enumerate(looks):
        small, region = thumbnail(np.asarray(photo.image), Region(look.prior, look.mask), SHOWN_SIDE // 2)
        shown.append((prior_overlay(small, region.prior), f"{i + 1}. {look.text} — IoU {look.iou:.2f}"))
    return shown, panels.settled(looks, probes.settles_at(looks))


def segment(shelf: Shelf, upload: dict, instruction: str) -> Iterator[dict]:
    """Stream an answer for programs: one dict an update, with stage, text and new; the last one has the whole result."""
    try:
        for update in shelf.engine.stream(open_photo(_uploaded(upload)), instruction):
            told = {"stage": update.stage, "text": update.text, "new": update.new, "seconds": round(update.seconds, 4)}
            yield told | ({"result": update.result.to_dict()} if update.result else {})
    except CoPRSError as problem:
        raise gr.Error(str(problem), print_exception=False) from None


def choose(shelf: Shelf, name: str) -> Iterator[tuple]:
    """Load another model: its progress, then the masthead, the notice and the prior's label of the model in use."""
    try:
        for line in shelf.exchange((name or "").strip()):
            yield panels.loading(line), gr.skip(), gr.skip(), gr.skip()
    except CoPRSError as problem:
        yield panels.loading(str(problem), failed=True), *in_use(shelf)
        return
    yield panels.loading(f"{shelf.engine.name} is in use."), *in_use(shelf)


def in_use(shelf: Shelf) -> tuple:
    """Masthead, notice and the prior's label for the model in use."""
    engine = shelf.engine
    return (
        panels.header(engine.name, engine.settings, engine.prior_kind),
        panels.notice(engine.model.config.note),
        gr.update(label=panels.PRIOR_LABELS[engine.prior_kind]),
    )


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
        if update.result.regions:
            small, region = thumbnail(pixels, Region(update.prior, update.result.mask), SHOWN_SIDE)
            view.mask = mask_overlay(small, region.mask)
    return view
