"""Parse the events of OpenAI's chat protocol, whichever server wrote them: the text of a reply, its
end, or a reason why there is none."""

import json
import re
from typing import Any

from coprs_core.errors import Phrase
from coprs_core.model.backends.remote.event_stream import DONE, RequestRefused

MIN_KEY_LENGTH = 8
"""A shorter key is a placeholder ("none", "EMPTY"), and may be a word of a reply."""
_ERROR_REASONS = ("error", "abort")
"""Finish reasons of replies that did not end by themselves, as servers write them."""
_LENGTH_REASONS = ("length", "max_tokens", "model_length", "max_length")
_FILTER_REASONS = ("content_filter", "safety")
_TOOL_REASONS = ("tool_calls", "function_call")
_HTML_TITLE = re.compile(r"<title>([^<]*)", re.IGNORECASE)
_MAX_ERROR_DEPTH = 6
"""Servers nest the reason of an error in so many objects and lists at most."""


class InvalidReply(Exception):
    """The events are no reply: the message says what the server did and what to do;
    `server_reason` is its own reason."""

    def __init__(self, fault: str, server_reason: str = ""):
        super().__init__(fault)
        self.server_reason = server_reason


NOT_A_REPLY = Phrase("sent something that is no answer: check that the address ends in /v1")
BROKEN_OFF = Phrase("broke off in mid-answer: ask again")
FILTERED = Phrase("stopped the answer by a filter of its own: ask in other words, or another model")
DECLINED = Phrase("has a model that declines to answer: ask in other words, or another model")
CALLED_TOOL = Phrase("has a model that called a tool in place of an answer: serve it without tools")


