"""From a name to a loaded model."""

from dataclasses import replace
from pathlib import Path

from coprs_core.checkpoints import adapters, remote
from coprs_core.checkpoints.catalogue import MODEL_NAMES, choose_model, find_in_catalogue
from coprs_core.checkpoints.downloads import ProgressCallback, download_snapshot, print_progress
from coprs_core.checkpoints.options import AUTO_MODEL, LoadOptions, is_remote_name
from coprs_core.checkpoints.plan import check_quantization, inspect_machine
from coprs_core.checkpoints.sources import Checkpoint, CoordinateSource, CoPRSSource, ModelSource
from coprs_core.errors import CoPRSError, Phrase, did_you_mean
from coprs_core.machine import choose_device, out_of_memory_as_user_error, parse_dtype, trim_memory
from coprs_core.storage import expand_home

_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
# a checkout has it beside the package; what is installed has it inside (see pyproject.toml)
MINIATURE_FOLDER = (
    (_PACKAGE_FOLDER if (_PACKAGE_FOLDER / "assets").is_dir() else _PACKAGE_FOLDER.parent)
    / "assets"
    / "mini"
)


def load_checkpoint(
    name: str = "mini", options: LoadOptions | None = None, report: ProgressCallback | None = None
) -> Checkpoint:
    """Load a model, strictly: every tensor has its place and every place its tensor.

    Args:
        name: "mini", "auto" (see `choose_model`), a listed name (see `catalogue`), a folder, a
            Hugging Face id, or "openai:NAME@URL" (see `remote`).
        options: device, precision, quantization and SAM.
        report: given the progress of downloads, one line at a time.

    Raises:
        CoPRSError: what is missing, broken, unknown, or too large for this machine, and what to do.
    """
    options = options or LoadOptions()
    device = choose_device(options.device)
    check_quantization(options.quantization, device)
    if options.dtype != "auto":
        parse_dtype(options.dtype)
    machine = inspect_machine(options.device)
    if name == AUTO_MODEL:
        auto_plan = choose_model(machine, options)
        (report or print_progress)(Phrase("auto: {choice}", choice=auto_plan.describe()))
        name = auto_plan.model
        options = replace(options, sam=auto_plan.sam, quantization=auto_plan.quantization)
        # "auto" chooses without loading torch, and so without trying bitsandbytes
        check_quantization(options.quantization, device)
    if (entry := find_in_catalogue(name)) and entry.repo:
        entry.plan(options, machine).check()  # before gigabytes are downloaded in vain
    source = remote.parse_remote_name(name) if is_remote_name(name) else find_source(name, report)
    # to plan opens the weights' files, which takes address space for all of them
    hint = Phrase(
        "try {quantize}--sam sam2.1-tiny, --model auto, which takes what fits, or mini", quantize=""
    )
    with out_of_memory_as_user_error(source.name, device, hint):
        plan = source.plan(options, machine)
    plan.check()
    with out_of_memory_as_user_error(source.name, device, plan.smaller_choice_hint):
        checkpoint = source.load(plan, report)
    trim_memory()  # what quantizing and the first word left behind
    return checkpoint


def find_source(
    name: str, report: ProgressCallback | None = None, is_base: bool = False
) -> ModelSource:
    """What a name means: "mini", a listed name, a folder or a Hugging Face id; `is_base`: of
    adapters.

    What is not in the cache is downloaded, the base of adapters too. Raises `CoPRSError` where
    there is no such thing, or it is no model that can be used here.
    """
    check_model_name(name)
    if name == "mini":
        return CoPRSSource(name, MINIATURE_FOLDER)
    if name == AUTO_MODEL:  # it stands for none before the machine is looked at
        raise _no_checkpoint_error(name)
    if (entry := find_in_catalogue(name)) and entry.repo:
        return entry.to_source(download_snapshot(entry.repo, report))
    folder, is_downloaded = expand_home(name), False
    if not folder.is_dir():
        folder, is_downloaded = download_snapshot(name, report), True
    return _source_in_folder(name, folder, is_downloaded, report, is_base)


def check_model_name(name: str) -> None:
    """Raises `CoPRSError` where it is clear without a download that a name means no model."""
    if not isinstance(name, str) or not 0 < len(name) < 200:
        raise CoPRSError(
            "{name!r} is not a model: give a folder, a Hugging Face id or one of auto, {names}.",
            name=str(name)[:40],
            names=", ".join(MODEL_NAMES),
        )
    if name in ("mini", AUTO_MODEL):
        return
    entry = find_in_catalogue(name)
    if entry and entry.repo is None:
        raise CoPRSError(
            "{name!r} stands for a CoPRS checkpoint of yours: give its folder or hub id instead of "
            "this name, such as --model path/to/folder or --model you/your-model.",
            name=name,
        )
    if entry or expand_home(name).is_dir():
        return
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise _no_checkpoint_error(name)


def _source_in_folder(
    name: str,
    folder: Path,
    is_downloaded: bool,
    report: ProgressCallback | None,
    is_base: bool = False,
) -> ModelSource:
    """What kind of checkpoint a folder is."""
    if (folder / adapters.CONFIG_FILE).is_file():
        if is_base:
            raise CoPRSError(
                "{name} is named as the base of adapters and holds adapters too: merge those "
                "first with `coprs convert {name} --out DIR`.",
                name=name,
            )
        base = adapters.base_model_name(name, folder, is_downloaded)
        base_folder = folder / base
        try:
            if base_folder.is_dir():
                base_source = _source_in_folder(
                    base, base_folder.resolve(), is_downloaded, report, is_base=True
                )
            else:
                base_source = find_source(base, report, is_base=True)
        except CoPRSError as problem:
            raise CoPRSError(
                "The base of {name} cannot be used, which its {file} names as "
                "base_model_name_or_path: {reason}",
                name=name,
                file=adapters.CONFIG_FILE,
                reason=problem,
            ) from problem
        return adapters.AdapterSource(name, folder, base_source)
    if (folder / "coprs.json").is_file():
        return CoPRSSource(name, folder)
    if (folder / "config.json").is_file():
        return CoordinateSource(name, folder)
    raise _no_checkpoint_error(name)


def _no_checkpoint_error(name: str) -> CoPRSError:
    """The same for a folder without a checkpoint and for no folder: whoever may load models here
    learns nothing else of the disk."""
    return CoPRSError(
        "There is no checkpoint {name!r}{near}: give a folder that holds coprs.json (CoPRS), "
        "adapter_config.json (adapters) or config.json (a Hugging Face folder of Qwen2.5-VL or "
        "Qwen3-VL), a Hugging Face id, or one of auto, {names}.",
        name=name,
        near=did_you_mean(name, (AUTO_MODEL, *MODEL_NAMES)),
        names=", ".join(MODEL_NAMES),
    )
