"""A model on a server that speaks OpenAI's chat protocol: what it is asked, what is read of its
reply, and what its refusals mean."""

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
"""A reply that takes longer than this for each token that was asked for is given up."""
MAX_CHARACTERS_PER_TOKEN, MAX_BYTES_PER_TOKEN = 40, 2048
"""A reply of more characters for each token is cut off; one of more bytes is given up (a token
alone takes some 300, with what hosted servers add to it 700)."""
MAX_QUOTED_CHARACTERS = 240
"""Characters of a server's own reason that are quoted."""
_MAX_TOKENS_NAME = re.compile(r"max[_ ]?(?:(?:completion|new|output)[_ ]?)?tokens")
_OPTIONAL_PARAMETERS = {"temperature": 0, "stream": True}
"""What a question does without where a server refuses it."""
_CONTEXT_TOO_LONG = re.compile(r"context|too long|(?:input|prompt) tokens", re.IGNORECASE)


@dataclass(frozen=True)
class ChatEndpoint:
    """A model on a server.

    Attributes:
        url: the address of the protocol, which ends in /v1.
        model: the name by which the server knows it.
        key: its bearer token, which stands in no reply, message or log.
        proxy: the proxy through which it is asked; None for none.
        seconds: a server of which nothing of an answer comes for so long is given up.
        unsupported: the parameters that it has refused as such; they are not sent again.
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

    def stream_reply(self, picture: str, question: str, max_new_tokens: int) -> Iterator[Step]:
        """The reply to a question about a picture (a data URL), as it comes; while nothing comes
        an empty step every half second, so that whoever waits can stop.

        The thought stands between <think> and </think>, whichever way the server sends it.
        Closing the generator ends the request. A parameter that the server refuses is left out,
        or sent by the name that it wants, and the question is asked again.

        Raises:
            CoPRSError: what the server refused or broke off, and what to do.
        """
        asked = self._request_body(picture, question, max_new_tokens)
        while True:
            try:
                yield from self._stream(asked, max_new_tokens)
                return
            except RequestRefused as problem:
                changed = self._drop_refused_parameters(asked, " ".join(parse_error(problem.body)))
                if changed is None:
                    raise self._refusal_error(problem) from None
                asked = changed

    def _request_body(self, picture: str, question: str, max_new_tokens: int) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": question},
        ]
        is_renamed = "max_tokens" in self.unsupported_parameters
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_completion_tokens" if is_renamed else "max_tokens": max_new_tokens,
        }
        return asked | {
            n: v for n, v in _OPTIONAL_PARAMETERS.items() if n not in self.unsupported_parameters
        }

    def _drop_refused_parameters(self, asked: dict[str, Any], named: str) -> dict[str, Any] | None:
        """What was asked, without the parameters that a refusal names; None where it names none.

        Each goes once, so this ends. Without a bound of its own the server ends a reply as it
        sees fit, and here it is cut off as ever.
        """
        changed, named = dict(asked), named.lower()
        for name in _OPTIONAL_PARAMETERS:
            if name in asked and re.search(rf"\b{name}", named):
                del changed[name]
                self.unsupported_parameters.add(name)
        if "max_tokens" in asked and _MAX_TOKENS_NAME.search(named):
            most = changed.pop("max_tokens")
            # elsewhere the number is too large, and would be by any name
            if "max_completion_tokens" in named and re.search("instead|support", named):
                changed["max_completion_tokens"] = most
                self.unsupported_parameters.add("max_tokens")
        return changed if changed != asked else None

    def _stream(self, asked: dict[str, Any], max_new_tokens: int) -> Iterator[Step]:
        """The reply to what is asked; raises `RequestRefused` before anything of it has come."""
        most_bytes = MAX_EVENT_BYTES + MAX_BYTES_PER_TOKEN * max_new_tokens
        address, body = f"{self.url.rstrip('/')}/chat/completions", json.dumps(asked).encode()
        request = Request(address, self.api_key, body, self.proxy, self._certificates, most_bytes)
        reply = ReplyAssembler(MAX_CHARACTERS_PER_TOKEN * max_new_tokens, KeyRedactor(self.api_key))
        clock = ReplyTimer(
            self.quiet_seconds, self.quiet_seconds + MAX_SECONDS_PER_TOKEN * max_new_tokens
        )
        has_begun = False
        try:
            with closing(stream_events(request)) as stream:
                for event in clock.timed(stream):
                    has_begun = has_begun or event is not None
                    length, text = reply.length, reply.add(event) if event else ""
                    if text or clock.is_poll_due:
                        yield Step(text=text, is_waiting=not text)
                    clock.check(reply.length > length)
                    if reply.is_over:
                        break
            yield Step(text=reply.end(), is_end=not reply.is_cut_off)
        except RequestRefused as problem:
            if reply.length:
                raise self._server_error(BROKEN_OFF, parse_error(problem.body)[0]) from None
            raise
        except InvalidReply as problem:
            raise self._server_error(problem.args[0], problem.body) from None
        except (UnacceptableResponse, ReplyTimeout) as problem:
            raise self._server_error(problem.args[0]) from None
        except CONNECTION_ERRORS as problem:
            raise self._connection_error(problem, has_begun) from None

    # --- sentences

    def _server_error(self, fault: str, said: str = "") -> CoPRSError:
        """The sentence for a fault of the server's, with its own reason, without the key."""
        through = why = Phrase("")
        if self.proxy:
            through = Phrase(
                " (through the proxy {proxy})", proxy=proxies.without_password(self.proxy)
            )
        said = truncate(KeyRedactor(self.api_key).redact(said).strip(), MAX_QUOTED_CHARACTERS)
        if said:
            why = Phrase(" (it says “{said}”)", said=said)
        return CoPRSError(
            "The server {server}{through} {fault}{why}.",
            server=self.host,
            through=through,
            fault=fault,
            why=why,
        )

    def _refusal_error(self, problem: RequestRefused) -> CoPRSError:
        """The sentence for a status of refusal, or an error in place of a reply."""
        status, (said, _) = problem.status, parse_error(problem.body)
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
                Phrase("refuses the key: set COPRS_API_KEY to one that it takes"), said
            )
        if status == 404:
            return self._server_error(
                Phrase(
                    "knows no model {model!r} at this address: give "
                    "openai:NAME@http://host:port/v1 with a name that it lists",
                    model=self.model,
                ),
                said,
            )
        if status == 429:
            return self._server_error(
                Phrase("has no room now, or its quota is used up: ask again later"), said
            )
        if 400 <= status < 500:
            advice = _advice(status, said)
            refused = Phrase("refused the question with its picture{advice}", advice=advice)
            return self._server_error(refused, said)
        if not status:
            return self._server_error(Phrase("failed: look at its own messages"), said)
        return self._server_error(
            Phrase("failed (status {status}): look at its own messages", status=status), said
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


def _advice(status: int, said: str) -> Phrase:
    if status == 413:
        return Phrase(" as too large (status 413): let it take bodies of 2 MB")
    if _CONTEXT_TOO_LONG.search(said):
        return Phrase(": serve the model with a longer context, or allow fewer tokens")
    if said:
        return Phrase(": do what it says, or choose a model that reads pictures")
    return Phrase(": choose a model that reads pictures")


class ReplyTimeout(Exception):
    """Nobody waits so long; the message says what the server did."""


class ReplyTimer:
    """Counts the seconds waited for a reply: since its last text, and in all. Those in which nobody
    waits for it, since a page holds it, are not counted."""

    def __init__(self, quiet: float, whole: float):
        self._max_quiet, self._max_total = quiet, whole
        self._quiet = self._total = self._since_poll = 0.0

    def timed(self, events: Iterator[bytes | None]) -> Iterator[bytes | None]:
        """The events, waited for."""
        began = time.monotonic()
        for event in events:
            seconds = time.monotonic() - began
            self._quiet, self._total = self._quiet + seconds, self._total + seconds
            self._since_poll += seconds
            yield event
            began = time.monotonic()

    @property
    def is_poll_due(self) -> bool:
        """Whether it is time that whoever waits may say that they do not any more."""
        return self._since_poll >= POLL_SECONDS

    def check(self, has_text: bool) -> None:
        """After each event; raises `ReplyTimeout`."""
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
