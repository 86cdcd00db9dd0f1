"""A long pass through a network ends between two of its layers, once nobody waits for it any more:
on a CPU a photo is read for half a minute."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import nn

from coprs_core.errors import Cancelled

_thread_state = threading.local()


def install_checks(model: nn.Module) -> None:
    """Before each layer of the model it is asked whether the pass is still wanted."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                if _check not in layer._forward_pre_hooks.values():
                    layer.register_forward_pre_hook(_check)


@contextmanager
def cancellable(is_wanted: Callable[[], bool]) -> Generator[None, None, None]:
    """Inside, in this thread, a pass through a watched model goes on while `is_wanted()`; then it
    raises `Cancelled`. One inside of another takes its place, and gives it back."""
    previous = current_check()
    _thread_state.is_wanted = is_wanted
    try:
        yield
    finally:
        _thread_state.is_wanted = previous


def current_check() -> Callable[[], bool] | None:
    """What is asked in this thread; None where every pass goes on to its end."""
    return getattr(_thread_state, "is_wanted", None)


def _check(module: nn.Module, inputs: tuple) -> None:
    is_wanted = current_check()
    if is_wanted is not None and not is_wanted():
        raise Cancelled("This was given up, for nobody waits for it any more: ask again.")
