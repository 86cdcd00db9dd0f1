"""Tiny random models that tests make for themselves: the authors' folder layout, other language
models, a small SAM."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VisionConfig,
    Sam3ImageProcessor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
)

from coprs_core.checkpoints.hugging_face import load_tokenizer
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.decoder import DecoderConfig
from coprs_core.model.vision import VisionConfig
from coprs_core.random_weights import qwen2_5_config

VISION = VisionConfig(
    side=128, patch=16, width=32, depth=2, heads=2, window=4, global_layers=(1,), channels=32
)
DECODER = DecoderConfig(mask_channels=8, mlp_width=64, iou_width=32)
WIDTH = 64
TOKENIZER = load_tokenizer(MINIATURE_FOLDER / "mllm")
CHAT = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
"""A chat template that opens the thought, as those of thinking checkpoints do."""


def spread(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights large enough that different inputs give different outputs."""
    torch.manual_seed(seed)
    for p in module.parameters():
        p.data.normal_(std=0.15) if p.dim() > 1 else None
    return module.eval().requires_grad_(False)


def qwen(tied: bool = True) -> Qwen2_5_VLForConditionalGeneration:
    config = qwen2_5_config("3b").to_dict()
    config["text_config"] |= dict(
        hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(TOKENIZER), layer_types=["full_attention"] * 2, eos_token_id=TOKENIZER.eos_token_id,
        rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 3, 3]),
    )  # fmt: skip
    config["vision_config"] |= dict(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=WIDTH,
        fullatt_block_indexes=[1],
    )
    model = Qwen2_5_VLForConditionalGeneration(
        type(qwen2_5_config("3b")).from_dict(config | {"tie_word_embeddings": tied})
    )
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return spread(model)


def qwen3() -> Qwen3VLForConditionalGeneration:
    ids = json.loads((MINIATURE_FOLDER / "mllm" / "config.json").read_text())
    config = Qwen3VLConfig(
        text_config=dict(
            hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id,
            rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[2, 3, 3], mrope_interleaved=True),
        ),
        vision_config=dict(
            depth=3, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=WIDTH, patch_size=14,
            deepstack_visual_indexes=[0, 1], num_position_embeddings=64,
        ),
        tie_word_embeddings=True,
        **{k: ids[k] for k in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")},
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return spread(model)


def qwen3_5() -> Qwen3_5ForConditionalGeneration:
    """Layers of linear attention and of full attention, in turn."""
    ids = json.loads((MINIATURE_FOLDER / "mllm" / "config.json").read_text())
    config = Qwen3_5Config(
        text_config=dict(
            hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id,
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
            rope_parameters=dict(
                rope_type="default", rope_theta=1e6, partial_rotary_factor=0.5, mrope_section=[2, 1, 1],
                mrope_interleaved=True,
            ),
        ),
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=WIDTH, patch_size=14,
            num_position_embeddings=64,
        ),
        tie_word_embeddings=True,
        **{k: ids[k] for k in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")},
    )  # fmt: skip
    model = Qwen3_5ForConditionalGeneration(config)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return spread(model)


def llava(**text) -> LlavaForConditionalGeneration:
    text = dict(model_type="llama", num_hidden_layers=2) | text
    config = LlavaConfig(
        text_config=dict(
            hidden_size=WIDTH, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4,
            vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id, **text,
        ),
        vision_config=dict(
            model_type="clip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=2, image_size=56, patch_size=14, projection_dim=32,
        ),
        image_token_id=TOKENIZER.convert_tokens_to_ids("<|image_pad|>"),
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return spread(model)


def lfm2() -> LlavaForConditionalGeneration:
    """LFM2's text model, which has short convolutions, behind LLaVA's vision tower."""
    kinds = ["conv", "full_attention"] * 2
    return llava(model_type="lfm2", num_hidden_layers=4, layer_types=kinds, conv_L_cache=3)


def internvl() -> InternVLForConditionalGeneration:
    config = InternVLConfig(
        text_config=dict(
            model_type="qwen2", hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, vocab_size=len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id,
        ),
        vision_config=dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=[84, 84],
            patch_size=[14, 14],
        ),
        image_token_id=TOKENIZER.convert_tokens_to_ids("<|image_pad|>"), image_seq_length=9,
    )  # fmt: skip
    model = InternVLForConditionalGeneration(config)
    model.generation_config.eos_token_id = TOKENIZER.eos_token_id
    return spread(model)


def coprs(mllm: torch.nn.Module) -> CoPRS:
    model = CoPRS(
        CoPRSConfig(WIDTH, VISION, DECODER, prior_heads=4, prior_width=32, max_new_tokens=24), mllm
    )
    spread(model.image_encoder, 1), spread(model.prior, 2), spread(model.decoder, 3)
    torch.nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.3)
    return model.eval().requires_grad_(False)


