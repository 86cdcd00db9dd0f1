"""What the events of OpenAI's chat protocol say, whichever server wrote them: the text of a reply,
its end, or a reason why there is none."""

import json
import re
from typing import Any

from coprs_core.errors import Phrase
from coprs_core.model.backends.remote.event_stream import DONE, Refused

MIN_SECRET = 8
"""A shorter key is none ("none", "EMPTY"), and may be a word of a reply."""
_BROKEN = ("error", "abort")
"""What servers write as the reason why a reply has ended, where it was not the reply's end."""
_CUT_OFF = ("length", "max_tokens", "model_length", "max_length")
_FILTERED = ("content_filter", "safety")
_TOOLS = ("tool_calls", "function_call")
_TITLE = re.compile(r"<title>([^<]*)", re.IGNORECASE)
_DEPTH = 6
"""Servers put their reason into so many objects and lists at most."""


class NoAnswer(Exception):
    """The events are no answer: the message says what the server did and what to do; `said` is its
    own reason."""

    def __init__(self, fault: str, said: str = ""):
        super().__init__(fault)
        self.said = said


NOTHING = Phrase("sent something that is no answer: check that the address ends in /v1")
BROKEN_OFF = Phrase("broke off in mid-answer: ask again")
FILTERED = Phrase("stopped the answer by a filter of its own: ask in other words, or another model")
DECLINED = Phrase("has a model that declines to answer: ask in other words, or another model")
CALLED = Phrase("has a model that called a tool in place of an answer: serve it without tools")


