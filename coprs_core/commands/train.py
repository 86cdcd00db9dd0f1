"""`train`: train the miniature from scratch, or any CoPRS checkpoint jointly; or resume a run."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from coprs_core.commands.options import (
    DEVICE_HELP,
    disable_telemetry,
    missing_libraries_as_user_error,
    non_negative_int,
    positive_int,
    process_device,
)

if TYPE_CHECKING:
    from coprs_core.training.plan import TrainingPlan
    from coprs_core.training.recipe import JointRecipe

MAX_BYTES_TIMED_ON_CPU = 2 * 10**9
"""Of a run whose weights, gradients and moments take more memory no step is measured on a CPU."""
SUMMARY = "train the miniature from scratch, or a checkpoint jointly"
MINI = "mini"
DESCRIPTION = """\
Train by a recipe. A run that was stopped goes on where it left off; the finished
checkpoint is OUT/checkpoint, and --model takes it.

mini        the miniature from scratch, on scenes drawn as it goes: the vision tower,
            the image encoder with prior and decoder, the language model, then all of
            them jointly. Sizes and stages: coprs_core/training/recipes/mini.toml.
mini-joint  the bundled miniature by the paper's unified objective: GRPO on the
            thought, segmentation loss on prior and mask, in one backward pass.
qwen3-vl-2b-1gpu, qwen2.5-vl-3b-1gpu
            the same for models of photos on a card of 24 GB, after a supervised
            warm-up that teaches the form of a reply.
qwen2.5-vl-3b-8gpu, qwen2.5-vl-7b-8gpu
            the same on eight cards of 80 GB, started by torchrun.
FILE.toml   a recipe of your own; those of this repository lie in
            coprs_core/training/recipes.

Joint training needs more libraries:
  pip install -e ".[train]"

examples:
  coprs train mini --out runs/mini
  coprs train mini-joint --out runs/joint --set steps=60
  coprs train qwen3-vl-2b-1gpu --data path/to/folder --dry-run
  coprs train mini-joint --out runs/own --model runs/mini/checkpoint \\
      --data path/to/folder
