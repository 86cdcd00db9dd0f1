"""A server of OpenAI's chat protocol on this machine that does what a test says."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatHandler(BaseHTTPRequestHandler):
    """Hands every question to `server.act(handler, asked)`."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.server.headers.append({n.lower(): v for n, v in self.headers.items()})
        self.server.paths.append(self.path)
        try:
            self.server.act(self, asked)
        except OSError:  # whoever asked has gone
            self.server.left.set()

    def begin(self, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, data: bytes | str) -> None:
        data = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        self.server.written += len(data)
        self.wfile.write(data)
        self.wfile.flush()

    def event(self, values: object) -> None:
        self.write(f"data: {values if isinstance(values, str) else json.dumps(values)}\n\n")

    def delta(self, finish: str | None = None, **delta: object) -> None:
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


Act = Callable[[ChatHandler, dict], None]


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.left, self.written = threading.Event(), 0
        self.act: Act = answers("A hat.")
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_):
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def answers(*pieces: str) -> Act:
    """An ordinary reply."""

    def act(handler: ChatHandler, asked: dict) -> None:
        handler.begin()
        for piece in pieces:
            handler.delta(content=piece)
        handler.delta("stop")
        handler.event("[DONE]")

    return act
