"""Handlers that bring a saved answer back: when the page opens, from this visit, from a file."""

import time

import gradio as gr

from app.display import AnswerDisplay
from app.frame import Values
from app.saved_answers import find_linked_file, load_recorded_answer, open_answer_file
from app.server.answers import StoredAnswer, no_answer_error
from app.texts import translate
from app.views import page
from app.visitors import (
    RequestGate,
    request_language,
    require_answer,
    selected_index,
    user_errors_as_gr_error,
)
from coprs_core.errors import CoPRSError
from coprs_core.export.archive import count_pixels

ARRIVAL_SECONDS = 0.3
"""A value that was sent before a request was superseded has arrived by then. Without the pause it
might arrive after what replaces it, and stay."""


def supersede_request(gate: RequestGate, request: gr.Request | None) -> None:
    """Drop what earlier requests still have to say; returns when what they sent has arrived."""
    gate.begin(request)
    time.sleep(ARRIVAL_SECONDS)


class OpenActions:
    """Brings saved answers back; values are for the components of `frame`."""

    def __init__(self, display: AnswerDisplay, gate: RequestGate):
        self.display, self.gate = display, gate
        self.server, self.frame = display.server, display.frame

    def open_page(self, request: gr.Request | None = None) -> Values:
        """Show the recorded answer, or a link's, when the page opens; nothing where the visitor has
        asked something already."""
        lang, frame = request_language(request), self.frame
        if self.gate.current(request):
            return {frame.steps: gr.skip()}
        if token := request.query_params.get("answer", "") if request else "":
            try:
                path = find_linked_file(token)
                with self.server.reserved(count_pixels(path)):
                    return self.display.restored_answer(lang, open_answer_file(path))
            except CoPRSError as gone:  # the page opens all the same
                gr.Warning(translate(lang, gone))
        one = load_recorded_answer()  # what is found in it stays with this visitor
        answer = StoredAnswer(one.photo, one.result, trace=one.trace, is_recorded=True)
        return {frame.steps: page.stages(lang), **self.display.current_answer(lang, answer)}

    def restore(
        self, recent: tuple | None, event: gr.EventData, request: gr.Request | None = None
    ) -> Values:
        """Show an earlier answer of this visit as it was."""
        lang, recent = request_language(request), recent or ()
        with user_errors_as_gr_error(lang):
            chosen = require_answer(recent[selected_index(event, len(recent))])
            supersede_request(self.gate, request)
            with self.server.reserved(chosen.pixels):
                return self.display.restored_answer(lang, chosen)

    def open_file(
        self, path: str | None, recent: tuple | None, request: gr.Request | None = None
    ) -> Values:
        """Show an answer from a zip, which needs no model; it joins the recent ones."""
        lang = request_language(request)
        with user_errors_as_gr_error(lang):
            if path is None:
                raise no_answer_error()
            with self.server.reserved(count_pixels(path)):
                answer = open_answer_file(path)
                supersede_request(self.gate, request)
                return self.display.restored_answer(lang, answer) | self.display.add_to_recent(
                    lang, answer, recent
                )
