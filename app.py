"""Opens the app. `python app.py --help` lists the options.

Each has an environment variable too, for Spaces.
"""

import signal
import sys

from app.options import read_options

options = read_options()  # `--help` ends here, before anything heavy is loaded

from app.serving import ModelServer  # noqa: E402
from app.space import borrowed_gpu  # noqa: E402
from app.ui import build, launch  # noqa: E402
from app.uploads import end  # noqa: E402
from coprs_core.errors import CoPRSError  # noqa: E402

at_once = options.listening.at_once
server = ModelServer(options.model, options.loading, borrowed_gpu(), at_once)
demo = build(server, options.listening.may_switch)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: end(0))
    try:
        launch(demo, options.listening)
        server.wait()  # the model is loaded behind the page
        demo.block_thread()
    except CoPRSError as problem:
        print(f"error: {problem}", file=sys.stderr, flush=True)
        end(1)
    except OSError as problem:
        reason = problem.strerror or problem
        print(f"error: {reason}: check the path, its permissions and the disk.", file=sys.stderr)
        end(1)
