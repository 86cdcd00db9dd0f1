"""Callbacks of a training run: log and progress, its end where it diverges, sample figures."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import TrainerCallback

from coprs_core.answer.engine import Engine
from coprs_core.answer.pictures import chain_figure
from coprs_core.checkpoints.sources import Checkpoint
from coprs_core.datasets.dataset import Dataset
from coprs_core.errors import CoPRSError
from coprs_core.training.recipe import JointRecipe
from coprs_core.training.run_folder import LOG_FILE, find_last_step, is_true_anywhere, truncate_log

_PROGRESS_LABELS = {
    "loss": "loss",
    "reward": "reward",
    "rewards/form/mean": "form",
    "prior_iou": "prior",
    "mask_iou": "mask",
    "kl": "kl",
    "flat": "flat",
}
_DIVERGENCE_LABELS = {"kl": "KL", "loss": "loss", "grad_norm": "gradient"}


class TrainingMonitor(TrainerCallback):
    """Writes the log, shows the progress, ends a run that diverges or is asked to stop."""

    def __init__(self, folder: Path, recipe: JointRecipe, stage: str = "joint"):
        self.folder, self.recipe, self.stage = folder, recipe, stage
        self.steps = recipe.steps if stage == "joint" else recipe.warmup_steps
        self.stop_requested: Callable[[], bool] = lambda: False
        self.was_stopped = False
        self.bar: Any = None
        self._began, self.step_seconds = 0.0, list[float]()

    def on_train_begin(self, args, state, control, **_):
        is_first = state.is_world_process_zero
        first = state.global_step
        if is_first:
            truncate_log(first, self.folder)
        self.bar = tqdm(total=self.steps, initial=first, desc=self.stage, disable=not is_first)

    def on_step_begin(self, args, state, control, **_):
        self._began = time.monotonic()

    def on_step_end(self, args, state, control, **_):
        self.step_seconds.append(time.monotonic() - self._began)
        self.bar.update()
        is_told = is_true_anywhere(self.stop_requested(), args.device)
        is_between = self.stage != "joint" or state.global_step % self.recipe.iterations == 0
        if is_told and is_between:  # else its replies, which nobody keeps, are learnt from again
            self.was_stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **_):
        self.bar.close()

    def on_log(self, args, state, control, logs=None, **_):
        nan = math.nan  # TRL tells None in its place
        logs = {k: nan if v is None else float(v) for k, v in (logs or {}).items()}
        if "loss" not in logs:
            return
        if state.is_world_process_zero:
            with (self.folder / LOG_FILE).open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        progress = {
            short: f"{logs[name]:.3f}" for name, short in _PROGRESS_LABELS.items() if name in logs
        }
        self.bar.set_postfix(progress, refresh=False)
        has_nan = not all(map(math.isfinite, logs.values()))
        if has_nan or logs.get("kl", 0) > self.recipe.most_kl:
            last = find_last_step(self.folder)
            good = f"the last good step is in {last}" if last else "no step was saved"
            key = "rate" if self.stage == "joint" else "warmup_rate"
            values = ", ".join(
                f"{n} {logs[k]:.2g}" for k, n in _DIVERGENCE_LABELS.items() if k in logs
            )
            raise CoPRSError(
                f"The run diverged at step {state.global_step} ({values}): {good}; go on from it "
                f"with a lower rate, such as --set {key}={getattr(self.recipe, key) / 3:.1g}."
            )


class SampleFigures(TrainerCallback):
    """With every saved step, thought, prior and mask of the first items as pictures."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, dataset: Dataset, recipe: JointRecipe):
        self.folder, self.checkpoint, self.dataset, self.recipe = (
            folder,
            checkpoint,
            dataset,
            recipe,
        )

    def on_save(self, args, state, control, **_):
        if not state.is_world_process_zero:
            return
        # a new engine: what it keeps of a photo is of the weights of its day
        engine = Engine(self.checkpoint)
        self.folder.mkdir(parents=True, exist_ok=True)
        for i in range(min(self.recipe.pictures, len(self.dataset))):
            example = self.dataset[i]
            photo, most = example.load_photo(), self.recipe.max_new_tokens
            result = engine.segment(photo, example.instruction, max_new_tokens=most)
            figure = chain_figure(np.asarray(photo.image), result)
            figure.savefig(self.folder / f"step-{state.global_step:05}-{i}.png", dpi=90)
