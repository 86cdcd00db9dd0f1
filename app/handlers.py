"""Between the core and the page: what each button does. Nothing is kept here from one call to the
next; what a visitor has asked lies in that visitor's own session."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
import numpy as np

from app.views import canvas as canvases
from app.views import page as panels
from app.views import probes as why
from app.texts import language_of, say
from coprs_core import probes
from coprs_core.archive import open_answer, save_zip
from coprs_core.answer.compare import against_answer, against_truth, read_truth
from coprs_core.answer.engine import Update
from coprs_core.errors import CoPRSError
from coprs_core.photos import Photo, open_photo
from coprs_core.answer.results import FOCUS_TOKEN_PRIOR, Result
from app.serving import Shelf
from coprs_core.zoom import zoom_in

NOWHERE = 0.1
"""A probe whose prior is nowhere as high as this looks nowhere."""
MOST_RECENT, MOST_PIXELS = 8, 24_000_000
"""Of the answers kept for a visitor: how many, and of how many pixels together."""


@dataclass(frozen=True)
class Answered:
    """One answer of this visitor, with its photo and, once asked for, its trace."""

    photo: Photo
    result: Result
    looks: tuple[probes.Look, ...] = ()

    @property
    def pixels(self) -> np.ndarray:
        return np.asarray(self.photo.image)


@dataclass
class View:
    """New values of the page's main components, in the order of `ui.build`; None leaves a component as it is."""

    steps: str | None = None
    thought: str | None = None
    view: str | None = None
    answered: Answered | None = None
    recent: tuple[Answered, ...] | None = None
    begins: bool = False
    """A new question: the answer before it is no longer the one at hand."""

    def values(self) -> tuple:
        strip = None if self.recent is None else strip_of(self.recent)
        values = (self.steps, self.thought, self.view, self.answered, self.recent, strip)
        skipped = tuple(gr.skip() if v is None else v for v in values)
        return (*skipped[:3], None, *skipped[4:]) if self.begins else skipped


@contextmanager
def in_a_sentence(lang: str):
    """A `CoPRSError` inside becomes the page's message, or a client's `AppError`."""
    try:
        yield
    except CoPRSError as problem:
        raise gr.Error(str(problem), title=say(lang, "failed"), print_exception=False) from None


def language(request: gr.Request | None) -> str:
    return language_of(request.headers.get("accept-language") if request else None)


def strip_of(recent: tuple[Answered, ...]):
    """The strip of recent answers: a small picture and the instruction of each."""
    shown = [(canvases.thumbnail_of(a.pixels, a.result), a.result.instruction) for a in recent]
    return gr.update(value=shown, visible=bool(recent), selected_index=None)


def remembered(answered: Answered, recent: tuple[Answered, ...]) -> tuple[Answered, ...]:
    """The recent answers with a new one in front; the oldest go where they are too many or too large."""
    kept, pixels = [], 0
    for one in (answered, *recent)[:MOST_RECENT]:
        pixels += one.photo.size[0] * one.photo.size[1]
        if kept and pixels > MOST_PIXELS:
            break
        kept.append(one)
    return tuple(kept)


