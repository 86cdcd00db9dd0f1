"""Checkpoints from elsewhere into our folder: `convert` the authors' training output, `merge`
adapters, `prepare` a start for training."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coprs_core.checkpoints.adapters import AdapterSource
from coprs_core.checkpoints.downloads import Report, sam_file, snapshot
from coprs_core.checkpoints.fsdp_shards import merge_shards, read_shards
from coprs_core.checkpoints.hugging_face import (
    check_focus_token,
    empty_mllm,
    is_tied,
    load_mllm,
    load_processor,
    load_tokenizer,
    read_config,
)
from coprs_core.checkpoints.load import find_source
from coprs_core.checkpoints.ood_statistics import copy_familiar
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import this_machine
from coprs_core.checkpoints.save import TIED_LAYER, new_folder, save_checkpoint, write_checkpoint
from coprs_core.checkpoints.tensors import (
    DECODER_PREFIXES,
    LazyTensors,
    check_shapes,
    check_tensors,
    decoder_tensors,
    encoder_tensors,
    lazy_tensors,
    load_sam_modules,
    open_safetensors,
    read_sam_file,
    read_torch_file,
    sam_configs,
)
from coprs_core.errors import CoPRSError
from coprs_core.files import read_text, without_hidden
from coprs_core.machine import out_of_memory_as_user_error, parse_dtype
from coprs_core.model.backends.mllm import Mllm
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.parsing import parse_json
from coprs_core.prompts import FOCUS_TOKEN_PRIOR, IMAGE_SLOT, INSTRUCTION_SLOT, QWEN_TEMPLATE
from coprs_core.sizes import expand_home

HEADS_FILE = "refseg_modules.pt"
_PRIOR = "heatmap_head."
_OLD_NAMES = (  # of FSDP shards, and of transformers before 4.52
    (re.compile(r"^llm\."), ""),
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(layers|embed_tokens|norm)\b"), r"model.language_model.\1"),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
)
_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def convert(
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
    language = _exported(source) or merge_shards(shards, ("llm.",), folder)
    heads = _heads(folder, shards)
    mllm = empty_mllm(config, source)
    names = _old_names(mllm, language)
    path = sam_file(sam)
    state = read_sam_file(path)
    coprs = _config(config, heads, state, path, prompt)
    parts = _checked_parts(coprs, heads, state, folder / HEADS_FILE, path, precision)
    _check_row(tokenizer, coprs.focus_token, mllm, language, names, source)
    renamed = LazyTensors(
        language.path,
        {new: (language.shapes[old][0], precision) for new, old in names.items()},
        lambda new: language.get(names[new]).to(precision),
    )
    large = (*renamed.shapes.values(), *parts["image_encoder"].shapes.values())
    size = sum(shape.numel() for shape, _ in large) * precision.itemsize
    with new_folder(out, size) as new:
        _copy_language_files(source, new / "mllm", precision)
        write_checkpoint(new, coprs, renamed, parts)
    return out


def merge(name: str, out: Path, dtype: str = "bf16") -> Path:
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
        plan = source.plan(LoadOptions("cpu", dtype, quantization="none"), this_machine("cpu"))
        plan.check()
        loaded = source.load(plan, None)
    segmenter: Any = loaded.segmenter
    model = segmenter.model
    size = sum(p.numel() for p in model.parameters()) * precision.itemsize
    with new_folder(out, size) as new:
        save_checkpoint(new, model, load_processor(source.language_folder), precision)
        copy_familiar(source.base.folder, new)
    return out


def prepare(
    base: str,
    sam: str,
    out: Path,
    prompt: str | None = None,
    dtype: str = "bf16",
    report: Report | None = None,
) -> Path:
    """The starting point of training: a published model with the focus token, SAM, and a fresh
    query head.

    The focus token's row is the mean of all rows. The embeddings grow where no spare row is left
    (Qwen2.5-VL has spare ones: 151,665 tokens, 151,936 rows). `base` is a Hugging Face id or
    folder; the other arguments are those of `convert`.
    """
    precision, folder = parse_dtype(dtype), expand_home(base)
    folder = folder if folder.is_dir() else snapshot(base, report)
    config = read_config(folder)
    path = sam_file(sam, report)
    state = read_sam_file(path)
    vision, decoder = sam_configs(state, path)
    processor = load_processor(folder)
    width = config.get_text_config().hidden_size
    template = prompt or _chat_template(processor)
    coprs = CoPRSConfig(width, vision, decoder, prompt_template=template)
    cpu = torch.device("cpu")
    with out_of_memory_as_user_error(
        base, cpu, "use a smaller model or a machine with more memory"
    ):
        mllm = load_mllm(folder, cpu, precision)
    with new_folder(
        out, sum(f.stat().st_size for f in without_hidden(folder.glob("*.safetensors")))
    ) as new:
        _add_focus_token(mllm, processor.tokenizer, coprs.focus_token)
        model = CoPRS(coprs, mllm)
        load_sam_modules(model, state, path, cpu, precision)
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
        for weight in {
            id(w): w for w in (mllm.get_input_embeddings().weight, mllm.lm_head.weight)
        }.values():
            weight[focus_id] = weight.float().mean(0).to(weight.dtype)


def _chat_template(processor: Any) -> str:
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


def _exported(folder: Path) -> LazyTensors | None:
    """The weights in `llm_hf/`, if they were exported: safetensors, or torch's .bin files."""
    if files := without_hidden(folder.glob("*.safetensors")):
        return open_safetensors(files)
    if files := without_hidden(folder.glob("*.bin")):
        parts = [read_torch_file(path, "weights of a language model") for path in files]
        return lazy_tensors(folder, {k: v for part in parts for k, v in part.items()})
    return None


