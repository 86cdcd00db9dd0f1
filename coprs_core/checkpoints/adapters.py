"""LoRA adapters as a model: a small folder that names the model it was trained on."""

import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from coprs_core.checkpoints.downloads import ProgressCallback
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import LoadPlan, Machine, uses_own_int8
from coprs_core.checkpoints.sources import CHECKPOINT_PARTS, Checkpoint, ModelSource
from coprs_core.checkpoints.tensors import (
    inherit_folder_mode,
    load_module,
    raise_on_mismatch,
    save_tensors,
)
from coprs_core.errors import CoPRSError, Phrase, truncate
from coprs_core.files import read_text
from coprs_core.machine import COPY_AGAIN_HINT, as_user_error
from coprs_core.model.backends.cpu import optimize
from coprs_core.parsing import parse_json
from coprs_core.prompts import PriorKind

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_MAX_CONFIG_BYTES = 1_000_000
_MAX_MATCHING_SECONDS, _MAX_PATTERN_LENGTH = 5.0, 50_000
"""How long matching a model's names may take, a thousand times what published patterns do; and how
long a pattern may be."""
_TRAINED_PARTS = CHECKPOINT_PARTS[1:]
"""Parts of a CoPRS checkpoint that are trained beside adapters: the image encoder is not."""


@dataclass(frozen=True)
class AdapterSource:
    """A folder of adapters:

    adapter_config.json          as PEFT writes it; `base_model_name_or_path` names the base: a
                                 name, a Hugging Face id, or a folder, from this one
    adapter_model.safetensors    as PEFT writes it
    prior.safetensors, decoder.safetensors
                                 what was trained beside, in the place of the base's; may be missing

    Over weights of full precision the adapters are merged in, and cost nothing; over 4 or 8 bits
    they stay beside the layers, as they were trained. What `cpu.optimize` keeps in 8 bits is
    kept so after they are merged.
    """

    name: str
    folder: Path
    base: ModelSource

    @property
    def prior_kind(self) -> PriorKind:
        return self.base.prior_kind

    @property
    def language_folder(self) -> Path:
        return self.base.language_folder

    def files_beside_language_model(self, sam: str) -> list[Path]:
        part_files = [self.folder / f"{part}.safetensors" for part in _TRAINED_PARTS]
        existing = [path for path in part_files if path.is_file()]
        return [
            self.folder / CONFIG_FILE,
            self.folder / WEIGHTS_FILE,
            *existing,
            *self.base.files_beside_language_model(sam),
        ]

    def special_token_ids(self) -> dict[str, int]:
        return self.base.special_token_ids()

    def plan(self, options: LoadOptions, machine: Machine) -> LoadPlan:
        plan = self.base.plan(options, machine)
        if _is_quantized_after_merging(plan):
            unquantized_plan = self.base.plan(replace(options, quantization="none"), machine)
            plan = replace(plan, memory=unquantized_plan.memory)
        return replace(plan, model=self.name)

    def load(self, plan: LoadPlan, report: ProgressCallback | None) -> Checkpoint:
        weights, device = self.folder / WEIGHTS_FILE, torch.device(plan.device)
        if not weights.is_file():
            old_weights = self.folder / "adapter_model.bin"
            hint = Phrase("save them as safetensors") if old_weights.is_file() else COPY_AGAIN_HINT
            raise CoPRSError("The adapters lack {weights}: {hint}.", weights=weights, hint=hint)
        is_quantized_after = _is_quantized_after_merging(plan)
        base_plan = replace(plan, quantization="none") if is_quantized_after else plan
        checkpoint = self.base.load(base_plan, report)
        segmenter: Any = checkpoint.segmenter
        model = segmenter.model
        optimize.undo(model.mllm)  # adapters know plain layers
        apply_adapters(model.mllm, self.folder, is_merged=checkpoint.quantization == "none")
        for part in _TRAINED_PARTS:
            file = self.folder / f"{part}.safetensors"
            if file.is_file():
                if part not in dict(model.named_children()):
                    raise CoPRSError(
                        "{file} belongs to a CoPRS checkpoint and {base} is none: correct "
                        "base_model_name_or_path.",
                        file=file,
                        base=self.base.name,
                    )
                load_module(model.get_submodule(part), file, device, model.dtype)
        model.eval().requires_grad_(False)
        if is_quantized_after:
            optimize.apply(model.mllm.model.language_model, int8=True)
        optimize.apply(model, shortlist=plan.quantization != "none")
        folder = checkpoint.language_folder
        return Checkpoint(self.name, checkpoint.segmenter, plan.quantization, folder)


