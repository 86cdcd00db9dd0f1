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

RECIPE, LOG, CHECKPOINT = "recipe.json", "metrics.jsonl", "checkpoint"
_CHANGEABLE = (
    *("steps", "rows_at_once", "rate", "warmup_rate", "prior", "prompt_encoder", "mask_decoder"),
    *("final_rate", "checkpointing", "vllm", "most_kl", "save_every", "pictures"),
)
"""What a run may go on with otherwise than it began."""


def check_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Raises `CoPRSError` where a folder holds another run, by the values of a recipe."""
    check_settings(folder, read_settings(folder / RECIPE), recipe, _CHANGEABLE)


def keep_recipe(recipe: dict[str, Any], folder: Path) -> None:
    """Write what a folder's run rests on."""
    write_settings(folder / RECIPE, recipe)


def forget_after(step: int, folder: Path) -> None:
    """Take the log's steps after one that is gone on from, and a line cut short, out of it."""
    path = folder / LOG
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
def told_to_stop() -> Generator[Callable[[], bool], None, None]:
    """Inside, SIGTERM ends nothing by itself: what is given says whether it came."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield lambda: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)


def in_any_process(is_so: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes that train together; all of them ask."""
    if not dist.is_initialized():
        return is_so
    told = torch.tensor(float(is_so), device=device)
    dist.all_reduce(told)
    return bool(told > 0)


def last_step(folder: Path) -> str | None:
    """The last step that was saved to its end: the trainer's state is written last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=step_of)) if whole else None


def step_of(saved: Path | str) -> int:
    """The number of a saved step."""
    return int(Path(saved).name.split("-")[1])
