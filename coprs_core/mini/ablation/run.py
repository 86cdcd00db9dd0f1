"""Arm after arm: train it, measure it, and go on where a run was left."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from coprs_core.answer.engine import Engine
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.datasets import open_dataset
from coprs_core.errors import CoPRSError
from coprs_core.evaluation.report import compute_scores
from coprs_core.evaluation.rows import Measurement
from coprs_core.evaluation.run import RunSettings, read_rows, read_run, run_evaluation
from coprs_core.export.archive import make_writable_folder
from coprs_core.machine import choose_device
from coprs_core.mini.ablation.arms import ARMS, Arm
from coprs_core.mini.ablation.camps import train_camp
from coprs_core.run_settings import check_settings, read_settings, write_settings
from coprs_core.training.recipe import read_recipe
from coprs_core.training.run_folder import CHECKPOINT_FOLDER
from coprs_core.training.run_joint import WARMUP_FOLDER, train_joint

RUN_FILE, ROWS_FOLDER, REPORT_FILE, LOG_FILE = "ablation.json", "measured", "report.json", "log.txt"
_REPLIES_PER_STEP = ("questions=8", "rows_at_once=32")
"""Of a step of the joint stage: 8 questions, each answered 8 times, but where an arm sets it
otherwise."""


@dataclass(frozen=True)
class Budget:
    """What every arm gets.

    Attributes:
        model: the start, by name.
        steps: of the joint stage, of 64 replies each; `camp_steps`: of a camp's training, of 36
            replies each.
        scenes: how many it is measured on, from number `first` of the test split.
    """

    model: str = "mini"
    steps: int = 40
    camp_steps: int = 600
    scenes: int = 1000
    first: int = 300_000


@dataclass(frozen=True)
class ArmResult:
    """An arm that was trained with a seed, and its rows."""

    arm: Arm
    seed: int
    rows: list[Measurement]


def run_ablation(
    budget: Budget,
    arms: tuple[Arm, ...],
    folder: Path,
    seeds: int = 2,
    device: str = "auto",
    report_progress: Callable[[str], None] = print,
    at_once: int = 1,
) -> list[ArmResult]:
    """Train and measure what is left of the arms; all arms that the folder holds then.

    Each seed of an arm is trained by itself, `at_once` of them side by side, each in a process of
    its own. Raises `CoPRSError` where the folder holds a run of another budget, or training fails
    (then after those beside it have ended).
    """
    _open_folder(folder, budget)
    jobs = [
        (arm, seed, budget, own, device)
        for arm in arms
        for seed in range(min(seeds, arm.seeds))
        if not ((own := folder / f"{arm.slug}-{seed}") / REPORT_FILE).is_file()
    ]
    if at_once == 1:
        for one in jobs:
            report_progress(_title(*one[:2]))
            _train_and_measure(*one)
        return finished_arms(folder)
    for one in _run_in_processes(jobs, at_once):
        report_progress(_title(*one[:2]))
    return finished_arms(folder)


def _run_in_processes(jobs: list[tuple], at_once: int) -> Iterator[tuple]:
    """Train and measure each in a process of its own, with its `LOG_FILE`; yield each when
    it is done, in order."""
    # processes that each take all cores slow each other down several times
    threads = max(1, torch.get_num_threads() // at_once)
    with ProcessPoolExecutor(
        at_once, get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        # the processes inherit it: to stop them is the first one's business
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            futures = [pool.submit(_with_own_log, *one) for one in jobs]
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            for one, done in zip(jobs, futures, strict=True):
                done.result()
                yield one
        except BrokenProcessPool as problem:
            raise CoPRSError(
                "A process of the run was ended from outside, most likely for want of memory: run "
                "the command again to go on, with a smaller --at-once."
            ) from problem
        except KeyboardInterrupt:
            # the executor would wait for what they are at, which may take long
            for process in active_children():
                process.kill()
            raise


def _with_own_log(arm: Arm, seed: int, budget: Budget, folder: Path, device: str) -> None:
    """`_train_and_measure`, in a process whose bars and warnings go to a file of the arm."""
    log = make_writable_folder(folder) / LOG_FILE
    with log.open("a", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    _train_and_measure(arm, seed, budget, folder, device)


def _title(arm: Arm, seed: int) -> str:
    return f"{arm.table}: {arm.name}, seed {seed}"


def _train_and_measure(arm: Arm, seed: int, budget: Budget, folder: Path, device: str) -> None:
    rows = _measure(_train(arm, seed, budget, folder, device), budget, folder / ROWS_FOLDER)
    scores = compute_scores(rows, read_run(folder / ROWS_FOLDER)["groups"])
    (folder / REPORT_FILE).write_text(json.dumps(scores, indent=1) + "\n")


def finished_arms(folder: Path) -> list[ArmResult]:
    """All arms that a folder holds, measured to their end."""
    return [
        ArmResult(arm, seed, read_rows(own / ROWS_FOLDER))
        for arm in ARMS
        for seed in range(arm.seeds)
        if ((own := folder / f"{arm.slug}-{seed}") / REPORT_FILE).is_file()
    ]


def _open_folder(folder: Path, budget: Budget) -> None:
    path = make_writable_folder(folder) / RUN_FILE
    begun = any(p.name != LOG_FILE for p in folder.glob("*/*"))
    if begun:  # else nothing was trained: it may be another
        check_settings(folder, read_settings(path), asdict(budget))
    write_settings(path, asdict(budget))


def _train(arm: Arm, seed: int, budget: Budget, folder: Path, device: str) -> Engine:
    place = make_writable_folder(folder)
    if arm.camp is not None:
        steps = budget.camp_steps
        return train_camp(arm, budget.model, place, seed, steps, choose_device(device))
    model = budget.model
    if arm.is_trained:
        steps = (0, budget.steps) if arm.imitates else (budget.steps, 0)
        changes = [f"model={model}", f"seed={seed}", "pictures=0"]
        changes += [f"steps={steps[0]}", f"warmup_steps={steps[1]}"]
        recipe = read_recipe("mini-joint", [*changes, *_REPLIES_PER_STEP, *arm.changes])
        done = place / (WARMUP_FOLDER if arm.imitates else CHECKPOINT_FOLDER)
        if not (done / "coprs.json").is_file() and train_joint(recipe, place, device) is None:
            raise CoPRSError(f"{arm.name} was told to stop: run the command again to go on.")
        for step in place.glob("**/checkpoint-*"):  # to go on from; it is over
            shutil.rmtree(step)
        model = str(done)
    return Engine(load_checkpoint(model, LoadOptions(device=device)))


def _measure(engine: Engine, budget: Budget, folder: Path) -> list[Measurement]:
    dataset = open_dataset("scenes", None, "test")
    where = "scenes", "test", dataset.about, "coprs", "none", budget.first, budget.scenes
    settings = RunSettings(budget.model, *where, at_once=64)
    for _ in run_evaluation(engine, dataset, settings, folder):
        pass
    return read_rows(folder)
