"""Build an untrained miniature: tokenizer and processor from our own text, Qwen2.5-VL and SAM at
the recipe's sizes."""

import random
import re
from contextlib import suppress
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from coprs_core.mini.train.recipe import Recipe
from coprs_core.mini.world.drawings import COLOURS
from coprs_core.mini.world.kinds import KINDS
from coprs_core.mini.world.meanings import Ambiguous
from coprs_core.mini.world.questions import QuestionMix, draw_question
from coprs_core.mini.world.scenes import PLACES, draw_scene
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.prompts import FOCUS_TOKEN

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
    FOCUS_TOKEN,
)
_PHRASE_TOKENS = (
    *PLACES,
    "You ask for",
    "It could be",
    "There is no",
    "something by its use",
    "something that I do not know",
)
"""Phrases of the replies that may become one token: half the steps for the same words."""


def build_tokenizer(recipe: Recipe, scenes: int = 3000) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on instructions and replies about the first `scenes` training
    scenes."""
    phrases = "|".join(
        " " + re.escape(p).replace(r"\ ", " ")
        for p in sorted(_PHRASE_TOKENS, key=len, reverse=True)
    )
    pattern = rf"{phrases}| ?\p{{L}}+| ?\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(
        _tokenizer_corpus(scenes, QuestionMix(varied=recipe.asking.varied)), trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        clean_up_tokenization_spaces=False,
    )
    # misread colours and the lists' kind words are found by their one token
    for word in (*KINDS, *COLOURS):
        if len(tokenizer(" " + word).input_ids) != 1:
            raise RuntimeError(f"the tokenizer split {word!r}: train it on more scenes")
    return tokenizer


def _tokenizer_corpus(scenes: int, asking: QuestionMix):
    for seed in range(scenes):
        scene, rng = draw_scene(seed, with_image=False), random.Random(seed)
        for _ in range(4):
            question = draw_question(scene, rng, None, asking)
            yield question.instruction
            yield re.sub(r"<[^>]+>", "", question.reply)
        with suppress(Ambiguous):
            question = draw_question(scene, rng, "several", asking)
            yield question.instruction
            yield re.sub(r"<[^>]+>", "", question.reply)
        # what is not known stays in small pieces, and so is told from what is
        yield " You ask for something that I do not know: I cannot tell what is meant."
        yield "I do not know what to look for."
    yield from ("user\n", "assistant\n")


def build_processor(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    size = {"shortest_edge": recipe.mllm_side**2, "longest_edge": recipe.mllm_side**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
    )


def build_miniature(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> CoPRS:
    """A miniature with random weights, float32, on the CPU."""
    torch.manual_seed(seed)
    mllm: Any = Qwen2_5_VLForConditionalGeneration(_mllm_config(recipe, tokenizer))
    mllm.generation_config.eos_token_id = tokenizer.eos_token_id
    mllm.generation_config.pad_token_id = tokenizer.pad_token_id
    for p in mllm.parameters():
        if p.dim() >= 2:
            nn.init.normal_(p, std=0.04)
    model = CoPRS(
        CoPRSConfig(
            llm_width=recipe.llm["hidden_size"],
            vision=recipe.vision,
            decoder=recipe.decoder,
            prior_heads=recipe.prior_heads,
            prior_width=recipe.prior_width,
            prompt_template=recipe.prompt_template,
            max_new_tokens=recipe.max_new_tokens,
            note="picture-book scenes",
        ),
        mllm,
    )
    # zero in SAM; random here, so that places can be told apart from the first steps on
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.1)
    return model


def _mllm_config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's own config at the recipe's sizes."""

    def token_id(token: str) -> int:
        return tokenizer.vocab[token]

    head_width = recipe.llm["hidden_size"] // recipe.llm["num_attention_heads"]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1] * (head_width // 2)}
    text_config = {
        **recipe.llm,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_config = {
        **recipe.tower,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "out_hidden_size": recipe.llm["hidden_size"],
        "fullatt_block_indexes": list(range(recipe.tower["depth"])),
    }
    return Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        tie_word_embeddings=True,
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
    )
