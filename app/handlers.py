"""Between the core and the page: what each button does.

Handlers give new values by component; a component that is not named stays as it is. Nothing is kept
here from one call to the next: what a visitor has asked lies in that visitor's own session.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Any

import gradio as gr
import numpy as np

from app.frame import Frame, Values
from app.kept import linked, opened, recorded
from app.models import Models
from app.server.answers import Answered, no_answer, opened_photo
from app.server.model import ModelServer
from app.texts import translated
from app.views import canvas, page
from app.views import findings as probe_views
from app.visitors import (
    RequestGate,
    called,
    can_probe,
    edited,
    given,
    language,
    picked,
    remembered,
    traced,
    user_errors_as_gr_error,
    why_not,
)
from coprs_core.answer.updates import Update
from coprs_core.errors import Cancelled, CoPRSError
from coprs_core.export.archive import count_pixels
from coprs_core.photos.photo import Photo
from coprs_core.probes import thought, words
from coprs_core.prompts import FOCUS_TOKEN_PRIOR, check_instruction, replace_sentence
from coprs_core.prompts import sentences as sentences_of

MAX_TRACED_PIXELS = 4_000_000
"""The thought about a larger photo is traced when it is asked for."""
PAUSE = 0.04
"""Seconds between two states of a thought on the page, each of which costs a CPU about as much as a
token of the miniature. A model that is slower than that is shown token by token."""
ARRIVAL = 0.3
"""So many seconds after it was overtaken, all that something said has arrived at the browser."""


class Handlers:
    """What the page's buttons do, with the model in use; values are for the components of
    `frame`."""

    def __init__(self, server: ModelServer, frame: Frame, may_switch: bool = False):
        self.server, self.frame = server, frame
        self.models = Models(server, frame, may_switch)
        self.gate = RequestGate()

    # --- the answer

    def read_ahead(
        self, photo_path: str | None, request: gr.Request | None = None
    ) -> Iterator[Values]:
        """Another photo: it is read while the question is being typed. Where the model does not
        know such pictures, the ways on come before the question."""
        lang, ticket = language(request), self.gate.current_if_idle(request)
        yield {self.frame.steps: gr.skip()}  # Gradio empties what a generator never gave
        if photo_path is None or ticket is None:
            return
        with user_errors_as_gr_error(lang), suppress(Cancelled):
            self.server.wait()
            if not self.server.is_idle:
                return
            photo = opened_photo(photo_path)
            is_wanted = partial(self.gate.is_photo_current, request, ticket)
            try:
                for update in self.server.read_ahead(photo, is_wanted):
                    if not self.gate.is_current(request, ticket):
                        return
                    ways = self.models.no_ways
                    if update.unfamiliar:
                        ways = self.models.ways(lang, is_asked=False)
                    yield {self.frame.steps: page.steps(lang, update, is_ahead=True), **ways}
            except CoPRSError:
                if self.gate.is_current(request, ticket):
                    yield {self.frame.steps: page.steps(lang)}
                raise

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
        lang, update, told = language(request), Update("reading"), -PAUSE
        with user_errors_as_gr_error(lang), suppress(Cancelled):
            photo, instruction = opened_photo(photo_path), check_instruction(instruction)
            ticket = self.gate.begin(request)
            is_wanted = partial(self.gate.is_current, request, ticket)
            try:
                for update in self.server.stream(photo, instruction, is_wanted):
                    if update.stage == "thinking":
                        if time.monotonic() - told < PAUSE:
                            continue
                        told = time.monotonic()
                    if not is_wanted():
                        return
                    if update.unfamiliar and not anyway:
                        blank = {self.frame.steps: page.steps(lang), **self._blank(lang)}
                        yield blank | self.models.ways(lang, is_asked=True)
                        return
                    if update.result:
                        answered = Answered(photo, update.result, file=photo_path)
                        steps = {self.frame.steps: page.steps(lang, update)}
                        yield steps | self._shown(lang, answered, recent)
                    else:
                        yield self._state(lang, photo, update, anyway)
            except CoPRSError:
                if is_wanted():
                    yield self.stop(page.thought(lang, update), None, request)
                raise

    def _state(self, lang: str, photo: Photo, update: Update, anyway: bool) -> Values:
        """An answer under way on the page."""
        values: Values = {self.frame.steps: page.steps(lang, update)}
        if update.stage == "reading":
            values |= self._blank(lang)
            if anyway or update.stage_seconds:  # before, they may be shown again
                values |= self.models.no_ways
            return values
        values[self.frame.thought] = page.thought(lang, update)
        if update.stage == "focus" and update.prior is not None:
            values[self.frame.view] = self._prior(lang, photo, update.prior)
        return values

    def answer_anyway(
        self,
        photo_path: str | None,
        instruction: str,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> Iterator[Values]:
        """As `answer`, also about a picture that the model does not know."""
        yield from self.answer(photo_path, instruction, recent, request, anyway=True)

    def go_on(
        self,
        photo_path: str | None,
        instruction: str,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> Iterator[Values]:
        """After another model was loaded: the answer, or the photo read ahead where nothing is
        asked yet."""
        if str(instruction or "").strip():
            yield from self.answer(photo_path, instruction, recent, request)
        else:
            yield from self.read_ahead(photo_path, request)

    def _blank(self, lang: str) -> Values:
        """A new question: the answer before it is no longer the one at hand."""
        kind = self.server.engine.prior_kind if self.server.is_ready else FOCUS_TOKEN_PRIOR
        return {
            self.frame.thought: page.thought(lang),
            self.frame.view: canvas.waiting_view(lang, kind),
            self.frame.trace: probe_views.empty_strip(lang),
            self.frame.verdict: page.empty_verdict(lang),
            self.frame.answered: None,
        }

    def _prior(self, lang: str, photo: Photo, prior: np.ndarray) -> str:
        pixels = np.asarray(photo.image)
        return canvas.prior_view(lang, pixels, prior, self.server.engine.prior_kind)

    def _shown(self, lang: str, answered: Answered, recent: tuple | None) -> Values:
        """A finished answer on the page; it joins the recent ones."""
        return self._at_hand(lang, answered) | self._remember(lang, answered, recent)

    def _at_hand(self, lang: str, answered: Answered) -> Values:
        """The answer at hand: its thought, pictures, trace and verdict."""
        frame, is_recorded = self.frame, answered.is_recorded
        if not is_recorded:  # that one is small, and everybody's
            self.server.answers.keep(answered)
        drawn = _recorded_pictures(lang) if is_recorded else probe_views.pictures(lang, answered)
        return {
            frame.thought: self._thought(lang, answered),
            frame.view: drawn[0],
            frame.trace: drawn[1],
            frame.verdict: page.verdict(
                lang, answered.result, is_recorded, full_size=answered.photo.full_size
            ),
            frame.answered: answered,
        }

    def _thought(self, lang: str, answered: Answered, shown: page.WordLooks | None = None) -> str:
        result = answered.result
        offers = page.Offers()
        if not self.server.is_ready:  # the first screen does not wait
            is_its_own = result.model == self.server.name
            offers = page.Offers(is_its_own, is_its_own)
        elif can_probe(self.server, result):
            offers = page.Offers(self.server.engine.has_focus_token, True)
        return page.finished_thought(
            lang, result, offers, shown, answered.changed, answered.is_recorded
        )

    def _remember(self, lang: str, answered: Answered, recent: tuple | None) -> Values:
        """The recent answers with a new one in front, and their strip: a small picture of each and
        what it is called."""
        recent = remembered(answered, recent or ())
        pixels = np.asarray(answered.photo.image)
        answered.thumbnail = canvas.thumbnail_of(pixels, answered.result)
        pictures = [(a.thumbnail, called(lang, a)) for a in recent]
        strip = gr.update(value=pictures, visible=bool(recent), selected_index=None)
        return {self.frame.recent: recent, self.frame.strip: strip}

    def halt(self, request: gr.Request | None = None) -> None:
        """What is under way has no more to say; returns when what it said last has arrived."""
        self.gate.begin(request)
        time.sleep(ARRIVAL)

    def stop(
        self, thought: str, answered: Answered | None, request: gr.Request | None = None
    ) -> Values:
        """After Stop: the thought so far stays; so does an answer that was finished."""
        lang = language(request)
        if answered is not None:
            return {self.frame.steps: gr.skip()}
        return {
            self.frame.steps: page.steps(lang),
            self.frame.thought: page.stopped(lang, str(thought or "")),
        }

    def begin(self, request: gr.Request | None = None) -> Values:
        """Another photo, or none: the answer about the one before goes; it stays among the recent
        ones. What is asked about the new photo meanwhile comes first."""
        ticket = self.gate.begin(request, is_idle=True)
        time.sleep(ARRIVAL)
        if not self.gate.is_current(request, ticket):
            return {self.frame.steps: gr.skip()}
        lang = language(request)
        blank = {self.frame.steps: page.steps(lang), self.frame.explained: ""}
        return blank | self._blank(lang) | self.models.no_ways

    def restore(
        self, recent: tuple | None, event: gr.EventData, request: gr.Request | None = None
    ) -> Values:
        """An earlier answer of this visit, as it was."""
        lang, recent = language(request), recent or ()
        with user_errors_as_gr_error(lang):
            chosen = given(recent[picked(event, len(recent))])
            self.halt(request)
            with self.server.reserved(chosen.pixels):
                return self._restored(lang, chosen)

    def open_file(
        self, path: str | None, recent: tuple | None, request: gr.Request | None = None
    ) -> Values:
        """A saved answer, without the model; it joins the recent ones."""
        lang = language(request)
        with user_errors_as_gr_error(lang):
            if path is None:
                raise no_answer()
            with self.server.reserved(count_pixels(path)):
                answered = opened(path)
                self.halt(request)
                return self._restored(lang, answered) | self._remember(lang, answered, recent)

    def _restored(self, lang: str, answered: Answered) -> Values:
        result = answered.result
        update = Update("done", result.reply, result=result, photo_reused=result.photo_reused)
        return {
            self.frame.photo: answered.photo.image,
            self.frame.instruction: result.instruction,
            self.frame.steps: page.steps(lang, update),
            **self._at_hand(lang, answered),
            **self.models.no_ways,
        }

    # --- the thought as the control panel

    def look_again(self, answered: Answered | None, request: gr.Request | None = None) -> Any:
        """After another model was loaded: the thought with what that one can do with it."""
        with user_errors_as_gr_error(lang := language(request)):
            is_there = answered is not None and not answered.is_gone
            return self._thought(lang, answered) if is_there else gr.skip()

    def trace(self, answered: Answered | None, request: gr.Request | None = None) -> Any:
        """Sentence by sentence, by itself after an answer: where the model looked after each.

        Not for a very large photo or on a borrowed GPU, unless it was asked for; nothing where the
        model in use cannot tell, or where there are no pictures to drive.
        """
        lang, ticket = language(request), self.gate.current(request)
        return self.gate.if_current(request, ticket, self._strip(lang, answered))

    def _strip(self, lang: str, answered: Answered | None) -> str:
        if answered is None or answered.is_gone:
            return probe_views.empty_strip(lang)
        if reason := self._why_untraced(answered):
            return probe_views.empty_strip(lang, reason)
        try:
            if trace := traced(self.server, answered):
                return probe_views.strip_view(lang, answered.photo, trace)
        except CoPRSError as problem:  # a thought without sentences, or memory that ran out
            return probe_views.untraced(lang, translated(lang, problem))
        return probe_views.empty_strip(lang, "strip_none")

    def _why_untraced(self, answered: Answered) -> str:
        """Why an answer is not traced by itself, as a key of the texts; "" where it is."""
        if not answered.region_count:
            return "strip_nothing"
        if answered.is_traced or "sentences" in answered.found:  # it was asked for
            return ""
        height, width = answered.photo_size
        if reason := why_not(self.server, answered.summary):
            return reason if reason == "reason_elsewhere" else "strip_none"
        if self.server.is_borrowed:
            return "strip_borrowed"
        return "strip_large" if height * width > MAX_TRACED_PIXELS else ""

    def edit(
        self,
        answered: Answered | None,
        recent: tuple | None,
        event: gr.EventData,
        request: gr.Request | None = None,
    ) -> Values:
        """A sentence of the thought was changed: the model reads the thought so, and focuses
        again. What comes is the answer at hand, drawn over the one before it."""
        lang, finding = language(request), None
        with user_errors_as_gr_error(lang), suppress(Cancelled):
            answered = given(answered)
            before = answered.result
            now = sentences_of(before.reasoning)
            number, text = edited(event, now)
            is_wanted = partial(self.gate.is_current, request, self.gate.begin(request))
            said = replace_sentence(before.reasoning, number, text)
            photo, asked = answered.photo, (before, said)
            finding = self.server.ask(thought.run, photo, *asked, is_wanted=is_wanted)
        if answered is None or finding is None or not is_wanted():
            return {self.frame.steps: gr.skip()}
        changed = number if text.strip() else None
        after = Answered(photo, finding.result, changed=changed, file=answered.file)
        pixels = np.asarray(photo.image)
        if answered not in (recent or ()):  # the recorded one, or one under a link
            answered.thumbnail = canvas.thumbnail_of(pixels, before)
            recent = remembered(answered, recent or ())
        return self._shown(lang, after, recent) | {
            self.frame.steps: page.steps(lang),  # it neither read nor thought
            self.frame.view: canvas.changed_view(lang, pixels, before, after.result),
        }

    def words(self, answered: Answered | None, request: gr.Request | None = None) -> Any:
        """The thought with its words below it, each a button of the pictures."""
        lang, ticket = language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang):
            answered = given(answered)
            if "words" not in answered.found:
                finding = self.server.ask(words.run, answered.photo, answered.result)
                answered.add_finding("words", finding)
            found: Any = answered.findings["words"]
        words_shown = self._thought(lang, answered, probe_views.word_looks(lang, found))
        return self.gate.if_current(request, ticket, words_shown)

    # --- the page

    def opened(self, request: gr.Request | None = None) -> Values:
        """When the page opens: a recorded answer or a link's; nothing if a visitor is quicker."""
        lang, frame = language(request), self.frame
        if self.gate.current(request):
            return {frame.steps: gr.skip()}
        if token := request.query_params.get("answer", "") if request else "":
            try:
                path = linked(token)
                with self.server.reserved(count_pixels(path)):
                    return self._restored(lang, opened(path))
            except CoPRSError as gone:  # the page opens all the same
                gr.Warning(translated(lang, gone))
        one = recorded()  # what is found in it stays with this visitor
        answered = Answered(one.photo, one.result, trace=one.trace, is_recorded=True)
        return {frame.steps: page.steps(lang), **self._at_hand(lang, answered)}


@cache
def _recorded_pictures(lang: str) -> tuple[str, str]:
    """Those of the recorded answer: every visitor sees them first, and they stay as they are."""
    return probe_views.pictures(lang, recorded())
