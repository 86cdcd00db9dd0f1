"""Opens the app. `python app.py --help` lists the options.

Each has an environment variable too, for Spaces.
"""

import signal

from app.options import read_options
from coprs_core.model.backends.remote.proxies import bypass_proxies

options = read_options()  # `--help` ends here, before anything heavy is loaded

with bypass_proxies():  # Gradio opens a connection as it is imported, and uses it never
    from app.server.model import ModelServer
    from app.server.space import borrowed_gpu
    from app.server.uploads import end, exit_on_user_error
    from app.ui import build, launch

with exit_on_user_error():
    at_once = options.listening.at_once
    server = ModelServer(options.model, options.loading, borrowed_gpu(), at_once, starts=False)
    demo = build(server, options.listening.may_switch)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: end(0))
    with exit_on_user_error():
        launch(demo, options.listening)
        server.start()  # the model is loaded behind the page
        server.wait()
        demo.block_thread()
