"""Checkpoint folders made of others: the authors' training output converted, adapters merged, a
published model prepared for training."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coprs_core.checkpoints.adapters import AdapterSource
from coprs_core.checkpoints.downloads import ProgressCallback, download_sam_file, download_snapshot
from coprs_core.checkpoints.fsdp_shards import merge_shards, read_shards
from coprs_core.checkpoints.hugging_face import (
    build_meta_mllm,
    check_focus_token,
    has_tied_embeddings,
    load_mllm,
    load_processor,
    load_tokenizer,
    read_config,
)
from coprs_core.checkpoints.load import find_source
from coprs_core.checkpoints.ood_statistics import copy_ood_statistics
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import inspect_machine
from coprs_core.checkpoints.save import (
    TIED_OUTPUT_LAYER,
    atomic_output_folder,
    save_checkpoint,
    write_checkpoint,
)
from coprs_core.checkpoints.tensors import (
    SAM_DECODER_PREFIXES,
    LazyTensors,
    as_lazy_tensors,
    check_shapes,
    check_tensors,
    infer_sam_configs,
    load_sam_modules,
    open_safetensors,
    read_sam_file,
    read_torch_file,
    sam_decoder_tensors,
    sam_encoder_tensors,
)
from coprs_core.errors import CoPRSError
from coprs_core.files import read_text, without_hidden
from coprs_core.machine import out_of_memory_as_user_error, parse_dtype
from coprs_core.model.backends.mllm import Mllm
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.parsing import parse_json
from coprs_core.prompts import FOCUS_TOKEN_PRIOR, IMAGE_SLOT, INSTRUCTION_SLOT, QWEN_TEMPLATE
from coprs_core.storage import expand_home

REFSEG_MODULES_FILE = "refseg_modules.pt"
_PRIOR_PREFIX = "heatmap_head."
_RENAMES = (  # of FSDP shards, and of transformers before 4.52
    (re.compile(r"^llm\."), ""),
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(layers|embed_tokens|norm)\b"), r"model.language_model.\1"),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
)
_POSITIONAL_MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def convert_checkpoint(
    folder: Path, sam: str, out: Path, prompt: str | None = None, dtype: str = "bf16"
) -> Path:
    """The authors' `…/actor` folder → a checkpoint folder of ours.

    Args:
        folder: holds `llm_hf/` (config, tokenizer, processor, and weights if they were exported)
            and `refseg_modules.pt`, or in place of either the FSDP shards
            `model_world_size_W_rank_R.pt`.
        sam: vit_b, vit_l, vit_h or a .pth file: the SAM that the checkpoint was trained with.
        out: a new folder.
        prompt: the template that the checkpoint was trained with, with {image} and {instruction}.
        dtype: of the language model and the image encoder; the heads stay as they are.

    Raises:
        CoPRSError: what is missing, broken, unexpected, or of another model; nothing is written
            then.
    """
    precision, source = parse_dtype(dtype), folder / "llm_hf"
    if not source.is_dir():
        raise CoPRSError(
            f"{folder} holds no folder llm_hf/: give the …/actor folder of the authors' training."
        )
    config, tokenizer = read_config(source), load_tokenizer(source)
    shards = read_shards(folder)
    language = _read_exported_weights(source) or merge_shards(shards, ("llm.",), folder)
    refseg_modules = _read_refseg_modules(folder, shards)
    mllm = build_meta_mllm(config, source)
    names = _map_names(mllm, language)
    sam_path = download_sam_file(sam)
    sam_state = read_sam_file(sam_path)
    coprs_config = _infer_config(config, refseg_modules, sam_state, sam_path, prompt)
    parts = _collect_parts(
        coprs_config, refseg_modules, sam_state, folder / REFSEG_MODULES_FILE, sam_path, precision
    )
    _check_focus_token_row(tokenizer, coprs_config.focus_token, mllm, language, names, source)
    renamed = LazyTensors(
        language.path,
        {new: (language.shapes[old][0], precision) for new, old in names.items()},
        lambda new: language.get(names[new]).to(precision),
    )
    large = (*renamed.shapes.values(), *parts["image_encoder"].shapes.values())
    size = sum(shape.numel() for shape, _ in large) * precision.itemsize
    with atomic_output_folder(out, size) as new:
        _copy_language_files(source, new / "mllm", precision)
        write_checkpoint(new, coprs_config, renamed, parts)
    return out


def merge_adapters(name: str, out: Path, dtype: str = "bf16") -> Path:
    """Adapters and the CoPRS checkpoint that they name → a checkpoint folder, in `dtype`.

    Raises `CoPRSError` where `name` are no such adapters, or what is missing or does not fit;
    nothing is written then.
    """
    precision, source = parse_dtype(dtype), find_source(name)
    if not isinstance(source, AdapterSource) or source.prior_kind != FOCUS_TOKEN_PRIOR:
        raise CoPRSError(
            f"{name} are no adapters to a CoPRS checkpoint: give a folder that holds "
            "adapter_config.json and names one."
        )
    cpu = torch.device("cpu")
    with out_of_memory_as_user_error(name, cpu, "use a machine with more memory"):
        plan = source.plan(LoadOptions("cpu", dtype, quantization="none"), inspect_machine("cpu"))
        plan.check()
        loaded = source.load(plan, None)
    segmenter: Any = loaded.segmenter
    model = segmenter.model
    size = sum(p.numel() for p in model.parameters()) * precision.itemsize
    with atomic_output_folder(out, size) as new:
        save_checkpoint(new, model, load_processor(source.language_folder), precision)
        copy_ood_statistics(source.base.folder, new)
    return out


def prepare_for_training(
    base: str,
    sam: str,
    out: Path,
    prompt: str | None = None,
    dtype: str = "bf16",
    report: ProgressCallback | None = None,
) -> Path:
    """The starting point of training: a published model with the focus token, SAM, and a fresh
    query head.

    The focus token's row is the mean of all rows. The embeddings grow where no spare row is left
    (Qwen2.5-VL has spare ones: 151,665 tokens, 151,936 rows). `base` is a Hugging Face id or
    folder; the other arguments are those of `convert_checkpoint`.
    """
    precision, folder = parse_dtype(dtype), expand_home(base)
    folder = folder if folder.is_dir() else download_snapshot(base, report)
    config = read_config(folder)
    sam_path = download_sam_file(sam, report)
    sam_state = read_sam_file(sam_path)
    vision, decoder = infer_sam_configs(sam_state, sam_path)
    processor = load_processor(folder)
    width = config.get_text_config().hidden_size
    template = prompt or _template_from_chat(processor)
    coprs_config = CoPRSConfig(width, vision, decoder, prompt_template=template)
    cpu = torch.device("cpu")
    with out_of_memory_as_user_error(
        base, cpu, "use a smaller model or a machine with more memory"
    ):
        mllm = load_mllm(folder, cpu, precision)
    with atomic_output_folder(
        out, sum(f.stat().st_size for f in without_hidden(folder.glob("*.safetensors")))
    ) as new:
        _add_focus_token(mllm, processor.tokenizer, coprs_config.focus_token)
        model = CoPRS(coprs_config, mllm)
        load_sam_modules(model, sam_state, sam_path, cpu, precision)
        save_checkpoint(new, model, processor)
    return out


def _add_focus_token(mllm: Mllm, tokenizer: Any, focus_token: str) -> None:
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [focus_token]}, replace_extra_special_tokens=False
    )
    if len(tokenizer) > mllm.get_input_embeddings().num_embeddings:
        mllm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    focus_id = tokenizer.convert_tokens_to_ids(focus_token)
    with torch.no_grad():
        weights = mllm.get_input_embeddings().weight, mllm.lm_head.weight
        # by identity: a tied pair is one tensor, whose mean must not take in the row just written
        for weight in {id(w): w for w in weights}.values():
            weight[focus_id] = weight.float().mean(0).to(weight.dtype)


def _template_from_chat(processor: Any) -> str:
    """A prompt template in the words of the model's own chat template."""
    message = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": INSTRUCTION_SLOT}]}
    ]
    question = QWEN_TEMPLATE.partition(f"{IMAGE_SLOT}<|vision_end|>")[2].partition("<|im_end|>")[0]
    try:
        text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except Exception as problem:  # a template of others raises anything at all
        raise CoPRSError(
            "The model brings no chat template: give the prompt template with --prompt FILE."
        ) from problem
    image = processor.image_token
    if text.count(image) != 1 or text.count(INSTRUCTION_SLOT) != 1:
        raise CoPRSError(
            "The model's chat template shows no single image and text: give one with --prompt FILE."
        )
    # InternVL's processor puts these around the picture, where other templates write them out
    before, behind = (getattr(processor, f"{end}_image_token", "") for end in ("start", "end"))
    return text.replace(image, before + IMAGE_SLOT + behind).replace(INSTRUCTION_SLOT, question)


