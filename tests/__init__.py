"""The tests mirror the packages, path for path; what concerns the whole product stands here."""

import socket
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def free_port() -> int:
    """A port that nobody listens on: two runs of the tests may share a machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
