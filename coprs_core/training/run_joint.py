"""A run of the joint stage: from a recipe to a checkpoint folder, with a log, saved steps, and a
way to go on."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoProcessor, PrinterCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.save import save_checkpoint
from coprs_core.errors import CoPRSError
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.training.items import FolderItems, Items, SceneItems
from coprs_core.training.recipe import JointRecipe
from coprs_core.world.questions import FAMILY_WEIGHTS, Asking

LOG, CHECKPOINT = "metrics.jsonl", "checkpoint"
_KEPT = ("familiar.safetensors",)
"""What a checkpoint keeps of the one that it began as: its image encoder is not trained."""
_SHOWN = {
    "reward": "reward",
    "rewards/form/mean": "form",
    "prior_iou": "prior",
    "mask_iou": "mask",
    "kl": "kl",
    "frac_reward_zero_std": "flat",
}
_MIX = Asking(
    FAMILY_WEIGHTS | {"relation": 2.0, "two steps": 2.0, "exclusion": 1.5, "several": 1.0}, 0.1
)


class Watch(TrainerCallback):
    """Writes the log, shows the progress, ends a run that diverges or was told to stop."""

    def __init__(self, folder: Path, recipe: JointRecipe):
        self.folder, self.recipe, self.is_told = folder, recipe, False
        self.bar: Any = None

    def stop(self, *_: Any) -> None:
        """A signal's handler: the step under way is finished and saved."""
        self.is_told = True

    def on_train_begin(self, args, state, control, **_):
        self.bar = tqdm(total=self.recipe.steps, initial=state.global_step, desc="joint")

    def on_step_end(self, args, state, control, **_):
        self.bar.update()
        if self.is_told:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **_):
        self.bar.close()

    def on_log(self, args, state, control, logs=None, **_):
        logs = {k: float(v) for k, v in (logs or {}).items()}
        if "reward" not in logs:
            return
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")
        shown = {short: f"{logs[name]:.3f}" for name, short in _SHOWN.items() if name in logs}
        self.bar.set_postfix(shown, refresh=False)
        is_lost = not all(map(math.isfinite, logs.values()))
        if is_lost or logs.get("kl", 0) > self.recipe.most_kl:
            last = get_last_checkpoint(str(self.folder))
            good = f"the last good step is in {last}" if last else "no step was saved"
            raise CoPRSError(
                f"The run diverged at step {state.global_step} (KL {logs.get('kl', 0):.2g}, loss "
                f"{logs.get('loss', 0):.2g}): {good}; go on from it with a lower rate, such as "
                f"--set rate={self.recipe.rate / 3:.1g}."
            )


def items_of(recipe: JointRecipe) -> Items:
    """What a recipe trains on."""
    if recipe.data == "scenes":
        return SceneItems(recipe.steps * recipe.questions, _MIX, recipe.other_shapes)
    return FolderItems(Path(recipe.data).expanduser())


def train_joint(recipe: JointRecipe, folder: Path, device: str = "auto") -> Path | None:
    """Run a recipe, or go on where it was left; the finished checkpoint's folder, None where it was
    told to stop before the end (SIGTERM).

    Raises `CoPRSError` where the model has no focus token, the data is none, or the run diverges.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from trl import GRPOConfig

        from coprs_core.training.joint import JointTrainer, Rates
    except ImportError as problem:
        raise CoPRSError(
            f"Joint training needs {problem.name}, which is not installed: "
            "pip install -r coprs_core/training/requirements.txt."
        ) from problem
    items = items_of(recipe)
    checkpoint = load_checkpoint(recipe.model, LoadOptions(device=device))
    segmenter, language = checkpoint.segmenter, checkpoint.language_folder
    if not isinstance(segmenter, FocusTokenSegmenter) or language is None:
        raise CoPRSError(
            f"{checkpoint.name} writes coordinates and has no focus token to train: make a CoPRS "
            "checkpoint of it with `python -m coprs_core prepare`."
        )
    model, objective = segmenter.model.float(), recipe.objective
    model.mllm.config._name_or_path = str(language)  # TRL loads its reference from here
    rows = recipe.questions * objective.group
    args = GRPOConfig(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.rows_at_once,
        gradient_accumulation_steps=rows // recipe.rows_at_once,
        num_generations=objective.group,
        num_iterations=recipe.iterations,
        max_completion_length=recipe.max_new_tokens,
        temperature=recipe.temperature,
        beta=objective.kl,
        epsilon=objective.clip,
        loss_type="bnpo",
        scale_rewards="group",
        use_bias_correction_kl=False,
        reward_weights=[objective.mask_share, 1 - objective.mask_share],
        learning_rate=recipe.rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": recipe.final_rate},
        adam_beta2=0.999,
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=recipe.seed,
        save_strategy="steps",
        save_steps=recipe.save_every,
        save_total_limit=2,
        logging_steps=1,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=model.device.type == "cpu",
        disable_tqdm=True,
    )
    watch = Watch(folder, recipe)
    processor = AutoProcessor.from_pretrained(language, trust_remote_code=False)
    rates = Rates(recipe.prior, recipe.prompt_encoder, recipe.mask_decoder)
    trainer = JointTrainer(model, processor, items, objective, args, rates, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    before = signal.signal(signal.SIGTERM, watch.stop)
    try:
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    finally:
        signal.signal(signal.SIGTERM, before)
    if trainer.state.global_step < recipe.steps:
        return None
    processor = AutoProcessor.from_pretrained(language, trust_remote_code=False)  # as it was
    save_checkpoint(folder / CHECKPOINT, trainer.finished().cpu(), processor, torch.bfloat16)
    for name in _KEPT:
        if (language.parent / name).is_file():
            shutil.copyfile(language.parent / name, folder / CHECKPOINT / name)
    return folder / CHECKPOINT
