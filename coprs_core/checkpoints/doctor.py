"""What this machine has, what the chosen model needs, and the first thing to do.

Loads no weights and does not use the network.
"""

import importlib.metadata
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import constants

from coprs_core.checkpoints import remote
from coprs_core.checkpoints.catalogue import CatalogueEntry, choose_model, find_in_catalogue
from coprs_core.checkpoints.downloads import cached_snapshot, missing_shards, sam_cache_folder
from coprs_core.checkpoints.load import find_source
from coprs_core.checkpoints.options import (
    API_KEY_VARIABLE,
    AUTO_MODEL,
    QUANTIZATIONS,
    LoadOptions,
    is_remote_name,
)
from coprs_core.checkpoints.plan import (
    MAX_CACHED_PHOTOS,
    answer_cache_budget,
    check_quantization,
    choose_sam,
    inspect_machine,
    photo_cache_budget,
)
from coprs_core.checkpoints.sources import ModelSource
from coprs_core.errors import CoPRSError
from coprs_core.files import without_hidden
from coprs_core.machine import choose_device, free_memory, has_native_bfloat16, parse_dtype
from coprs_core.model.backends.remote.proxies import without_password
from coprs_core.storage import expand_home, format_bytes, free_disk

_PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "segment-anything",
    "gradio",
    "bitsandbytes",
    "huggingface-hub",
)


@dataclass(frozen=True)
class Check:
    """One line of the screen; `problem` is the first thing to do about it, or ""."""

    name: str
    found: str
    problem: str = ""


def run_checks(model: str, options: LoadOptions | None = None) -> list[Check]:
    """Every check, in the order in which problems are to be fixed."""
    options = options or LoadOptions()
    checks = [
        _check_versions(),
        *_check_devices(options.device),
        *_check_cache_folders(),
        *_check_precision(options),
    ]
    checks += _report_cache_budgets(options.device)
    if model == AUTO_MODEL:
        try:
            auto_plan = choose_model(inspect_machine(options.device), options)
            model = auto_plan.model
            options = replace(options, sam=auto_plan.sam, quantization=auto_plan.quantization)
        except CoPRSError as problem:
            return [*checks, Check("model", model, str(problem))]
    source, check = _find_cached_source(model)
    checks.append(check)
    if source is None:
        entry = find_in_catalogue(model)  # what a listed one needs is known before it is here
        return checks + (
            _check_plan(entry, options, has_problem=True) if entry and entry.repo else []
        )
    checks += _check_files(source, _choose_sam(options))
    has_problem = any(c.problem for c in checks)
    if not has_problem:
        checks.append(_check_special_tokens(source))
    return checks + _check_plan(source, options, has_problem)


def format_checks(checks: list[Check]) -> str:
    """The checks as text, with the verdict below."""
    lines = [f"{'✗' if c.problem else '✓'} {c.name:<20}{c.found}" for c in checks]
    return "\n".join([*lines, "", verdict(checks)])


def verdict(checks: list[Check]) -> str:
    return next((f"first: {c.problem}" for c in checks if c.problem), "ready")


def _check_versions() -> Check:
    versions, missing = [f"Python {platform.python_version()}"], ""
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} –")
            missing = missing or f"{package} is not installed: pip install {package}"
    return Check("versions", " · ".join(versions), missing)


def _check_devices(device: str) -> list[Check]:
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    checks = []
    for name in names:
        torch_device = torch.device(name)
        note = f" ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else ""
        if not has_native_bfloat16(torch_device):
            note = " (it tells of no instructions for bfloat16: models for photos are slower)"
        checks.append(
            Check(name, f"{format_bytes(free_memory(torch_device))} of memory free{note}")
        )
    try:
        return [*checks, Check("chosen device", str(choose_device(device)))]
    except CoPRSError as problem:
        return [*checks, Check("chosen device", device, str(problem))]


def _check_cache_folders() -> list[Check]:
    folders = (
        ("Hugging Face cache", Path(constants.HF_HUB_CACHE)),
        ("SAM cache", sam_cache_folder()),
    )
    return [
        Check(name, f"{folder}, {format_bytes(free_disk(folder))} of disk free")
        for name, folder in folders
    ]


