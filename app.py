"""Opens the app. `python app.py --help` lists the options; each also has an environment variable for Spaces."""

import argparse
import os
import sys

from app.ui import build, launch
from coprs_core import CoPRSError, Shelf, load

parser = argparse.ArgumentParser(description="CoPRS: ask for a thing in words, watch the model think, focus and draw.")
for option, default, meaning in (
    ("model", "mini", "a name of `python -m coprs_core models`, a folder or a Hugging Face id"),
    ("device", "auto", "auto, cuda, cuda:1, mps or cpu"),
    ("dtype", "auto", "auto, bf16, fp16 or fp32"),
    ("quantize", "none", "none, nf4 or int8"),
    ("sam", "vit_h", "vit_b, vit_l, vit_h or a .pth file, for models that write coordinates"),
    ("host", os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), "address to listen on; 0.0.0.0 for all"),
    ("port", "", "port to listen on (default: the first free one from 7860)"),
):
    chosen = os.environ.get(f"COPRS_{option.upper()}", default)
    parser.add_argument(f"--{option}", default=chosen, help=f"{meaning} (now {chosen or 'free'})")
options = parser.parse_known_args()[0]

try:
    chosen = (options.device, options.dtype, options.quantize, options.sam)
    shelf = Shelf(load(options.model, *chosen), *chosen)
    demo = build(shelf, may_choose=options.host in ("127.0.0.1", "localhost"))
except CoPRSError as problem:
    sys.exit(f"error: {problem}")

if __name__ == "__main__":
    if options.port and not (options.port.isdecimal() and 0 < int(options.port) < 65536):
        sys.exit(f"error: port {options.port!r} is no number from 1 to 65535: choose another --port.")
    try:
        launch(demo, server_name=options.host, server_port=int(options.port) if options.port else None)
    except OSError as problem:
        sys.exit(f"error: cannot listen on {options.host} ({problem}): choose another --host or --port.")
