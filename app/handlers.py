"""Between the core and the page: what asks, what stops it, and what another photo does.

Handlers give new values by component; a component that is not named stays as it is. Nothing is kept
here from one call to the next: what a visitor has asked lies in that visitor's own session.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import gradio as gr

from app.display import AnswerDisplay
from app.frame import Frame, Values
from app.models import ModelActions
from app.opening import ARRIVAL, Opening, supersede
from app.server.answers import StoredAnswer, opened_photo
from app.server.model import ModelServer
from app.thought_actions import ThoughtActions
from app.views import page
from app.visitors import RequestGate, language, user_errors_as_gr_error
from coprs_core.answer.updates import Update
from coprs_core.errors import Cancelled, CoPRSError
from coprs_core.prompts import check_instruction

PAUSE = 0.04
"""Seconds between two states of a thought on the page, each of which costs a CPU about as much as a
token of the miniature. A model that is slower than that is shown token by token."""


class Handlers:
    """What asks the model in use, and what ends that; values are for the components of `frame`.

    What else a page does stands in `opening`, `thought` and `models`.
    """

    def __init__(self, server: ModelServer, frame: Frame, may_switch: bool = False):
        self.server, self.frame, self.gate = server, frame, RequestGate()
        self.models = ModelActions(server, frame, may_switch)
        self.display = AnswerDisplay(server, frame, self.models)
        self.opening = Opening(self.display, self.gate)
        self.thought = ThoughtActions(self.display, self.gate)

    def halt(self, request: gr.Request | None = None) -> None:
        """What is under way has no more to say; returns when what it said last has arrived."""
        supersede(self.gate, request)

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
                    ways = self.models.no_offer
                    if update.unfamiliar:
                        ways = self.models.offer(lang, is_asked=False)
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
                        blank = {self.frame.steps: page.steps(lang), **self.display.blank(lang)}
                        yield blank | self.models.offer(lang, is_asked=True)
                        return
                    if update.result:
                        answered = StoredAnswer(photo, update.result, file=photo_path)
                        steps = {self.frame.steps: page.steps(lang, update)}
                        yield steps | self.display.finished(lang, answered, recent)
                    else:
                        yield self.display.under_way(lang, photo, update, anyway)
            except CoPRSError:
                if is_wanted():
                    yield self.stop(page.thought(lang, update), None, request)
                raise

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

    def stop(
        self, thought: str, answered: StoredAnswer | None, request: gr.Request | None = None
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
        return blank | self.display.blank(lang) | self.models.no_offer
