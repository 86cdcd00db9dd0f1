"""What is kept of a visitor in that visitor's own session, and how a visitor is spoken to."""

import threading
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.serving import ModelServer
from app.texts import language_of, say, translated
from app.uploads import NO_ROOM, has_room
from coprs_core.answer.pictures import small_mask, small_prior
from coprs_core.answer.results import Result
from coprs_core.archive import save_zip
from coprs_core.errors import CoPRSError
from coprs_core.photos import Photo, open_photo
from coprs_core.probes import AUTOMATIC, probe, sentences
from coprs_core.probes.finding import Finding, OtherResult
from coprs_core.probes.heads import Heads
from coprs_core.probes.trace import SAVED_SIDE, Sentences

MAX_PIXELS = 12_000_000
"""A visitor's photo of more pixels is brought down to so many."""
MAX_RECENT, MAX_RECENT_PIXELS = 8, 2 * MAX_PIXELS
"""Of the answers kept for a visitor: how many, and of how many pixels together."""
TRACE_SIDE = 448
MAX_SESSIONS = 10_000


_opening = threading.Lock()


@dataclass(eq=False)
class Answered:
    """One answer of this visitor, its photo, and what probes have found in it so far, by name.

    Once its thought is traced the small pictures of that are its `trace`. Where a person changed a
    sentence of its thought, `changed` is that sentence, counted from 0.
    """

    photo: Photo
    result: Result
    findings: dict[str, Finding] = field(default_factory=dict)
    trace: Sentences | None = None
    changed: int | None = None


class Turns:
    """Who has the page of each visitor: what began before something else took it says no more.

    A browser's word that an event is cancelled may come too late, or not at all.
    """

    def __init__(self):
        self._turns: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._last, self._lock = 0, threading.Lock()

    def take(self, request: gr.Request | None, rests: bool = False) -> int:
        """Begin something that takes the page; its number. `rests`: nothing more comes of it, and
        the page waits for its visitor."""
        session = _session(request)
        with self._lock:
            self._last = number = self._last + 1  # no visitor gets a number twice
            _, rested = self._turns.get(session, (0, 0))
            self._turns[session] = number, number if rests else rested
            self._turns.move_to_end(session)
            while len(self._turns) > MAX_SESSIONS:
                self._turns.popitem(last=False)
            return number

    def now(self, request: gr.Request | None) -> int:
        """The number of what has the page; who asks is not forgotten for newer visitors."""
        session = _session(request)
        with self._lock:
            if session in self._turns:
                self._turns.move_to_end(session)
            return self._turns.get(session, (0, 0))[0]

    def has(self, request: gr.Request | None, turn: int) -> bool:
        """Whether what began as `turn` still has the page."""
        return self.now(request) == turn

    def keeps_photo(self, request: gr.Request | None, turn: int) -> bool:
        """Whether the page has not rested since `turn`: its photo is still the same."""
        return self._turns.get(_session(request), (0, 0))[1] == turn

    def still(self, request: gr.Request | None, turn: int, value: Any) -> Any:
        """A value for the page; nothing where something else took the page after `turn`."""
        return value if self.has(request, turn) else gr.skip()

    def at_rest(self, request: gr.Request | None) -> int | None:
        """The number of what has the page, if that rests."""
        number, rested = self._turns.get(_session(request), (0, 0))
        return number if number == rested else None


def _session(request: gr.Request | None) -> str:
    return str(getattr(request, "session_hash", None) or "")


def small_trace(trace: Sentences, side: int = TRACE_SIDE) -> Sentences:
    """A trace as it is kept with an answer: priors and masks of at most `side` pixels a side."""
    views = (
        replace(v, prior=small_prior(v.prior, side), mask=small_mask(v.mask, side))
        for v in trace.views
    )
    return Sentences(tuple(views))


def small_finding(finding: Finding) -> Finding:
    """What a probe found as it is kept with an answer: a trace no larger than its files."""
    return small_trace(finding, SAVED_SIDE) if isinstance(finding, Sentences) else finding


def opened_photo(path: str | None) -> Photo:
    """A visitor's photo, of at most `MAX_PIXELS`; raises `CoPRSError` as `open_photo` does."""
    with _opening:  # a file of few bytes may be a picture of many pixels
        return open_photo(path, MAX_PIXELS)


