"""Opens the app. `python app.py --help` lists the options.

Each has an environment variable too, for Spaces.
"""

import signal

from app.options import read_options
from coprs_core.model.backends.remote.proxies import bypass_proxies

options = read_options()  # `--help` ends here, before anything heavy is loaded

with bypass_proxies():  # Gradio opens a connection as it is imported, and uses it never
    from app.server.model import ModelServer
    from app.server.space import zero_gpu_worker
    from app.server.uploads import exit_on_user_error, exit_process
    from app.ui import build, launch

with exit_on_user_error():
    at_once = options.server.at_once
    server = ModelServer(
        options.model, options.loading, zero_gpu_worker(), at_once, start_loading=False
    )
    demo = build(server, options.server.may_switch)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: exit_process(0))
    with exit_on_user_error():
        launch(demo, options.server)
        server.start()  # the model is loaded behind the page
        server.wait_until_loaded()
        demo.block_thread()
