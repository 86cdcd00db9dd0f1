"""The command line, one module a command: `SUMMARY`, `DESCRIPTION`, `add_options` and `run`.

Modules import at their top only what `--help` needs; torch and the rest are loaded when the command
runs, so that help and mistakes in options take no seconds.
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
    """The module of a command."""
    return import_module(f"{__name__}.{name}")