"""


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="mini, the name of another recipe, or a .toml file")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="checkpoints and logs (default runs/RECIPE)",
    )
    add("--model", metavar="NAME", help="joint: the checkpoint to begin with")
    add(
        "--data",
        metavar="NAME|DIR",
        help="joint: scenes, a folder with an items.jsonl, or a data set as in evaluate",
    )
    add("--root", metavar="DIR", help="joint: the folder of a data set that has a name")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a line of the recipe; may be given again",
    )
    add("--dry-run", action="store_true", help="joint: say what it will take, and stop")
    add(
        "--stage",
        metavar="NAME",
        help="mini: this stage of the recipe alone (default: all that are left)",
    )
    add("--device", default="auto", help=DEVICE_HELP)
    add(
        "--workers",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="mini: processes that draw scenes (default 0: the run itself)",
    )
    add("--threads", type=positive_int, metavar="N", help="CPU threads (default: all)")


def run(options: Namespace) -> int:
    options.out = options.out or Path("runs") / Path(options.recipe).name.removesuffix(".toml")
    return _train_mini(options) if options.recipe == MINI else _train_joint(options)


def _train_mini(options: Namespace) -> int:
    from coprs_core.errors import CoPRSError
    from coprs_core.export.archive import make_writable_folder
    from coprs_core.machine import rank_and_world_size
    from coprs_core.mini.train import recipe
    from coprs_core.mini.train.run import train_miniature

    if options.data or options.root or options.model or options.dry_run:
        raise CoPRSError(
            "--data, --root, --model and --dry-run belong to joint training: leave them out."
        )
    is_done = train_miniature(
        recipe.read_mini_recipe(options.set),
        make_writable_folder(options.out),
        options.device,
        options.workers,
        options.stage,
        options.threads,
    )
    if not is_done and rank_and_world_size()[0] == 0:
        print(f"stopped: {options.out} goes on where it is")
    return 0


def _estimate_time(recipe: "JointRecipe", planned: "TrainingPlan", device: str) -> str:
    """How long a run will take, in words, from steps that are timed here."""
    from coprs_core.machine import choose_device
    from coprs_core.storage import format_bytes

    if choose_device(device).type == "cpu" and sum(planned.parts.values()) > MAX_BYTES_TIMED_ON_CPU:
        return (
            "How long it takes is not measured: without a GPU a step of this model may take hours."
        )
    if not recipe.steps:
        return "How long a warm-up takes is not measured."
    if recipe.sharded:
        return "How long it takes is not measured for sharded weights."
    try:
        from coprs_core.training.run_joint import measure_step
    except ModuleNotFoundError as problem:
        return f"How long it takes is not measured: {problem.name} is not installed."
    print(f"measuring {1 + recipe.iterations} steps …", file=sys.stderr)
    seconds, peak = measure_step(recipe, device)
    whole = seconds * recipe.steps / 3600
    return (
        f"A step takes {seconds:.1f} s and {format_bytes(peak)} of memory at its peak here "
        f"({recipe.iterations} measured), all {recipe.steps} about {whole:.1f} h; warm-up, saved "
        "steps and pictures come on top."
    )


def _restrict_to_one_gpu(device: str) -> str:
    """Let a single process see one GPU alone, since the trainers' libraries spread over all that
    they see; returns the name of its device then."""
    kind, _, number = device.partition(":")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = None if visible is None else visible.split(",")
    if "LOCAL_RANK" in os.environ or kind not in ("auto", "cuda") or not (number or "0").isdigit():
        return device
    index = int(number or 0)
    if gpus is not None and (index >= len(gpus) or not gpus[index]):
        return device
    os.environ["CUDA_VISIBLE_DEVICES"] = str(index) if gpus is None else gpus[index]
    return kind


def _toml_string(text: str) -> str:
    """A folder or name as a TOML string, whatever else it could be read as (a folder may be called
    `1` or `true`); without the slash that a shell puts behind a folder."""
    return json.dumps(text.rstrip("/") or text, ensure_ascii=False)


def _train_joint(options: Namespace) -> int:
    disable_telemetry()

    from coprs_core.errors import CoPRSError
    from coprs_core.export.archive import make_writable_folder
    from coprs_core.storage import expand_home
    from coprs_core.training.recipe import read_recipe

    if options.stage or options.workers:
        raise CoPRSError("--stage and --workers belong to the recipe mini: leave them out.")
    overrides = {"model": options.model, "data": options.data, "root": options.root}
    changes = [
        f"{key}={_toml_string(value)}" for key, value in overrides.items() if value is not None
    ]
    recipe = read_recipe(options.recipe, [*options.set, *changes])
    if recipe.model.startswith("runs/") and not Path(recipe.model).is_dir():
        raise CoPRSError(
            f"There is no folder {recipe.model}, with which this run begins: make it with "
            f"`coprs prepare`, or give a checkpoint by --model."
        )
    if expand_home(recipe.model).resolve() == (options.out / "checkpoint").resolve():
        raise CoPRSError(
            f"The model {recipe.model} is what a run in {options.out} leaves, which would replace "
            "it: choose another --out."
        )
    if not recipe.sharded:
        options.device = _restrict_to_one_gpu(options.device)
    if options.dry_run:
        from coprs_core.training.plan import plan_training

        planned = plan_training(recipe, options.out, options.device)
        print(planned.to_text())
        planned.check()
        print(_estimate_time(recipe, planned, options.device))
        return 0

    import torch

    from coprs_core.machine import rank_and_world_size

    with missing_libraries_as_user_error():
        from coprs_core.training.run_joint import train_joint

    if options.threads:
        torch.set_num_threads(options.threads)
    folder, device = make_writable_folder(options.out), process_device(options.device)
    checkpoint = train_joint(recipe, folder, device)
    if rank_and_world_size()[0] == 0:
        stopped = f"stopped: {options.out} goes on where it is"
        print(f"finished: {checkpoint}" if checkpoint else stopped)
    return 0