def _is_quantized_after_merging(plan: LoadPlan) -> bool:
    """Adapters can be merged into whole weights alone, and our own int8 holds none beside it."""
    return uses_own_int8(plan.quantization, torch.device(plan.device))


def base_model_name(name: str, folder: Path, is_downloaded: bool) -> str:
    """The name of the model that the adapters in a folder belong to, or its folder from this one.

    Raises `CoPRSError` where the config names none, or adapters of another kind. What was
    downloaded does not choose a folder of this machine.
    """
    path = folder / CONFIG_FILE
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CoPRSError(
            "{path} is over 1 MB and no config: copy it again from its source.", path=path
        )
    with as_user_error(Phrase("{path} cannot be read", path=path)):
        values = parse_json(read_text(path))
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise CoPRSError(
            "{path} does not describe LoRA adapters: only those are supported.", path=path
        )
    if values.get("megatron_config"):
        raise CoPRSError(
            "{path} asks for Megatron, which is not supported: merge them there.", path=path
        )
    base = values.get("base_model_name_or_path")
    if not isinstance(base, str) or not 0 < len(base) < 500:
        raise CoPRSError("{path} names no base: write it as base_model_name_or_path.", path=path)
    is_local = base.startswith(("/", ".", "~")) or (folder / base).is_dir() or Path(base).is_dir()
    if is_downloaded and is_local:
        raise CoPRSError(
            "{name} are adapters to a folder of the machine that they were trained on: ask "
            "their makers for the name of a model, or for a merged checkpoint.",
            name=name,
        )
    if base == name or (folder / base).resolve() == folder.resolve():
        raise CoPRSError(
            "{path} names itself as the base: correct base_model_name_or_path.", path=path
        )
    return base


def apply_adapters(mllm: nn.Module, folder: Path, is_merged: bool) -> None:
    """Put the adapters of a folder into a language model, strictly; `is_merged`: into its weights.

    Raises `CoPRSError` where PEFT is not installed, or a tensor has no place or a place no tensor.
    """
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ModuleNotFoundError as problem:
        raise CoPRSError(
            "{folder} holds adapters, which need the library peft: pip install peft.", folder=folder
        ) from problem
    device = next(mllm.parameters()).device
    fault = Phrase("{folder} does not fit its base", folder=folder)
    with as_user_error(fault, file=folder / WEIGHTS_FILE):
        state = load_file(folder / WEIGHTS_FILE, device=str(device))
    hint = Phrase(
        "in {config}, name the model that they were trained on as base_model_name_or_path",
        config=CONFIG_FILE,
    )
    with as_user_error(fault, hint):
        config: Any = LoraConfig.from_pretrained(str(folder))
        # another way of starting adapters (PiSSA, LoftQ) would change the base's own weights
        config.inference_mode, config.init_lora_weights = True, True
        config.base_model_name_or_path = None  # else PEFT warns that it is loaded from elsewhere
        _check_ranks(config, state, folder / CONFIG_FILE)
        resolve_patterns(config, [name for name, _ in mllm.named_modules()], folder / CONFIG_FILE)
        adapted: Any = get_peft_model(mllm, config, autocast_adapter_dtype=False)
        loaded = set_peft_model_state_dict(adapted, state)
    parameter_names = {name for name, _ in adapted.named_parameters()}  # what is tied counts once
    trainable = {name for name in parameter_names if "lora_" in name or "trainable_tokens" in name}
    missing = sorted(trainable.intersection(loaded.missing_keys))
    raise_on_mismatch(folder / WEIGHTS_FILE, missing, sorted(loaded.unexpected_keys), [])
    if is_merged:
        adapted.merge_and_unload()


