"""The file in a run's folder that says what the run rests on, so that it goes on as it began."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from coprs_core.errors import CoPRSError
from coprs_core.parsing import parse_json

NAMES = "backslashreplace"
"""How a file's name that is no UTF-8 is written: in JSON that is its own escape, too."""


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write a run's settings, whole or not at all: several processes may begin together."""
    part = path.with_suffix(f".{os.getpid()}")
    text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    part.write_text(text, encoding="utf-8", errors=NAMES)
    part.replace(path)


def read_settings(path: Path) -> dict[str, Any]:
    """What `write_settings` wrote, nothing where there is no file; raises `CoPRSError` where it is
    broken."""
    try:
        return dict(parse_json(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError) as problem:
        raise CoPRSError(f"{path} is broken: delete it, or choose another --out.") from problem


def check_settings(
    folder: Path, before: dict[str, Any], now: dict[str, Any], changeable: Collection[str] = ()
) -> None:
    """Raises `CoPRSError` where a folder's run began with other settings than are asked for now,
    but for those that may change; what an older run did not write may be anything."""
    for name, value in json.loads(json.dumps(now)).items():  # a tuple was written as a list
        if before.get(name, value) != value and name not in changeable:
            raise CoPRSError(
                f"{folder} holds a run with {name} {before[name]!r}, and {value!r} is asked for: "
                "choose another --out."
            )
