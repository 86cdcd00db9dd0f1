"""ASGI middleware that checks each request before Gradio sees it: host, origin, password, size."""

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
from gradio.route_utils import FnIndexInferError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import JSONResponse

from app.options import ServerOptions
from app.server.uploads import (
    BAD_INPUTS,
    NOT_UPLOADED,
    UPLOADS_FULL,
    has_room,
    remove_partial_uploads,
    use_private_folder,
)
from app.texts import parse_language, translate

MAX_WRONG_PASSWORDS, WINDOW_SECONDS = 20, 60.0
"""So many in so many seconds, from anywhere; then nobody can log in until they are over."""
UNREAD_TIMEOUT = 10.0
"""A question whose answer nobody has begun to read after this is given up."""
MAX_BODY_BYTES = 8_000_000
"""Of a request that is no upload, in bytes: a prior of 48 million pixels takes 300,000."""
MAX_SESSION_NAME = 100
"""Characters of a session's name, which is kept long after it was used: a browser gives it about
11, a program 36."""
MAX_UPLOAD_BYTES = 44_000_000
"""Of a request with one file of 40 MiB."""
UPLOAD_TOO_LARGE = "A file of at most 40 MB was expected: send one smaller file at a time."
QUEUE_FULL = "Too many people are asking at the moment: try again in a minute."
NO_ENDPOINT = "There is no such endpoint: see “Use via API” at the foot of the page."
NO_SUCH_PAGE = "There is nothing at this address: open the page at /."
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PUBLIC_PATHS = (
    *("/login", "/assets/", "/static/", "/svelte/", "/theme.css", "/favicon.ico"),
    "/gradio_api/startup-events",
)
_ALLOWED_PATHS = re.compile(
    r"/|/(login|logout|config|theme\.css|favicon\.ico|robots\.txt)/?|/(assets|static|svelte)/.+"
    r"|/gradio_api/("
    r"(info|openapi\.json|app_id|login_check|user|token|startup-events|theme\.css)/?"
    r"|(upload|upload_progress|component_server|cancel|reset|run/predict)/?"
    r"|queue/(join|data|status)/?|heartbeat/[\w-]+|call/(v2/)?[\w-]+(/[\w-]+)?/?"
    r"|file=.+)",
    re.DOTALL,
)
"""What the page and its clients ask for. Gradio has more doors, among them a proxy to any host and
one that writes a file each time it is asked."""


