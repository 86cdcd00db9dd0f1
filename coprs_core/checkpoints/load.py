"""Find, save and load checkpoints: an ordinary folder with everything that an answer needs.

coprs.json                   sizes, prompt template, focus token (CoPRSConfig)
mllm/                        a Hugging Face folder: config, weights, tokenizer, processor
image_encoder.safetensors    SAM's image encoder, SAM's names
prior.safetensors            the query head, the image keys and the fusion
decoder.safetensors          SAM's prompt encoder and mask decoder, SAM's names
"""

import copy
import gc
import json
import logging
import pickle
import re
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from coprs_core.checkpoints.catalogue import (
    BYTES_PER_LINEAR_WEIGHT,
    CATALOGUE,
    NAMES,
    listed,
    working_memory,
)
from coprs_core.coordinates import STOCK, Dialect
from coprs_core.checkpoints.downloads import Report, missing_shards, sam_file, snapshot
from coprs_core.errors import CoPRSError
from coprs_core.machine import choose_device, choose_dtype, free_memory, in_words
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.decoder import FLOAT32_BUFFER, decoder_config_of
from coprs_core.model.mllm import ARCHITECTURES
from coprs_core.model.pointing import Pointing, PointingConfig
from coprs_core.model.vision import vision_config_of
from coprs_core.answer.results import COORDINATES_PRIOR, FOCUS_TOKEN_PRIOR

MINIATURE = Path(__file__).resolve().parent.parent / "assets" / "mini"
PARTS = ("image_encoder", "prior", "decoder")
QUANTIZATIONS = ("none", "nf4", "int8")
_LINEAR = re.compile(r"(?<!visual\.)layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight$")


@dataclass(frozen=True)
class Source:
    """Where a model lies and of which kind it is: `prior` is "focus token" (CoPRS) or "coordinates"."""

    name: str
    folder: Path
    prior: str
    dialect: Dialect | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model in evaluation mode, and what turns photos and words into its inputs.

    `dialect` is how a model with a coordinates prior is spoken to; None for a CoPRS checkpoint, whose config says it.
    """

    name: str
    model: CoPRS | Pointing
    tokenizer: object
    image_processor: object
    quantization: str
    prior: str = FOCUS_TOKEN_PRIOR
    dialect: Dialect | None = None


def find(name: str, report: Report | None = None) -> Source:
    """What a name means: "mini", a listed name, a folder or a Hugging Face id, which is downloaded where not cached.

    Raises `CoPRSError` where there is no such thing or it is no model that can be used here.
    """
    if name == "mini":
        return Source(name, MINIATURE, FOCUS_TOKEN_PRIOR)
    if not isinstance(name, str) or not 0 < len(name) < 200:
        raise CoPRSError(
            f"{str(name)[:40]!r} is no model: give a folder, a Hugging Face id or one of {', '.join(NAMES)}."
        )
    folder = Path(name).expanduser()
    if known := listed(name):
        if known.repo is None:
            raise CoPRSError(
                f"{name!r} stands for {known.about}, such as --model path/to/folder or --model you/your-model."
            )
        return Source(known.name, snapshot(known.repo, report), known.prior, known.dialect)
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "~", "/")):
            raise CoPRSError(
                f"There is no checkpoint {name!r}: give a folder, a Hugging Face id or one of {', '.join(NAMES)}."
            )
        folder = snapshot(name, report)
    if (folder / "coprs.json").is_file():
        return Source(name, folder, FOCUS_TOKEN_PRIOR)
    if (folder / "config.json").is_file():
        return Source(name, folder, COORDINATES_PRIOR, STOCK)
    held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    raise CoPRSError(
        f"The folder {str(folder)!r} holds no coprs.json (it holds {held}): give a CoPRS checkpoint folder, "
        "or a Hugging Face folder of Qwen2.5-VL."
    )


def save_checkpoint(folder: Path, model: CoPRS, processor, dtype: torch.dtype | None = None) -> None:
    """Write a model and its processor (with tokenizer) as a checkpoint folder, in `dtype` or as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coprs.json").write_text(json.dumps(model.config.to_dict(), indent=2, ensure_ascii=False) + "\n")
    mllm = model.mllm if dtype in (None, model.mllm.dtype) else copy.deepcopy(model.mllm).to(dtype)
    mllm.save_pretrained(folder / "mllm")
    processor.save_pretrained(folder / "mllm")
    for part in PARTS:
        state = getattr(model, part).state_dict()
        save_file(
            {k: v.to("cpu", dtype or v.dtype).contiguous() for k, v in state.items()}, folder / f"{part}.safetensors"
        )


