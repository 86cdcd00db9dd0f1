"""The run: stage after stage, each with progress, checkpoints and resume; at the end an ordinary
checkpoint folder."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer

from coprs_core.checkpoints.save import save_checkpoint
from coprs_core.checkpoints.tensors import write_errors_as_user_error
from coprs_core.errors import CoPRSError
from coprs_core.machine import choose_device, has_native_bfloat16, rank_and_world_size
from coprs_core.mini.train import oracle
from coprs_core.mini.train.build import build_miniature, build_processor, build_tokenizer
from coprs_core.mini.train.data import Collator, batches
from coprs_core.mini.train.muon import Muon
from coprs_core.mini.train.recipe import Recipe, Stage
from coprs_core.mini.train.stages import Scaffold
from coprs_core.training.run_folder import (
    catch_sigterm,
    check_recipe,
    is_true_anywhere,
    save_recipe,
)

_ADAM_ONLY = (
    "embed_tokens",
    "lm_head",
    "pos_embed",
    "rel_pos",
    "token",
    "point_embed",
    "patch_embed",
    "no_mask",
    "reader",
)


def build_optimizers(parts: dict[str, nn.Module], stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings, convolutions, norms and biases."""
    named = [
        (f"{part}.{n}", p)
        for part, m in parts.items()
        for n, p in m.named_parameters()
        if p.requires_grad
    ]
    matrices = [
        p
        for n, p in named
        if p.dim() == 2 and min(p.shape) >= 16 and not any(k in n for k in _ADAM_ONLY)
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [
        Muon(
            matrices,
            lr=stage.rate,
            weight_decay=0.03,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.03},
                {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=stage.adam_rate,
            betas=(0.9, 0.98),
        ),
    ]


def lr_factor(step: int, stage: Stage) -> float:
    """The learning rate at a step as a share of its peak: a short rise, a plateau, a cosine to
    nothing."""
    done = step / stage.steps
    if done < stage.hold:
        return min(1.0, done / 0.02 + 0.02)
    return 0.5 * (1 + math.cos(math.pi * (done - stage.hold) / (1 - stage.hold)))


def train_miniature(
    recipe: Recipe,
    folder: Path,
    device: str = "auto",
    workers: int = 0,
    only: str | None = None,
    threads: int | None = None,
) -> bool:
    """Run every stage of a recipe that is left, or `only` one, and write the finished model to
    `folder/checkpoint`; False where it was told to stop before the end (SIGTERM).

    The stages before "joint" do not need each other: they may run side by side, each as its own
    process with `only`. Under `torchrun` every process takes a batch of its own of a stage's
    `scenes`, which are to be divided by their number to keep to the recipe, and the gradients are
    averaged.
    """
    fixed = {"kind": "mini", **recipe.fixed_values}
    check_recipe(fixed, folder)
    names = [stage.name for stage in recipe.stages]
    if only not in (None, *names):
        raise CoPRSError(f"There is no stage {only!r}: choose from {', '.join(names)}.")
    place = choose_device(device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        if place.type == "cuda":
            place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", dist.get_rank())))
    rank, _ = rank_and_world_size()
    torch.manual_seed(0)
    # denormal numbers are many times slower on a CPU, and moments decay into them
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    if rank == 0:
        if not (folder / "tokenizer").is_dir():
            build_tokenizer(recipe).save_pretrained(folder / "tokenizer")
        save_recipe({**fixed, **asdict(recipe)}, folder)
    _barrier()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    processor = build_processor(recipe, tokenizer)
    scaffold = Scaffold(recipe, build_miniature(recipe, tokenizer), tokenizer).to(place)
    scaffold.model.mllm.set_attn_implementation("parts")
    for before, stage in zip((None, *recipe.stages), recipe.stages):
        if only in (None, stage.name):
            if stage.kind == "joint" and not (folder / f"{stage.name}.pt").exists():
                if before is not None and before.kind == "joint":
                    load_parts(scaffold, folder, before, "joint")
                else:
                    load_separate_stages(scaffold, recipe, folder)
            collate = Collator(recipe, stage, tokenizer, processor.image_processor)
            with catch_sigterm() as stop_requested:
                if not run_stage(scaffold, collate, folder, workers, stop_requested):
                    return False
            _barrier()  # the first one writes what the next stage reads
    if rank == 0 and only in (None, names[-1]):
        scaffold.model.mllm.set_attn_implementation("sdpa")
        save_checkpoint(folder / "checkpoint", scaffold.model.cpu(), processor, torch.bfloat16)
        print(f"finished: {folder / 'checkpoint'}")
    return True


def load_separate_stages(scaffold: Scaffold, recipe: Recipe, folder: Path) -> None:
    """Put the parts of the first three stages together, the query head blind to all but the
    oracle's query space."""
    for stage in recipe.stages:
        if stage.kind != "joint":
            load_parts(scaffold, folder, stage, stage.kind)
    frame = scaffold.query_frame / oracle.QUERY_SCALE
    weight = scaffold.model.prior.q_proj.weight.data
    weight.copy_(weight @ frame @ frame.T)


def load_parts(scaffold: Scaffold, folder: Path, stage: Stage, kind: str) -> None:
    """What a finished stage learnt; raises `CoPRSError` where it was not run, or not to its end."""
    path = folder / f"{stage.name}.pt"
    if not path.exists():
        raise CoPRSError(f"The next stage needs {path}: run stage {stage.name} first.")
    saved = torch.load(path, map_location=scaffold.device, weights_only=True)
    if saved["step"] < stage.steps:
        raise CoPRSError(
            f"Stage {stage.name} has come to step {saved['step']:,} of {stage.steps:,}: let it end "
            "before the next one."
        )
    for name, module in scaffold.parts(kind).items():
        module.load_state_dict(saved["parts"][name])


def run_stage(
    scaffold: Scaffold,
    collate: Collator,
    folder: Path,
    workers: int,
    stop_requested: Callable[[], bool] = lambda: False,
    every: float = 180,
) -> bool:
    """Train the stage of a `collate`, going on exactly from `folder/<stage>.pt` where it exists;
    write it every `every` seconds and at the end. False where it `stop_requested` to stop before.

    Raises `CoPRSError` where it diverges.
    """
    # cuDNN plans its attention anew for every shape, and hardly two batches have the same: 0.59 s
    # for a language step that takes 0.05 s where shapes repeat (one H100, torch 2.11)
    torch.backends.cuda.enable_cudnn_sdp(False)
    stage, (rank, world) = collate.stage, rank_and_world_size()
    path = folder / f"{stage.name}.pt"
    parts = scaffold.parts(stage.kind)
    optimizers = build_optimizers(parts, stage)
    step, seconds = _resume(path, parts, optimizers, scaffold.device)
    if step >= stage.steps:
        return True
    parameters = [p for o in optimizers for g in o.param_groups for p in g["params"]]
    began = saved_at = time.monotonic()
    means: dict[str, float] = {}
    scaffold.train()
    scaffold.misread = stage.misread
    loader = batches(collate, step, workers, rank, world)
    bar = tqdm(
        loader, desc=stage.name, total=stage.steps, initial=step, mininterval=5, disable=rank > 0
    )
    for batch in bar:
        _set_learning_rates(optimizers, stage, step)
        torch.manual_seed(step * world + rank)  # of noise and misread colours, wherever it began
        losses = _train_step(scaffold, stage, batch, parameters, optimizers)
        if losses is None:
            raise CoPRSError(
                f"Stage {stage.name} diverged at step {step + 1}: {path} holds an earlier step, if "
                f"any; go on from it with a lower rate, such as --set "
                f"stages.{stage.name}.rate={stage.rate / 3:.1g}."
            )
        step += 1
        means = {k: 0.98 * means.get(k, v) + 0.02 * v for k, v in (means | losses).items()}
        spent = seconds + time.monotonic() - began
        if rank == 0 and step % 50 == 0:
            bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)
            rounded = {k: round(v, 4) for k, v in means.items()}
            entry = {"step": step, "seconds": round(spent), **rounded}
            with (folder / f"{stage.name}.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
        is_stopped = is_true_anywhere(stop_requested(), scaffold.device)
        is_due = is_stopped or step == stage.steps or time.monotonic() - saved_at > every
        if rank == 0 and is_due:
            _save_state(path, parts, optimizers, step, spent)
            saved_at = time.monotonic()
        if is_stopped:
            break
    return step == stage.steps


def _set_learning_rates(chosen: list[torch.optim.Optimizer], stage: Stage, step: int) -> None:
    for optimizer, peak in zip(chosen, (stage.rate, stage.adam_rate)):
        for group in optimizer.param_groups:
            group["lr"] = peak * lr_factor(step, stage)


def _train_step(
    scaffold: Scaffold, stage: Stage, batch, parameters: list[nn.Parameter], chosen: list
) -> dict[str, float] | None:
    """One step of learning; the scores of its batch, None where the gradient is no number and
    nothing was learnt."""
    device = scaffold.device
    is_half = has_native_bfloat16(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_half):
        loss, scores = scaffold.loss(stage.kind, batch)
    for p in parameters:
        p.grad = None
    loss.backward()
    if dist.is_initialized():
        _average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
    if not norm.isfinite():
        return None
    for optimizer in chosen:
        optimizer.step()
    return scores


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    # one reduction over all gradients, zeros where a batch had none: every process takes part
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )
    dist.all_reduce(flat)
    for p, piece in zip(
        parameters, (flat / dist.get_world_size()).split([p.numel() for p in parameters])
    ):
        p.grad = piece.view_as(p).clone()


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def _resume(
    path: Path, parts: dict[str, nn.Module], chosen: list, device: torch.device
) -> tuple[int, float]:
    """Load what an earlier run left, if any; the step to go on from and the seconds spent."""
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, map_location=device, weights_only=True)
    for name, module in parts.items():
        module.load_state_dict(saved["parts"][name])
    for optimizer, state in zip(chosen, saved["optimizers"]):
        optimizer.load_state_dict(state)
    return saved["step"], saved["seconds"]


def _save_state(
    path: Path, parts: dict[str, nn.Module], chosen: list, step: int, seconds: float
) -> None:
    state = {
        "parts": {n: m.state_dict() for n, m in parts.items()},
        "optimizers": [o.state_dict() for o in chosen],
        "step": step,
        "seconds": seconds,
    }
    with write_errors_as_user_error(path):
        torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
