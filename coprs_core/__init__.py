"""CoPRS: interpretable reasoning segmentation.

The public names are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from coprs_core.threads import limit_thread_spinning

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine, Update, load
    from coprs_core.answer.results import Region, Result
    from coprs_core.errors import CoPRSError

__all__ = ["CoPRSError", "Engine", "Region", "Result", "Update", "load"]
limit_thread_spinning()  # whatever of this package is imported first, this comes before torch
_MODULES = {
    "CoPRSError": "errors",
    "Engine": "answer.engine",
    "Region": "answer.results",
    "Result": "answer.results",
    "Update": "answer.engine",
    "load": "answer.engine",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