class KeyRedactor:
    """Removes an API key from text, also where it comes in pieces."""

    def __init__(self, key: str):
        self._key, self._held = key if len(key) >= MIN_KEY_LENGTH else "", ""

    def feed(self, text: str) -> str:
        """Return what can be shown after a further piece; what may be the beginning of the key is
        held back."""
        text = self.redact(self._held + text)
        longest = min(len(self._key) - 1, len(text))
        held = next((n for n in range(longest, 0, -1) if text.endswith(self._key[:n])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Return what was held back, at the end; "…" where a reply may be cut off within the
        key."""
        held, self._held = self._held, ""
        return held if len(held) < MIN_KEY_LENGTH else "…"

    def redact(self, text: str) -> str:
        """Replace the key in a whole text."""
        return text.replace(self._key, "…") if self._key else text


class ReplyAssembler:
    """Assembles a reply, event by event.

    Attributes:
        length: its characters so far.
        finish_reason: why it ended, as the server says, in lower case.
        is_over: whether no more events are needed.
    """

    def __init__(self, max_characters: int, redactor: KeyRedactor):
        self.length, self.finish_reason, self.is_over = 0, "", False
        self._max_characters, self._redactor = max_characters, redactor
        self._is_done = self._in_thought = self._has_answer = False
        self._refusal, self._called_tool, self._server_reason = "", "", ""

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended because its tokens were used up."""
        return self.finish_reason in _LENGTH_REASONS

    def add(self, event: bytes) -> str:
        """Return the text that an event adds, thoughts between <think> and </think>.

        Raises:
            RequestRefused: the event is an error of the server's.
            InvalidReply: it is none of the protocol's.
        """
        if event == DONE:
            self._is_done = self.is_over = True
            return ""
        choices = _choices(event)
        if not choices:  # perhaps it says why there is no answer
            self._server_reason = (
                self._server_reason or parse_error(event.decode("utf-8", "replace"))[0]
            )
        text = "".join(map(self._choice_text, choices))
        if self.length + len(text) > self._max_characters:
            text, self.finish_reason, self.is_over = (
                text[: self._max_characters - self.length],
                "length",
                True,
            )
        self.length += len(text)
        return self._redactor.feed(text)

    def end(self) -> str:
        """Return the text that is left; raises `InvalidReply` where the reply did not end well."""
        if self.finish_reason in _FILTER_REASONS:
            raise InvalidReply(FILTERED)
        if self._refusal and not self._has_answer:
            raise InvalidReply(DECLINED, self._refusal)
        if (self._called_tool or self.finish_reason in _TOOL_REASONS) and not self._has_answer:
            raise InvalidReply(CALLED_TOOL, self._called_tool)
        if not self.finish_reason and not self.length:
            raise InvalidReply(NOT_A_REPLY, self._server_reason)
        if self.finish_reason in _ERROR_REASONS or not (self.finish_reason or self._is_done):
            raise InvalidReply(BROKEN_OFF)
        return self._redactor.flush() + ("</think>" if self._in_thought else "")

    def _choice_text(self, choice: dict[str, Any]) -> str:
        delta = choice.get("delta") or choice.get("message")  # of a server that does not stream
        delta = delta if isinstance(delta, dict) else {}
        thought, answer = _thought_and_answer(delta)
        text = thought if self._in_thought or not thought else f"<think>{thought}"
        self._in_thought = self._in_thought or bool(thought)
        if self._in_thought and answer:
            text, self._in_thought = f"{text}</think>", False
        self._has_answer = self._has_answer or bool(answer)
        self._refusal += _join_content(delta.get("refusal"))[
            : self._max_characters - len(self._refusal)
        ]
        self._called_tool = self._called_tool or _tool_name(delta)
        finish = choice.get("finish_reason")
        self.finish_reason = (
            finish.lower() if isinstance(finish, str) and finish else self.finish_reason
        )
        return text + answer


def _choices(event: bytes) -> list[dict[str, Any]]:
    """The choices of an event that belong to the one reply that was requested."""
    text = event.decode("utf-8", "replace")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidReply(NOT_A_REPLY, parse_error(text)[0]) from None
    if not isinstance(data, dict):
        raise InvalidReply(NOT_A_REPLY)
    if data.get("error") or data.get("object") == "error":
        raise RequestRefused(_status(data), text)
    choices = data.get("choices")
    choices = choices if isinstance(choices, list) else []
    return [c for c in choices if isinstance(c, dict) and c.get("index") in (0, None)]


def _status(data: dict[str, Any]) -> int:
    """The HTTP status that an error in the midst of a stream stands for; 0 where it names none."""
    error = data.get("error")
    code = (error if isinstance(error, dict) else data).get("code")
    is_status = isinstance(code, int | str) and re.fullmatch("[45][0-9][0-9]", str(code))
    return int(code) if is_status else 0


def _thought_and_answer(delta: dict[str, Any]) -> tuple[str, str]:
    """What a delta adds to the thought and to the answer."""
    thought = _join_content(delta.get("reasoning")) or _join_content(delta.get("reasoning_content"))
    content = delta.get("content")
    if isinstance(content, list):  # Mistral's thoughts are parts of it
        thought += "".join(_join_content(p.get("thinking")) for p in content if isinstance(p, dict))
    return thought, _join_content(content)


def _join_content(content: Any) -> str:
    """The text of a content, which is a string or a list of parts; without what is no Unicode,
    which no file could hold."""
    if isinstance(content, list):
        parts = (p.get("text") if isinstance(p, dict) else p for p in content)
        content = "".join(p for p in parts if isinstance(p, str))
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""


def _tool_name(delta: dict[str, Any]) -> str:
    """The name of the tool that a delta calls; empty where it calls none."""
    calls = delta.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else delta
    function = (call.get("function") or call.get("function_call")) if isinstance(call, dict) else {}
    name = function.get("name") if isinstance(function, dict) else ""
    return _join_content(name) or ("a tool" if calls else "")


def parse_error(body: str) -> tuple[str, str]:
    """Find a server's reason for an error, wherever servers put it, and the parameter that it
    names; empty where there is nothing of the kind."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        title = _HTML_TITLE.search(body)
        return (title[1] if title else "" if body.lstrip().startswith("<") else body.strip()), ""
    return _find_reason(data, _MAX_ERROR_DEPTH), _named_parameter(data)


def _find_reason(data: Any, depth: int) -> str:
    if isinstance(data, str):
        return data
    if isinstance(data, list) and data and depth:
        return _find_reason(data[0], depth - 1)
    if not isinstance(data, dict) or not depth:
        return ""
    if isinstance(data.get("loc"), list):  # as FastAPI checks what it is sent
        location = ".".join(str(part) for part in data["loc"] if isinstance(part, int | str))
        return f"{location}: {_find_reason(data.get('msg'), depth - 1)}"
    names = ("error", "errors", "message", "detail", "msg", "error_description", "title", "type")
    return next((r for r in (_find_reason(data.get(n), depth - 1) for n in names) if r), "")


def _named_parameter(data: Any) -> str:
    error = data.get("error", data) if isinstance(data, dict) else None
    param = error.get("param") if isinstance(error, dict) else None
    return param if isinstance(param, str) else ""
