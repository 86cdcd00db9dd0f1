"""A model on a server that speaks OpenAI's chat protocol: requests, streamed replies, and a
sentence for each failure."""

import json
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx2

from coprs_core.errors import CoPRSError, Phrase, truncate
from coprs_core.model.backends.remote import proxies
from coprs_core.model.backends.remote.chat_reply import (
    BROKEN_OFF,
    NOT_A_REPLY,
    InvalidReply,
    KeyRedactor,
    ReplyAssembler,
    parse_error,
)
from coprs_core.model.backends.remote.event_stream import (
    CONNECTION_ERRORS,
    MAX_EVENT_BYTES,
    POLL_SECONDS,
    Request,
    RequestRefused,
    UnacceptableResponse,
    stream_events,
)
from coprs_core.model.segmenter import Step

MAX_SECONDS_PER_TOKEN = 2.0
"""A reply that takes longer than this for each token of its bound is given up."""
MAX_CHARACTERS_PER_TOKEN, MAX_BYTES_PER_TOKEN = 40, 2048
"""A reply of more characters for each token is cut off; one of more bytes is given up (a token
alone takes some 300, with what hosted servers add to it 700)."""
MAX_QUOTED_CHARACTERS = 240
"""Characters of a server's own reason that are quoted."""
_MAX_TOKENS_NAME = re.compile(r"max[_ ]?(?:(?:completion|new|output)[_ ]?)?tokens")
_OPTIONAL_PARAMETERS = {"temperature": 0, "stream": True}
"""Left out of a request where a server refuses them."""
_CONTEXT_TOO_LONG = re.compile(r"context|too long|(?:input|prompt) tokens", re.IGNORECASE)


@dataclass(frozen=True)
class ChatEndpoint:
    """A model on a server.

    Attributes:
        url: the base address, which ends in /v1.
        model: the name by which the server knows it.
        api_key: its bearer token, which stands in no reply, message or log.
        proxy: the proxy through which requests go; None for none.
        quiet_seconds: a server that sends nothing of a reply for so long is given up.
        unsupported_parameters: those that it has refused; they are not sent again.
    """

    url: str
    model: str
    api_key: str = field(repr=False)
    proxy: str | None = field(repr=False)
    quiet_seconds: float
    unsupported_parameters: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def host(self) -> str:
        """The server as messages name it."""
        return urlsplit(self.url).netloc

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        return httpx2.create_ssl_context()

    def stream_reply(self, image_url: str, question: str, max_new_tokens: int) -> Iterator[Step]:
        """Stream the reply to a question about an image (a data URL); while nothing comes, an empty
        step every half second, so that whoever waits can stop.

        The thought stands between <think> and </think>, whichever way the server sends it.
        Closing the generator ends the request. A parameter that the server refuses is left out,
        or sent by the name that it wants, and the request is sent again.

        Raises:
            CoPRSError: what the server refused or broke off, and what to do.
        """
        request = self._request_body(image_url, question, max_new_tokens)
        while True:
            try:
                yield from self._stream(request, max_new_tokens)
                return
            except RequestRefused as problem:
                reason = " ".join(parse_error(problem.body))
                changed = self._drop_refused_parameters(request, reason)
                if changed is None:
                    raise self._refusal_error(problem) from None
                request = changed

    def _request_body(self, image_url: str, question: str, max_new_tokens: int) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": image_url}},
            {"type": "text", "text": question},
        ]
        is_renamed = "max_tokens" in self.unsupported_parameters
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens" if is_renamed else "max_tokens": max_new_tokens,
        }
        unsupported = self.unsupported_parameters
        return body | {n: v for n, v in _OPTIONAL_PARAMETERS.items() if n not in unsupported}

    def _drop_refused_parameters(self, body: dict[str, Any], reason: str) -> dict[str, Any] | None:
        """Return the request without the parameters that a refusal names; None where it names none.

        Each is dropped once, so retrying ends. Without a bound the server ends a reply as it sees
        fit, and here it is cut off as ever.
        """
        changed, reason = dict(body), reason.lower()
        for name in _OPTIONAL_PARAMETERS:
            if name in body and re.search(rf"\b{name}", reason):
                del changed[name]
                self.unsupported_parameters.add(name)
        if "max_tokens" in body and _MAX_TOKENS_NAME.search(reason):
            max_tokens = changed.pop("max_tokens")
            # otherwise the number is too large, and would be by any name
            if "max_completion_tokens" in reason and re.search("instead|support", reason):
                changed["max_completion_tokens"] = max_tokens
                self.unsupported_parameters.add("max_tokens")
        return changed if changed != body else None

    def _stream(self, body: dict[str, Any], max_new_tokens: int) -> Iterator[Step]:
        """Send a request once; raises `RequestRefused` before anything of a reply has come."""
        max_bytes = MAX_EVENT_BYTES + MAX_BYTES_PER_TOKEN * max_new_tokens
        address, data = f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode()
        request = Request(address, self.api_key, data, self.proxy, self._certificates, max_bytes)
        reply = ReplyAssembler(MAX_CHARACTERS_PER_TOKEN * max_new_tokens, KeyRedactor(self.api_key))
        timer = ReplyTimer(
            self.quiet_seconds, self.quiet_seconds + MAX_SECONDS_PER_TOKEN * max_new_tokens
        )
        has_begun = False
        try:
            with closing(stream_events(request)) as stream:
                for event in timer.timed(stream):
                    has_begun = has_begun or event is not None
                    length, text = reply.length, reply.add(event) if event else ""
                    if text or timer.is_poll_due:
                        yield Step(text=text, is_waiting=not text)
                    timer.check(reply.length > length)
                    if reply.is_over:
                        break
            yield Step(text=reply.end(), is_end=not reply.is_cut_off)
        except RequestRefused as problem:
            if reply.length:
                raise self._server_error(BROKEN_OFF, parse_error(problem.body)[0]) from None
            raise
        except InvalidReply as problem:
            raise self._server_error(problem.args[0], problem.server_reason) from None
        except (UnacceptableResponse, ReplyTimeout) as problem:
            raise self._server_error(problem.args[0]) from None
        except CONNECTION_ERRORS as problem:
            raise self._connection_error(problem, has_begun) from None

    # --- sentences

    def _server_error(self, fault: str, reason: str = "") -> CoPRSError:
        """The sentence for a fault of the server's, with its own reason, without the API key."""
        through = why = Phrase("")
        if self.proxy:
            through = Phrase(
                " (through the proxy {proxy})", proxy=proxies.without_password(self.proxy)
            )
        reason = KeyRedactor(self.api_key).redact(reason).strip()
        if reason:
            reason = truncate(reason, MAX_QUOTED_CHARACTERS)
            why = Phrase(" (it says “{said}”)", said=reason)
        return CoPRSError(
            "The server {server}{through} {fault}{why}.",
            server=self.host,
            through=through,
            fault=fault,
            why=why,
        )

    def _refusal_error(self, problem: RequestRefused) -> CoPRSError:
        """The sentence for a refusal: an HTTP status, or an error in place of a reply."""
        status, (reason, _) = problem.status, parse_error(problem.body)
        if 300 <= status < 400 and problem.location:
            return self._server_error(
                Phrase(
                    "sends the question on to another address (status {status}), which is not "
                    "followed: give that address itself, if you trust it",
                    status=status,
                ),
                problem.location,
            )
        if status == 407 and self.proxy:
            return self._server_error(
                Phrase("was not asked, for the proxy wants a password: mend its address")
            )
        if status in (401, 403):
            return self._server_error(
                Phrase("refuses the key: set COPRS_API_KEY to one that it takes"), reason
            )
        if status == 404:
            return self._server_error(
                Phrase(
                    "knows no model {model!r} at this address: give "
                    "openai:NAME@http://host:port/v1 with a name that it lists",
                    model=self.model,
                ),
                reason,
            )
        if status == 429:
            return self._server_error(
                Phrase("has no room now, or its quota is used up: ask again later"), reason
            )
        if 400 <= status < 500:
            advice = _advice(status, reason)
            refused = Phrase("refused the question with its picture{advice}", advice=advice)
            return self._server_error(refused, reason)
        if not status:
            return self._server_error(Phrase("failed: look at its own messages"), reason)
        return self._server_error(
            Phrase("failed (status {status}): look at its own messages", status=status), reason
        )

    def _connection_error(self, problem: Exception, has_begun: bool) -> CoPRSError:
        """The sentence for a connection that failed."""
        if has_begun:
            return self._server_error(BROKEN_OFF)
        if isinstance(problem, httpx2.ProxyError):
            fault = Phrase(
                "was not asked, for the proxy refused: mend it, or name {host} in NO_PROXY",
                host=self.host,
            )
        elif isinstance(problem, httpx2.ProtocolError):
            fault = NOT_A_REPLY
        elif self.proxy:
            fault = Phrase("cannot be reached: check that it runs, and the address, and the proxy")
        else:
            fault = Phrase("cannot be reached: check that it runs, and the address")
        detail = truncate(KeyRedactor(self.api_key).redact(str(problem))).rstrip(".")
        return self._server_error(
            Phrase("{fault} ({detail})", fault=fault, detail=detail) if detail else fault
        )


