"""Checkpoints from elsewhere into our folder: `convert` the authors' training output, `prepare` a start for training.

Nothing is half done: a folder is written beside its place and moved there when it is whole.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard  # importing it also lets weights_only read DTensors
from transformers import AutoModelForImageTextToText, AutoProcessor

from coprs_core.checkpoints.load import (
    check_focus_token,
    check_tensors,
    load_mllm,
    load_processor,
    place,
    read_config,
    read_pickle,
    read_sam,
    refuse_mismatch,
    sam_configs,
    save_checkpoint,
)
from coprs_core.checkpoints.downloads import Report, sam_file, snapshot
from coprs_core.errors import CoPRSError
from coprs_core.machine import DTYPES, free_disk, in_words
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.prompts import IMAGE_SLOT, INSTRUCTION_SLOT, QWEN_TEMPLATE

HEADS_FILE = "refseg_modules.pt"
_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
_PRIOR, _DECODER = ("heatmap_head.",), ("prompt_encoder.", "mask_decoder.")
_OLD_NAMES = (  # of FSDP shards, and of transformers before 4.52
    (re.compile(r"^llm\."), ""),
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(layers|embed_tokens|norm)\b"), r"model.language_model.\1"),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
)
_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_LOUD = "torch.distributed.device_mesh"


class Lazy:
    """Tensors by name, each made when it is asked for: `shapes` [name → (shape, dtype)] cost nothing."""

    def __init__(self, path: Path, shapes: dict[str, tuple[torch.Size, torch.dtype]], get: Callable[[str], Tensor]):
        self.path, self.shapes, self.get = path, shapes, get


def convert(folder: Path, sam: str, out: Path, prompt: str | None = None, dtype: str = "bf16") -> Path:
    """The authors' `…/actor` folder → a checkpoint folder of ours.

    Args:
        folder: holds `llm_hf/` (config, tokenizer, processor, and weights if they were exported) and `refseg_modules.pt`,
            or in place of either the FSDP shards `model_world_size_W_rank_R.pt`.
        sam: vit_b, vit_l, vit_h or a .pth file: the SAM that the checkpoint was trained with.
        out: a new folder.
        prompt: the template that the checkpoint was trained with, with {image} and {instruction}.
        dtype: of the language model and the image encoder; the heads stay as they are.

    Raises:
        CoPRSError: what is missing, broken, too much, or of another model; nothing is written then.
    """
    if dtype not in DTYPES:
        raise CoPRSError(f"Precision {dtype!r} is not known: choose {', '.join(DTYPES)}.")
    if not (folder / "llm_hf").is_dir():
        raise CoPRSError(f"{folder} holds no folder llm_hf/: give the …/actor folder of the authors' training.")
    logging.getLogger(_LOUD).setLevel(logging.ERROR)  # it warns that shards are read without their process group
    config, tokenizer = read_config(folder / "llm_hf"), load_processor(folder / "llm_hf")[0]
    shards = _shards(folder)
    llm = _exported(folder / "llm_hf") or _under(shards, ("llm.",), folder)
    heads = _heads(folder, shards)
    with torch.device("meta"):
        mllm = AutoModelForImageTextToText.from_config(config)
    names = _placed(mllm, llm)
    path = sam_file(sam)
    state = read_sam(path)
    coprs = _config(config, heads, state, path, prompt)
    with torch.device("meta"):
        model = CoPRS(coprs, nn.Module())
    prior = {k.removeprefix(_PRIOR[0]): v for k, v in heads.items() if k.startswith(_PRIOR)}
    decoder = {k: v for k, v in heads.items() if k.startswith(_DECODER)}
    encoder = {k.removeprefix("image_encoder."): v for k, v in state.items() if k.startswith("image_encoder.")}
    check_tensors(model.prior, prior, folder / HEADS_FILE)
    check_tensors(model.decoder, decoder, folder / HEADS_FILE)
    check_tensors(model.image_encoder, encoder, path)
    _check_row(tokenizer, coprs.focus_token, mllm, llm, names, folder / "llm_hf")
    count = sum(llm.shapes[n][0].numel() for n in names.values()) + sum(v.numel() for v in encoder.values())
    with _whole(out, count * DTYPES[dtype].itemsize) as new:
        (new / "coprs.json").write_text(
            json.dumps(coprs.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        _write_mllm(new / "mllm", folder / "llm_hf", llm, names, DTYPES[dtype])
        save_file({k: v.to(DTYPES[dtype]).contiguous() for k, v in encoder.items()}, new / "image_encoder.safetensors")
        save_file({k: v.clone() for k, v in prior.items()}, new / "prior.safetensors")
        save_file({k: v.clone() for k, v in decoder.items()}, new / "decoder.safetensors")
    return out


def prepare(
    base: str, sam: str, out: Path, prompt: str | None = None, dtype: str = "bf16", report: Report | None = None
) -> Path:
    """The starting point of training: a published model with the focus token added, SAM, and a fresh query head.

    The focus token's row is the mean of all rows. The embeddings grow where no spare row is left (Qwen2.5-VL has spare
    ones: 151,665 tokens, 151,936 rows). `base` is a Hugging Face id or folder; the other arguments are those of `convert`.
    """
    if dtype not in DTYPES:
        raise CoPRSError(f"Precision {dtype!r} is not known: choose {', '.join(DTYPES)}.")
    folder = Path(base).expanduser() if Path(base).expanduser().is_dir() else snapshot(base, report)
    config = read_config(folder)
    path = sam_file(sam, report)
    state = read_sam(path)
    vision, decoder = sam_configs(state, path)
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CoPRSError(f"Tokenizer or processor in {folder} cannot be loaded: copy it again.") from problem
    coprs = CoPRSConfig(
        config.get_text_config().hidden_size, vision, decoder, prompt_template=prompt or _chat_template(processor)
    )
    mllm = load_mllm(folder, torch.device("cpu"), DTYPES[dtype])
    with _whole(out, sum(f.stat().st_size for f in folder.glob("*.safetensors"))) as new:
        _add_focus_token(mllm, processor.tokenizer, coprs.focus_token)
        model = CoPRS(coprs, mllm)
        for part, prefixes in (("image_encoder", ("image_encoder.",)), ("decoder", _DECODER)):
            chosen = {k.removeprefix("image_encoder."): v for k, v in state.items() if k.startswith(prefixes)}
            place(getattr(model, part), chosen, path, torch.device("cpu"), DTYPES[dtype])
        save_checkpoint(new, model, processor)
    return out


def _add_focus_token(mllm: nn.Module, tokenizer, focus_token: str) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": [focus_token]}, replace_extra_special_tokens=False)
    if len(tokenizer) > mllm.get_input_embeddings().num_embeddings:
        mllm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    focus_id = tokenizer.convert_tokens_to_ids(focus_token)
    with torch.no_grad():
        for weight in {id(w): w for w in (mllm.get_input_embeddings().weight, mllm.lm_head.weight)}.values():
            weight[focus_id] = weight.float().mean(0).to(weight.dtype)


def _chat_template(processor) -> str:
    """A prompt template in the words of the model's own chat template."""
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": INSTRUCTION_SLOT}]}]
    asked = QWEN_TEMPLATE.partition(f"{IMAGE_SLOT}<|vision_end|>")[2].partition("<|im_end|>")[0]
    try:
        text = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except (ValueError, AttributeError) as problem:
        raise CoPRSError("The model brings no chat template: give the prompt template with --prompt FILE.") from problem
    image = processor.image_token
    if text.count(image) != 1 or text.count(INSTRUCTION_SLOT) != 1:
        raise CoPRSError("The model's chat template shows no single image and text: give one with --prompt FILE.")
    return text.replace(image, IMAGE_SLOT).replace(INSTRUCTION_SLOT, asked)