def load_checkpoint(
    name: str = "mini", device: str = "auto", dtype: str = "auto", quantization: str = "none", sam: str = "vit_h",
    report: Report | None = None,
) -> Checkpoint:  # fmt: skip
    """Load a model, strictly: every tensor has its place and every place its tensor.

    Weights are read as they are needed, straight from the files' pages: loading takes little more memory than the model.

    Args:
        name: "mini", a listed name (see `catalogue`), a folder or a Hugging Face id.
        device: "auto" (CUDA, then Apple's MPS, then the CPU) or a torch device.
        dtype: "auto" (bfloat16; on a CPU float32 below 1 GB of weights) or float32 / bfloat16 / float16 (fp32 / bf16 / fp16).
        quantization: "none", or "nf4" / "int8" for the language model's linear layers.
        sam: vit_b, vit_l, vit_h or a .pth file: the SAM that a model with a coordinates prior prompts.
        report: told the progress of downloads.

    Raises:
        CoPRSError: what is missing, broken, unknown, or too large for this machine, and what to do.
    """
    device = choose_device(device)
    check_quantization(quantization, device)
    choose_dtype(dtype, device)
    source = find(name, report)
    load = _load_coprs if source.prior == FOCUS_TOKEN_PRIOR else _load_pointing
    bars_were_on = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with within_memory(name, device, quantization):
            return load(source, device, dtype, quantization, sam, report)
    finally:
        transformers_logging.enable_progress_bar() if bars_were_on else None


def _load_coprs(source: Source, device, dtype, quantization, sam, report) -> Checkpoint:
    folder = source.folder
    config = CoPRSConfig.read(folder / "coprs.json")
    files = [folder / f"{part}.safetensors" for part in PARTS]
    sizes = [weight_bytes(p) for p in (*_shards(folder / "mllm"), *files)]
    dtype = choose_dtype(dtype, device, sum(linear + other for linear, other in sizes) * 2)
    _check_memory(source.name, sizes, device, dtype, quantization, config.vision)
    mllm = load_mllm(folder / "mllm", device, dtype, quantization)
    width = mllm.get_input_embeddings().embedding_dim
    if width != config.llm_width:
        raise CoPRSError(
            f"coprs.json says llm_width {config.llm_width} and mllm/ has {width}: the two are of different models."
        )
    with torch.device("meta"):
        model = CoPRS(config, nn.Module())
    model.mllm = mllm
    for part, file in zip(PARTS, files, strict=True):
        _load_part(getattr(model, part), file, device, dtype)
    tokenizer, image_processor = load_processor(folder / "mllm")
    check_focus_token(tokenizer, config.focus_token, mllm.get_input_embeddings().num_embeddings, folder / "mllm")
    return Checkpoint(source.name, model.eval().requires_grad_(False), tokenizer, image_processor, quantization)


