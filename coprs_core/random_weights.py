"""Models of true size with random weights, for what cannot be downloaded here: their published
configs, and folders that are loaded as any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2VisionConfig,
)

from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.checkpoints.save import language_tensors, write_checkpoint, write_language_model
from coprs_core.checkpoints.sources import CHECKPOINT_PARTS
from coprs_core.checkpoints.tensors import LazyTensors
from coprs_core.errors import CoPRSError
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.decoder import FLOAT32_BUFFER
from coprs_core.model.vision import SAM_SIZES
from coprs_core.storage import format_bytes, free_disk

QWEN2_5_SIZES: dict[str, dict[str, int]] = {  # as in the published configs of Qwen2.5-VL
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
_NO_SPECIAL_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_TIED_SIZES = ("3b",)
"""Sizes whose output layer is the embeddings again."""


_SMALL_VISION_TOWER = {
    "hidden_size": 1024,
    "depth": 24,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
QWEN3_SIZES: dict[str, dict[str, dict[str, Any]]] = {  # as in the published configs of Qwen3-VL
    "2b": {
        "text": {
            "hidden_size": 2048,
            "num_hidden_layers": 28,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
        },
        "vision": _SMALL_VISION_TOWER,
    },
    "4b": {
        "text": {
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "intermediate_size": 9728,
            "num_attention_heads": 32,
        },
        "vision": _SMALL_VISION_TOWER,
    },
    "8b": {
        "text": {
            "hidden_size": 4096,
            "num_hidden_layers": 36,
            "intermediate_size": 12288,
            "num_attention_heads": 32,
        },
        "vision": {
            "hidden_size": 1152,
            "depth": 27,
            "intermediate_size": 4304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    },
}
HIERA_SIZES: dict[str, dict[str, Any]] = {  # as in the published configs of SAM 2.1
    "tiny": {
        "hidden_size": 96,
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 2, 7, 2],
        "window_size_per_stage": [8, 4, 14, 7],
        "global_attention_blocks": [5, 7, 9],
        "window_positional_embedding_background_size": [7, 7],
    },
    "small": {
        "hidden_size": 96,
        "num_attention_heads": 1,
        "blocks_per_stage": [1, 2, 11, 2],
        "window_size_per_stage": [8, 4, 14, 7],
        "global_attention_blocks": [7, 10, 13],
        "window_positional_embedding_background_size": [7, 7],
    },
    "base-plus": {
        "hidden_size": 112,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 3, 16, 3],
        "window_size_per_stage": [8, 4, 14, 7],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "large": {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 6, 36, 4],
        "window_size_per_stage": [8, 4, 16, 8],
        "global_attention_blocks": [23, 33, 43],
        "window_positional_embedding_background_size": [7, 7],
    },
}
COORDINATE_MODELS = {f"qwen3-vl-{size}": size for size in QWEN3_SIZES}
"""Models that write coordinates, by the names of the catalogue."""


def write_random_coordinate_model(folder: Path, name: str, sam: str) -> tuple[Path, Path]:
    """A model that writes coordinates and a SAM 2.1, both of random bfloat16 weights at true size;
    tokenizer and processor are the miniature's.

    Returns the two folders.
    """
    size = sam.removeprefix("sam2.1-")
    if name not in COORDINATE_MODELS or size not in HIERA_SIZES:
        raise CoPRSError(
            f"Sizes {name!r} with {sam!r} are not known: choose "
            f"{', '.join(COORDINATE_MODELS)} with {', '.join(f'sam2.1-{s}' for s in HIERA_SIZES)}."
        )
    config, vision = qwen3_config(COORDINATE_MODELS[name]), sam2_vision_config(size)
    with torch.device("meta"):
        mllm = Qwen3VLForConditionalGeneration(config)
    _check_disk(folder, sum(p.numel() for p in mllm.parameters()) * 2)
    model_folder, sam_folder = folder / name, folder / sam
    torch.manual_seed(0)
    if not (model_folder / "config.json").is_file():
        _write_language_files(model_folder, config)
        write_language_model(model_folder, _random_tensors(folder, language_tensors(mllm)))
    if not (sam_folder / "config.json").is_file():
        Sam2Model(Sam2Config(vision_config=vision)).save_pretrained(sam_folder)
        Sam2ImageProcessor().save_pretrained(sam_folder)
    return model_folder, sam_folder


def qwen3_config(size: str) -> Qwen3VLConfig:
    """The config of Qwen3-VL at 2b, 4b or 8b, with the token ids of the miniature's tokenizer."""
    text, vision = QWEN3_SIZES[size]["text"], QWEN3_SIZES[size]["vision"]
    rope = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config={
            **text,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_parameters": rope,
            **_NO_SPECIAL_TOKENS,
        },
        vision_config={
            **vision,
            "num_heads": 16,
            "patch_size": 16,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 2304,
        },
        tie_word_embeddings=size != "8b",
        **_special_token_ids(),
    )


