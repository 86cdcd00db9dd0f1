"""The policy (`π_θ`): a Hugging Face vision-language model. Prompt in, tokens out, and the focus embedding kept.

Positions are worked out here and passed along, never read from the model, so that two visitors cannot disturb each
other through the state that Hugging Face models keep between calls.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass(frozen=True)
class VisualTokens:
    """What the language model sees of a photo: `features` [N, D] and the patch grid `grid` int [1, 3] (frames, h, w)."""

    features: Tensor
    grid: Tensor


@dataclass(frozen=True)
class Step:
    """One generated token; `focus_embedding` [1, D] comes with the focus token, when it has been fed back in."""

    token: int
    focus_embedding: Tensor | None = None


def image_token_count(grid: Tensor, mllm: nn.Module) -> int:
    """How many visual tokens stand in the prompt for a photo of this patch grid."""
    return int(grid.prod()) // mllm.config.vision_config.spatial_merge_size**2


@torch.no_grad()
def see(mllm: nn.Module, image_processor, photo: Image.Image) -> VisualTokens:
    """Run the model's vision tower on an RGB photo that is already in the MLLM frame."""
    inputs = image_processor(images=[photo], return_tensors="pt")
    grid = inputs["image_grid_thw"]
    pixels = inputs["pixel_values"].to(mllm.device, mllm.dtype)
    features = mllm.model.visual(pixels, grid_thw=grid.to(mllm.device)).pooler_output
    return VisualTokens(features, grid)


def embed_prompt(mllm: nn.Module, ids: list[int], visual: VisualTokens) -> tuple[Tensor, Tensor]:
    """Embeddings [1, L, D] of a prompt with the visual tokens put in, and multimodal rope positions [3, 1, L]."""
    tokens = torch.tensor([ids], device=mllm.device)
    is_image = tokens == mllm.config.image_token_id
    embeddings = mllm.get_input_embeddings()(tokens).clone()
    embeddings[is_image] = visual.features.to(embeddings.dtype)
    grid = visual.grid.to(mllm.device)
    positions, _ = mllm.model.get_rope_index(tokens, mm_token_type_ids=is_image.int(), image_grid_thw=grid)
    return embeddings, positions


@torch.no_grad()
def generate(
    mllm: nn.Module, ids: list[int], visual: VisualTokens, focus_id: int, stop_ids: set[int], max_new_tokens: int
) -> Iterator[Step]:
    """Decode greedily, one `Step` a token, in one pass of the language model.

    The focus embedding is the last hidden state, after the final norm, at the step that consumes the focus token;
    nothing is generated after it. Stop tokens end the reply and are yielded; closing the generator ends it at once.
    """
    language_model, cache = mllm.model.language_model, DynamicCache()
    embeddings, positions = embed_prompt(mllm, ids, visual)
    next_position = positions.max() + 1

    def last_hidden_state() -> Tensor:
        fed = dict(inputs_embeds=embeddings, position_ids=positions, past_key_values=cache, use_cache=True)
        return language_model(**fed).last_hidden_state[:, -1]

    for _ in range(max_new_tokens):
        token = int(mllm.lm_head(last_hidden_state()).argmax(-1))
        embeddings = mllm.get_input_embeddings()(torch.tensor([[token]], device=mllm.device))
        positions = next_position.expand(3, 1, 1)
        next_position = next_position + 1
        if token == focus_id:
            yield Step(token, last_hidden_state())
            return
        yield Step(token)
        if token in stop_ids:
            return