def _load_pointing(source: Source, device, dtype, quantization, sam, report) -> Checkpoint:
    folder = source.folder
    kind = read_config(folder).model_type
    if kind != "qwen2_5_vl":
        raise CoPRSError(
            f"{source.name} is of type {kind!r} and coordinates are read from qwen2_5_vl: use one of {_pointing_names()}."
        )
    path = sam_file(sam, report)
    state = read_sam(path)
    sizes = [*(weight_bytes(p) for p in _shards(folder)), (0, sum(v.numel() for v in state.values()))]
    dtype = choose_dtype(dtype, device, sum(linear + other for linear, other in sizes) * 2)
    vision, decoder = sam_configs(state, path)
    _check_memory(source.name, sizes, device, dtype, quantization, vision)
    with torch.device("meta"):
        model = Pointing(PointingConfig(vision, decoder, source.dialect.template), nn.Module())
    for part, prefixes in (("image_encoder", ("image_encoder.",)), ("decoder", ("prompt_encoder.", "mask_decoder."))):
        chosen = {k.removeprefix("image_encoder."): v for k, v in state.items() if k.startswith(prefixes)}
        place(getattr(model, part), chosen, path, device, dtype)
    del state, chosen
    model.mllm = load_mllm(folder, device, dtype, quantization)
    tokenizer, image_processor = load_processor(folder)
    image_processor.size = dict(image_processor.size) | {"longest_edge": source.dialect.most_pixels}
    return Checkpoint(
        source.name, model.eval().requires_grad_(False), tokenizer, image_processor, quantization, COORDINATES_PRIOR,
        source.dialect,
    )  # fmt: skip