def _check_precision(options: LoadOptions) -> list[Check]:
    """What was chosen, and which quantizations work here."""
    try:
        if options.dtype != "auto":
            parse_dtype(options.dtype)
        chosen = Check("dtype", options.dtype)
    except CoPRSError as problem:
        chosen = Check("dtype", options.dtype, str(problem))
    try:
        device = choose_device(options.device)
        check_quantization(options.quantization, device)
    except CoPRSError as problem:
        return [chosen, Check("quantization", options.quantization, str(problem))]
    usable = []
    for kind in QUANTIZATIONS[1:]:
        with suppress(CoPRSError):
            check_quantization(kind, device)
            usable.append(kind)
    return [chosen, Check("quantization", f"{' and '.join(usable) or 'none'} can be used")]


def _find_cached_source(model: str) -> tuple[ModelSource | None, Check]:
    """The chosen model's place, without asking the network."""
    if is_remote_name(model):
        return None, _check_remote(model)
    entry = find_in_catalogue(model)
    is_id = model.count("/") == 1 and not expand_home(model).exists()
    repo = entry.repo if entry else model if is_id else None
    if repo and cached_snapshot(repo) is None:
        size = f" ({format_bytes(entry.download)})" if entry else ""
        return None, Check(
            "model",
            f"{model}: {repo} is not in the cache",
            f"start the app once with the network on; it downloads {repo}{size}",
        )
    try:
        source = find_source(model)
    except CoPRSError as problem:
        return None, Check("model", model, str(problem))
    return source, Check("model", f"{model}: {source.folder}, prior: {source.prior_kind}")


def _check_remote(model: str) -> Check:
    try:
        source = remote.parse_remote_name(model)
        proxy = source.server().proxy
    except CoPRSError as problem:
        return Check("model", "on another machine", str(problem))
    key = "set" if os.environ.get(API_KEY_VARIABLE) else "not set"
    proxy_note = f" through the proxy {without_password(proxy)}" if proxy else ""
    return Check(
        "model",
        f"{source.model} on {source.host}, asked when it is loaded{proxy_note}; "
        f"{API_KEY_VARIABLE} is {key}",
    )


def _choose_sam(options: LoadOptions) -> str:
    """The SAM that would be loaded; a device that is not there counts as a CPU."""
    try:
        return choose_sam(options.sam, choose_device(options.device).type)
    except CoPRSError:
        return choose_sam(options.sam, "cpu")


def _check_files(source: ModelSource, sam: str) -> list[Check]:
    folder = source.language_folder
    missing = missing_shards(folder) if folder.is_dir() else ["config.json"]
    paths = [folder / name for name in ("config.json", "tokenizer.json", *missing)]
    paths += [
        *without_hidden(folder.glob("*.safetensors")),
        *source.files_beside_language_model(sam),
    ]
    return [_check_file(path, path.name in missing, source) for path in paths]


def _check_file(path: Path, is_broken: bool, source: ModelSource) -> Check:
    if path.is_file() and not is_broken:
        return Check("file", f"{path}, {format_bytes(path.stat().st_size)}")
    if path.suffix == ".pth" or not path.is_absolute():  # a SAM that is not downloaded yet
        hint = f"start the app once with the network on; it downloads {path.name}"
    else:
        hint = f"copy {path} again from where {source.name} came from"
    return Check("file", f"{path} is missing or broken", hint)


def _check_special_tokens(source: ModelSource) -> Check:
    try:
        token_ids = source.special_token_ids()
    except CoPRSError as problem:
        return Check("special tokens", "cannot be read", str(problem))
    return Check("special tokens", " · ".join(f"{k} {v}" for k, v in token_ids.items()))


def _check_plan(
    model: ModelSource | CatalogueEntry, options: LoadOptions, has_problem: bool
) -> list[Check]:
    """How the model would be loaded, as the loader does it; nothing where another problem,
    which stands above, is why that cannot be known."""
    try:
        plan = model.plan(options, inspect_machine(options.device))
    except CoPRSError as problem:
        return [] if has_problem else [Check("plan", "cannot be made", str(problem))]
    found = f"{format_bytes(plan.memory)} needed, {format_bytes(plan.machine.memory)} free"
    problem = f"{plan.model} {plan.problem}" if plan.problem else ""
    return [Check("plan", plan.summary), Check("memory", found, problem)]


def _report_cache_budgets(device: str) -> list[Check]:
    """How much memory the caches of photos' features and of visitors' answers may take."""
    try:
        budget = photo_cache_budget(choose_device(device))
    except CoPRSError:  # `_check_devices` says so
        return []
    found = f"what was read of the last {MAX_CACHED_PHOTOS}, at most {format_bytes(budget)}"
    answers = f"those of all visitors of the page, at most {format_bytes(answer_cache_budget())}"
    return [Check("photos kept", found), Check("answers kept", answers)]
