"""The app's options, from the command line and from environment variables; loads no library."""

import argparse
import os
import sys
from dataclasses import dataclass

from coprs_core.checkpoints.options import LoadOptions

_DEFAULT_HOST = "127.0.0.1"
_OPTIONS = {
    "model": ("mini", "a name of `python -m coprs_core models`, a folder or a Hugging Face id"),
    "device": ("auto", "auto, cuda, cuda:1, mps or cpu"),
    "dtype": ("auto", "auto, bf16, fp16 or fp32"),
    "quantize": ("none", "none, nf4 or int8"),
    "sam": ("vit_h", "vit_b, vit_l, vit_h or a .pth file, for models that write coordinates"),
    "host": (_DEFAULT_HOST, "address to listen on; 0.0.0.0 for all"),
    "port": ("", "port to listen on (default: the first free one from 7860)"),
    "password": ("", "NAME:PASSWORD that visitors must give (default: none is asked for)"),
}


@dataclass(frozen=True)
class Options:
    """What the app is started with; `loading` says how models are loaded."""

    model: str
    loading: LoadOptions
    host: str
    port: str
    password: str

    @property
    def may_switch(self) -> bool:
        """Whether whoever sees the page may switch the model: only on one's own machine."""
        return self.host in ("127.0.0.1", "localhost")


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
        value = os.environ.get(f"COPRS_{name.upper()}", default)
        now = "" if name in ("port", "password") else " (now %(default)s)"
        parser.add_argument(f"--{name}", default=value, help=meaning + now)
    given, unknown = parser.parse_known_args(arguments)
    for option in unknown:  # whoever hosts the page may add some of their own
        print(f"warning: the option {option} is not known: see --help.", file=sys.stderr)
    return Options(
        model=given.model,
        loading=LoadOptions(given.device, given.dtype, given.quantize, given.sam),
        host=given.host,
        port=given.port,
        password=given.password,
    )
