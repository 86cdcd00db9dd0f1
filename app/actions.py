"""What is done with the answer at hand: probes, comparisons, the truth, and what is taken away."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app.saved_answers import save_under_link
from app.server.answers import StoredAnswer, no_answer_error
from app.server.model import ModelServer
from app.server.uploads import painted_mask
from app.texts import say, translate
from app.views import findings, page
from app.views.standalone import standalone
from app.visitors import (
    RequestGate,
    downscale_finding,
    ensure_trace,
    probe_unavailable_key,
    request_language,
    require_answer,
    save_answer_zip,
    user_errors_as_gr_error,
)
from coprs_core.answer.compare import compare_with_truth, read_truth
from coprs_core.errors import CoPRSError
from coprs_core.export.replay import save_replay
from coprs_core.photos.photo import Photo
from coprs_core.probes import load_probe
from coprs_core.probes.finding import NotApplicable

_NEEDS_REGIONS = ("heads", "zoom")
"""Probes of an answer that found something."""


class AnswerActions:
    """What the tabs do with the answer at hand, with the model in use. What took its time says
    nothing where something else has the page by then."""

    def __init__(self, server: ModelServer, gate: RequestGate):
        self.server, self.gate = server, gate

    def why_probe_unavailable(self, lang: str, name: str, answered: StoredAnswer | None) -> str:
        """Why a probe cannot be asked now, in a sentence; "" where it can."""
        if answered is None:
            return say(lang, "reason_no_answer")
        if name in answered.found_probes:
            return ""
        if reason := self._why_model_unavailable(lang, answered):
            return reason
        if name in _NEEDS_REGIONS and not answered.region_count:
            return say(lang, "reason_nothing")
        return ""

    def _why_model_unavailable(self, lang: str, answered: StoredAnswer) -> str:
        """Why the model in use cannot be asked about an answer; "" where it can."""
        if not self.server.is_ready:
            return say(lang, "loading")
        reason = probe_unavailable_key(self.server, answered.summary)
        return say(lang, reason, model=answered.summary.model) if reason else ""

    def why_replay_unavailable(self, lang: str, answered: StoredAnswer) -> str:
        """Why there is no moving picture of an answer; "" where there is, or may be."""
        if not answered.region_count:
            return say(lang, "strip_nothing")
        if answered.is_traced or "sentences" in answered.found_probes:
            return ""
        return self._why_model_unavailable(lang, answered)

    def run_probe(
        self, name: str, answered: StoredAnswer | None, request: gr.Request | None = None
    ) -> Any:
        """A probe's finding as HTML; it is kept with the answer, for the zip."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang):
            answered = require_answer(answered)
            try:
                finding = answered.findings.get(name) or self.server.call(
                    load_probe(name).run, answered.photo, answered.result
                )
            except NotApplicable as nothing:  # no mistake of anybody's
                reason = translate(lang, nothing)
                return self.gate.if_current(request, ticket, page.disabled_reason(lang, reason))
            answered.add_finding(name, downscale_finding(finding))
            view = findings.finding_view(lang, name, answered.photo, answered.result, finding)
        return self.gate.if_current(request, ticket, view)

    def compare(
        self,
        answered: StoredAnswer | None,
        earlier: int | None,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> Any:
        """An earlier answer about the same photo against the one at hand."""
        lang, ticket, recent = request_language(request), self.gate.current(request), recent or ()
        with user_errors_as_gr_error(lang):
            answered = require_answer(answered)
            if not isinstance(earlier, int) or not 0 <= earlier < len(recent):
                raise no_answer_error()
            both = require_answer(recent[earlier]), answered
            results = both[0].result, both[1].result
            names = answer_label(lang, both[0]), answer_label(lang, both[1])
            view = findings.comparison_view(lang, answered.photo, results, names)
        return self.gate.if_current(request, ticket, view)

    def compare_with_truth(
        self,
        answered: StoredAnswer | None,
        painted: list[str],
        file: str | None,
        request: gr.Request | None = None,
    ) -> tuple[Any, Any]:
        """The answer at hand against a true mask, a file's, else what was painted; and the verdict,
        which knows the truth now."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang):
            answered = require_answer(answered)
            photo, result = answered.photo, answered.result
            if file:
                truth = read_truth_file(file, photo)
            else:
                truth = read_truth(painted_mask(painted, photo.size), photo.size)
            scores = compare_with_truth(result, truth)
        view = findings.truth_view(lang, photo, result, truth, scores)
        verdict = page.verdict(lang, result, true_iou=scores.mask_iou, full_size=photo.full_size)
        return self.gate.if_current(request, ticket, view), self.gate.if_current(
            request, ticket, verdict
        )

    # --- to take away

    def export_zip(
        self, answered: StoredAnswer | None, request: gr.Request | None = None
    ) -> Iterator[Any]:
        """The answer's files as one zip, with what probes found and the trace."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            file = save_answer_zip(Path(folder), self.server, require_answer(answered))
            yield self.gate.if_current(request, ticket, str(file))

    def export_page(
        self, answered: StoredAnswer | None, request: gr.Request | None = None
    ) -> Iterator[Any]:
        """The answer as one HTML file that needs no server: canvases, replay and all."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            answered = require_answer(answered)
            path = Path(folder) / "coprs-answer.html"
            trace, reason = None, self.why_replay_unavailable(lang, answered)
            try:
                trace = ensure_trace(self.server, answered)
            except (CoPRSError, gr.Error) as problem:  # the page comes without a replay, says so
                is_told = isinstance(problem, gr.Error)
                reason = problem.message if is_told else translate(lang, problem)
            text = standalone(lang, answered.photo, answered.result, trace, reason)
            path.write_text(text, encoding="utf-8")
            yield self.gate.if_current(request, ticket, str(path))

    def export_replay(
        self, answered: StoredAnswer | None, request: gr.Request | None = None
    ) -> Iterator[Any]:
        """The replay as an animated picture; raises where the thought cannot be traced."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            answered = require_answer(answered)
            trace = ensure_trace(self.server, answered)
            if trace is None:
                raise CoPRSError(self.why_replay_unavailable(lang, answered))
            path = Path(folder) / "coprs-replay.webp"
            save_replay(path, answered.photo, answered.result, trace)
            yield self.gate.if_current(request, ticket, str(path))

    def create_link(self, answered: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """A link under which this server opens the answer again."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            file = save_answer_zip(Path(folder), self.server, require_answer(answered))
            return self.gate.if_current(
                request, ticket, page.link_note(lang, save_under_link(file))
            )


def read_truth_file(file: str, photo: Photo) -> np.ndarray:
    """A true mask from a file (see `read_truth`), bool [H, W] of the photo's size; of a photo that
    was brought down, one of its full size does as well."""
    try:
        return read_truth(file, photo.size, photo.orientation)
    except CoPRSError:
        if photo.full_size is None:
            raise
    mask = Image.fromarray(read_truth(file, photo.full_size, photo.orientation))
    return np.asarray(mask.resize(photo.image.size, Image.Resampling.NEAREST))


def answer_label(lang: str, answered: StoredAnswer) -> str:
    """What an answer is called beside others about the same photo."""
    result = answered.summary
    changed = f", {say(lang, 'thought_changed')}" if result.is_thought_given else ""
    return f"{result.instruction[:60]} ({result.model}{changed})"
