"""Answers that come back instead of being asked for: when the page opens, of this visit, from a
file."""

import time

import gradio as gr

from app.display import AnswerDisplay
from app.frame import Values
from app.saved_answers import linked_file, open_saved, recorded_answer
from app.server.answers import StoredAnswer
from app.texts import say, translated
from app.views import page
from app.visitors import Turns, given, in_a_sentence, language, picked
from coprs_core.errors import CoPRSError
from coprs_core.export.archive import pixels_in

ARRIVAL = 0.3
"""So many seconds after it was overtaken, all that something said has arrived at the browser."""


def supersede(turns: Turns, request: gr.Request | None) -> None:
    """What is under way has no more to say; returns when what it said last has arrived."""
    turns.take(request)
    time.sleep(ARRIVAL)


class Opening:
    """What brings an answer back; values are for the components of `frame`."""

    def __init__(self, display: AnswerDisplay, turns: Turns):
        self.display, self.turns = display, turns
        self.server, self.frame = display.server, display.frame

    def page_opened(self, request: gr.Request | None = None) -> Values:
        """When the page opens: a recorded answer or a link's; nothing if a visitor is quicker."""
        lang, frame = language(request), self.frame
        if self.turns.now(request):
            return {frame.steps: gr.skip()}
        if token := request.query_params.get("answer", "") if request else "":
            try:
                path = linked_file(token)
                with self.server.room.taken(pixels=pixels_in(path)):
                    return self.display.restored(lang, open_saved(path))
            except CoPRSError as gone:  # the page opens all the same
                gr.Warning(translated(lang, str(gone)))
        one = recorded_answer()  # what is found in it stays with this visitor
        answered = StoredAnswer(one.photo, one.result, trace=one.trace, is_recorded=True)
        return {frame.steps: page.steps(lang), **self.display.at_hand(lang, answered)}

    def restore(
        self, recent: tuple | None, event: gr.EventData, request: gr.Request | None = None
    ) -> Values:
        """An earlier answer of this visit, as it was."""
        lang, recent = language(request), recent or ()
        with in_a_sentence(lang):
            chosen = given(lang, recent[picked(lang, event, len(recent))])
            supersede(self.turns, request)
            with self.server.room.taken(pixels=chosen.pixels):
                return self.display.restored(lang, chosen)

    def open_file(
        self, path: str | None, recent: tuple | None, request: gr.Request | None = None
    ) -> Values:
        """A saved answer, without the model; it joins the recent ones."""
        lang = language(request)
        with in_a_sentence(lang):
            if path is None:
                raise CoPRSError(say(lang, "gone"))
            with self.server.room.taken(pixels=pixels_in(path)):
                answered = open_saved(path)
                supersede(self.turns, request)
                return self.display.restored(lang, answered) | self.display.remember(
                    lang, answered, recent
                )
