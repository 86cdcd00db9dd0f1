"""Server-sent events of one request to a web server that is not trusted: bounded in bytes, neither
compressed nor redirected, and cancelled at once.

The request is a task of an event loop in a thread of its own. Cancelling it ends it wherever it
waits (for a connection, for a byte); closing a socket under a thread that reads from it does not.
"""

import asyncio
import codecs
import queue
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

import httpx2

from coprs_core.errors import Phrase

MAX_EVENT_BYTES = 1 << 20
"""Of one event, or of a body that is none: a delta of a reply is a few hundred bytes, a reply of
8,192 tokens in one event some 50,000."""
MAX_ERROR_BYTES = 1 << 16
"""Of the body of an error."""
CONNECT_SECONDS = 10.0
POLL_SECONDS = 0.5
"""How often whoever waits gets a chance to stop."""

DONE = b"[DONE]"
"""The data with which a server says that its answer is whole."""
_OTHER_FIELDS = (b":", b"event:", b"id:", b"retry:")
CONNECTION_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL, OSError)
"""What ends a request other than the server's answer."""


@dataclass(frozen=True)
class Request:
    """A POST of JSON.

    Attributes:
        url, api_key, body: where to, the bearer token, what is sent.
        proxy: the proxy through which it goes; None for none, whatever the environment says.
        certificates: which certificates are trusted.
        max_bytes: of the whole answer.
    """

    url: str
    api_key: str = field(repr=False)
    body: bytes = field(repr=False)
    proxy: str | None
    certificates: ssl.SSLContext
    max_bytes: int


class RequestRefused(Exception):
    """The server answered with an HTTP status of refusal: its `status`, its `body` (text of at most
    `MAX_ERROR_BYTES`), and the `location` of a redirect."""

    def __init__(self, status: int, body: str = "", location: str = ""):
        super().__init__(f"status {status}")
        self.status, self.body, self.location = status, body, location


class UnacceptableResponse(Exception):
    """The server sent too much, or something compressed; the message says what it did."""


def stream_events(request: Request) -> Generator[bytes | None, None, None]:
    """Post a request; yield the data of each event of the answer, `DONE` included.

    b"" comes once, before them, when the server begins to answer, and None whenever nothing has
    come for `POLL_SECONDS`. A body that is no stream of events is given whole.

    Closing the generator ends the request.

    Raises:
        RequestRefused, UnacceptableResponse: as they say.
        one of `CONNECTION_ERRORS`: the connection failed.
    """
    received: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(_fetch(request, received.put))
    threading.Thread(target=_run_loop, args=(loop, task, received.put), daemon=True).start()
    try:
        while True:
            try:
                event = received.get(timeout=POLL_SECONDS)
            except queue.Empty:
                yield None
                continue
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        with suppress(RuntimeError):  # the loop is closed: the request has ended by itself
            loop.call_soon_threadsafe(task.cancel)


def _run_loop(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[None],
    put: Callable[[BaseException | None], None],
) -> None:
    try:
        loop.run_until_complete(task)
        put(None)
    except BaseException as problem:  # raised again in the thread that waits
        put(problem)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _fetch(request: Request, put: Callable[[bytes], None]) -> None:
    """Send the request, and put every event as it comes."""
    headers = {
        "Authorization": f"Bearer {request.api_key}",
        "Content-Type": "application/json",
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",  # a small compressed body may be a huge text
    }
    async with (
        httpx2.AsyncClient(
            verify=request.certificates,
            proxy=request.proxy,
            trust_env=False,
            follow_redirects=False,
            # no read timeout: the caller counts the seconds without text, also while bytes come
            timeout=httpx2.Timeout(None, connect=CONNECT_SECONDS),
        ) as client,
        client.stream("POST", request.url, content=request.body, headers=headers) as response,
    ):
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        is_plain = encoding in ("", "identity")
        if not response.is_success:
            body = await _read_at_most(response, MAX_ERROR_BYTES) if is_plain else b""
            location = response.headers.get("Location", "")
            raise RequestRefused(response.status_code, body.decode("utf-8", "replace"), location)
        if not is_plain:
            raise UnacceptableResponse(
                Phrase(
                    "sent a compressed answer, which was not asked for: check the address, or "
                    "take another server"
                )
            )
        put(b"")
        async with aclosing(_event_data(response, request.max_bytes)) as data:
            async for event in data:
                put(event)


async def _event_data(response: httpx2.Response, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the data of each event, until [DONE] or the end; the whole body where it is no
    stream of events."""
    data, body, is_stream = bytearray(), bytearray(), False
    async with aclosing(_lines(response, max_bytes)) as lines:
        async for line in lines:
            if line.startswith(b"error:"):  # llama.cpp's, which is no field of the protocol
                line = b'data: {"error": %b}' % line.removeprefix(b"error:")
            if line.startswith(b"data:"):
                text = line.removeprefix(b"data:").strip()
                if text == DONE:
                    if data:
                        yield bytes(data)
                    yield DONE
                    return
                data += b"\n" + text if data else text
                _check_event_size(len(data))
            elif not line and data:  # a blank line ends an event
                yield bytes(data)
                data.clear()
                is_stream = True
            elif not is_stream and not line.startswith(_OTHER_FIELDS):
                body += line
                _check_event_size(len(body))
    if body and not is_stream:  # of a server that does not stream, or of a page
        yield bytes(body)


async def _lines(response: httpx2.Response, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a body, as they come."""
    line, total, bom = bytearray(), 0, codecs.BOM_UTF8
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            total += len(chunk)
            if total > max_bytes:
                raise UnacceptableResponse(
                    Phrase(
                        "sent over {most:,} bytes, more than an answer can be: check the "
                        "address, or take another server",
                        most=max_bytes,
                    )
                )
            *ends, rest = chunk.split(b"\n")
            for end in ends:
                yield bytes(line + end).removeprefix(bom).removesuffix(b"\r")
                line.clear()
                bom = b""  # only the first line may have one
            line += rest
            _check_event_size(len(line))
    yield bytes(line)


async def _read_at_most(response: httpx2.Response, max_bytes: int) -> bytes:
    """Read the first bytes of a body, which may have no end."""
    body = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) >= max_bytes:
                break
    return bytes(body[:max_bytes])


def _check_event_size(size: int) -> None:
    if size > MAX_EVENT_BYTES:
        raise UnacceptableResponse(
            Phrase(
                "sent over {most:,} bytes in one piece, more than a piece can be: check the "
                "address, or take another server",
                most=MAX_EVENT_BYTES,
            )
        )