# --- reading the authors' files


def _exported(folder: Path) -> Lazy | None:
    """The weights in `llm_hf/`, if they were exported: safetensors, or torch's .bin files."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        where, shapes = {}, {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    for k in file.keys():
                        where[k], view = path, file.get_slice(k)
                        shapes[k] = torch.Size(view.get_shape()), _DTYPE_NAMES[view.get_dtype()]
            except Exception as problem:  # safetensors raises its own kinds
                raise CoPRSError(f"{path} is broken or cut short ({problem}): copy it again.") from problem

        def get(name: str) -> Tensor:
            with safe_open(where[name], framework="pt") as file:
                return file.get_tensor(name)

        return Lazy(folder, shapes, get)
    files = sorted(folder.glob("*.bin"))
    state = {k: v for path in files for k, v in read_pickle(path, "weights of a language model").items()}
    return Lazy(folder, {k: (v.shape, v.dtype) for k, v in state.items()}, state.__getitem__) if files else None


_DTYPE_NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def _shards(folder: Path) -> list[dict[str, Tensor]]:
    """The FSDP shards by rank, read lazily; [] where there are none."""
    found = {tuple(map(int, m.groups())): p for p in folder.glob("*.pt") if (m := _SHARD.fullmatch(p.name))}
    if not found:
        return []
    worlds = sorted({w for w, _ in found})
    if len(worlds) > 1:
        raise CoPRSError(
            f"{folder} mixes shards of {worlds[0]} and {worlds[1]} processes: keep those of one checkpoint."
        )
    for rank in range(worlds[0]):
        if (worlds[0], rank) not in found:
            raise CoPRSError(
                f"{folder} lacks model_world_size_{worlds[0]}_rank_{rank}.pt (it has {len(found)} of {worlds[0]} shards): "
                "copy it from the training machine."
            )
    shards = [read_pickle(found[worlds[0], rank], "a shard of an FSDP checkpoint") for rank in range(worlds[0])]
    for rank, shard in enumerate(shards):
        if odd := sorted(shard.keys() ^ shards[0].keys()):
            raise CoPRSError(f"The shards of rank 0 and {rank} differ in {odd[0]}: they are of different checkpoints.")
    return shards


def _under(shards: list[dict[str, Tensor]], prefixes: tuple[str, ...], folder: Path) -> Lazy:
    """The whole tensors of the shards whose names begin so."""
    if not shards:
        raise CoPRSError(
            f"{folder} holds neither weights in llm_hf/ nor FSDP shards model_world_size_W_rank_R.pt: copy them too."
        )
    shapes = {k: (v.shape, v.dtype) for k, v in shards[0].items() if k.startswith(prefixes)}
    return Lazy(folder, shapes, lambda name: _merged([s[name] for s in shards], name))


def _merged(parts: list[Tensor], name: str) -> Tensor:
    """One tensor from its shards, by their own account of how they were laid out (DTensor's mesh and placements)."""
    if not isinstance(parts[0], DTensor):
        return parts[0]
    spec, local = parts[0]._spec, {rank: part._local_tensor for rank, part in enumerate(parts)}
    whole = _along(spec.mesh.mesh, list(spec.placements), local)
    if whole.shape != parts[0].shape:
        raise CoPRSError(
            f"The shards of {name} make {list(whole.shape)} and {list(parts[0].shape)} was expected: they are damaged."
        )
    return whole


def _along(ranks: Tensor, placements: list, local: dict[int, Tensor]) -> Tensor:
    if not placements:
        return local[int(ranks)]
    parts = [_along(r, placements[1:], local) for r in ranks]
    return torch.cat(parts, placements[0].dim) if isinstance(placements[0], Shard) else parts[0]


def _heads(folder: Path, shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if (folder / HEADS_FILE).is_file():
        return read_pickle(folder / HEADS_FILE, "the query head, prompt encoder and mask decoder")
    if not shards:
        raise CoPRSError(f"{folder} lacks {HEADS_FILE} (query head and decoder) and has no FSDP shards: copy it too.")
    heads = _under(shards, (*_PRIOR, *_DECODER), folder)
    return {k: heads.get(k) for k in heads.shapes}


# --- checking and writing


def _placed(mllm: nn.Module, llm: Lazy) -> dict[str, str]:
    """Name in our model → name in the source, for every tensor; raises `CoPRSError` naming what does not fit."""
    expected, names = mllm.state_dict(), {}
    for name in llm.shapes:
        new = name
        for old, replacement in _OLD_NAMES:
            new = old.sub(replacement, new)
        names[new] = name
    is_tied = any(getattr(c, "tie_word_embeddings", False) for c in (mllm.config, mllm.config.get_text_config()))
    tied = "lm_head.weight" if is_tied else None
    if tied in names:
        embeddings = next(k for k in names if k.endswith("embed_tokens.weight"))
        if not torch.equal(llm.get(names[tied]), llm.get(names[embeddings])):
            raise CoPRSError(
                f"{llm.path}: config.json says that lm_head and embeddings are one, and they differ: mend it."
            )
        names.pop(tied)
    wanted = expected.keys() - {tied}
    wrong = [f"{k} is {list(llm.shapes[names[k]][0])} and {list(expected[k].shape)} was expected"
             for k in sorted(wanted & names.keys()) if llm.shapes[names[k]][0] != expected[k].shape]  # fmt: skip
    refuse_mismatch(llm.path, sorted(wanted - names.keys()), sorted(names.keys() - wanted), wrong)
    return names


def _config(config, heads: dict[str, Tensor], state: dict[str, Tensor], sam: Path, prompt: str | None) -> CoPRSConfig:
    """The sizes of everything, read off the tensors."""
    vision, _ = sam_configs(state, sam)
    try:
        _, decoder = sam_configs({k: v for k, v in state.items() if k.startswith("image_encoder.")} | heads, sam)
        width, llm_width = heads["heatmap_head.q_proj.weight"].shape
        channels = heads["heatmap_head.k_proj.weight"].shape[1]
        prior_heads = heads["heatmap_head.fuser.0.weight"].shape[0]
        matrix = heads[_GAUSSIAN]
    except KeyError as problem:
        raise CoPRSError(f"The heads lack {problem.args[0]}: {HEADS_FILE} is not of CoPRS, or not whole.") from problem
    expected = config.get_text_config().hidden_size
    if llm_width != expected:
        raise CoPRSError(
            f"The query head is made for a language model of width {llm_width} and llm_hf/ has {expected}: they are of different models."
        )
    if channels != vision.channels or not torch.equal(matrix, state[_GAUSSIAN]):
        raise CoPRSError(
            f"{sam} is not the SAM that this checkpoint was trained with (its positional matrix differs): give the other size of vit_b, vit_l, vit_h."
        )
    return CoPRSConfig(llm_width, vision, decoder, prior_heads, width, prompt_template=prompt or QWEN_TEMPLATE)


def _check_row(tokenizer, focus_token: str, mllm: nn.Module, llm: Lazy, names: dict[str, str], where: Path) -> None:
    focus_id = check_focus_token(tokenizer, focus_token, mllm.get_input_embeddings().num_embeddings, where)
    row = llm.get(names[next(k for k in names if k.endswith("embed_tokens.weight"))])[focus_id].float()
    if not row.isfinite().all() or not row.any():
        raise CoPRSError(
            f"The embedding row {focus_id} of {focus_token} in {where} is empty: the token was never trained."
        )


def _write_mllm(new: Path, old: Path, llm: Lazy, names: dict[str, str], dtype: torch.dtype) -> None:
    new.mkdir()
    for file in old.iterdir():
        if file.suffix in (".json", ".txt", ".jinja", ".model") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, new / file.name)
    config = json.loads((new / "config.json").read_text())
    (new / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}, indent=2) + "\n")
    plan = split_torch_state_dict_into_shards(
        {k: torch.empty(llm.shapes[n][0], dtype=dtype, device="meta") for k, n in names.items()},
        filename_pattern="model{suffix}.safetensors",
        max_shard_size="2GB",
    )
    for file, held in plan.filename_to_tensors.items():
        save_file({k: llm.get(names[k]).to(dtype).contiguous() for k in held}, new / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (new / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


@contextmanager
def _whole(out: Path, size: int) -> Iterator[Path]:
    """A new folder that takes its place when the block ends well and leaves nothing behind when it does not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CoPRSError(f"{out} exists already: choose a new --out.")
    if size > free_disk(out):
        raise CoPRSError(f"{out} needs {in_words(size)} and {in_words(free_disk(out))} are free: choose another disk.")
    part = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as problem:
        raise CoPRSError(f"{out} cannot be written ({problem.strerror or problem}): choose another --out.") from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)
