"""Handlers of the tabs: probes, comparisons, ground truth and exports of the current answer."""

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
"""Probes that need a region."""


class AnswerActions:
    """What the tabs do with the current answer and the model in use. A slow result is dropped where
    a later request has the page by then."""

    def __init__(self, server: ModelServer, gate: RequestGate):
        self.server, self.gate = server, gate

    def why_probe_unavailable(self, lang: str, name: str, answer: StoredAnswer | None) -> str:
        """Why a probe cannot run now, in a sentence; "" where it can."""
        if answer is None:
            return say(lang, "reason_no_answer")
        if name in answer.found_probes:
            return ""
        if reason := self._why_model_unavailable(lang, answer):
            return reason
        if name in _NEEDS_REGIONS and not answer.region_count:
            return say(lang, "reason_nothing")
        return ""

    def _why_model_unavailable(self, lang: str, answer: StoredAnswer) -> str:
        """Why the model in use cannot be asked about an answer; "" where it can."""
        if not self.server.is_ready:
            return say(lang, "loading")
        reason = probe_unavailable_key(self.server, answer.summary)
        return say(lang, reason, model=answer.summary.model) if reason else ""

    def why_replay_unavailable(self, lang: str, answer: StoredAnswer) -> str:
        """Why there is no moving picture of an answer; "" where there is, or may be."""
        if not answer.region_count:
            return say(lang, "strip_nothing")
        if answer.is_traced or "sentences" in answer.found_probes:
            return ""
        return self._why_model_unavailable(lang, answer)

    def run_probe(
        self, name: str, answer: StoredAnswer | None, request: gr.Request | None = None
    ) -> Any:
        """Run a probe; its finding as HTML, kept with the answer for the zip."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang):
            answer = require_answer(answer)
            try:
                finding = answer.findings.get(name) or self.server.call(
                    load_probe(name).run, answer.photo, answer.result
                )
            except NotApplicable as nothing:  # no mistake of anybody's
                reason = translate(lang, nothing)
                return self.gate.if_current(request, ticket, page.disabled_reason(lang, reason))
            answer.add_finding(name, downscale_finding(finding))
            view = findings.finding_view(lang, name, answer.photo, answer.result, finding)
        return self.gate.if_current(request, ticket, view)

    def compare(
        self,
        answer: StoredAnswer | None,
        earlier: int | None,
        recent: tuple | None,
        request: gr.Request | None = None,
    ) -> Any:
        """Compare an earlier answer about the same photo with the current one."""
        lang, ticket, recent = request_language(request), self.gate.current(request), recent or ()
        with user_errors_as_gr_error(lang):
            answer = require_answer(answer)
            if not isinstance(earlier, int) or not 0 <= earlier < len(recent):
                raise no_answer_error()
            both = require_answer(recent[earlier]), answer
            results = both[0].result, both[1].result
            names = answer_label(lang, both[0]), answer_label(lang, both[1])
            view = findings.comparison_view(lang, answer.photo, results, names)
        return self.gate.if_current(request, ticket, view)

    def compare_with_truth(
        self,
        answer: StoredAnswer | None,
        painted: list[str],
        file: str | None,
        request: gr.Request | None = None,
    ) -> tuple[Any, Any]:
        """Compare the current answer with a true mask, from a file or else painted; and the verdict
        that takes the truth into account."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang):
            answer = require_answer(answer)
            photo, result = answer.photo, answer.result
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

    # --- exports

    def export_zip(
        self, answer: StoredAnswer | None, request: gr.Request | None = None
    ) -> Iterator[Any]:
        """The answer's files as one zip, with what probes found and the trace."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            file = save_answer_zip(Path(folder), self.server, require_answer(answer))
            yield self.gate.if_current(request, ticket, str(file))

    def export_page(
        self, answer: StoredAnswer | None, request: gr.Request | None = None
    ) -> Iterator[Any]:
        """The answer as one HTML file that needs no server: canvases, replay and all."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            answer = require_answer(answer)
            path = Path(folder) / "coprs-answer.html"
            trace, reason = None, self.why_replay_unavailable(lang, answer)
            try:
                trace = ensure_trace(self.server, answer)
            except (CoPRSError, gr.Error) as problem:  # the page comes without a replay, says so
                is_told = isinstance(problem, gr.Error)
                reason = problem.message if is_told else translate(lang, problem)
            text = standalone(lang, answer.photo, answer.result, trace, reason)
            path.write_text(text, encoding="utf-8")
            yield self.gate.if_current(request, ticket, str(path))

    def export_replay(
        self, answer: StoredAnswer | None, request: gr.Request | None = None
    ) -> Iterator[Any]:
        """The replay as an animated picture; raises where the thought cannot be traced."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            answer = require_answer(answer)
            trace = ensure_trace(self.server, answer)
            if trace is None:
                raise CoPRSError(self.why_replay_unavailable(lang, answer))
            path = Path(folder) / "coprs-replay.webp"
            save_replay(path, answer.photo, answer.result, trace)
            yield self.gate.if_current(request, ticket, str(path))

    def create_link(self, answer: StoredAnswer | None, request: gr.Request | None = None) -> Any:
        """A link under which this server opens the answer again."""
        lang, ticket = request_language(request), self.gate.current(request)
        with user_errors_as_gr_error(lang), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            file = save_answer_zip(Path(folder), self.server, require_answer(answer))
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


def answer_label(lang: str, answer: StoredAnswer) -> str:
    """What an answer is called beside others about the same photo."""
    result = answer.summary
    changed = f", {say(lang, 'thought_changed')}" if result.is_thought_given else ""
    return f"{result.instruction[:60]} ({result.model}{changed})"
