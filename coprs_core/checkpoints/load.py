"""From a name to a loaded model."""

from dataclasses import replace
from pathlib import Path

from coprs_core.checkpoints import adapters, remote
from coprs_core.checkpoints.catalogue import NAMES, choose_model, listed
from coprs_core.checkpoints.downloads import Report, on_terminal, snapshot
from coprs_core.checkpoints.options import AUTO, LoadOptions, is_remote
from coprs_core.checkpoints.plan import check_quantization, this_machine
from coprs_core.checkpoints.sources import Checkpoint, CoordinateSource, CoPRSSource, Source
from coprs_core.errors import CoPRSError, Phrase, did_you_mean
from coprs_core.machine import choose_device, out_of_memory_as_user_error, parse_dtype, trim_memory
from coprs_core.sizes import expand_home

_PACKAGE = Path(__file__).resolve().parents[1]
# a checkout has it beside the package; what is installed has it inside (see pyproject.toml)
MINIATURE = (_PACKAGE if (_PACKAGE / "assets").is_dir() else _PACKAGE.parent) / "assets" / "mini"


def load_checkpoint(
    name: str = "mini", options: LoadOptions | None = None, report: Report | None = None
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
    machine = this_machine(options.device)
    if name == AUTO:
        chosen = choose_model(machine, options)
        (report or on_terminal)(Phrase("auto: {choice}", choice=chosen.in_words()))
        name = chosen.model
        options = replace(options, sam=chosen.sam, quantization=chosen.quantization)
        check_quantization(options.quantization, device)
    if (known := listed(name)) and known.repo:
        known.plan(options, machine).check()  # before gigabytes are downloaded in vain
    source = remote.parse(name) if is_remote(name) else find_source(name, report)
    plan = source.plan(options, machine)
    plan.check()
    with out_of_memory_as_user_error(source.name, device, plan.smaller):
        checkpoint = source.load(plan, report)
    trim_memory()  # what quantizing and the first word left behind
    return checkpoint


def find_source(name: str, report: Report | None = None, is_base: bool = False) -> Source:
    """What a name means: "mini", a listed name, a folder or a Hugging Face id; `is_base`: of
    adapters.

    What is not in the cache is downloaded, the base of adapters too. Raises `CoPRSError` where
    there is no such thing, or it is no model that can be used here.
    """
    check_name(name)
    if name == "mini":
        return CoPRSSource(name, MINIATURE)
    if name == AUTO:  # it stands for none before the machine is looked at
        raise _no_checkpoint(name)
    if (known := listed(name)) and known.repo:
        return known.source(snapshot(known.repo, report))
    folder, is_downloaded = expand_home(name), False
    if not folder.is_dir():
        folder, is_downloaded = snapshot(name, report), True
    return _in_folder(name, folder, is_downloaded, report, is_base)


def check_name(name: str) -> None:
    """Raises `CoPRSError` where it is clear without a download that a name means no model."""
    if not isinstance(name, str) or not 0 < len(name) < 200:
        raise CoPRSError(
            "{name!r} is not a model: give a folder, a Hugging Face id or one of auto, {names}.",
            name=str(name)[:40],
            names=", ".join(NAMES),
        )
    if name in ("mini", AUTO):
        return
    known = listed(name)
    if known and known.repo is None:
        raise CoPRSError(
            "{name!r} stands for a CoPRS checkpoint of yours: give its folder or hub id instead of "
            "this name, such as --model path/to/folder or --model you/your-model.",
            name=name,
        )
    if known or expand_home(name).is_dir():
        return
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise _no_checkpoint(name)


def _in_folder(
    name: str, folder: Path, is_downloaded: bool, report: Report | None, is_base: bool = False
) -> Source:
    """What kind of checkpoint a folder is."""
    if (folder / adapters.CONFIG).is_file():
        if is_base:
            raise CoPRSError(
                "{name} is named as the base of adapters and holds adapters too: merge those "
                "first with `coprs convert {name} --out DIR`.",
                name=name,
            )
        base = adapters.base_model_name(name, folder, is_downloaded)
        beside = folder / base
        try:
            if beside.is_dir():
                found = _in_folder(base, beside.resolve(), is_downloaded, report, is_base=True)
            else:
                found = find_source(base, report, is_base=True)
        except CoPRSError as problem:
            raise CoPRSError(
                "The base of {name} cannot be used, which its {file} names as "
                "base_model_name_or_path: {reason}",
                name=name,
                file=adapters.CONFIG,
                reason=problem,
            ) from problem
        return adapters.AdapterSource(name, folder, found)
    if (folder / "coprs.json").is_file():
        return CoPRSSource(name, folder)
    if (folder / "config.json").is_file():
        return CoordinateSource(name, folder)
    raise _no_checkpoint(name)


def _no_checkpoint(name: str) -> CoPRSError:
    """The same for a folder without a checkpoint and for no folder: whoever may load models here
    learns nothing else of the disk."""
    return CoPRSError(
        "There is no checkpoint {name!r}{near}: give a folder that holds coprs.json (CoPRS), "
        "adapter_config.json (adapters) or config.json (a Hugging Face folder of Qwen2.5-VL or "
        "Qwen3-VL), a Hugging Face id, or one of auto, {names}.",
        name=name,
        near=did_you_mean(name, (AUTO, *NAMES)),
        names=", ".join(NAMES),
    )
