"""Handlers of the page's main events: answer an instruction, stop, take another photo.

A handler returns new values by component; a component that it does not name stays as it is.
Handlers keep no state between calls, as one instance serves all visitors: what a visitor has asked
is held in that visitor's own session.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import gradio as gr

from app.display import AnswerDisplay
from app.frame import Frame, Values
from app.models import ModelActions
from app.opening import ARRIVAL_SECONDS, OpenActions, supersede_request
from app.server.answers import StoredAnswer, open_visitor_photo
from app.server.model import ModelServer
from app.thought_actions import ThoughtActions
from app.views import page
from app.visitors import RequestGate, request_language, user_errors_as_gr_error
from coprs_core.answer.updates import Update
from coprs_core.errors import Cancelled, CoPRSError
from coprs_core.prompts import check_instruction

UPDATE_INTERVAL = 0.04
"""Seconds between two states of a thought on the page, each of which costs a CPU about as much as a
token of the miniature. A model that is slower than that is shown token by token."""


class Handlers:
    """Answers instructions with the model in use, and stops that; values are for the components of
    `frame`.

    Other handlers are in `opening` (saved answers), `thought_actions` (its sentences, words) and
    `models`.
    """

    def __init__(self, server: ModelServer, frame: Frame, may_switch: bool = False):
        self.server, self.frame, self.gate = server, frame, RequestGate()
        self.models = ModelActions(server, frame, may_switch)
        self.display = AnswerDisplay(server, frame, self.models)
        self.opening = OpenActions(self.display, self.gate)
        self.thought_actions = ThoughtActions(self.display, self.gate)

    def supersede(self, request: gr.Request | None = None) -> None:
        """Drop what earlier requests still have to say; see `supersede_request`."""
        supersede_request(self.gate, request)

    def read_ahead(
        self, photo_path: str | None, request: gr.Request | None = None
    ) -> Iterator[Values]:
        """Read a new photo while the instruction is being typed. Where the model does not know such
        pictures, another model is offered before anything is asked."""
        lang, ticket = request_language(request), self.gate.current_if_idle(request)
        yield {self.frame.steps: gr.skip()}  # Gradio empties what a generator never gave
        if photo_path is None or ticket is None:
            return
        with user_errors_as_gr_error(lang), suppress(Cancelled):
            self.server.wait_until_loaded()
            if not self.server.is_idle:
                return
            photo = open_visitor_photo(photo_path)
            is_wanted = partial(self.gate.is_photo_current, request, ticket)
            try:
                for update in self.server.read_ahead(photo, is_wanted):
                    if not self.gate.is_current(request, ticket):
                        break
                    offer = self.models.hide_offer
                    if update.unfamiliar:
                        offer = self.models.offer_photo_model(lang, is_asked=False)
                    yield {self.frame.steps: page.stages(lang, update, is_ahead=True), **offer}
            except CoPRSError:
                if self.gate.is_current(request, ticket):
                    yield {self.frame.steps: page.stages(lang)}
                raise
        # at its end Gradio sends what came last once more, over what has the page by then
        if not self.gate.is_current(request, ticket):
            yield {self.frame.steps: gr.skip()}

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
        lang, update, last_shown = request_language(request), Update("reading"), -UPDATE_INTERVAL
        ticket = self.gate.current(request)
        with user_errors_as_gr_error(lang), suppress(Cancelled):
            photo, instruction = open_visitor_photo(photo_path), check_instruction(instruction)
            ticket = self.gate.begin(request)
            is_wanted = partial(self.gate.is_current, request, ticket)
            try:
                for update in self.server.stream(photo, instruction, is_wanted):
                    if update.stage == "thinking":
                        if time.monotonic() - last_shown < UPDATE_INTERVAL:
                            continue
                        last_shown = time.monotonic()
                    if not is_wanted():
                        break
                    if update.unfamiliar and not anyway:
                        blank = {self.frame.steps: page.stages(lang), **self.display.empty(lang)}
                        yield blank | self.models.offer_photo_model(lang, is_asked=True)
                        return
                    if update.result:
                        answer = StoredAnswer(photo, update.result, file=photo_path)
                        steps = {self.frame.steps: page.stages(lang, update)}
                        yield steps | self.display.finished(lang, answer, recent)
                    else:
                        yield self.display.in_progress(lang, photo, update, anyway)
            except CoPRSError:
                if is_wanted():
                    yield self.stop(page.thought(lang, update), None, request)
                raise
        if not self.gate.is_current(request, ticket):  # as at the end of `read_ahead`
            yield {self.frame.steps: gr.skip()}

    def answer_anyway(
        self,
        photo_path: str | None,
        instruction: str,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> Iterator[Values]:
        """As `answer`, also about a picture that the model does not know."""
        yield from self.answer(photo_path, instruction, recent, request, anyway=True)

    def answer_or_read_ahead(
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

    def stop(
        self, thought: str, answer: StoredAnswer | None, request: gr.Request | None = None
    ) -> Values:
        """After Stop: the thought so far stays; so does an answer that was finished."""
        lang = request_language(request)
        if answer is not None:
            return {self.frame.steps: gr.skip()}
        return {
            self.frame.steps: page.stages(lang),
            self.frame.thought: page.stopped_thought(lang, str(thought or "")),
        }

    def reset(self, request: gr.Request | None = None) -> Values:
        """Clear the page for another photo, or none; the answer stays among the recent ones. Does
        nothing where the new photo was asked about meanwhile."""
        ticket = self.gate.begin(request, is_idle=True)
        time.sleep(ARRIVAL_SECONDS)
        if not self.gate.is_current(request, ticket):
            return {self.frame.steps: gr.skip()}
        lang = request_language(request)
        blank = {self.frame.steps: page.stages(lang), self.frame.explained: ""}
        return blank | self.display.empty(lang) | self.models.hide_offer