def _check_ranks(config: Any, state: dict[str, Tensor], path: Path) -> None:
    """Raises `CoPRSError` where a config asks for more than the weights hold: PEFT would make it
    up, and take the memory."""
    max_rank = max((side for tensor in state.values() for side in tensor.shape), default=0)
    for entry, ranks in (("r", [config.r]), ("rank_pattern", (config.rank_pattern or {}).values())):
        if invalid := [r for r in ranks if type(r) is not int or not 1 <= r <= max_rank]:
            raise CoPRSError(
                "{path}: {entry} is {value} and no side of the weights is over {most}: take "
                "config and weights of the same adapters.",
                path=path,
                entry=entry,
                value=truncate(invalid[0], 40),
                most=max_rank,
            )
    if sum(end - start for start, end in config.layer_replication or ()) > len(state):
        raise CoPRSError(
            "{path}: layer_replication makes more layers than there are weights: take config "
            "and weights of the same adapters.",
            path=path,
        )


def resolve_patterns(config: Any, names: list[str], path: Path) -> None:
    """Put the modules' names in the place of a `LoraConfig`'s regular expressions: PEFT would match
    them by `re`, which takes longer than anybody waits over some.

    Raises `CoPRSError` where one takes too long, or stands where PEFT's writers give names.
    """
    matcher = _Matcher(names, path)
    if isinstance(config.target_modules, str) and config.target_modules != "all-linear":
        config.target_modules = set(matcher.find_matches("target_modules", config.target_modules))
    if isinstance(config.exclude_modules, str):
        config.exclude_modules = set(
            matcher.find_matches("exclude_modules", config.exclude_modules)
        )
    for entry in ("rank_pattern", "alpha_pattern"):
        values: dict[str, Any] = {}
        unmatched = set(names)
        for pattern, value in (getattr(config, entry) or {}).items():  # the first that matches
            matching = unmatched.intersection(
                matcher.find_matches(entry, rf"(?:.*\.)?(?:{pattern})")
            )
            unmatched -= matching
            if matching:
                values["|".join(re.escape(name) for name in sorted(matching))] = value
        setattr(config, entry, values)
    for entry in ("modules_to_save", "layers_pattern"):
        listed_names = getattr(config, entry) or []
        for name in [listed_names] if isinstance(listed_names, str) else listed_names:
            if not re.fullmatch(r"[\w.]+", name):
                raise CoPRSError(
                    "{path}: {entry} has {name!r} and names of modules were expected: write those.",
                    path=path,
                    entry=entry,
                    name=truncate(name, 40),
                )


@dataclass(frozen=True)
class _Matcher:
    """Matches modules' names by the patterns of a config, in a bounded time all together."""

    names: list[str]
    path: Path
    deadline: float = field(default_factory=lambda: time.monotonic() + _MAX_MATCHING_SECONDS)

    def find_matches(self, entry: str, pattern: str) -> list[str]:
        """The names that a pattern fits as a whole."""
        import regex  # what transformers requires; it can be told how long it may take

        try:
            if len(pattern) > _MAX_PATTERN_LENGTH:
                raise TimeoutError
            compiled = regex.compile(pattern)
            return [
                name
                for name in self.names
                if compiled.fullmatch(name, timeout=max(self.deadline - time.monotonic(), 0.001))
            ]
        except TimeoutError as problem:
            raise CoPRSError(
                "{path}: {entry} is {pattern!r}, which takes too long to match: write a list of "
                "the modules' names.",
                path=self.path,
                entry=entry,
                pattern=truncate(pattern, 40),
            ) from problem


def save_adapters(folder: Path, adapted: Any, base: str, parts: dict[str, nn.Module]) -> None:
    """Write a PEFT model's adapters, and the parts that were trained beside, as `AdapterSource`
    reads them; `base` as it shall stand in the config. The config is written last."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, module in parts.items():
        state = {name: value.cpu().contiguous() for name, value in module.state_dict().items()}
        save_tensors(state, folder / f"{part}.safetensors")
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    inherit_folder_mode(folder / WEIGHTS_FILE)
