"""A run of the joint stage: from a recipe to a checkpoint folder, with a log, saved steps, and a
way to go on."""

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig

from coprs_core.checkpoints.adapters import save_adapters
from coprs_core.checkpoints.convert import merge_adapters
from coprs_core.checkpoints.hugging_face import has_tied_embeddings, load_processor
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.ood_statistics import copy_ood_statistics
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.save import save_checkpoint
from coprs_core.checkpoints.sources import Checkpoint
from coprs_core.checkpoints.tensors import write_errors_as_user_error
from coprs_core.datasets.dataset import Dataset
from coprs_core.errors import CoPRSError, first_line
from coprs_core.machine import (
    is_out_of_memory,
    out_of_memory_as_user_error,
    peak_memory,
    rank_and_world_size,
)
from coprs_core.model.backends.cpu import optimize
from coprs_core.model.coprs import CoPRS
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.storage import expand_home
from coprs_core.training.callbacks import SampleFigures, TrainingMonitor
from coprs_core.training.data import open_training_data
from coprs_core.training.focus import TRAINED_FILE, apply_trained_weights
from coprs_core.training.joint import JointTrainer
from coprs_core.training.plan import ADAPTED_LAYERS, find_full_checkpoint
from coprs_core.training.recipe import JointRecipe
from coprs_core.training.run_folder import (
    CHECKPOINT_FOLDER,
    catch_sigterm,
    check_recipe,
    find_last_step,
    save_recipe,
    step_number,
)
from coprs_core.training.warmup import WarmUpTrainer

WARMUP_FOLDER, ADAPTERS_FOLDER = "warm", "adapters"
EMBEDDINGS_FOLDER = "embeddings"
_MEMORY_ADVICE = "set rows_at_once lower, or train a smaller model or adapters (lora, quantize)"
SUPPORTED_MODEL_TYPES = ("qwen2_5_vl", "qwen3_vl")
"""Architectures, by `model_type`, that training was tested with."""
_VLLM_TIMEOUT_SECONDS = 60.0
"""That a vLLM server is waited for."""


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The model that a stage begins with, made ready for training, and where it came from.

    `adapters` are those of the language model, None where it is trained itself. `embeddings`: where
    SAM's are kept, of pictures that come again in every run.
    """

    name: str
    model: CoPRS
    language: Path
    processor: Any
    adapters: Any
    checkpoint: Checkpoint
    embeddings: Path | None = None


def train_joint(recipe: JointRecipe, folder: Path, device: str = "auto") -> Path | None:
    """Run a recipe, or resume it; returns the finished checkpoint's folder, None where SIGTERM
    stopped it before the end.

    Raises `CoPRSError` where the folder holds another run, the model has no focus token, the data
    is none, or the run diverges.
    """
    disable_progress_bar()
    if recipe.sharded and rank_and_world_size()[1] == 1:
        raise CoPRSError(
            "sharded spreads a model over several processes and this is the only one: start it "
            "with torchrun --nproc_per_node N -m coprs_core …, or leave sharded out."
        )
    check_recipe(_recipe_values(recipe), folder)
    dataset, start, warm = open_training_data(recipe), recipe.model, folder / WARMUP_FOLDER
    _check_divisible(recipe, dataset)
    if recipe.warmup_steps:
        start = str(warm)
        where = folder / f"{WARMUP_FOLDER}-steps", warm, device
        if not (warm / "coprs.json").exists() and not _run_stage(
            _build_warmup, recipe, recipe.model, dataset, *where
        ):
            return None
        if not recipe.steps:
            return warm
    done = folder / CHECKPOINT_FOLDER
    return done if _run_stage(_build_joint, recipe, start, dataset, folder, done, device) else None


def measure_step(recipe: JointRecipe, device: str = "auto") -> tuple[float, int]:
    """Seconds that a step of the joint stage takes here, and the most bytes of memory held till its
    end: the mean over those on the same replies (`iterations`), after a first; all are forgotten.

    Raises `CoPRSError` as `train_joint` does.
    """
    disable_progress_bar()
    steps = 1 + recipe.iterations
    short = replace(recipe, steps=steps, warmup_steps=0, pictures=0)
    with TemporaryDirectory(prefix="coprs-") as name:
        folder = Path(name)
        where, dataset = (folder, folder / EMBEDDINGS_FOLDER, device), open_training_data(short)
        _check_divisible(short, dataset)
        loaded, monitor, trainer = _build_stage(_build_joint, short, recipe.model, dataset, *where)
        trainer.args.save_strategy = SaveStrategy.NO
        with out_of_memory_as_user_error("This training", loaded.model.device, _MEMORY_ADVICE):
            trainer.train()
    return sum(monitor.step_seconds[1:]) / recipe.iterations, peak_memory(loaded.model.device)


def _run_stage(
    make: Callable[..., Any],
    recipe: JointRecipe,
    name: str,
    dataset: Dataset,
    folder: Path,
    out: Path,
    device: str,
) -> bool:
    """Run one stage, its steps in `folder`, and write the checkpoint `out`; False where it was told
    to stop."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = find_last_step(folder)
    steps = recipe.steps if make is _build_joint else recipe.warmup_steps
    is_whole = saved is not None and step_number(saved) >= steps
    if is_whole and _is_newer(out, Path(saved)):
        return True
    where = folder, out.parent / EMBEDDINGS_FOLDER, device
    loaded, monitor, trainer = _build_stage(make, recipe, name, dataset, *where)
    save_recipe(_recipe_values(recipe), out.parent)
    if not recipe.sharded:  # the first process, which draws them, has not all weights then
        trainer.add_callback(SampleFigures(folder / "pictures", loaded.checkpoint, dataset, recipe))
    memory = out_of_memory_as_user_error("This training", loaded.model.device, _MEMORY_ADVICE)
    with memory, write_errors_as_user_error(folder), catch_sigterm() as monitor.stop_requested:
        if is_whole and not recipe.sharded:  # it was killed while the checkpoint was written
            trainer._load_from_checkpoint(saved)
            trainer.state.global_step = step_number(saved)
        else:
            trainer.train(resume_from_checkpoint=saved)
    if trainer.state.global_step < monitor.steps:
        return False
    trainer.save_model(str(folder))  # by all processes, before the heads are detached
    if trainer.is_world_process_zero():
        _write_checkpoint(trainer, loaded, folder, out)
    trainer.accelerator.wait_for_everyone()
    # a warm-up that was stopped in its last step is whole, and yet the joint stage must not begin
    return make is _build_joint or not monitor.was_stopped