class Page:
    """What the page's buttons do, each with the model on the shelf."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf

    # --- the answer

    def answer(
        self, photo_path: str | None, instruction: str, recent: tuple | None, request: gr.Request | None = None
    ) -> Iterator[tuple]:
        """Stream an answer as component values; a user's mistake becomes one sentence and leaves the inputs alone."""
        lang = language(request)
        with in_a_sentence(lang):
            photo = open_photo(photo_path)
            updates = self.shelf.stream(photo, instruction)
            pixels = np.asarray(photo.image)
            for update in updates:
                view = View(steps=panels.steps(lang, update))
                if update.stage == "reading":
                    view.begins = True
                    view.thought, view.view = (
                        panels.thought(lang),
                        canvases.waiting_view(lang, self.shelf.engine.prior_kind),
                    )
                else:
                    view.thought = panels.thought(lang, update)
                if update.stage == "focus":
                    view.view = canvases.prior_view(lang, pixels, update.prior, self.shelf.engine.prior_kind)
                if update.result:
                    view.view = canvases.answer_view(lang, pixels, update.result)
                    view.answered = Answered(photo, update.result)
                    view.recent = remembered(view.answered, recent or ())
                yield view.values()

    def stop(self, thought: str, request: gr.Request | None = None) -> tuple[str, str]:
        """After Stop: the thought so far stays."""
        lang = language(request)
        return panels.steps(lang), panels.stopped(lang, thought)

    def begin(self, request: gr.Request | None = None) -> tuple:
        """Another photo, or none: the answer about the one before goes from the page; it stays among the recent ones."""
        lang = language(request)
        kind = self.shelf.engine.prior_kind if self.shelf.is_ready else FOCUS_TOKEN_PRIOR
        return panels.steps(lang), panels.thought(lang), canvases.waiting_view(lang, kind), None

    def restore(self, recent: tuple, event: gr.SelectData, request: gr.Request | None = None) -> tuple:
        """An earlier answer of this visit, as it was."""
        lang = language(request)
        with in_a_sentence(lang):
            if not 0 <= event.index < len(recent or ()):
                raise CoPRSError(say(lang, "gone"))
        return self._restored(lang, recent[event.index])

    def open_file(self, path: str | None, recent: tuple | None, request: gr.Request | None = None) -> tuple:
        """A saved answer, without the model; it joins the recent ones."""
        lang = language(request)
        if path is None:
            return (gr.skip(),) * 8
        with in_a_sentence(lang):
            saved = open_answer(path)
        answered = Answered(saved.photo, saved.result)
        return self._restored(lang, answered, remembered(answered, recent or ()))

    def _restored(self, lang: str, answered: Answered, recent: tuple[Answered, ...] | None = None) -> tuple:
        result = answered.result
        update = Update("done", result.reply, result=result, laps=result.seconds, photo_reused=result.photo_reused)
        view = View(
            panels.steps(lang, update), panels.answered_thought(lang, result),
            canvases.answer_view(lang, answered.pixels, result), answered, recent,
        )  # fmt: skip
        return (answered.photo.image, result.instruction, *view.values())

    def prepare(self, answered: Answered | None, recent: tuple | None, request: gr.Request | None = None) -> tuple:
        """After an answer: the probes' inputs are filled from it and their old outputs go."""
        lang, recent = language(request), recent or ()
        if answered is None:
            return (panels.words(lang, []), "", gr.update(choices=[], value=None), None, *[""] * 6, None)
        pieces = []
        if self._can_probe(answered.result):
            pieces = probes.words(self.shelf.engine, answered.result)
        earlier = [
            (f"{a.result.instruction} ({a.result.model})", i)
            for i, a in enumerate(recent)
            if a.photo.key == answered.photo.key and a.result is not answered.result
        ]
        paint = {"background": answered.photo.image, "layers": [], "composite": None}
        return (
            panels.words(lang, pieces), answered.result.reasoning, gr.update(choices=earlier, value=None), paint,
            *[""] * 6, None,
        )  # fmt: skip

    def _can_probe(self, result: Result) -> bool:
        engine = self.shelf.engine
        return engine.prior_kind == FOCUS_TOKEN_PRIOR and result.model == engine.name and bool(result.reply_ids)

    # --- probes

    def trace(self, answered: Answered | None, request: gr.Request | None = None) -> tuple[str, Answered]:
        """Where the model would have focused after each sentence of its thought."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            looks = self.shelf.ask(probes.focus_after_each_sentence, answered.photo, answered.result)
        html = why.trace(lang, answered.pixels, answered.result, looks, probes.settles_at(looks))
        return html, replace(answered, looks=looks)

    def word(self, answered: Answered | None, event: gr.EventData, request: gr.Request | None = None) -> str:
        """Where one word's own hidden state looks."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            look = self.shelf.ask(probes.focus_at_word, answered.photo, answered.result, event.index)
        caption = say(lang, "focus_word") if look.trained else say(lang, "probe_word", word=look.text.strip())
        if look.prior.max() < NOWHERE:
            caption += f" · {say(lang, 'nowhere', highest=f'{look.prior.max():.3f}')}"
        return why.one_look(lang, answered.pixels, look, caption)

    def heads(self, answered: Answered | None, request: gr.Request | None = None) -> str:
        """The attention maps before they are fused."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            maps = self.shelf.ask(probes.heads, answered.photo, answered.result)
        return why.heads(lang, answered.pixels, answered.result.prior, maps)

    def focus_again(self, answered: Answered | None, thought: str, request: gr.Request | None = None) -> str:
        """Another thought is read instead of the model's own; both answers side by side."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            other = self.shelf.ask(probes.focus_again, answered.photo, answered.result.instruction, thought)
            captions = (say(lang, "old"), say(lang, "new"))
            return self._pair(lang, answered, other, captions)

    def ask_again(self, answered: Answered | None, instruction: str, recent: tuple, request: gr.Request | None = None) -> Iterator[tuple]:  # fmt: skip
        """Another instruction about the same photo, compared with the answer at hand: the comparison, and the recent ones."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            for update in self.shelf.stream(answered.photo, instruction):
                yield panels.thought(lang, update), gr.skip(), gr.skip()
            other = Answered(answered.photo, update.result)
            recent = remembered(other, recent or ())
            yield self._differences(lang, answered, other), recent, strip_of(recent)

    def compare(self, answered: Answered | None, earlier: int | None, recent: tuple, request: gr.Request | None = None) -> str:  # fmt: skip
        """The answer at hand against an earlier one about the same photo."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            if earlier is None or not 0 <= earlier < len(recent or ()):
                raise CoPRSError(say(lang, "compare_none"))
            return self._differences(lang, answered, recent[earlier])

    def truth(self, answered: Answered | None, painted: dict | None, file: str | None, request: gr.Request | None = None) -> str:  # fmt: skip
        """The answer at hand against a true mask: a file's, else what was painted."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            truth = read_truth(file if file else _painted(painted), answered.photo.size)
            measured = against_truth(answered.result, truth)
        return why.against_truth(lang, answered.pixels, answered.result, truth, measured)

    def zoom(self, answered: Answered | None, request: gr.Request | None = None) -> str:
        """Prior and mask read again around the prior's mass; both side by side."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = self._given(lang, answered)
            zoomed, _ = self.shelf.ask(zoom_in, answered.photo, answered.result)
            return self._pair(lang, answered, zoomed, (say(lang, "before"), say(lang, "after")))

    def _given(self, lang: str, answered: Answered | None) -> Answered:
        if answered is None:
            raise CoPRSError(say(lang, "no_answer"))
        return answered

    def _pair(self, lang: str, answered: Answered, other: Result, captions: tuple[str, str]) -> str:
        both = (answered.result, other)
        return why.pair(lang, answered.pixels, both, captions, against_answer(*both))

    def _differences(self, lang: str, first: Answered, second: Answered) -> str:
        said = why.agreement_words(lang, against_answer(first.result, second.result))
        return why.differences(
            lang, first.pixels, first.result.mask, second.result.mask, (_named(lang, first, "only_first"), _named(lang, second, "only_second")),
            say(lang, "compare_slider"), said,
        )  # fmt: skip

    # --- to take away

    def download(self, answered: Answered | None, request: gr.Request | None = None) -> Iterator[str]:
        """The answer's files as one zip, its trace included where the model at hand gave the answer."""
        lang = language(request)
        with in_a_sentence(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            answered = self._given(lang, answered)
            yield str(self.zipped(Path(folder), answered))

    def zipped(self, folder: Path, answered: Answered) -> Path:
        looks = answered.looks
        if not looks and self._can_probe(answered.result):
            looks = self.shelf.ask(probes.focus_after_each_sentence, answered.photo, answered.result)
        return save_zip(folder / "coprs-answer.zip", answered.photo, answered.result, looks)

    # --- models

    def models(self, request: gr.Request | None = None) -> tuple:
        """The table of models, and the names to choose from."""
        rows = self.shelf.rows()
        return panels.models(language(request), rows), gr.update(choices=panels.choices(rows))

    def choose(self, name: str, request: gr.Request | None = None) -> Iterator[tuple]:
        """Load another model: its progress, then masthead, notice and the empty view of the model in use."""
        lang = language(request)
        try:
            for line in self.shelf.exchange((name or "").strip()):
                yield panels.loading(line), *[gr.skip()] * 2
        except CoPRSError as problem:
            yield panels.loading(str(problem), failed=True), *self._in_use(lang)
            return
        yield panels.loading(say(lang, "model_used", name=self.shelf.engine.name)), *self._in_use(lang)

    def opened(self, request: gr.Request | None = None) -> Iterator[tuple]:
        """When the page opens: everything in the visitor's language, at once; then the model in use, when it is loaded."""
        lang = language(request)
        still = (panels.steps(lang), panels.thought(lang), canvases.waiting_view(lang), panels.words(lang, []))
        if not self.shelf.is_ready:
            yield panels.header(lang, None), "", *still
        kind = self.shelf.engine.prior_kind
        yield *self._in_use(lang), *still[:2], canvases.waiting_view(lang, kind), still[3]

    def _in_use(self, lang: str) -> tuple[str, str]:
        engine = self.shelf.engine
        return panels.header(lang, engine), panels.notice(lang, engine.model.config.note)


def _painted(painted: dict | None) -> np.ndarray:
    """The union of what was painted, bool [H, W], from the editor's layers (RGBA)."""
    layers = [np.asarray(layer) for layer in (painted or {}).get("layers") or []]
    masks = [layer[..., 3] > 0 for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    if not any(m.any() for m in masks):
        raise CoPRSError(
            "Nothing is painted and no file is given: paint the true mask over the photo, or bring a PNG or .json."
        )
    return np.any(masks, axis=0)


def _named(lang: str, answered: Answered, key: str) -> str:
    return f"{say(lang, key)}: {answered.result.instruction[:60]} ({answered.result.model})"