class Guard:
    """ASGI middleware around a page's app; names, password and bounds are those of `options`."""

    def __init__(self, app: Any, options: ServerOptions, page: gr.Blocks):
        self.app, self.options, self.page = app, options, page
        self.on_space = bool(os.environ.get("SPACE_ID"))
        self.headers = {
            "Content-Security-Policy": content_security_policy(self.on_space),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
        }
        self.wrong_passwords: deque[float] = deque(maxlen=MAX_WRONG_PASSWORDS)
        self.reader_counts: Counter[str] = Counter()
        self.upload_count = 0

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sender: Any = _ResponseSender(send, self.headers)
        scope = scope | {"headers": self._trusted_headers(scope["headers"])}
        try:
            await self._route(scope, receive, sender)
        except Exception as problem:  # Gradio raises anything at all over a stranger's request
            if sender.has_started:
                raise
            print(f"error: {scope['path']}: {problem!r:.200}", file=sys.stderr, flush=True)
            await _error_response(scope, 400, BAD_INPUTS)(scope, receive, sender)

    async def _route(self, scope: dict, receive: Any, send: Any) -> None:
        if refusal := self._check_request(scope):
            await refusal(scope, receive, send)
            return
        path = scope["path"].rstrip("/")
        if path.endswith("/upload"):
            await self._upload(scope, receive, send)
            return
        if scope["method"] == "POST":
            body = await _read_body(receive)
            if len(await _session_name(scope, body)) > MAX_SESSION_NAME:
                await _error_response(scope, 400, BAD_INPUTS)(scope, receive, send)
                return
            receive = _replay_body(body, receive)
        if scope["method"] == "POST" and ("/queue/join" in path or "/gradio_api/call/" in path):
            await self._join_queue(scope, receive, send)
        elif scope["method"] == "POST" and path.endswith("/login"):
            await self._log_in(scope, receive, send)
        else:
            await self._track_reader(scope, receive, send)

    # --- who may ask

    def _check_request(self, scope: dict) -> JSONResponse | None:
        """Why a request goes no further, in a sentence; None where it may."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if self.options.is_local and _host_name(host) not in (*_LOOPBACK, *self.options.names):
            return _error_response(
                scope, 400, "This page is not known by that name: add it with --names NAME."
            )
        opens = headers.get("sec-fetch-mode") == "navigate" and not path.startswith("/logout")
        if not (opens and scope["method"] in _SAFE_METHODS) and self._is_cross_origin(
            headers, host
        ):
            return _error_response(
                scope, 403, "This was asked by another page: open this one and ask there."
            )
        is_login = scope["method"] == "POST" and path.rstrip("/").endswith("/login")
        if not is_login and not self._is_authorized(path, headers):
            return _error_response(scope, 401, "This page asks for a password: log in first.")
        if not _ALLOWED_PATHS.fullmatch(path):
            return _error_response(scope, 404, NO_SUCH_PAGE)
        if (file := path.partition("/gradio_api/file=")[2]) and not _is_served_file(file):
            return _error_response(scope, 403, NOT_UPLOADED)
        if path.rstrip("/").endswith("/upload"):
            if not has_room():
                return _error_response(scope, 507, UPLOADS_FULL)
            if _content_length(headers) > MAX_UPLOAD_BYTES:
                return _error_response(scope, 413, UPLOAD_TOO_LARGE)
        elif _content_length(headers) > MAX_BODY_BYTES:
            return _error_response(
                scope, 413, "This is far larger than an answer: send a result as it came."
            )
        return None

    def _is_cross_origin(self, headers: Headers, host: str) -> bool:
        """Whether a browser says that another page asked; programs say nothing."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site:
            return site not in ("same-origin", "none")
        if origin is None:
            return False
        asked = {host, headers.get("x-forwarded-host", host)}
        netloc = origin.partition("//")[2]
        return netloc not in asked and _host_name(origin) not in self.options.names

    def _is_authorized(self, path: str, headers: Headers) -> bool:
        """Whether a path is free for everybody, or the visitor has logged in."""
        if not self.options.password or path == "/" or path.startswith(_PUBLIC_PATHS):
            return True
        app, cookies = self.page.app, cookie_parser(headers.get("cookie", ""))
        tokens = (cookies.get(f"access-token{kind}-{app.cookie_id}") for kind in ("", "-unsecure"))
        return any(token in app.tokens for token in tokens)

    async def _log_in(self, scope: dict, receive: Any, send: Any) -> None:
        """A password counts as wrong from when it has come until it proves right, so that many at
        once are no way around the bound."""
        wrong, now = self.wrong_passwords, time.monotonic()
        if len(wrong) == MAX_WRONG_PASSWORDS and now - wrong[0] < WINDOW_SECONDS:
            refusal = _error_response(
                scope, 429, "Too many wrong passwords: try again in a minute."
            )
            await refusal(scope, receive, send)
            return
        wrong.append(now)

        async def noticing(message: dict) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                with suppress(ValueError):  # newer ones have pushed it out
                    wrong.remove(now)
            await send(message)

        await self.app(scope, receive, noticing)

    # --- uploads

    async def _upload(self, scope: dict, receive: Any, send: Any) -> None:
        """One upload; nothing stays of one that breaks off, is too large, or finds the disk
        full."""
        self.upload_count += 1
        try:
            await self.app(scope, _limit_body(receive, MAX_UPLOAD_BYTES), send)
        except ClientDisconnect:  # or we read no further
            await _error_response(scope, 413, UPLOAD_TOO_LARGE)(scope, receive, send)
        except OSError:
            await _error_response(scope, 507, UPLOADS_FULL)(scope, receive, send)
        finally:
            self.upload_count -= 1
            if not self.upload_count:
                remove_partial_uploads()

    # --- what is asked and never read

    async def _join_queue(self, scope: dict, receive: Any, send: Any) -> None:
        """A question for the queue: a full one is said in our words, an unread one given up."""
        started, body = {}, b""

        async def gather(message: dict) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                body += message.get("body", b"")

        try:
            await self.app(scope, receive, gather)
        except (FnIndexInferError, LookupError):  # Gradio's, for a name or number it does not have
            await _error_response(scope, 404, NO_ENDPOINT)(scope, receive, send)
            return
        answer = _parse_json(body)
        if started["status"] == 503:
            # of this status the page's own script says something else
            from_page = "sec-fetch-site" in Headers(scope=scope)
            await _error_response(scope, 429 if from_page else 503, QUEUE_FULL)(
                scope, receive, send
            )
            return
        if event_id := answer.get("event_id"):
            task = asyncio.create_task(self._cancel_unread(event_id))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await send(started)
        await send({"type": "http.response.body", "body": body})

    async def _cancel_unread(self, event_id: str) -> None:
        # Gradio's own queue: its public /cancel wants a session and a function's number, which a
        # client of /call never learns, and takes from the queue without stopping what runs
        queue = self.page._queue
        event = queue.event_ids_to_events.get(event_id)
        if event is None:
            return
        await asyncio.sleep(UNREAD_TIMEOUT)
        if not self.reader_counts[event.session_hash] and not self.reader_counts[event_id]:
            await queue.clean_events(event_id=event_id)

    async def _track_reader(self, scope: dict, receive: Any, send: Any) -> None:
        """Notes which stream of answers is being read."""
        key = _stream_key(scope)
        if not key:
            await self.app(scope, receive, send)
            return
        self.reader_counts[key] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.reader_counts[key] -= 1
            if not self.reader_counts[key]:
                del self.reader_counts[key]

    # --- headers

    def _trusted_headers(self, headers: list) -> list:
        """Without what a stranger may say of where this page lies: a proxy on a Space is
        believed, and elsewhere one that gives a known name."""
        if self.on_space:
            return headers
        known = (*_LOOPBACK, *self.options.names)
        return [
            (name, value)
            for name, value in headers
            if name != b"x-gradio-server"
            and (name != b"x-forwarded-host" or _host_name(value.decode("latin-1")) in known)
        ]


