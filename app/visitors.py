"""What handlers need of a request: its ticket, language, selection, and errors in its language."""

import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.server.answers import StoredAnswer, no_answer_error
from app.server.model import ModelServer
from app.server.uploads import UPLOADS_FULL, has_room
from app.texts import parse_language, say, translate
from coprs_core.answer.pictures import downscale_mask, downscale_prior
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.export.archive import save_zip
from coprs_core.machine import clear_traceback_frames
from coprs_core.probes import AUTOMATIC_PROBES, load_probe, sentences
from coprs_core.probes.finding import Finding
from coprs_core.probes.trace import SAVED_SIDE, SentenceTrace

MAX_RECENT = 8
"""So many answers are kept for a visitor."""
MAX_TRACE_SIDE = 448
"""As large as the canvases that draw a trace (`SMALL_SIDE`)."""
MAX_SESSIONS = 10_000
"""Nobody tells the gate that a session has ended: the least recently used tickets are forgotten."""


class RequestGate:
    """Drops what superseded requests still have to say: of each visitor's requests that take the
    page the latest is current, known by its ticket.

    A browser's word that an event is cancelled may come too late, or not at all.
    """

    def __init__(self):
        self._tickets: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._last, self._lock = 0, threading.Lock()

    def begin(self, request: gr.Request | None, is_idle: bool = False) -> int:
        """Begin a request that takes the page; its ticket. `is_idle`: nothing more comes of it, and
        the page waits for its visitor."""
        session = _session_key(request)
        with self._lock:
            self._last = ticket = self._last + 1  # no visitor gets a ticket twice
            _, idle = self._tickets.get(session, (0, 0))
            self._tickets[session] = ticket, ticket if is_idle else idle
            self._tickets.move_to_end(session)
            while len(self._tickets) > MAX_SESSIONS:
                self._tickets.popitem(last=False)
            return ticket

    def current(self, request: gr.Request | None) -> int:
        """The ticket of the current request; who asks is not forgotten for newer visitors."""
        session = _session_key(request)
        with self._lock:
            if session in self._tickets:
                self._tickets.move_to_end(session)
            return self._tickets.get(session, (0, 0))[0]

    def is_current(self, request: gr.Request | None, ticket: int) -> bool:
        """Whether no other request has taken the page since the one with `ticket`."""
        return self.current(request) == ticket

    def is_photo_current(self, request: gr.Request | None, ticket: int) -> bool:
        """Whether the page has not been idle since `ticket`: its photo is still the same."""
        return self._tickets.get(_session_key(request), (0, 0))[1] == ticket

    def if_current(self, request: gr.Request | None, ticket: int, value: Any) -> Any:
        """A value for the page; nothing where another request took the page after `ticket`."""
        return value if self.is_current(request, ticket) else gr.skip()

    def current_if_idle(self, request: gr.Request | None) -> int | None:
        """The ticket of the current request, if that is idle."""
        ticket, idle = self._tickets.get(_session_key(request), (0, 0))
        return ticket if ticket == idle else None


def _session_key(request: gr.Request | None) -> str:
    return str(getattr(request, "session_hash", None) or "")


def downscale_trace(trace: SentenceTrace, side: int = MAX_TRACE_SIDE) -> SentenceTrace:
    """A trace as it is kept with an answer: priors and masks of at most `side` pixels a side."""
    views = (
        replace(v, prior=downscale_prior(v.prior, side), mask=downscale_mask(v.mask, side))
        for v in trace.views
    )
    return SentenceTrace(tuple(views))


def downscale_finding(finding: Finding) -> Finding:
    """What a probe found as it is kept with an answer: a trace no larger than its files."""
    return downscale_trace(finding, SAVED_SIDE) if isinstance(finding, SentenceTrace) else finding


@contextmanager
def user_errors_as_gr_error(lang: str, on_page: bool = True) -> Generator[None, None, None]:
    """A `CoPRSError` inside becomes the page's message, where it is no markup, or a client's
    `AppError`."""
    try:
        yield
    except CoPRSError as problem:
        clear_traceback_frames(problem)  # it is kept until the message has been sent
        said = translate(lang, problem)
        sentence = escape(said, quote=False) if on_page else said
        raise gr.Error(sentence, title=say(lang, "failed"), print_exception=False) from None