def _heads(folder: Path, shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if (folder / HEADS_FILE).is_file():
        return read_torch_file(
            folder / HEADS_FILE, "the query head, prompt encoder and mask decoder"
        )
    if not shards:
        raise CoPRSError(
            f"{folder} lacks {HEADS_FILE} (query head and decoder) and has no FSDP shards: "
            "copy that file too."
        )
    heads = merge_shards(shards, (_PRIOR, *DECODER_PREFIXES), folder)
    return {k: heads.get(k) for k in heads.shapes}


# --- checking and writing


def _old_names(mllm: Mllm, language: LazyTensors) -> dict[str, str]:
    """Name in our model → name in the source, for every tensor; raises `CoPRSError` for any
    mismatch."""
    names = {}
    for name in language.shapes:
        new = name
        for old, replacement in _OLD_NAMES:
            new = old.sub(replacement, new)
        names[new] = name
    expected = {k: v.shape for k, v in mllm.state_dict().items()}
    if is_tied(mllm.config):
        expected.pop(TIED_LAYER, None)
        _check_tied(language, names)
    check_shapes(
        language.path, expected, {new: language.shapes[old][0] for new, old in names.items()}
    )
    return names


def _check_tied(language: LazyTensors, names: dict[str, str]) -> None:
    """Take the output layer out where it is the embeddings again; raises `CoPRSError` if it is
    not."""
    if TIED_LAYER not in names:
        return
    if not torch.equal(language.get(names.pop(TIED_LAYER)), language.get(_embeddings(names))):
        raise CoPRSError(
            f"{language.path}: config.json says that lm_head and embeddings are one, and they "
            "differ: correct it."
        )


def _embeddings(names: dict[str, str]) -> str:
    return names[next(k for k in names if k.endswith("embed_tokens.weight"))]


def _config(
    config: Any, heads: dict[str, Tensor], state: dict[str, Tensor], sam: Path, prompt: str | None
) -> CoPRSConfig:
    """The sizes of everything, read off the tensors."""
    vision, _ = sam_configs(state, sam)
    encoder = {k: v for k, v in state.items() if k.startswith("image_encoder.")}
    try:
        _, decoder = sam_configs(encoder | heads, sam)
        width, llm_width = heads[f"{_PRIOR}q_proj.weight"].shape
        channels = heads[f"{_PRIOR}k_proj.weight"].shape[1]
        prior_heads = heads[f"{_PRIOR}fuser.0.weight"].shape[0]
        matrix = heads[_GAUSSIAN]
    except KeyError as problem:
        raise CoPRSError(
            f"The heads lack {problem.args[0]}: {HEADS_FILE} is not of CoPRS, or not whole."
        ) from problem
    expected = config.get_text_config().hidden_size
    if llm_width != expected:
        raise CoPRSError(
            f"The query head is made for a language model of width {llm_width} and llm_hf/ has "
            f"{expected}: they are of different models."
        )
    if channels != vision.channels or not torch.equal(matrix, state[_GAUSSIAN]):
        raise CoPRSError(
            f"{sam} is not the SAM that this checkpoint was trained with (its positional matrix "
            "differs): give the other size of vit_b, vit_l, vit_h."
        )
    template = prompt or QWEN_TEMPLATE
    return CoPRSConfig(llm_width, vision, decoder, prior_heads, width, prompt_template=template)


def _checked_parts(
    config: CoPRSConfig,
    heads: dict[str, Tensor],
    state: dict[str, Tensor],
    heads_path: Path,
    sam_path: Path,
    dtype: torch.dtype,
) -> dict[str, LazyTensors]:
    """Image encoder, prior and decoder, each tensor in its place; the first of them in `dtype`."""
    with torch.device("meta"):
        model = CoPRS(config, nn.Module())
    prior = {k.removeprefix(_PRIOR): v for k, v in heads.items() if k.startswith(_PRIOR)}
    decoder, encoder = decoder_tensors(heads), encoder_tensors(state)
    check_tensors(model.prior, prior, heads_path)
    check_tensors(model.decoder, decoder, heads_path)
    check_tensors(model.image_encoder, encoder, sam_path)
    return {
        "image_encoder": lazy_tensors(sam_path, encoder, dtype),
        "prior": lazy_tensors(heads_path, prior),
        "decoder": lazy_tensors(heads_path, decoder),
    }


def _check_row(
    tokenizer: Any,
    focus_token: str,
    mllm: Mllm,
    language: LazyTensors,
    names: dict[str, str],
    where: Path,
) -> None:
    rows = mllm.get_input_embeddings().num_embeddings
    focus_id = check_focus_token(tokenizer, focus_token, rows, where)
    row = language.get(_embeddings(names))[focus_id].float()
    if not row.isfinite().all() or not row.any():
        raise CoPRSError(
            f"The embedding row {focus_id} of {focus_token} in {where} is empty: "
            "the token was never trained."
        )


def _copy_language_files(source: Path, place: Path, dtype: torch.dtype) -> None:
    """Everything of a Hugging Face folder but its weights; config.json names the new precision."""
    place.mkdir()
    for file in without_hidden(source.iterdir()):
        is_kept = file.suffix in (".json", ".txt", ".jinja", ".model")
        if is_kept and not file.name.endswith(".index.json"):
            shutil.copyfile(file, place / file.name)
    config = parse_json(read_text(place / "config.json"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