def _recipe_values(recipe: JointRecipe) -> dict[str, Any]:
    """The values by which a folder knows its run again."""
    return {"kind": "joint", **asdict(recipe)}


def _check_divisible(recipe: JointRecipe, dataset: Dataset) -> None:
    """Raises `CoPRSError` where the processes cannot share a step evenly."""
    _, world_size = rank_and_world_size()
    if recipe.warmup_steps and recipe.questions % world_size:
        raise CoPRSError(
            f"A warm-up step has {recipe.questions} replies (questions) and {world_size} "
            "processes share them: set questions to a multiple."
        )
    if not recipe.steps:
        return
    if len(dataset) < recipe.questions:
        raise CoPRSError(
            f"A step asks {recipe.questions} questions and the data holds {len(dataset)} items: "
            f"set questions to {len(dataset)} at most, with a fitting rows_at_once, or add items."
        )
    rows = recipe.questions * recipe.objective.group
    at_once = recipe.rows_at_once * rank_and_world_size()[1]
    if rows % at_once:
        raise CoPRSError(
            f"A step has {rows} replies (questions × group) and all processes hold {at_once} at "
            "once: choose a divisor by rows_at_once or questions."
        )


def _is_newer(out: Path, saved: Path) -> bool:
    """Whether a checkpoint was written after a step was saved."""
    written = [out / "coprs.json", out / "adapter_config.json"]
    times = [path.stat().st_mtime for path in written if path.is_file()]
    return bool(times) and min(times) >= (saved / "trainer_state.json").stat().st_mtime