# --- reading the authors' files


def _read_exported_weights(folder: Path) -> LazyTensors | None:
    """The weights in `llm_hf/`, if they were exported: safetensors, or torch's .bin files."""
    if files := without_hidden(folder.glob("*.safetensors")):
        return open_safetensors(files)
    if files := without_hidden(folder.glob("*.bin")):
        parts = [read_torch_file(path, "weights of a language model") for path in files]
        return as_lazy_tensors(folder, {k: v for part in parts for k, v in part.items()})
    return None


def _read_refseg_modules(folder: Path, shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if (folder / REFSEG_MODULES_FILE).is_file():
        return read_torch_file(
            folder / REFSEG_MODULES_FILE, "the query head, prompt encoder and mask decoder"
        )
    if not shards:
        raise CoPRSError(
            f"{folder} lacks {REFSEG_MODULES_FILE} (query head and decoder) and has no FSDP "
            "shards: copy that file too."
        )
    modules = merge_shards(shards, (_PRIOR_PREFIX, *SAM_DECODER_PREFIXES), folder)
    return {k: modules.get(k) for k in modules.shapes}


# --- checking and writing


def _map_names(mllm: Mllm, language: LazyTensors) -> dict[str, str]:
    """{name in our model: name in the source} of every tensor; raises `CoPRSError` for any
    mismatch."""
    names = {}
    for name in language.shapes:
        new = name
        for old, replacement in _RENAMES:
            new = old.sub(replacement, new)
        names[new] = name
    expected = {k: v.shape for k, v in mllm.state_dict().items()}
    if has_tied_embeddings(mllm.config):
        expected.pop(TIED_OUTPUT_LAYER, None)
        _check_tied(language, names)
    check_shapes(
        language.path, expected, {new: language.shapes[old][0] for new, old in names.items()}
    )
    return names


def _check_tied(language: LazyTensors, names: dict[str, str]) -> None:
    """Take the output layer out where it is the embeddings again; raises `CoPRSError` if it is
    not."""
    if TIED_OUTPUT_LAYER not in names:
        return
    if not torch.equal(
        language.get(names.pop(TIED_OUTPUT_LAYER)), language.get(_embeddings_name(names))
    ):
        raise CoPRSError(
            f"{language.path}: config.json says that lm_head and embeddings are one, and they "
            "differ: correct it."
        )


def _embeddings_name(names: dict[str, str]) -> str:
    return names[next(k for k in names if k.endswith("embed_tokens.weight"))]


def _infer_config(
    config: Any,
    refseg_modules: dict[str, Tensor],
    sam_state: dict[str, Tensor],
    sam_path: Path,
    prompt: str | None,
) -> CoPRSConfig:
    """The sizes of everything, read off the tensors."""
    vision, _ = infer_sam_configs(sam_state, sam_path)
    encoder = {k: v for k, v in sam_state.items() if k.startswith("image_encoder.")}
    try:
        _, decoder = infer_sam_configs(encoder | refseg_modules, sam_path)
        width, llm_width = refseg_modules[f"{_PRIOR_PREFIX}q_proj.weight"].shape
        channels = refseg_modules[f"{_PRIOR_PREFIX}k_proj.weight"].shape[1]
        prior_heads = refseg_modules[f"{_PRIOR_PREFIX}fuser.0.weight"].shape[0]
        matrix = refseg_modules[_POSITIONAL_MATRIX]
    except KeyError as problem:
        raise CoPRSError(
            f"The heads lack {problem.args[0]}: {REFSEG_MODULES_FILE} is not of CoPRS, or not "
            "whole."
        ) from problem
    expected = config.get_text_config().hidden_size
    if llm_width != expected:
        raise CoPRSError(
            f"The query head is made for a language model of width {llm_width} and llm_hf/ has "
            f"{expected}: they are of different models."
        )
    if channels != vision.channels or not torch.equal(matrix, sam_state[_POSITIONAL_MATRIX]):
        raise CoPRSError(
            f"{sam_path} is not the SAM that this checkpoint was trained with (its positional "
            "matrix differs): give the other size of vit_b, vit_l, vit_h."
        )
    template = prompt or QWEN_TEMPLATE
    return CoPRSConfig(llm_width, vision, decoder, prior_heads, width, prompt_template=template)


def _collect_parts(
    config: CoPRSConfig,
    refseg_modules: dict[str, Tensor],
    sam_state: dict[str, Tensor],
    refseg_path: Path,
    sam_path: Path,
    dtype: torch.dtype,
) -> dict[str, LazyTensors]:
    """Image encoder, prior and decoder, each tensor in its place; the first of them in `dtype`."""
    with torch.device("meta"):
        model = CoPRS(config, nn.Module())
    prior = {
        k.removeprefix(_PRIOR_PREFIX): v
        for k, v in refseg_modules.items()
        if k.startswith(_PRIOR_PREFIX)
    }
    decoder, encoder = sam_decoder_tensors(refseg_modules), sam_encoder_tensors(sam_state)
    check_tensors(model.prior, prior, refseg_path)
    check_tensors(model.decoder, decoder, refseg_path)
    check_tensors(model.image_encoder, encoder, sam_path)
    return {
        "image_encoder": as_lazy_tensors(sam_path, encoder, dtype),
        "prior": as_lazy_tensors(refseg_path, prior),
        "decoder": as_lazy_tensors(refseg_path, decoder),
    }


def _check_focus_token_row(
    tokenizer: Any,
    focus_token: str,
    mllm: Mllm,
    language: LazyTensors,
    names: dict[str, str],
    folder: Path,
) -> None:
    rows = mllm.get_input_embeddings().num_embeddings
    focus_id = check_focus_token(tokenizer, focus_token, rows, folder)
    row = language.get(_embeddings_name(names))[focus_id].float()
    if not row.isfinite().all() or not row.any():
        raise CoPRSError(
            f"The embedding row {focus_id} of {focus_token} in {folder} is empty: "
            "the token was never trained."
        )


def _copy_language_files(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Everything of a Hugging Face folder but its weights; config.json names the new precision."""
    target.mkdir()
    for file in without_hidden(source.iterdir()):
        is_kept = file.suffix in (".json", ".txt", ".jinja", ".model")
        if is_kept and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)
    config = parse_json(read_text(target / "config.json"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