def sam2_vision_config(size: str) -> Sam2VisionConfig:
    """The vision config of SAM 2.1 at tiny, small, base-plus or large."""
    hiera = HIERA_SIZES[size]
    widths = [hiera["hidden_size"] * 2**i for i in range(4)]
    heads = [hiera["num_attention_heads"] * 2**i for i in range(4)]
    return Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(
            **hiera, embed_dim_per_stage=widths, num_attention_heads_per_stage=heads
        ),
        backbone_channel_list=widths[::-1],
    )


def write_random_checkpoint(folder: Path, size: str, sam: str) -> None:
    """A checkpoint folder of random bfloat16 weights at true size; tokenizer and processor are the
    miniature's."""
    if size not in QWEN2_5_SIZES or sam not in SAM_SIZES:
        raise CoPRSError(
            f"Sizes {size!r} with {sam!r} are not known: "
            f"choose {', '.join(QWEN2_5_SIZES)} with {', '.join(SAM_SIZES)}."
        )
    config = qwen2_5_config(size)
    width = config.get_text_config().hidden_size
    with torch.device("meta"):
        mllm = Qwen2_5_VLForConditionalGeneration(config)
        model = CoPRS(CoPRSConfig(width, SAM_SIZES[sam]), mllm)
    _check_disk(folder, sum(p.numel() for p in model.parameters()) * 2)
    _write_language_files(folder / "mllm", config)
    torch.manual_seed(0)
    parts = {
        part: _random_tensors(folder, model.get_submodule(part).state_dict())
        for part in CHECKPOINT_PARTS
    }
    write_checkpoint(folder, model.config, _random_tensors(folder, language_tensors(mllm)), parts)


def _check_disk(folder: Path, needed: int) -> None:
    if needed > (free := free_disk(folder)):
        raise CoPRSError(
            f"Random weights need {format_bytes(needed)} of disk and {format_bytes(free)} are "
            "free: choose another --folder."
        )


def _write_language_files(folder: Path, config: Any) -> None:
    """The miniature's tokenizer and processor with another config, for photos of any size."""
    source = MINIATURE_FOLDER / "mllm"
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(source, folder, ignore=weights, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "bfloat16"}))
    processor = folder / "processor_config.json"
    values = json.loads(processor.read_text())
    values["image_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    values["image_processor"]["patch_size"] = config.vision_config.patch_size
    processor.write_text(json.dumps(values))


def qwen2_5_config(size: str) -> Qwen2_5_VLConfig:
    """The config of Qwen2.5-VL at 3b or 7b, with the token ids of the miniature's tokenizer."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    vision_config = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "window_size": 112,
        "out_hidden_size": QWEN2_5_SIZES[size]["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(
        text_config={**QWEN2_5_SIZES[size], "rope_parameters": rope, **_NO_SPECIAL_TOKENS},
        vision_config=vision_config,
        tie_word_embeddings=size in _TIED_SIZES,
        **_special_token_ids(),
    )


def _special_token_ids() -> dict[str, Any]:
    """The token ids of the miniature's tokenizer that a config names."""
    ids = json.loads((MINIATURE_FOLDER / "mllm" / "config.json").read_text())
    names = ("image", "video", "vision_start", "vision_end")
    return {f"{name}_token_id": ids[f"{name}_token_id"] for name in names}


def _random_tensors(path: Path, state: dict[str, torch.Tensor]) -> LazyTensors:
    """Random weights of the names and shapes of a state."""

    def get(name: str) -> torch.Tensor:
        shape = state[name].shape
        if name.endswith(FLOAT32_BUFFER):
            return torch.randn(shape)
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        if len(shape) < 2:
            return tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        return tensor.uniform_(-0.03, 0.03)  # as large as trained ones: nothing overflows

    return LazyTensors(path, {k: (v.shape, torch.bfloat16) for k, v in state.items()}, get)