def _advice(status: int, reason: str) -> Phrase:
    if status == 413:
        return Phrase(" as too large (status 413): let it take bodies of 2 MB")
    if _CONTEXT_TOO_LONG.search(reason):
        return Phrase(": serve the model with a longer context, or allow fewer tokens")
    if reason:
        return Phrase(": do what it says, or choose a model that reads pictures")
    return Phrase(": choose a model that reads pictures")


class ReplyTimeout(Exception):
    """A reply took too long; the message says what the server did."""


class ReplyTimer:
    """Counts the seconds waited for a reply: since its last text, and in all.

    Seconds in which the generator is suspended, as when a page is slow to take a step, do not
    count.
    """

    def __init__(self, max_quiet: float, max_total: float):
        self._max_quiet, self._max_total = max_quiet, max_total
        self._quiet = self._total = self._since_poll = 0.0

    def timed(self, events: Iterator[bytes | None]) -> Iterator[bytes | None]:
        """Yield the events, and count the time that each took to come."""
        start = time.monotonic()
        for event in events:
            seconds = time.monotonic() - start
            self._quiet, self._total = self._quiet + seconds, self._total + seconds
            self._since_poll += seconds
            yield event
            start = time.monotonic()

    @property
    def is_poll_due(self) -> bool:
        """Whether it is time for an empty step, at which whoever waits may stop."""
        return self._since_poll >= POLL_SECONDS

    def check(self, has_text: bool) -> None:
        """Call after each event; raises `ReplyTimeout`."""
        if has_text or self.is_poll_due:
            self._since_poll = 0.0
        if has_text:
            self._quiet = 0.0
        if self._quiet > self._max_quiet:
            raise ReplyTimeout(
                Phrase(
                    "sent nothing for {seconds:.0f} s that belongs to an answer: ask again, or try "
                    "a smaller model",
                    seconds=self._max_quiet,
                )
            )
        if self._total > self._max_total:
            raise ReplyTimeout(
                Phrase(
                    "has not ended its answer after {seconds:.0f} s: ask again, or try a smaller "
                    "model",
                    seconds=self._total,
                )
            )