def read_config(folder: Path):
    """The Hugging Face config of a folder, of an architecture that is supported."""
    if not (folder / "config.json").is_file():
        raise CoPRSError(
            f"The checkpoint has no {folder / 'config.json'}: copy its folder {folder.name}/ again from its source."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CoPRSError(
            f"{folder / 'config.json'} cannot be read ({_first_line(problem)}): copy it again."
        ) from problem
    if config.model_type not in ARCHITECTURES:
        raise CoPRSError(
            f"{folder / 'config.json'} is of type {config.model_type!r}: only {', '.join(ARCHITECTURES)} are supported."
        )
    return config


def check_focus_token(tokenizer, focus_token: str, embeddings: int, where: Path) -> int:
    """The focus token's id; raises `CoPRSError` where the tokenizer does not know it or the embeddings have no row for it."""
    focus_id = tokenizer.convert_tokens_to_ids(focus_token)
    if focus_id is None or focus_id == tokenizer.unk_token_id:
        raise CoPRSError(f"The tokenizer in {where} does not know the focus token {focus_token}: add it.")
    if focus_id >= embeddings:
        raise CoPRSError(
            f"The focus token {focus_token} has id {focus_id} and the embeddings in {where} have {embeddings} rows: "
            "tokenizer and weights are of different models."
        )
    return focus_id


def read_sam(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a SAM .pth file, read lazily; raises `CoPRSError` where it is something else."""
    return read_pickle(path, "a SAM file (.pth)")


def read_pickle(path: Path, expected: str) -> dict:
    """A torch file that holds a dict, with weights_only: no code in it is run. Raises `CoPRSError` by kind of break."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError as problem:
        raise CoPRSError(f"There is no file {path}: {expected} was expected there.") from problem
    except pickle.UnpicklingError as problem:
        unsafe = "GLOBAL" in str(problem) or "Unsupported" in str(problem)
        what = "holds code, which is never run" if unsafe else "is no file of torch"
        raise CoPRSError(
            f"{path} {what}: {expected} was expected; get it again from a source that you trust."
        ) from problem
    except (RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError) as problem:
        with open(path, "rb") as file:
            was_zip = file.read(2) == b"PK"
        what = f"is broken or cut short ({_first_line(problem)})" if was_zip else "is no file of torch"
        raise CoPRSError(f"{path} {what}: {expected} was expected; copy it again.") from problem
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CoPRSError(f"{path} holds no table of tensors: {expected} was expected.")
    return state


def sam_configs(state: dict[str, torch.Tensor], path: Path):
    """`VisionConfig` and `DecoderConfig` of a SAM file's tensors."""
    try:
        encoder = {k.removeprefix("image_encoder."): v for k, v in state.items() if k.startswith("image_encoder.")}
        return vision_config_of(encoder), decoder_config_of(state)
    except (KeyError, ValueError, IndexError) as problem:
        raise CoPRSError(
            f"{path} is no SAM (ViT-B, L or H) file; it lacks {problem}: give one of segment_anything's published files."
        ) from problem


def too_large(name: str, device: torch.device, quantization: str, needed: int = 0, smaller: str = "") -> CoPRSError:
    """The sentence for a model that does not fit: what was needed, what is free, the next smaller choice."""
    need = f"needs about {in_words(needed)}" if needed else "needs more memory than there is"
    way_out = smaller or _smaller_choice(quantization)
    return CoPRSError(f"{name} {need} and {device} has {in_words(free_memory(device))} free: {way_out}.")


def _smaller_choice(quantization: str) -> str:
    smaller = {"none": "--quantize nf4, ", "int8": "--quantize nf4, "}.get(quantization, "")
    return f"try {smaller}--sam vit_b, a smaller model such as qwen2.5-vl-3b, or mini"


def _check_memory(name: str, sizes, device, dtype: torch.dtype, quantization: str, vision) -> None:
    """Refuse what cannot fit before it takes the machine down: a CPU out of memory kills the process without a word."""

    def needed(quantization: str, bytes_per_weight: int) -> int:
        per_linear = BYTES_PER_LINEAR_WEIGHT.get(quantization, bytes_per_weight)
        weights = sum(per_linear * linear + bytes_per_weight * other for linear, other in sizes)
        return int(weights) + working_memory(vision.grid, vision.heads)

    asked, free = needed(quantization, dtype.itemsize), free_memory(device)
    if asked <= free:
        return
    choices = [
        (
            f"--dtype bf16 needs {{}}{'' if quantization == 'none' else ' with --quantize ' + quantization}",
            needed(quantization, 2),
        )
    ]
    choices = choices * (dtype == torch.float32) + [("--quantize nf4 --dtype bf16 needs {}", needed("nf4", 2))]
    fitting = next((text.format(in_words(size)) for text, size in choices if size <= free), "")
    raise too_large(f"{name} in {str(dtype).removeprefix('torch.')}", device, quantization, asked, fitting)


def weight_bytes(path: Path) -> tuple[int, int]:
    """(weights of the language model's linear layers, other weights) in a safetensors file; counts, from its header alone."""
    if not path.is_file():
        raise CoPRSError(f"The checkpoint has no file {path}: copy it again from its source.")
    try:
        with safe_open(path, framework="pt") as file:
            sizes = {k: torch.Size(file.get_slice(k).get_shape()).numel() for k in file.keys()}
    except (SafetensorError, OSError) as problem:
        raise CoPRSError(f"{path} is broken ({_first_line(problem)}): copy it again from its source.") from problem
    linear = sum(n for k, n in sizes.items() if _LINEAR.search(k) and "vision" not in k)
    return linear, sum(sizes.values()) - linear


def _shards(folder: Path) -> list[Path]:
    missing = missing_shards(folder) if folder.is_dir() else ["*.safetensors"]
    if missing:
        raise CoPRSError(f"The language model lacks {folder / missing[0]}: copy it again from its source.")
    return sorted(folder.glob("*.safetensors"))


def _pointing_names() -> str:
    return ", ".join(m.name for m in CATALOGUE if m.prior == COORDINATES_PRIOR)


def check_quantization(quantization: str, device: torch.device) -> None:
    """Raises `CoPRSError` where a quantization is not known or cannot work on a device."""
    if quantization not in QUANTIZATIONS:
        raise CoPRSError(f"Quantization {quantization!r} is not known: choose {', '.join(QUANTIZATIONS)}.")
    if quantization == "none":
        return
    if device.type not in ("cuda", "cpu"):
        raise CoPRSError(
            f"Quantization {quantization} works on CUDA and on the CPU, not on {device}: choose --quantize none."
        )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a faster kernel that is not published
    try:
        import bitsandbytes  # noqa: F401  (its native part may be missing)
    except Exception as problem:  # a broken install raises anything at all
        raise CoPRSError(
            f"bitsandbytes, which quantises, does not work here ({_first_line(problem)}): choose --quantize none."
        ) from problem


def load_mllm(folder: Path, device: torch.device, dtype: torch.dtype, quantization: str = "none") -> nn.Module:
    """A Hugging Face model by its architecture, strictly; quantised, if so, in the language model's linear layers alone."""
    config = read_config(folder)
    options = {}
    if quantization != "none":
        with torch.device("meta"):
            parts = AutoModelForImageTextToText.from_config(config).model.named_children()
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=quantization == "nf4",
            load_in_8bit=quantization == "int8",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[f"model.{n}" for n, _ in parts if n != "language_model"] + ["lm_head"],
        )
    try:
        model, info = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, device_map={"": device}, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, SafetensorError, ValueError, RuntimeError, json.JSONDecodeError) as problem:
        if is_out_of_memory(problem):
            raise
        raise CoPRSError(
            f"The language model in {folder} cannot be loaded ({_first_line(problem)}): copy it again."
        ) from problem
    refuse_mismatch(
        folder, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), [str(m) for m in info["mismatched_keys"]]
    )
    return model


