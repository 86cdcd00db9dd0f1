"""The folder of a run of the joint stage: its recipe, its log, its saved steps, its checkpoint."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from coprs_core.errors import CoPRSError
from coprs_core.parsing import parse_json
from coprs_core.run_settings import check_settings, read_settings, write_settings

RECIPE_FILE, LOG_FILE, CHECKPOINT_FOLDER = "recipe.json", "metrics.jsonl", "checkpoint"
_CHANGEABLE = (
    *("steps", "rows_at_once", "rate", "warmup_rate", "prior", "prompt_encoder", "mask_decoder"),
    *("final_rate", "checkpointing", "vllm", "most_kl", "save_every", "pictures"),
)
"""Keys that may change when a run is resumed."""


def check_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Raises `CoPRSError` where a folder holds another run, by the values of a recipe."""
    check_settings(folder, read_settings(folder / RECIPE_FILE), recipe, _CHANGEABLE)


def save_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Write the recipe of a run into its folder."""
    write_settings(folder / RECIPE_FILE, recipe)


def truncate_log(step: int, folder: Path) -> None:
    """Drop the log's lines after the step that a run resumes from, and one that was cut short."""
    path = folder / LOG_FILE
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = (line for line in lines if line.endswith("\n"))
    try:
        kept = [line for line in whole if parse_json(line)["step"] <= step]
    except (ValueError, LookupError, TypeError) as problem:
        raise CoPRSError(f"{path} has a line that is no step: delete the line.") from problem
    path.write_text("".join(kept), encoding="utf-8")


@contextmanager
def catch_sigterm() -> Generator[Callable[[], bool], None, None]:
    """Inside, SIGTERM does not end the process; the yielded function says whether it came."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def is_true_anywhere(value: bool, device: torch.device) -> bool:
    """Whether a value is true in any process that trains; all of them must call this."""
    if not dist.is_initialized():
        return value
    total = torch.tensor(float(value), device=device)
    dist.all_reduce(total)
    return bool(total > 0)


def find_last_step(folder: Path) -> str | None:
    """The last step that was saved to its end: the trainer's state is written last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=step_number)) if whole else None


def step_number(saved: Path | str) -> int:
    """The number of a saved step."""
    return int(Path(saved).name.split("-")[1])
