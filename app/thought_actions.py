"""Handlers of a finished thought: trace it, edit a sentence, show where its words look."""

from contextlib import suppress
from functools import partial
from typing import Any

import gradio as gr
import numpy as np

from app.display import AnswerDisplay
from app.frame import Values
from app.server.answers import StoredAnswer
from app.texts import translate
from app.views import canvas, findings, page
from app.visitors import (
    RequestGate,
    add_recent,
    edited_sentence,
    ensure_trace,
    probe_unavailable_key,
    request_language,
    require_answer,
    user_errors_as_gr_error,
)
from coprs_core.errors import Cancelled, CoPRSError
from coprs_core.probes import thought, words
from coprs_core.prompts import replace_sentence, split_sentences

MAX_TRACED_PIXELS = 4_000_000
"""A thought about a larger photo is traced on request alone: each sentence costs a decoding at the
photo's size."""


class ThoughtActions:
    """Works on finished thoughts; values are for the components of `frame`."""

    def __init__(self, display: AnswerDisplay, gate: RequestGate):
        self.display, self.gate = display, gate
        self.server, self.frame = display.server, display.frame

    def show_trace(self, answer: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """Sentence by sentence, by itself after an answer: where the model looked after each.

        Not for a very large photo or on a borrowed GPU, unless it was asked for; nothing where the
        model in use cannot tell, or where there are no pictures to drive.
        """
        lang, ticket = request_language(request), self.gate.current(request)
        return self.gate.if_current(request, ticket, self._trace_strip(lang, answer))

    def _trace_strip(self, lang: str, answer: StoredAnswer | None) -> str:
        if answer is None or answer.is_dropped:
            return findings.empty_strip(lang)
        if reason := self._untraced_key(answer):
            return findings.empty_strip(lang, reason)
        try:
            if trace := ensure_trace(self.server, answer):
                return findings.strip_view(lang, answer.photo, trace)
        except CoPRSError as problem:  # a thought without sentences, or memory that ran out
            return findings.untraced_strip(lang, translate(lang, problem))
        return findings.empty_strip(lang, "strip_none")

    def _untraced_key(self, answer: StoredAnswer) -> str:
        """Why an answer is not traced automatically, as a key of the texts; "" where it is."""
        if not answer.region_count:
            return "strip_nothing"
        if answer.is_traced or "sentences" in answer.found_probes:  # it was asked for
            return ""
        height, width = answer.photo_size
        if reason := probe_unavailable_key(self.server, answer.summary):
            return reason if reason == "reason_elsewhere" else "strip_none"
        if self.server.is_gpu_borrowed:
            return "strip_borrowed"
        return "strip_large" if height * width > MAX_TRACED_PIXELS else ""

    def edit_sentence(
        self,
        answer: StoredAnswer | None,
        recent: tuple | None,
        event: gr.EventData,
        request: gr.Request | None = None,
    ) -> Values:
        """Change a sentence: the model reads the edited thought and focuses again. The new answer
        becomes the current one, drawn over the one before it."""
        lang, finding = request_language(request), None
        with user_errors_as_gr_error(lang), suppress(Cancelled):
            answer = require_answer(answer)
            before = answer.result
            now = split_sentences(before.reasoning)
            number, text = edited_sentence(event, now)
            is_wanted = partial(self.gate.is_current, request, self.gate.begin(request))
            said = replace_sentence(before.reasoning, number, text)
            photo, asked = answer.photo, (before, said)
            finding = self.server.call(thought.run, photo, *asked, is_wanted=is_wanted)
        if answer is None or finding is None or not is_wanted():
            return {self.frame.steps: gr.skip()}
        changed = number if text.strip() else None
        after = StoredAnswer(photo, finding.result, changed_sentence=changed, file=answer.file)
        pixels = np.asarray(photo.image)
        if answer not in (recent or ()):  # the recorded one, or one under a link
            answer.thumbnail = canvas.answer_thumbnail(pixels, before)
            recent = add_recent(answer, recent or ())
        return self.display.finished(lang, after, recent) | {
            self.frame.steps: page.stages(lang),  # it neither read nor thought
            self.frame.view: canvas.changed_view(lang, pixels, before, after.result),
        }

    def show_words(self, answer: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """Show the thought's words below it, each a button for its prior."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang):
            answer = require_answer(answer)
            if "words" not in answer.found_probes:
                finding = self.server.call(words.run, answer.photo, answer.result)
                answer.add_finding("words", finding)
            found: Any = answer.findings["words"]
        words_shown = self.display.thought(lang, answer, findings.word_views(lang, found))
        return self.gate.if_current(request, ticket, words_shown)

    def refresh(self, answer: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """Render the thought anew after a model switch: other actions may be possible."""
        with user_errors_as_gr_error(lang := request_language(request)):
            is_there = answer is not None and not answer.is_dropped
            return self.display.thought(lang, answer) if is_there else gr.skip()
