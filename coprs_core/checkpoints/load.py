"""From a name to a loaded model."""

from pathlib import Path

from coprs_core.checkpoints import adapters, remote
from coprs_core.checkpoints.auto import choose, this_machine
from coprs_core.checkpoints.catalogue import NAMES, listed
from coprs_core.checkpoints.downloads import Report, on_terminal, snapshot
from coprs_core.checkpoints.memory import smaller_choice
from coprs_core.checkpoints.options import AUTO, LoadOptions, is_remote
from coprs_core.checkpoints.quantization import check_quantization
from coprs_core.checkpoints.source import Checkpoint, CoordinateSource, CoPRSSource, Source
from coprs_core.errors import CoPRSError, Phrase, did_you_mean
from coprs_core.machine import choose_device, parse_dtype, trim_memory, within_memory
from coprs_core.sizes import expanded

MINIATURE = Path(__file__).resolve().parents[2] / "assets" / "mini"


def load_checkpoint(
    name: str = "mini", options: LoadOptions | None = None, report: Report | None = None
) -> Checkpoint:
    """Load a model, strictly: every tensor has its place and every place its tensor.

    Args:
        name: "mini", "auto" (see `auto`), a listed name (see `catalogue`), a folder, a Hugging
            Face id, or "openai:NAME@URL" (see `remote`).
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
    if name == AUTO:
        choice = choose(this_machine(device), options)
        (report or on_terminal)(Phrase("auto: {choice}", choice=choice.in_words()))
        name, options = choice.model.name, choice.loading(options)
        check_quantization(options.quantization, device)
    source = remote.parse(name) if is_remote(name) else find(name, report)
    with within_memory(source.name, device, smaller_choice(options.quantization)):
        checkpoint = source.load(options, device, report)
    trim_memory()  # what quantizing and the first word left behind
    return checkpoint


def find(name: str, report: Report | None = None, is_base: bool = False) -> Source:
    """What a name means: "mini", a listed name, a folder or a Hugging Face id; `is_base`: of
    adapters.

    What is not in the cache is downloaded, the base of adapters too. Raises `CoPRSError` where
    there is no such thing, or it is no model that can be used here.
    """
    check_name(name)
    if name == "mini":
        return CoPRSSource(name, MINIATURE)
    if name == AUTO:  # it stands for none before the machine is looked at
        raise _none_there(name)
    if (known := listed(name)) and known.repo:
        return known.source(snapshot(known.repo, report))
    folder, is_downloaded = expanded(name), False
    if not folder.is_dir():
        folder, is_downloaded = snapshot(name, report), True
    return _opened(name, folder, is_downloaded, report, is_base)


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
    if known or expanded(name).is_dir():
        return
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise _none_there(name)


def _opened(
    name: str, folder: Path, is_downloaded: bool, report: Report | None, is_base: bool = False
) -> Source:
    """What kind of checkpoint a folder is."""
    if (folder / adapters.CONFIG).is_file():
        if is_base:
            raise CoPRSError(
                "{name} is named as the base of adapters and holds adapters too: merge those "
                "first with `python -m coprs_core convert {name} --out DIR`.",
                name=name,
            )
        base = adapters.base_of(name, folder, is_downloaded)
        beside = folder / base
        try:
            if beside.is_dir():
                found = _opened(base, beside.resolve(), is_downloaded, report, is_base=True)
            else:
                found = find(base, report, is_base=True)
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
    raise _none_there(name)


def _none_there(name: str) -> CoPRSError:
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
