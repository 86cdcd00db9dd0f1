"""Opens the app. `python app.py --help` lists the options; each also has an environment variable for Spaces."""

import argparse
import os
import sys

from app.space import borrowed_gpu
from app.ui import build, launch
from coprs_core import CoPRSError, Shelf

parser = argparse.ArgumentParser(description="CoPRS: ask for a thing in words, watch the model think, focus and draw.")
for option, default, meaning in (
    ("model", "mini", "a name of `python -m coprs_core models`, a folder or a Hugging Face id"),
    ("device", "auto", "auto, cuda, cuda:1, mps or cpu"),
    ("dtype", "auto", "auto, bf16, fp16 or fp32"),
    ("quantize", "none", "none, nf4 or int8"),
    ("sam", "vit_h", "vit_b, vit_l, vit_h or a .pth file, for models that write coordinates"),
    ("host", os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), "address to listen on; 0.0.0.0 for all"),
    ("port", "", "port to listen on (default: the first free one from 7860)"),
    ("password", "", "NAME:PASSWORD that visitors must give (default: none is asked for)"),
):
    chosen = os.environ.get(f"COPRS_{option.upper()}", default)
    parser.add_argument(
        f"--{option}", default=chosen, help=meaning + f" (now {chosen})" * (option not in ("password", "port"))
    )
options = parser.parse_known_args()[0]

shelf = Shelf(options.model, options.device, options.dtype, options.quantize, options.sam, borrowed_gpu())
demo = build(shelf, may_choose=options.host in ("127.0.0.1", "localhost"))

if __name__ == "__main__":
    try:
        launch(demo, options.host, options.port, options.password)
        shelf.wait()  # the model is loaded behind the page
        demo.block_thread()
    except (CoPRSError, OSError) as problem:
        taken = f"cannot listen on {options.host}, port {options.port or 'any'}: choose another --host or --port."
        print(f"error: {problem if isinstance(problem, CoPRSError) else taken}", file=sys.stderr, flush=True)
        os._exit(1)  # without waiting for a model that may still be loading