class Redacted:
    """Text without a key, though it come in pieces."""

    def __init__(self, key: str):
        self._key, self._held = key if len(key) >= MIN_SECRET else "", ""

    def add(self, text: str) -> str:
        """What can be shown after a further piece; what may be the beginning of the key is held
        back."""
        text = self.all(self._held + text)
        longest = min(len(self._key) - 1, len(text))
        held = next((n for n in range(longest, 0, -1) if text.endswith(self._key[:n])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, at the end, where a reply may be cut off in the midst of the key."""
        held, self._held = self._held, ""
        return held if len(held) < MIN_SECRET else "…"

    def all(self, text: str) -> str:
        """A whole text."""
        return text.replace(self._key, "…") if self._key else text


class Reply:
    """A reply, read event by event. `length`: its characters so far; `finish`: why it ended, as the
    server says, in small letters."""

    def __init__(self, most: int, redacted: Redacted):
        self.length, self.finish, self.is_over = 0, "", False
        self._most, self._redacted = most, redacted
        self._is_done = self._in_thought = self._has_answer = False
        self._declined, self._called, self._said = "", "", ""

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended for there were no more tokens."""
        return self.finish in _CUT_OFF

    def add(self, event: bytes) -> str:
        """The text that an event adds, thoughts between <think> and </think>.

        Raises:
            Refused: the event is an error of the server's.
            NoAnswer: it is nothing that the protocol knows.
        """
        if event == DONE:
            self._is_done = self.is_over = True
            return ""
        choices = _choices(event)
        if not choices:  # perhaps it says why there is no answer
            self._said = self._said or reason_in(event.decode("utf-8", "replace"))[0]
        text = "".join(map(self._text, choices))
        if self.length + len(text) > self._most:
            text, self.finish, self.is_over = text[: self._most - self.length], "length", True
        self.length += len(text)
        return self._redacted.add(text)

    def end(self) -> str:
        """The text that is left; raises `NoAnswer` where it has no right end."""
        if self.finish in _FILTERED:
            raise NoAnswer(FILTERED)
        if self._declined and not self._has_answer:
            raise NoAnswer(DECLINED, self._declined)
        if (self._called or self.finish in _TOOLS) and not self._has_answer:
            raise NoAnswer(CALLED, self._called)
        if not self.finish and not self.length:
            raise NoAnswer(NOTHING, self._said)
        if self.finish in _BROKEN or not (self.finish or self._is_done):
            raise NoAnswer(BROKEN_OFF)
        return self._redacted.rest() + ("</think>" if self._in_thought else "")

    def _text(self, choice: dict[str, Any]) -> str:
        delta = choice.get("delta") or choice.get("message")  # of a server that does not stream
        delta = delta if isinstance(delta, dict) else {}
        thought, answer = _texts(delta)
        text = thought if self._in_thought or not thought else f"<think>{thought}"
        self._in_thought = self._in_thought or bool(thought)
        if self._in_thought and answer:
            text, self._in_thought = f"{text}</think>", False
        self._has_answer = self._has_answer or bool(answer)
        self._declined += _joined(delta.get("refusal"))[: self._most - len(self._declined)]
        self._called = self._called or _tool(delta)
        finish = choice.get("finish_reason")
        self.finish = finish.lower() if isinstance(finish, str) and finish else self.finish
        return text + answer


def _choices(event: bytes) -> list[dict[str, Any]]:
    """The parts of an event that belong to the one reply that was asked for."""
    text = event.decode("utf-8", "replace")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise NoAnswer(NOTHING, reason_in(text)[0]) from None
    if not isinstance(told, dict):
        raise NoAnswer(NOTHING)
    if told.get("error") or told.get("object") == "error":
        raise Refused(_status(told), text)
    choices = told.get("choices")
    choices = choices if isinstance(choices, list) else []
    return [c for c in choices if isinstance(c, dict) and c.get("index") in (0, None)]


def _status(told: dict[str, Any]) -> int:
    """The HTTP status that an error in the midst of a stream stands for; 0 where it names none."""
    error = told.get("error")
    code = (error if isinstance(error, dict) else told).get("code")
    is_one = isinstance(code, int | str) and re.fullmatch("[45][0-9][0-9]", str(code))
    return int(code) if is_one else 0


def _texts(delta: dict[str, Any]) -> tuple[str, str]:
    """What a piece of a reply adds to the thought and to the answer."""
    thought = _joined(delta.get("reasoning")) or _joined(delta.get("reasoning_content"))
    content = delta.get("content")
    if isinstance(content, list):  # Mistral's thoughts are parts of it
        thought += "".join(_joined(p.get("thinking")) for p in content if isinstance(p, dict))
    return thought, _joined(content)


def _joined(content: Any) -> str:
    """The text of a content, which is a string or a list of parts; without what is no Unicode,
    which no file could hold."""
    if isinstance(content, list):
        parts = (p.get("text") if isinstance(p, dict) else p for p in content)
        content = "".join(p for p in parts if isinstance(p, str))
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""


def _tool(delta: dict[str, Any]) -> str:
    """The name of the tool that a piece of a reply calls; empty where it calls none."""
    calls = delta.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else delta
    function = (call.get("function") or call.get("function_call")) if isinstance(call, dict) else {}
    name = function.get("name") if isinstance(function, dict) else ""
    return _joined(name) or ("a tool" if calls else "")


def reason_in(body: str) -> tuple[str, str]:
    """What a server says of an error: its reason, from wherever servers put it, and the parameters
    that it names; empty where there is nothing of the kind."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        title = _TITLE.search(body)
        return (title[1] if title else "" if body.lstrip().startswith("<") else body.strip()), ""
    return _reason(told, _DEPTH), _parameter(told)


def _reason(told: Any, depth: int) -> str:
    if isinstance(told, str):
        return told
    if isinstance(told, list) and told and depth:
        return _reason(told[0], depth - 1)
    if not isinstance(told, dict) or not depth:
        return ""
    if isinstance(told.get("loc"), list):  # as FastAPI checks what it is sent
        place = ".".join(str(part) for part in told["loc"] if isinstance(part, int | str))
        return f"{place}: {_reason(told.get('msg'), depth - 1)}"
    names = ("error", "errors", "message", "detail", "msg", "error_description", "title", "type")
    return next((r for r in (_reason(told.get(n), depth - 1) for n in names) if r), "")


def _parameter(told: Any) -> str:
    error = told.get("error", told) if isinstance(told, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    return param if isinstance(param, str) else ""