@contextmanager
def in_a_sentence(lang: str, on_page: bool = True) -> Generator[None, None, None]:
    """A `CoPRSError` inside becomes the page's message, where it is no markup, or a client's
    `AppError`."""
    try:
        yield
    except CoPRSError as problem:
        said = translated(lang, str(problem))
        sentence = escape(said, quote=False) if on_page else said
        raise gr.Error(sentence, title=say(lang, "failed"), print_exception=False) from None


def language(request: gr.Request | None) -> str:
    """The language that a visitor's browser asks for."""
    return language_of(request.headers.get("accept-language") if request else None)


def called(lang: str, answered: Answered) -> str:
    """What an answer is called among those of this visit."""
    mark = f"✎ {say(lang, 'thought_changed')}: " if answered.result.is_thought_given else ""
    return f"{mark}{answered.result.instruction}"


def given(lang: str, answered: Answered | None) -> Answered:
    """The answer at hand; raises `CoPRSError` where it is no longer kept: before there is one,
    nothing can be pressed."""
    if answered is None:
        raise CoPRSError(say(lang, "gone"))
    return answered


def picked(lang: str, event: gr.EventData, count: int) -> int:
    """The number of what was chosen of `count` things; raises `CoPRSError` where there is none."""
    try:
        number = event.index  # type: ignore[attr-defined]  (the event carries it)
    except (AttributeError, TypeError):  # a stranger's request carries anything
        number = None
    if type(number) is not int or not 0 <= number < count:
        raise CoPRSError(say(lang, "gone"))
    return number


def remembered(answered: Answered, recent: tuple[Answered, ...]) -> tuple[Answered, ...]:
    """The recent answers with a new one in front; the oldest go where they are too many or too
    large."""
    kept, pixels = [], 0
    for one in (answered, *recent)[:MAX_RECENT]:
        pixels += pixels_of(one)
        if kept and pixels > MAX_RECENT_PIXELS:
            break
        kept.append(one)
    return tuple(kept)


def pixels_of(answered: Answered) -> int:
    """The pixels that are kept of an answer: its photo, each region's prior and mask, its trace,
    and what probes found."""
    height, width = answered.photo.size
    own = height * width * max(1, len(answered.result.regions))
    found = [answered.trace, *answered.findings.values()]
    return own + sum(_pixels_found(one) for one in found if one)


def _pixels_found(finding: Finding) -> int:
    if isinstance(finding, Sentences):
        return sum(view.mask.size for view in finding.views)
    if isinstance(finding, OtherResult):
        return sum(region.mask.size for region in finding.result.regions)
    return finding.maps.size if isinstance(finding, Heads) else 0


def traced(server: ModelServer, answered: Answered) -> Sentences | None:
    """The small trace of an answer, made now where it was not yet; None where the model in use did
    not give it, or it found nothing. Raises `CoPRSError` where its thought cannot be traced."""
    if answered.trace is None:
        finding: Any = answered.findings.get("sentences")
        if finding is None and answered.result.regions and can_probe(server, answered.result):
            finding = server.ask(sentences.ask, answered.photo, answered.result)
        answered.trace = small_trace(finding) if finding else None
    return answered.trace


def can_probe(server: ModelServer, result: Result) -> bool:
    """Whether the model in use gave this answer and runs here, so that its words can be looked
    into."""
    return not why_not(server, result)


def why_not(server: ModelServer, result: Result) -> str:
    """Why an answer's words cannot be looked into, as a key of the page's texts; "" where they
    can."""
    if not server.engine.is_local:
        return "reason_elsewhere"
    if result.model != server.engine.name or not result.reply_ids:
        return "reason_other_model"
    return ""


def save_answered(folder: Path, server: ModelServer, answered: Answered) -> Path:
    """The files of an answer and of all its findings as a zip in a folder.

    The probes in `AUTOMATIC` are asked where they were not, and the model in use gave the answer.
    Raises `CoPRSError` where the server has no room for it.
    """
    if not has_room():
        raise CoPRSError(NO_ROOM)
    findings = dict(answered.findings)
    if can_probe(server, answered.result):
        for name in AUTOMATIC:
            if name not in findings:
                with suppress(CoPRSError, gr.Error):  # the answer is saved without it
                    findings[name] = server.ask(probe(name).ask, answered.photo, answered.result)
    if answered.trace and "sentences" not in findings:  # it came with the answer
        findings.setdefault(answered.trace.stem(), answered.trace)
    path = folder / "coprs-answer.zip"
    with server.room.taken(answered.photo):  # pictures of many sizes are made
        return save_zip(path, answered.photo, answered.result, findings.values())
