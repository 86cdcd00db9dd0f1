"""Between the core and the page: what each button does.

Handlers give new values by component; a component that is not named stays as it is. Nothing is kept
here from one call to the next: what a visitor has asked lies in that visitor's own session.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app.frame import Frame, Values
from app.serving import ModelServer
from app.texts import say
from app.uploads import painted_mask
from app.views import canvas, page
from app.views import probes as probe_views
from app.visitors import (
    MAX_PIXELS,
    Answered,
    can_probe,
    given,
    in_a_sentence,
    language,
    opened_photo,
    picked,
    remembered,
    save_answered,
)
from coprs_core.answer.compare import against_answer, against_truth, read_truth
from coprs_core.answer.engine import Update
from coprs_core.archive import open_answer
from coprs_core.checkpoints.auto import AUTO
from coprs_core.errors import CoPRSError
from coprs_core.photos import Photo
from coprs_core.probes import probe, sentences, thought, words
from coprs_core.prompts import FOCUS_TOKEN_PRIOR

MAX_TRACED_PIXELS = 4_000_000
"""The thought about a larger photo is traced when it is asked for."""
NOWHERE = 0.1
"""A word whose prior is nowhere as high as this looks nowhere."""


class Handlers:
    """What the page's buttons do, with the model in use; values are for the components of
    `frame`."""

    def __init__(self, server: ModelServer, frame: Frame, may_switch: bool = False):
        self.server, self.frame, self.may_switch = server, frame, may_switch

    # --- the answer

    def answer(
        self,
        photo_path: str | None,
        instruction: str,
        recent: tuple | None,
        request: gr.Request | None = None,
        anyway: bool = False,
    ) -> Iterator[Values]:
        """Stream an answer; a user's mistake becomes one sentence and leaves the inputs alone.

        About a picture that the model does not know it is asked first whether to answer `anyway`.
        """
        lang, frame = language(request), self.frame
        with in_a_sentence(lang):
            photo = opened_photo(photo_path)
            for update in self.server.stream(photo, instruction):
                if update.unfamiliar and not anyway:
                    yield self._ways(lang)
                    return
                values: Values = {frame.steps: page.steps(lang, update)}
                if update.stage == "reading":
                    values |= self._blank(lang)
                else:
                    values[frame.thought] = page.thought(lang, update)
                if update.stage == "focus" and update.prior is not None:
                    values[frame.view] = self._prior(lang, photo, update.prior)
                if update.result:
                    values |= self._shown(lang, Answered(photo, update.result), recent)
                yield values

    def answer_anyway(
        self,
        photo_path: str | None,
        instruction: str,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> Iterator[Values]:
        """As `answer`, also about a picture that the model does not know."""
        yield from self.answer(photo_path, instruction, recent, request, anyway=True)

    def _ways(self, lang: str) -> Values:
        """In place of an answer: what the model knows, and the ways on."""
        choice = problem = None
        if self.may_switch:
            try:
                choice = self.server.for_photos()
            except CoPRSError as none_fits:
                problem = str(none_fits)
        note = self.server.engine.segmenter.note
        label = say(lang, "photo_model", name=choice.model.name) if choice else ""
        return {
            self.frame.steps: page.steps(lang),
            **self._blank(lang),
            self.frame.ways: gr.update(visible=True),
            self.frame.unfamiliar: page.unfamiliar(lang, note, choice, problem),
            self.frame.photo_model: gr.update(value=label, visible=choice is not None),
        }

    def load_photo_model(self, request: gr.Request | None = None) -> Iterator[Values]:
        """Load the model for photos that fits this machine; raises where it cannot be loaded, and
        the ways stay."""
        lang, frame = language(request), self.frame
        with in_a_sentence(lang):
            try:
                for line in self.server.switch_model(AUTO):
                    yield {frame.unfamiliar: page.loading(lang, line)}
            except CoPRSError as problem:
                yield {frame.unfamiliar: page.loading(lang, str(problem), failed=True)}
                raise
        yield self._in_use(lang)

    def _blank(self, lang: str) -> Values:
        """A new question: the answer before it is no longer the one at hand."""
        kind = self.server.engine.prior_kind if self.server.is_ready else FOCUS_TOKEN_PRIOR
        return {
            self.frame.thought: page.thought(lang),
            self.frame.view: canvas.waiting_view(lang, kind),
            self.frame.trace: probe_views.empty_strip(lang),
            self.frame.answered: None,
            self.frame.ways: gr.update(visible=False),
        }

    def _prior(self, lang: str, photo: Photo, prior: np.ndarray) -> str:
        pixels = np.asarray(photo.image)
        return canvas.prior_view(lang, pixels, prior, self.server.engine.prior_kind)

    def _shown(self, lang: str, answered: Answered, recent: tuple | None) -> Values:
        """A finished answer on the page; it joins the recent ones."""
        pixels = np.asarray(answered.photo.image)
        values = {
            self.frame.view: canvas.answer_view(lang, pixels, answered.result),
            self.frame.answered: answered,
        }
        return values | self.recalled(remembered(answered, recent or ()))

    def recalled(self, recent: tuple[Answered, ...]) -> Values:
        """The recent answers and their strip: a small picture and the instruction of each."""
        pictures = [
            (canvas.thumbnail_of(np.asarray(a.photo.image), a.result), a.result.instruction)
            for a in recent
        ]
        strip = gr.update(value=pictures, visible=bool(recent), selected_index=None)
        return {self.frame.recent: recent, self.frame.strip: strip}

    def stop(self, thought: str, request: gr.Request | None = None) -> Values:
        """After Stop: the thought so far stays."""
        lang = language(request)
        return {
            self.frame.steps: page.steps(lang),
            self.frame.thought: page.stopped(lang, str(thought or "")),
        }

    def begin(self, request: gr.Request | None = None) -> Values:
        """Another photo, or none: the answer about the one before goes; it stays among the recent
        ones."""
        lang = language(request)
        return {self.frame.steps: page.steps(lang), **self._blank(lang)}

    def restore(
        self, recent: tuple | None, event: gr.EventData, request: gr.Request | None = None
    ) -> Values:
        """An earlier answer of this visit, as it was."""
        lang, recent = language(request), recent or ()
        with in_a_sentence(lang):
            chosen = recent[picked(lang, event, len(recent))]
        return self._restored(lang, chosen)

    def open_file(
        self, path: str | None, recent: tuple | None, request: gr.Request | None = None
    ) -> Values:
        """A saved answer, without the model; it joins the recent ones."""
        lang = language(request)
        if path is None:
            return {self.frame.steps: gr.skip()}
        with in_a_sentence(lang):
            saved = open_answer(path, MAX_PIXELS)
        answered = Answered(saved.photo, saved.result)
        return self._restored(lang, answered) | self.recalled(remembered(answered, recent or ()))

    def _restored(self, lang: str, answered: Answered) -> Values:
        result = answered.result
        update = Update("done", result.reply, result=result, photo_reused=result.photo_reused)
        pixels = np.asarray(answered.photo.image)
        return {
            self.frame.photo: answered.photo.image,
            self.frame.instruction: result.instruction,
            self.frame.steps: page.steps(lang, update),
            self.frame.thought: page.finished_thought(lang, result),
            self.frame.view: canvas.answer_view(lang, pixels, result),
            self.frame.trace: probe_views.empty_strip(lang),
            self.frame.answered: answered,
            self.frame.ways: gr.update(visible=False),
        }

    # --- probes

    def trace(self, answered: Answered | None, request: gr.Request | None = None) -> str:
        """Sentence by sentence, by itself after an answer: where the model looked after each.

        Nothing for a very large photo, on a borrowed GPU, where the model in use cannot tell, or
        where there are no pictures to drive.
        """
        lang = language(request)
        empty = probe_views.empty_strip(lang)
        if answered is None or not answered.result.regions:
            return empty
        finding: Any = answered.findings.get("sentences")
        height, width = answered.photo.size
        is_dear = height * width > MAX_TRACED_PIXELS or self.server.is_borrowed
        if not can_probe(self.server, answered.result) or (is_dear and finding is None):
            return empty
        try:
            # not kept with the answer: its priors are large, and asking again is quick
            finding = finding or self.server.ask(sentences.ask, answered.photo, answered.result)
        except CoPRSError:  # a thought without sentences; the tab says so when it is asked
            return empty
        return probe_views.strip_view(lang, answered.photo, finding)

    def ask_probe(
        self, name: str, answered: Answered | None, request: gr.Request | None = None
    ) -> str:
        """A probe's finding as HTML; it is kept with the answer, for the zip."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = given(lang, answered)
            finding = self.server.ask(probe(name).ask, answered.photo, answered.result)
        answered.findings[name] = finding
        return probe_views.finding_view(lang, name, answered.photo, answered.result, finding)

    def word(
        self, answered: Answered | None, event: gr.EventData, request: gr.Request | None = None
    ) -> str:
        """Where one word looks."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = given(lang, answered)
            number = picked(lang, event, len(answered.result.reply_ids))
            finding = self.server.ask(words.at, answered.photo, answered.result, number)
        view = finding.view
        caption = say(lang, "probe_word", word=view.text.strip())
        if view.trained:
            caption = say(lang, "focus_word")
        if view.share is not None:
            share = f"{100 * view.share:.0f}"
            caption = say(lang, "attention_word", word=view.text.strip(), share=share)
        elif view.prior.max() < NOWHERE:
            caption += f" · {say(lang, 'nowhere', highest=f'{view.prior.max():.3f}')}"
        return probe_views.word_view(lang, answered.photo, view, caption)

    def pieces(self, answered: Answered | None) -> list[str]:
        """The words of an answer, where the model in use can be asked about them."""
        if answered is None or not can_probe(self.server, answered.result):
            return []
        try:
            return words.pieces(self.server.engine, answered.result)
        except CoPRSError:  # an opened answer may hold anything
            return []

    def focus_again(
        self, answered: Answered | None, text: str, request: gr.Request | None = None
    ) -> str:
        """Another thought is read instead of the model's own; both answers side by side."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = given(lang, answered)
            finding = self.server.ask(thought.ask, answered.photo, answered.result, text)
            captions = say(lang, "old"), say(lang, "new")
            results = answered.result, finding.result
            return probe_views.pair(lang, answered.photo, results, captions)

    def ask_again(
        self,
        answered: Answered | None,
        instruction: str,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> Iterator[tuple[str, tuple[Answered, ...] | None]]:
        """Another instruction about the same photo, compared with the answer at hand.

        Yields HTML, and with the last one the recent answers.
        """
        lang = language(request)
        with in_a_sentence(lang):
            answered = given(lang, answered)
            for update in self.server.stream(answered.photo, instruction):
                yield page.thought(lang, update), None
                if update.result:
                    other = Answered(answered.photo, update.result)
                    difference = self._difference(lang, answered, other)
                    yield difference, remembered(other, recent or ())

    def compare(
        self,
        answered: Answered | None,
        earlier: int | None,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> str:
        """The answer at hand against an earlier one about the same photo."""
        lang, recent = language(request), recent or ()
        with in_a_sentence(lang):
            answered = given(lang, answered)
            if earlier is None or not 0 <= earlier < len(recent):
                raise CoPRSError(say(lang, "compare_none"))
            return self._difference(lang, answered, recent[earlier])

    def _difference(self, lang: str, first: Answered, second: Answered) -> str:
        agreement = against_answer(first.result, second.result)
        difference = probe_views.Difference(
            first.result.mask,
            second.result.mask,
            _named(lang, first, "only_first"),
            _named(lang, second, "only_second"),
            say(lang, "compare_slider"),
        )
        summary = probe_views.agreement_words(lang, agreement)
        return probe_views.difference_view(lang, first.photo, difference, summary)

    def truth(
        self,
        answered: Answered | None,
        painted: list[str],
        file: str | None,
        request: gr.Request | None = None,
    ) -> str:
        """The answer at hand against a true mask: a file's, else what was painted."""
        lang = language(request)
        with in_a_sentence(lang):
            answered = given(lang, answered)
            size = answered.photo.size
            truth = read_truth(file if file else painted_mask(painted, size), size)
            scores = against_truth(answered.result, truth)
        return probe_views.truth_view(lang, answered.photo, answered.result, truth, scores)

    # --- to take away

    def export(self, answered: Answered | None, request: gr.Request | None = None) -> Iterator[str]:
        """The answer's files as one zip, with what probes found and the trace."""
        lang = language(request)
        with in_a_sentence(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            yield str(save_answered(Path(folder), self.server, given(lang, answered)))

    # --- models

    def switch_model(
        self, name: str | None, request: gr.Request | None = None
    ) -> Iterator[tuple[str, Values]]:
        """Load another model: its progress as HTML; at the end, the masthead and notice of the
        model in use."""
        lang = language(request)
        try:
            for line in self.server.switch_model(str(name or "").strip()):
                yield page.loading(lang, line), {}
        except CoPRSError as problem:
            yield page.loading(lang, str(problem), failed=True), self._in_use(lang)
            return
        in_use = say(lang, "model_used", name=self.server.engine.name)
        yield page.loading(lang, in_use), self._in_use(lang)

    def opened(self, request: gr.Request | None = None) -> Iterator[Values]:
        """When the page opens: everything in the visitor's language, at once; then the model in
        use, when it is loaded."""
        lang, frame = language(request), self.frame
        blank = {
            frame.steps: page.steps(lang),
            frame.thought: page.thought(lang),
            frame.view: canvas.waiting_view(lang),
            frame.trace: probe_views.empty_strip(lang),
        }
        if not self.server.is_ready:
            yield {frame.header: page.header(lang, None), frame.notice: "", **blank}
        view = canvas.waiting_view(lang, self.server.engine.prior_kind)
        yield self._in_use(lang) | blank | {frame.view: view}

    def _in_use(self, lang: str) -> Values:
        engine = self.server.engine
        return {
            self.frame.header: page.header(lang, engine),
            self.frame.notice: page.notice(lang, engine.segmenter.note),
        }


def _named(lang: str, answered: Answered, key: str) -> str:
    return f"{say(lang, key)}: {answered.result.instruction[:60]} ({answered.result.model})"
