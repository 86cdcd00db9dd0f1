"""The thought as the control panel: its trace, its sentences, its words."""

from contextlib import suppress
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from app.display import AnswerDisplay
from app.frame import Values
from app.server.answers import StoredAnswer
from app.texts import translated
from app.views import canvas, findings, page
from app.visitors import (
    RequestGate,
    add_recent,
    edited,
    given,
    language,
    trace_of,
    user_errors_as_gr_error,
    why_no_probe,
)
from coprs_core.errors import Cancelled, CoPRSError
from coprs_core.probes import thought, words
from coprs_core.prompts import replace_sentence, split_sentences

MAX_TRACED_PIXELS = 4_000_000
"""The thought about a larger photo is traced when it is asked for."""


class ThoughtActions:
    """What is done with a finished thought; values are for the components of `frame`."""

    def __init__(self, display: AnswerDisplay, gate: RequestGate):
        self.display, self.gate = display, gate
        self.server, self.frame = display.server, display.frame

    def trace(self, answered: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """Sentence by sentence, by itself after an answer: where the model looked after each.

        Not for a very large photo or on a borrowed GPU, unless it was asked for; nothing where the
        model in use cannot tell, or where there are no pictures to drive.
        """
        lang, ticket = language(request), self.gate.current(request)
        return self.gate.if_current(request, ticket, self._strip(lang, answered))

    def _strip(self, lang: str, answered: StoredAnswer | None) -> str:
        if answered is None or answered.is_gone:
            return findings.empty_strip(lang)
        if reason := self._why_untraced(answered):
            return findings.empty_strip(lang, reason)
        try:
            if trace := trace_of(self.server, answered):
                return findings.strip_view(lang, answered.photo, trace)
        except CoPRSError as problem:  # a thought without sentences, or memory that ran out
            return findings.untraced(lang, translated(lang, problem))
        return findings.empty_strip(lang, "strip_none")

    def _why_untraced(self, answered: StoredAnswer) -> str:
        """Why an answer is not traced by itself, as a key of the texts; "" where it is."""
        if not answered.region_count:
            return "strip_nothing"
        if answered.is_traced or "sentences" in answered.found:  # it was asked for
            return ""
        height, width = answered.photo_size
        if reason := why_no_probe(self.server, answered.summary):
            return reason if reason == "reason_elsewhere" else "strip_none"
        if self.server.is_borrowed:
            return "strip_borrowed"
        return "strip_large" if height * width > MAX_TRACED_PIXELS else ""

    def edit(
        self,
        answered: StoredAnswer | None,
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
            now = split_sentences(before.reasoning)
            number, text = edited(event, now)
            is_wanted = partial(self.gate.is_current, request, self.gate.begin(request))
            said = replace_sentence(before.reasoning, number, text)
            photo, asked = answered.photo, (before, said)
            finding = self.server.ask(thought.run, photo, *asked, is_wanted=is_wanted)
        if answered is None or finding is None or not is_wanted():
            return {self.frame.steps: gr.skip()}
        changed = number if text.strip() else None
        after = StoredAnswer(photo, finding.result, changed=changed, file=answered.file)
        pixels = np.asarray(photo.image)
        if answered not in (recent or ()):  # the recorded one, or one under a link
            answered.thumbnail = canvas.thumbnail_of(pixels, before)
            recent = add_recent(answered, recent or ())
        return self.display.finished(lang, after, recent) | {
            self.frame.steps: page.steps(lang),  # it neither read nor thought
            self.frame.view: canvas.changed_view(lang, pixels, before, after.result),
        }

    def words(self, answered: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """The thought with its words below it, each a button of the pictures."""
        lang, ticket = language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang):
            answered = given(answered)
            if "words" not in answered.found:
                finding = self.server.ask(words.run, answered.photo, answered.result)
                answered.add_finding("words", finding)
            found: Any = answered.findings["words"]
        words_shown = self.display.thought(lang, answered, findings.word_looks(lang, found))
        return self.gate.if_current(request, ticket, words_shown)

    def look_again(self, answered: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """After another model was loaded: the thought with what that one can do with it."""
        with user_errors_as_gr_error(lang := language(request)):
            is_there = answered is not None and not answered.is_gone
            return self.display.thought(lang, answered) if is_there else gr.skip()