class _ResponseSender:
    """Sends an answer with our headers; knows whether it `has_started`."""

    def __init__(self, send: Any, headers: dict[str, str]):
        self._send, self._headers, self.has_started = send, headers, False

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.has_started = True
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            headers.update(self._headers)
            message = message | {"headers": headers.raw}
        await self._send(message)


async def _read_body(receive: Any) -> bytes:
    """A whole body; raises `ClientDisconnect` where it breaks off, or is over `MAX_BODY_BYTES`."""
    body, bounded = bytearray(), _limit_body(receive, MAX_BODY_BYTES)
    while (message := await bounded())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)
    raise ClientDisconnect


def _replay_body(body: bytes, receive: Any) -> Any:
    """A body that was read already, to be read again; then what comes after it."""
    left = [{"type": "http.request", "body": body}]

    async def receiving() -> dict:
        return left.pop() if left else await receive()

    return receiving


async def _session_name(scope: dict, body: bytes) -> str:
    """The name of a session in a body, in either form that Gradio takes; else empty."""
    name = _parse_json(body).get("session_hash")
    if Headers(scope=scope).get("content-type", "").startswith("multipart/"):
        with suppress(Exception):  # Gradio reads it next, and says what is wrong
            async with Request(scope, _replay_body(body, None)).form(
                max_part_size=MAX_BODY_BYTES
            ) as form:
                name = form.get("session_hash")
    return name if isinstance(name, str) else ""


def _is_served_file(file: str) -> bool:
    """Whether what is asked for is a file that was uploaded or is given out; never an address,
    which Gradio would fetch, and which `..` can make look like a path in any folder."""
    try:
        path = Path(file)
        return path.is_absolute() and path.resolve().is_relative_to(use_private_folder())
    except (OSError, ValueError, RuntimeError):  # no path at all
        return False


def _content_length(headers: Headers) -> int:
    """The length of a body, as it is stated; 0 where it is not."""
    stated = headers.get("content-length", "")
    return int(stated) if stated.isdecimal() else 0


def _limit_body(receive: Any, most: int) -> Any:
    """Reads a body, whatever length it states, up to so many bytes and no further."""
    read = 0

    async def receiving() -> dict:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return message if read <= most else {"type": "http.disconnect"}

    return receiving


def content_security_policy(on_space: bool) -> str:
    """The Content-Security-Policy: everything from this server, and on a Space from the site around
    it; Gradio's page needs inline and evaluated scripts."""
    framed_by = "'self' https://huggingface.co" if on_space else "'self'"
    other = " https://cdnjs.cloudflare.com https://huggingface.co" if on_space else ""
    return (
        f"default-src 'self' data: blob:{other}; "
        f"script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:{other}; "
        "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'self'; "
        f"form-action 'self'; frame-ancestors {framed_by}"
    )


def _error_response(scope: dict, status: int, sentence: str) -> JSONResponse:
    language = parse_language(Headers(scope=scope).get("accept-language"))
    return JSONResponse({"detail": translate(language, sentence)}, status)


_HOST_PATTERN = re.compile(r"(?:\w+://)?(?:\[([0-9a-fA-F:]+)\]|([\w.-]+))(?::\d+)?")


def _host_name(host: str) -> str:
    """The name in a Host header or an origin, without its port; "" where it is no such thing."""
    found = _HOST_PATTERN.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""


def _stream_key(scope: dict) -> str:
    """What a request reads: a session's stream of messages, one event, or nothing of the kind."""
    path = scope["path"].rstrip("/")
    if path.endswith("/queue/data"):
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        return query.get("session_hash", [""])[0]
    return path.rsplit("/", 1)[-1] if "/gradio_api/call/" in path else ""


def _parse_json(body: bytes) -> dict:
    try:
        values = json.loads(body)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
