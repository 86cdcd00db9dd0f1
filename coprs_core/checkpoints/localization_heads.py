"""Localization heads: the attention heads of a model that show where it looks; `calibrate` finds
them.

They are stored beside the cache of Hugging Face, so that a model is calibrated once a machine.
"""

import hashlib
import json
from pathlib import Path

from huggingface_hub import constants

from coprs_core.errors import CoPRSError
from coprs_core.files import without_hidden
from coprs_core.parsing import parse_json


def heads_path(folder: Path) -> Path:
    """The file for the heads of the language model in a folder, named by a hash of its config and
    its weights' sizes."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    # sizes stand for contents: to hash gigabytes would take longer than to load them
    for path in without_hidden(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
    return Path(constants.HF_HOME) / "coprs" / "heads" / f"{digest.hexdigest()[:16]}.json"


def load_heads(folder: Path) -> tuple[int, ...]:
    """The stored heads of the language model in a folder, the best first; none where it was
    not calibrated, or the file is broken."""
    try:
        heads = parse_json(heads_path(folder).read_text(encoding="utf-8"))["heads"]
        return tuple(heads) if all(type(h) is int and 0 <= h < 2**16 for h in heads) else ()
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def save_heads(folder: Path, heads: tuple[int, ...], facts: dict) -> Path:
    """Store the heads of the language model in a folder, with `facts` of how they were chosen."""
    path = heads_path(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"heads": list(heads), **facts}) + "\n", encoding="utf-8")
    except OSError as problem:
        raise CoPRSError(
            "{path} cannot be written ({reason}): set HF_HOME to a folder that can.",
            path=path,
            reason=problem.strerror,
        ) from problem
    return path
