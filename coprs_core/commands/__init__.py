"""The command line, one file a command: its page, its options and what it does.

The files import at their top only what `--help` needs; what a command works with is loaded when it
runs.
"""

from importlib import import_module
from types import ModuleType

COMMANDS = (
    "segment",
    "open",
    "scenes",
    "evaluate",
    "compare",
    "ablate",
    "train",
    "models",
    "doctor",
    "convert",
    "prepare",
    "familiar",
    "calibrate",
    "benchmark",
)


def load_command(name: str) -> ModuleType:
    """The file of a command."""
    return import_module(f"{__name__}.{name}")
