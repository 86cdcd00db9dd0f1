"""The app's options, from the command line and from environment variables; loads no library."""

import argparse
import os
import sys
from dataclasses import dataclass, fields

from coprs_core.checkpoints.options import DETAIL_LEVELS, SAM_NAMES, LoadOptions

_GB = 10**9


@dataclass(frozen=True)
class ServerOptions:
    """Where the app listens, and within which bounds.

    Attributes:
        host, port: `port` is empty for the first free one from 7860.
        names: further names by which the page is reached.
        password: NAME:PASSWORD, or empty for everybody.
        queue: how many questions may wait.
        at_once: how many questions are answered at once.
        uploads: bytes that all uploads together may take on the disk.
    """

    host: str = "127.0.0.1"
    port: str = ""
    names: tuple[str, ...] = ()
    password: str = ""
    queue: int = 20
    at_once: int = 16
    uploads: int = 2 * _GB

    @property
    def is_local(self) -> bool:
        """Whether only programs of this machine can connect."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    @property
    def may_switch(self) -> bool:
        """Whether whoever sees the page may switch the model: only on one's own machine."""
        return self.is_local and not self.names


_OPTIONS = {
    "model": (
        "mini",
        "a name of `coprs models`, auto (the best for photos that fits this "
        "machine), a folder, a Hugging Face id, or openai:NAME@http://host:port/v1",
    ),
    "device": ("auto", "auto, cuda, cuda:1, mps or cpu"),
    "dtype": ("auto", "auto, bf16, fp16 or fp32"),
    "quantize": ("auto", "auto (on a CPU from 1 GB of weights on), none, nf4 or int8"),
    "sam": (
        "auto",
        f"auto, {', '.join(SAM_NAMES)}, a file or a folder, for models that write coordinates",
    ),
    "detail": (
        "auto",
        f"auto (low on a CPU), {', '.join(DETAIL_LEVELS)}: how closely such a model sees a photo",
    ),
    "host": (ServerOptions.host, "address to listen on; 0.0.0.0 for all"),
    "port": ("", "port to listen on (default: the first free one from 7860)"),
    "names": ("", "further names of this page, with commas, such as a proxy's: coprs.example.org"),
    "queue": (str(ServerOptions.queue), "how many questions may wait; more are told to come back"),
    "at-once": (str(ServerOptions.at_once), "how many questions are answered at once"),
    "uploads": (str(ServerOptions.uploads // _GB), "GB of disk that all uploads together may take"),
    "password": ("", "NAME:PASSWORD that visitors must give (default: none is asked for)"),
}


@dataclass(frozen=True)
class Options:
    """What the app is started with; `loading` says how models are loaded."""

    model: str
    loading: LoadOptions
    server: ServerOptions


def read_options(arguments: list[str] | None = None) -> Options:
    """The options as given; each has an environment variable COPRS_… in whose place it stands.

    A Space says where to listen by GRADIO_SERVER_NAME; ours wins.
    """
    parser = argparse.ArgumentParser(
        description="CoPRS: ask for a thing in words, watch the model think, focus and draw."
    )
    for name, (default, meaning) in _OPTIONS.items():
        if name == "host":
            default = os.environ.get("GRADIO_SERVER_NAME", default)
        value = os.environ.get(f"COPRS_{name.upper().replace('-', '_')}", default)
        now = "" if name in ("port", "names", "password") else " (now %(default)s)"
        field = "quantization" if name == "quantize" else name.replace("-", "_")
        parser.add_argument(f"--{name}", dest=field, default=value, help=meaning + now)
    given, unknown = parser.parse_known_args(arguments)
    for option in unknown:  # whoever hosts the page may add some of their own
        print(f"warning: the option {option} is not known: see --help.", file=sys.stderr)
    return Options(
        model=given.model,
        loading=LoadOptions(**{f.name: getattr(given, f.name) for f in fields(LoadOptions)}),
        server=ServerOptions(
            host=given.host,
            port=given.port,
            names=tuple(n.strip() for n in given.names.split(",") if n.strip()),
            password=given.password,
            queue=_parse_count("queue", given.queue),
            at_once=_parse_count("at-once", given.at_once),
            uploads=_parse_count("uploads", given.uploads) * _GB,
        ),
    )


def _parse_count(name: str, given: str) -> int:
    if not given.isdecimal() or not 1 <= int(given) <= 10_000:
        sys.exit(f"error: --{name} is {given!r} and a whole number from 1 to 10000 was expected.")
    return int(given)