def _build_stage(
    make: Callable[..., Any],
    recipe: JointRecipe,
    name: str,
    dataset: Dataset,
    folder: Path,
    embeddings: Path,
    device: str,
) -> tuple[_Loaded, TrainingMonitor, Any]:
    """What a stage begins with, who watches it, and its trainer."""
    loading = LoadOptions(device=device, quantization=recipe.quantize)
    loaded = _load_model(recipe, name, loading, embeddings)
    monitor = TrainingMonitor(folder, recipe, "joint" if make is _build_joint else "warm-up")
    trainer = make(recipe, folder, loaded, dataset, monitor)
    trainer.remove_callback(PrinterCallback)
    return loaded, monitor, trainer


def _write_checkpoint(trainer: Any, loaded: _Loaded, folder: Path, out: Path) -> None:
    """The checkpoint that a finished stage leaves, with what it keeps of the one before."""
    if loaded.adapters is not None:
        model = trainer.coprs.detach_model().cpu()
        is_last = out.name == CHECKPOINT_FOLDER
        adapters = out if is_last else folder / ADAPTERS_FOLDER
        parts = {"prior": model.prior, "decoder": model.decoder}
        save_adapters(adapters, trainer.model, _relative_name(adapters, loaded.name), parts)
        if not is_last:  # the reference of the joint stage is the model without its adapters
            merge_adapters(str(adapters), out)
        return
    again = load_checkpoint(loaded.name, LoadOptions(device="cpu", quantization="none"))
    model = cast(FocusTokenSegmenter, again.segmenter).model.float()
    model = apply_trained_weights(model, folder / TRAINED_FILE)
    save_checkpoint(out, model, load_processor(loaded.language), torch.bfloat16)
    copy_ood_statistics(loaded.language.parent, out)


def _load_model(recipe: JointRecipe, name: str, options: LoadOptions, embeddings: Path) -> _Loaded:
    """Load a checkpoint for training: what is trained in float32."""
    find_full_checkpoint(name)
    checkpoint = load_checkpoint(name, options)
    segmenter, language = checkpoint.segmenter, checkpoint.language_folder
    if not isinstance(segmenter, FocusTokenSegmenter) or language is None:
        raise CoPRSError(
            f"{checkpoint.name} writes coordinates and has no focus token to train: make a CoPRS "
            "checkpoint of it with `coprs prepare`."
        )
    kind = segmenter.model.mllm.config.model_type
    if kind not in SUPPORTED_MODEL_TYPES:
        raise CoPRSError(
            f"The language model of {checkpoint.name} is of type {kind!r} and only "
            f"{', '.join(SUPPORTED_MODEL_TYPES)} are trained: prepare a checkpoint of one of these."
        )
    model, adapters, processor = segmenter.model, None, load_processor(language)
    if recipe.lora:
        adapters = LoraConfig(
            r=recipe.lora,
            lora_alpha=2 * recipe.lora,
            target_modules=ADAPTED_LAYERS,
            lora_dropout=0.0,
        )
        model.prior.float(), model.decoder.float()
        optimize.undo(model.mllm)
        optimize.apply(model.mllm)  # without a shortlist: the loss asks for the whole output layer
        _restore_4bit_layout(model.mllm)
    else:
        model.float()
    model.mllm.config._name_or_path = str(language)  # TRL loads its reference from here
    cache = None if recipe.data == "scenes" else embeddings
    return _Loaded(name, model, language, processor, adapters, checkpoint, cache)


def _focus_token_rows(loaded: _Loaded) -> dict[str, list[int]]:
    """The focus token's rows, for adapters to learn. `coprs prepare` makes them the mean of
    all rows, which no hidden state finds the likeliest: the layers alone would never write it."""
    focus_id = loaded.processor.tokenizer.convert_tokens_to_ids(loaded.model.config.focus_token)
    layers = (
        ("embed_tokens",)
        if has_tied_embeddings(loaded.model.mllm.config)
        else ("embed_tokens", "lm_head")
    )
    return {layer: [focus_id] for layer in layers}


