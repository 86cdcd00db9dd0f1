"""What this machine has, what the chosen model needs, and the first thing to do; loads no weights, asks no network."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants

from coprs_core.checkpoints.catalogue import listed, memory_needed
from coprs_core.checkpoints.load import PARTS, Source, check_quantization, find, load_processor, read_config
from coprs_core.checkpoints.downloads import SAM_FILES, cached_sam, cached_snapshot, missing_shards, sam_cache
from coprs_core.errors import CoPRSError
from coprs_core.machine import choose_device, free_disk, free_memory, in_words
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.answer.results import FOCUS_TOKEN_PRIOR

_PACKAGES = ("torch", "torchvision", "transformers", "segment-anything", "gradio", "bitsandbytes", "huggingface-hub")


@dataclass(frozen=True)
class Check:
    """One line of the screen; `problem` is the first thing to do about it, or ""."""

    name: str
    found: str
    problem: str = ""


def examine(model: str, device: str = "auto", quantization: str = "none", sam: str = "vit_h") -> list[Check]:
    """Every check, in the order in which problems are to be mended."""
    checks = [_versions(), *_devices(device), *_caches(), _quantization(device, quantization)]
    source = _source(model)
    checks.append(source[1])
    if source[0] is None:
        return checks
    checks += _files(source[0], sam)
    if not any(c.problem for c in checks):
        checks += _tokens(source[0])
        checks += _memory(model, device, quantization, sam)
    return checks


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
            missing = missing or f"install {package}: pip install -r requirements.txt"
    return Check("versions", " · ".join(found), missing)


def _devices(device: str) -> list[Check]:
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    names += ["mps"] * torch.backends.mps.is_available()
    checks = []
    for name in names:
        card = f" ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else ""
        checks.append(Check(name, f"{in_words(free_memory(torch.device(name)))} of memory free{card}"))
    try:
        return [*checks, Check("chosen device", str(choose_device(device)))]
    except CoPRSError as problem:
        return [*checks, Check("chosen device", device, str(problem))]


def _caches() -> list[Check]:
    places = (("Hugging Face cache", Path(constants.HF_HUB_CACHE)), ("SAM cache", sam_cache()))
    return [Check(name, f"{folder}, {in_words(free_disk(folder))} of disk free") for name, folder in places]


def _quantization(device: str, quantization: str) -> Check:
    can = []
    for kind in ("nf4", "int8"):
        try:
            check_quantization(kind, choose_device(device))
            can.append(kind)
        except CoPRSError as problem:
            if kind == quantization:
                return Check("quantisation", "not here", str(problem))
    return Check("quantisation", f"{' and '.join(can) or 'none'} can be used")


def _source(model: str) -> tuple[Source | None, Check]:
    """The chosen model's place, without asking the network."""
    known = listed(model)
    repo = known.repo if known else model if model.count("/") == 1 and not Path(model).expanduser().exists() else None
    if repo and cached_snapshot(repo) is None:
        size = f" ({in_words(known.download)})" if known else ""
        return None, Check(
            "model",
            f"{model}: {repo} is not in the cache",
            f"start the app once with the network on; it downloads {repo}{size}",
        )
    try:
        source = find(model)
    except CoPRSError as problem:
        return None, Check("model", model, str(problem))
    return source, Check("model", f"{model}: {source.folder}, prior: {source.prior}")


def _files(source: Source, sam: str) -> list[Check]:
    llm = source.folder / "mllm" if source.prior == FOCUS_TOKEN_PRIOR else source.folder
    missing = missing_shards(llm) if llm.is_dir() else ["config.json"]
    wanted = [llm / n for n in ("config.json", "tokenizer.json")] + [llm / n for n in missing]
    wanted += sorted(llm.glob("*.safetensors"))
    if source.prior == FOCUS_TOKEN_PRIOR:
        wanted += [source.folder / "coprs.json", *(source.folder / f"{p}.safetensors" for p in PARTS)]
    else:
        wanted.append(cached_sam(sam) or sam_cache() / SAM_FILES[sam][0] if sam in SAM_FILES else Path(sam))
    return [
        Check("file", f"{p}, {in_words(p.stat().st_size)}")
        if p.is_file() and p.name not in missing
        else Check("file", f"{p} is missing or broken", _how_to_get(p, source))
        for p in wanted
    ]


def _how_to_get(path: Path, source: Source) -> str:
    if path.suffix == ".pth":
        return f"start the app once with the network on; it downloads {path.name}"
    return f"copy {path} again from where {source.name} came from"


def _tokens(source: Source) -> list[Check]:
    llm = source.folder / "mllm" if source.prior == FOCUS_TOKEN_PRIOR else source.folder
    try:
        config, (tokenizer, _) = read_config(llm), load_processor(llm)
        named = {"image": config.image_token_id}
        if source.prior == FOCUS_TOKEN_PRIOR:
            focus = CoPRSConfig.read(source.folder / "coprs.json").focus_token
            named[focus] = tokenizer.convert_tokens_to_ids(focus)
            if named[focus] is None or named[focus] == tokenizer.unk_token_id:
                return [Check("special tokens", f"no {focus}", f"the tokenizer in {llm} does not know {focus}: add it")]
        return [Check("special tokens", " · ".join(f"{k} {v}" for k, v in named.items()))]
    except CoPRSError as problem:
        return [Check("special tokens", "cannot be read", str(problem))]


def _memory(model: str, device: str, quantization: str, sam: str) -> list[Check]:
    known = listed(model)
    if known is None or sam not in SAM_FILES:
        return []
    needed, free = memory_needed(known, quantization, sam), free_memory(choose_device(device))
    problem = "" if needed <= free else "choose --quantize nf4, --sam vit_b or a smaller model"
    return [Check("memory", f"{in_words(needed)} needed, {in_words(free)} free", problem)]