@contextmanager
def within_memory(
    what: str, device: torch.device, quantization: str, smaller: str = "", let_go: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Where memory runs out inside: calls `let_go`, gives everything back and says so as a `CoPRSError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        let_go()
        give_memory_back(problem)
        raise too_large(what, device, quantization, smaller=smaller) from None


def give_memory_back(problem: BaseException | None) -> None:
    """Let go of everything that a failed computation, or a model no longer in use, still holds."""
    while problem:
        traceback.clear_frames(problem.__traceback__)
        problem = problem.__cause__ or problem.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception of torch or Python means that memory ran out, on whatever device."""
    words = str(problem).lower()
    return isinstance(problem, torch.OutOfMemoryError | MemoryError) or (
        isinstance(problem, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)
    )


def _load_part(module: nn.Module, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            place(module, {k: file.get_tensor(k) for k in file.keys()}, path, device, dtype)
    except (SafetensorError, OSError) as problem:
        raise CoPRSError(f"{path} is broken ({_first_line(problem)}): copy it again from its source.") from problem


def place(
    module: nn.Module, state: dict[str, torch.Tensor], path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Put tensors into a module of the same names, strictly, at the given precision; SAM's positional matrix stays float32."""
    check_tensors(module, state, path)
    for k in list(state):
        state[k] = state[k].to(device, torch.float32 if k.endswith(FLOAT32_BUFFER) else dtype)
    module.load_state_dict(state, strict=True, assign=True)


def check_tensors(module: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Raises `CoPRSError` naming the tensors of a file that a module lacks, does not know, or has in another shape."""
    expected = module.state_dict()
    wrong = [f"{k} is {list(state[k].shape)} and {list(v.shape)} was expected" for k, v in expected.items()
             if k in state and state[k].shape != v.shape]  # fmt: skip
    refuse_mismatch(path, sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys()), wrong)


def load_processor(folder: Path):
    """(tokenizer, image processor) of a Hugging Face folder."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), AutoImageProcessor.from_pretrained(
            folder, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CoPRSError(
            f"Tokenizer or processor in {folder} cannot be loaded ({_first_line(problem)}): copy it again."
        ) from problem


def refuse_mismatch(path: Path, missing: list[str], unexpected: list[str], wrong: list[str]) -> None:
    for what, names in (("lacks", missing), ("holds, against expectation,", unexpected), ("has a wrong size:", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CoPRSError(
                f"{path} {what} {', '.join(names[:3])}{more}: it is not of this model; copy it again from its source."
            )


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
