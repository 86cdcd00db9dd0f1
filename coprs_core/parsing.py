"""JSON and TOML of others' files: whatever is wrong with a text is a `ValueError`.

Python's readers go into lists inside of lists by recursion, and raise a `RecursionError` where they
lie some hundred deep, which is no `ValueError`.
"""

import json
import sys
from importlib import import_module
from typing import Any

from coprs_core.errors import CoPRSError


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises `ValueError` where it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists lie too deep in each other") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The values of a TOML text; raises `ValueError` where it is none, and `CoPRSError` where this
    Python has no reader of it."""
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        reader = import_module(name)
    except ModuleNotFoundError as problem:
        raise CoPRSError(
            f"Recipes need {name} on this Python, which is not installed: pip install {name}."
        ) from problem
    try:
        return reader.loads(text)
    except RecursionError:
        raise ValueError("its lists lie too deep in each other") from None
