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
from coprs_core.checkpoints.catalogue import Listed, choose_model, listed
from coprs_core.checkpoints.downloads import (
    cached_snapshot,
    missing_shards,
    sam_cache,
)
from coprs_core.checkpoints.load import find_source
from coprs_core.checkpoints.options import AUTO, KEY, QUANTIZATIONS, LoadOptions, is_remote
from coprs_core.checkpoints.plan import (
    MAX_KEPT_PHOTOS,
    check_quantization,
    choose_sam,
    room_for_answers,
    room_for_photos,
    this_machine,
)
from coprs_core.checkpoints.sources import Source
from coprs_core.errors import CoPRSError
from coprs_core.files import without_hidden
from coprs_core.machine import choose_device, free_memory, has_native_bfloat16, parse_dtype
from coprs_core.model.backends.remote.proxies import shown
from coprs_core.sizes import expand_home, format_bytes, free_disk

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


def examine(model: str, options: LoadOptions | None = None) -> list[Check]:
    """Every check, in the order in which problems are to be fixed."""
    options = options or LoadOptions()
    checks = [_versions(), *_devices(options.device), *_caches(), *_precision(options)]
    checks += _photos(options.device)
    if model == AUTO:
        try:
            chosen = choose_model(this_machine(options.device), options)
            model = chosen.model
            options = replace(options, sam=chosen.sam, quantization=chosen.quantization)
        except CoPRSError as problem:
            return [*checks, Check("model", model, str(problem))]
    source, check = _source(model)
    checks.append(check)
    if source is None:
        known = listed(model)  # what a listed one needs is known before it is here
        return checks + (_plan(known, options, has_problem=True) if known and known.repo else [])
    checks += _files(source, _sam(options))
    has_problem = any(c.problem for c in checks)
    if not has_problem:
        checks.append(_tokens(source))
    return checks + _plan(source, options, has_problem)


def screen(checks: list[Check]) -> str:
    """The checks as text, with the verdict below."""
    lines = [f"{'✗' if c.problem else '✓'} {c.name:<20}{c.found}" for c in checks]
    return "\n".join([*lines, "", verdict(checks)])


def verdict(checks: list[Check]) -> str:
    return next((f"first: {c.problem}" for c in checks if c.problem), "ready")


def _versions() -> Check:
    found, missing = [f"Python {platform.python_version()}"], ""
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} –")
            missing = missing or f"{package} is not installed: pip install {package}"
    return Check("versions", " · ".join(found), missing)


def _devices(device: str) -> list[Check]:
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        names.append("mps")
    checks = []
    for name in names:
        place = torch.device(name)
        about = f" ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else ""
        if not has_native_bfloat16(place):
            about = " (it tells of no instructions for bfloat16: models for photos are slower)"
        checks.append(Check(name, f"{format_bytes(free_memory(place))} of memory free{about}"))
    try:
        return [*checks, Check("chosen device", str(choose_device(device)))]
    except CoPRSError as problem:
        return [*checks, Check("chosen device", device, str(problem))]


def _caches() -> list[Check]:
    places = (("Hugging Face cache", Path(constants.HF_HUB_CACHE)), ("SAM cache", sam_cache()))
    return [
        Check(name, f"{folder}, {format_bytes(free_disk(folder))} of disk free")
        for name, folder in places
    ]


def _precision(options: LoadOptions) -> list[Check]:
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


def _source(model: str) -> tuple[Source | None, Check]:
    """The chosen model's place, without asking the network."""
    if is_remote(model):
        return None, _remote(model)
    known = listed(model)
    is_id = model.count("/") == 1 and not expand_home(model).exists()
    repo = known.repo if known else model if is_id else None
    if repo and cached_snapshot(repo) is None:
        size = f" ({format_bytes(known.download)})" if known else ""
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


def _remote(model: str) -> Check:
    try:
        source = remote.parse(model)
        proxy = source.server().proxy
    except CoPRSError as problem:
        return Check("model", "on another machine", str(problem))
    key = "set" if os.environ.get(KEY) else "not set"
    through = f" through the proxy {shown(proxy)}" if proxy else ""
    return Check(
        "model",
        f"{source.model} on {source.host}, asked when it is loaded{through}; {KEY} is {key}",
    )


def _sam(options: LoadOptions) -> str:
    """The SAM that would be loaded; a device that is not there counts as a CPU."""
    try:
        return choose_sam(options.sam, choose_device(options.device).type)
    except CoPRSError:
        return choose_sam(options.sam, "cpu")


def _files(source: Source, sam: str) -> list[Check]:
    folder = source.language_folder
    missing = missing_shards(folder) if folder.is_dir() else ["config.json"]
    wanted = [folder / name for name in ("config.json", "tokenizer.json", *missing)]
    wanted += [*without_hidden(folder.glob("*.safetensors")), *source.files(sam)]
    return [_file(path, path.name in missing, source) for path in wanted]


def _file(path: Path, is_broken: bool, source: Source) -> Check:
    if path.is_file() and not is_broken:
        return Check("file", f"{path}, {format_bytes(path.stat().st_size)}")
    if path.suffix == ".pth" or not path.is_absolute():  # a SAM that is not downloaded yet
        todo = f"start the app once with the network on; it downloads {path.name}"
    else:
        todo = f"copy {path} again from where {source.name} came from"
    return Check("file", f"{path} is missing or broken", todo)


def _tokens(source: Source) -> Check:
    try:
        found = source.special_tokens()
    except CoPRSError as problem:
        return Check("special tokens", "cannot be read", str(problem))
    return Check("special tokens", " · ".join(f"{k} {v}" for k, v in found.items()))


def _plan(model: Source | Listed, options: LoadOptions, has_problem: bool) -> list[Check]:
    """How the model would be loaded, as the loader does it; nothing where that cannot be known for
    a problem that was told already."""
    try:
        plan = model.plan(options, this_machine(options.device))
    except CoPRSError as problem:
        return [] if has_problem else [Check("plan", "cannot be made", str(problem))]
    found = f"{format_bytes(plan.memory)} needed, {format_bytes(plan.machine.memory)} free"
    problem = f"{plan.model} {plan.problem}" if plan.problem else ""
    return [Check("plan", plan.summary), Check("memory", found, problem)]


def _photos(device: str) -> list[Check]:
    """How much is kept of photos, so that a second question does not read them again, and of
    answers, so that a visitor finds them again."""
    try:
        room = room_for_photos(choose_device(device))
    except CoPRSError:  # said before
        return []
    found = f"what was read of the last {MAX_KEPT_PHOTOS}, at most {format_bytes(room)}"
    answers = f"those of all visitors of the page, at most {format_bytes(room_for_answers())}"
    return [Check("photos kept", found), Check("answers kept", answers)]
