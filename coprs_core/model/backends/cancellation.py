"""Cancel a pass through a network between two of its layers, once nobody waits for it any more: on
a CPU a photo is encoded for half a minute."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import nn

from coprs_core.errors import Cancelled

_thread_state = threading.local()


def install_checks(model: nn.Module) -> None:
    """Check before each layer of a model whether its pass is still wanted (see `cancellable`)."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                if _check not in layer._forward_pre_hooks.values():
                    layer.register_forward_pre_hook(_check)


@contextmanager
def cancellable(is_wanted: Callable[[], bool]) -> Generator[None, None, None]:
    """Let a pass through a model with checks, inside and in this thread, raise `Cancelled` once
    `is_wanted()` is False. An inner one replaces an outer one until it ends."""
    previous = current_check()
    _thread_state.is_wanted = is_wanted
    try:
        yield
    finally:
        _thread_state.is_wanted = previous


def current_check() -> Callable[[], bool] | None:
    """The check of this thread; None where every pass goes on to its end."""
    return getattr(_thread_state, "is_wanted", None)


def _check(module: nn.Module, inputs: tuple) -> None:
    is_wanted = current_check()
    if is_wanted is not None and not is_wanted():
        raise Cancelled("This was given up, for nobody waits for it any more: ask again.")