def _restore_4bit_layout(mllm: torch.nn.Module) -> None:
    """On some CPUs bitsandbytes lays 4-bit weights out anew for reading, and nothing is learnt
    through them then: lay them out as they were, for good."""
    packed = [module for module in mllm.modules() if isinstance(module, Linear4bit)]
    for module in packed:
        module.support_avx512bf16_for_cpu = False
    if packed:
        mllm.state_dict()  # bitsandbytes undoes it here


def _relative_name(folder: Path, name: str) -> str:
    """The name of a checkpoint as seen from a folder: of one on this disk the relative path, so
    that both can be moved together."""
    there = expand_home(name)
    return os.path.relpath(there, folder) if there.is_dir() else name


def _build_warmup(
    recipe: JointRecipe, folder: Path, loaded: _Loaded, dataset: Dataset, monitor: TrainingMonitor
) -> WarmUpTrainer:
    if loaded.adapters is not None:
        loaded.adapters.trainable_token_indices = _focus_token_rows(loaded)
    share = recipe.questions // rank_and_world_size()[1]
    at_once = math.gcd(share, recipe.rows_at_once)
    args = TrainingArguments(
        max_steps=recipe.warmup_steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=share // at_once,
        learning_rate=recipe.warmup_rate,
        **_shared_arguments(recipe, folder, loaded.model),
    )
    options = {"adapters": loaded.adapters, "callbacks": [monitor], "embeddings": loaded.embeddings}
    where = loaded.model, loaded.processor, dataset, recipe.objective
    return WarmUpTrainer(*where, args, recipe.rates, **options)


def _build_joint(
    recipe: JointRecipe, folder: Path, loaded: _Loaded, dataset: Dataset, monitor: TrainingMonitor
) -> JointTrainer:
    objective = recipe.objective
    rows = recipe.questions * objective.group
    at_once = recipe.rows_at_once * rank_and_world_size()[1]
    args = GRPOConfig(
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.rows_at_once,
        gradient_accumulation_steps=rows // at_once,
        num_generations=objective.group,
        num_iterations=recipe.iterations,
        max_completion_length=recipe.max_new_tokens,
        # a diverged model writes something, and its loss, which is no number, is told
        generation_kwargs=None if recipe.vllm else {"remove_invalid_values": True},
        temperature=recipe.temperature,
        beta=objective.kl,
        epsilon=objective.clip,
        loss_type="bnpo",  # averaged over all written tokens together, not reply by reply
        scale_rewards="group",
        use_bias_correction_kl=False,
        reward_weights=[objective.mask_share, 1 - objective.mask_share],
        learning_rate=recipe.rate,
        use_vllm=bool(recipe.vllm),
        vllm_mode="server",
        vllm_server_base_url=recipe.vllm or None,
        vllm_server_timeout=_VLLM_TIMEOUT_SECONDS,
        **_shared_arguments(recipe, folder, loaded.model),
    )
    options = {"peft_config": loaded.adapters, "callbacks": [monitor]}
    options["embeddings"] = loaded.embeddings
    try:
        return JointTrainer(
            loaded.model, loaded.processor, dataset, objective, args, recipe.rates, **options
        )
    except (ImportError, ConnectionError, RuntimeError) as problem:
        if not recipe.vllm or is_out_of_memory(problem):
            raise
        raise CoPRSError(
            f"vLLM at {recipe.vllm} cannot write the replies ({first_line(problem)}): install "
            "trl[vllm], start trl vllm-serve on another card, or leave vllm out."
        ) from problem


def _shared_arguments(recipe: JointRecipe, folder: Path, model: CoPRS) -> dict[str, Any]:
    """The arguments that both stages give their trainers."""
    is_on_cpu = model.device.type == "cpu"
    return {
        "output_dir": str(folder),
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": recipe.final_rate},
        "adam_beta2": 0.999,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "seed": recipe.seed,
        "save_strategy": "steps",
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # `TrainingMonitor` is to see them
        "report_to": ["tensorboard"],
        "remove_unused_columns": False,
        "gradient_checkpointing": recipe.checkpointing,
        "ddp_find_unused_parameters": True,  # a batch may ask for nothing
        "fsdp": recipe.sharded or None,
        "bf16": not is_on_cpu,
        "use_cpu": is_on_cpu,
        "disable_tqdm": True,
    }