def save_mllm(folder: Path, mllm: torch.nn.Module, weights: bool = True) -> Path:
    """A Hugging Face folder: config, tokenizer, processor, and the weights if wanted."""
    shutil.copytree(
        MINIATURE_FOLDER / "mllm",
        folder,
        ignore=shutil.ignore_patterns("*.safetensors", "config.json"),
    )
    if isinstance(mllm, LlavaForConditionalGeneration):
        (folder / "processor_config.json").unlink()
        image_processor = CLIPImageProcessor(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}
        )
        LlavaProcessor(
            image_processor, TOKENIZER, patch_size=14, vision_feature_select_strategy="default",
            image_token="<|image_pad|>", num_additional_image_tokens=1,
        ).save_pretrained(folder)  # fmt: skip
    if isinstance(mllm, InternVLForConditionalGeneration):
        (folder / "processor_config.json").unlink()
        names = {"start": "<|vision_start|>", "end": "<|vision_end|>", "context": "<|image_pad|>"}
        tokens = {f"{name}_image_token": token for name, token in names.items()}
        tokens["video_token"] = "<|video_pad|>"
        InternVLProcessor(
            GotOcr2ImageProcessor(size={"height": 84, "width": 84}, crop_to_patches=True),
            AutoTokenizer.from_pretrained(folder, extra_special_tokens=tokens),
            InternVLVideoProcessor(), image_seq_length=9,
        ).save_pretrained(folder)  # fmt: skip
    mllm.config.save_pretrained(folder)
    mllm.generation_config.save_pretrained(folder)
    if weights:
        mllm.save_pretrained(folder)
    return folder


def as_seen(image_processor, photo) -> dict[str, torch.Tensor]:
    """What a model's own forward takes of a photo, as one picture."""
    options = {"crop_to_patches": False} if hasattr(image_processor, "crop_to_patches") else {}
    inputs = image_processor(images=[photo], return_tensors="pt", **options)
    return {k: inputs[k] for k in ("pixel_values", "image_grid_thw") if k in inputs}


def save_sam(path: Path, model: CoPRS) -> Path:
    """A SAM .pth file, as published ones are laid out, with this model's image encoder and
    decoder."""
    state = {
        f"image_encoder.{k}": v for k, v in model.image_encoder.state_dict().items()
    } | model.decoder.state_dict()
    torch.save(state, path)
    return path


def heads_of(model: CoPRS) -> dict[str, torch.Tensor]:
    """Query head and decoder by the names of the authors' checkpoints."""
    return {
        f"heatmap_head.{k}": v for k, v in model.prior.state_dict().items()
    } | model.decoder.state_dict()


def save_checkpoint_by_hand(folder: Path, model: CoPRS) -> Path:
    """Our folder, written without `save_checkpoint`, for comparison."""
    save_mllm(folder / "mllm", model.mllm)
    (folder / "coprs.json").write_text(json.dumps(model.config.to_dict()))
    for part in ("image_encoder", "prior", "decoder"):
        save_file(dict(getattr(model, part).state_dict()), folder / f"{part}.safetensors")
    return folder


def save_sam2(folder: Path) -> Path:
    """A folder of SAM 2.1 as published: the video model's weights and its image processor."""
    vision = Sam2VisionConfig(
        backbone_config=Sam2HieraDetConfig(
            hidden_size=16, num_attention_heads=1, image_size=[128, 128], blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[16, 32, 64, 128], num_attention_heads_per_stage=[1, 2, 4, 8],
            window_size_per_stage=[4, 4, 4, 4], global_attention_blocks=[3],
        ),
        backbone_channel_list=[128, 64, 32, 16], backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )  # fmt: skip
    prompts = {"hidden_size": 32, "image_size": 128}
    decoder = {
        "hidden_size": 32,
        "mlp_dim": 64,
        "iou_head_hidden_dim": 32,
        "num_attention_heads": 2,
    }
    config = Sam2VideoConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder, image_size=128,
        memory_attention_hidden_size=32, memory_encoder_hidden_size=32, memory_encoder_output_channels=16,
        memory_attention_num_layers=1, memory_attention_feed_forward_hidden_size=64,
        memory_attention_rope_feat_sizes=[8, 8], memory_fuser_embed_dim=32, memory_fuser_intermediate_dim=64,
        mask_downsampler_embed_dim=32,
    )  # fmt: skip
    spread(Sam2VideoModel(config), 4).save_pretrained(folder)
    size = {"height": 128, "width": 128}
    Sam2ImageProcessor(size=size, mask_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_sam3(folder: Path) -> Path:
    """A folder of the SAM 3 tracker."""
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "window_size": 4,
        "global_attn_indexes": [1],
        "pretrain_image_size": 56,
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": 32,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }
    decoder = {
        "hidden_size": 32,
        "mlp_dim": 64,
        "iou_head_hidden_dim": 32,
        "num_attention_heads": 2,
    }
    config = Sam3TrackerConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 112},
        mask_decoder_config=decoder,
    )
    spread(Sam3TrackerModel(config), 4).save_pretrained(folder)
    size = {"height": 112, "width": 112}
    Sam3ImageProcessor(size=size, mask_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