def request_language(request: gr.Request | None) -> str:
    """The language of the texts, from the browser's Accept-Language header."""
    return parse_language(request.headers.get("accept-language") if request else None)


def answer_title(lang: str, answer: StoredAnswer) -> str:
    """What an answer is called among those of this visit."""
    mark = f"✎ {say(lang, 'thought_changed')}: " if answer.summary.is_thought_given else ""
    return f"{mark}{answer.summary.instruction}"


def require_answer(answer: StoredAnswer | None) -> StoredAnswer:
    """The current answer; raises `CoPRSError` where there is none, or it was dropped."""
    if answer is None or answer.is_dropped:
        raise no_answer_error()
    return answer


def selected_index(event: gr.EventData, count: int) -> int:
    """Index of the selected one of `count` items; raises `CoPRSError` where there is none."""
    try:
        number = event.index  # type: ignore[attr-defined]  (the event carries it)
    except (AttributeError, TypeError):  # a stranger's request carries anything
        number = None
    if type(number) is not int or not 0 <= number < count:
        raise no_answer_error()
    return number


def edited_sentence(event: gr.EventData, sentences: list[str]) -> tuple[int, str]:
    """Index and new text of the sentence that was edited; raises `CoPRSError` where the page showed
    another one, as the thought has changed meanwhile."""
    number = selected_index(event, len(sentences))
    text, was = getattr(event, "value", ""), getattr(event, "said", None)
    if not isinstance(text, str) or was != sentences[number]:
        raise CoPRSError("The thought has changed meanwhile: change the sentence as it stands now.")
    return number, text


def add_recent(answer: StoredAnswer, recent: tuple[StoredAnswer, ...]) -> tuple[StoredAnswer, ...]:
    """The recent answers with a new one in front; the oldest go where they are too many."""
    return (answer, *recent)[:MAX_RECENT]


def ensure_trace(server: ModelServer, answer: StoredAnswer) -> SentenceTrace | None:
    """The trace of an answer, computed now where it is missing; None where the model in use did not
    give the answer, or it found nothing. Raises `CoPRSError` where its thought cannot be traced."""
    if not answer.is_traced:
        finding: Any = answer.findings.get("sentences")
        if finding is None and answer.region_count and can_probe(server, answer.summary):
            finding = server.call(sentences.run, answer.photo, answer.result)
        if not finding:
            return None
        answer.add_trace(downscale_trace(finding))
    return answer.trace


def can_probe(server: ModelServer, result: Result) -> bool:
    """Whether the model in use gave this answer and runs here, so that its words can be looked
    into."""
    return not probe_unavailable_key(server, result)


def probe_unavailable_key(server: ModelServer, result: Result) -> str:
    """Why an answer's words cannot be looked into, as a key of the page's texts; "" where they
    can."""
    if not server.engine.is_local:
        return "reason_elsewhere"
    if result.model != server.engine.name or not result.reply_ids:
        return "reason_other_model"
    return ""


def save_answer_zip(folder: Path, server: ModelServer, answer: StoredAnswer) -> Path:
    """The files of an answer and of all its findings as a zip in a folder.

    The probes in `AUTOMATIC_PROBES` are asked where they were not, and the model in use gave the
    answer. Raises `CoPRSError` where the server has no room for it.
    """
    if not has_room():
        raise CoPRSError(UPLOADS_FULL)
    findings = answer.findings
    if can_probe(server, answer.summary):
        for name in AUTOMATIC_PROBES:
            if name not in findings:
                with suppress(CoPRSError, gr.Error):  # the answer is saved without it
                    findings[name] = server.call(load_probe(name).run, answer.photo, answer.result)
    if answer.trace and "sentences" not in findings:  # it came with the answer
        findings.setdefault(answer.trace.stem(), answer.trace)
    path = folder / "coprs-answer.zip"
    with server.reserved(answer.pixels):  # pictures of many sizes are made
        return save_zip(path, answer.photo, answer.result, findings.values())
