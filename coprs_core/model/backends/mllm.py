"""The policy (`π_θ`): a Hugging Face vision-language model. Images and prompts in, hidden states
out.

Positions are computed here and passed along, never read from the model, so that two requests cannot
disturb each other through the state that Hugging Face models keep between calls.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from coprs_core.errors import CoPRSError
from coprs_core.model.backends.cache import LayerState, cache_argument_name, layer_states, new_cache
from coprs_core.model.backends.cpu.output_layer import argmax_tokens

Mllm = Any
"""A Hugging Face model for images and text; its parts are read by name, whatever its class."""


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """An image as the language model takes it.

    Attributes:
        features: [N, D], N visual tokens.
        image_size: (height, width) in pixels of the image that the vision tower was given.
        grid: int [1, 3] (frames, rows, columns of patches) where positions are two-dimensional
            (Qwen).
        deepstack: where the tower also feeds the first layers of the language model (Qwen3-VL),
            one [N, D] for each of them.
    """

    features: Tensor
    image_size: tuple[int, int]
    grid: Tensor | None = None
    deepstack: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, to count their memory."""
        return [self.features, *self.deepstack]

    def to(self, device: torch.device | str) -> "VisualTokens":
        """Return a copy on another device."""
        grid = None if self.grid is None else self.grid.to(device)
        return VisualTokens(
            self.features.to(device),
            self.image_size,
            grid,
            tuple(t.to(device) for t in self.deepstack),
        )

    def grid_size(self, mllm: Mllm) -> tuple[int, int]:
        """(rows, columns) in which the tokens lie; a square where there is no `grid`."""
        if self.grid is None:
            side = math.isqrt(len(self.features))
            return side, side
        merge = mllm.config.vision_config.spatial_merge_size
        return int(self.grid[0, 1]) // merge, int(self.grid[0, 2]) // merge


@dataclass(frozen=True)
class Architecture:
    """The two things in which families of models differ: how they encode an image, and the
    positions of its tokens.

    `encode_image`: model, image processor, RGB image, most visual tokens (None: as many as the
    image processor makes) → `VisualTokens`. `positions`: model, ids [1, L], is_image bool [1, L],
    `VisualTokens` → rope positions [..., 1, L].
    """

    encode_image: Callable[[Mllm, Any, Image.Image, int | None], VisualTokens]
    positions: Callable[[Mllm, Tensor, Tensor, VisualTokens], Tensor]


def _encode_image_qwen(
    mllm: Mllm, image_processor: Any, image: Image.Image, max_tokens: int | None
) -> VisualTokens:
    patch, merge = image_processor.patch_size, image_processor.merge_size
    size = dict(image_processor.size)
    if max_tokens is not None:
        size["longest_edge"] = max_tokens * (patch * merge) ** 2
    inputs = image_processor(images=[image], return_tensors="pt", size=size)
    grid = inputs["image_grid_thw"]
    image_size = int(grid[0, 1]) * patch, int(grid[0, 2]) * patch
    pixels = inputs["pixel_values"].to(mllm.device, mllm.dtype)
    encoded = mllm.model.visual(pixels, grid_thw=grid.to(mllm.device))
    deepstack = getattr(encoded, "deepstack_features", None) or ()
    return VisualTokens(encoded.pooler_output, image_size, grid, tuple(deepstack))


def _positions_qwen(mllm: Mllm, ids: Tensor, is_image: Tensor, visual: VisualTokens) -> Tensor:
    grid = None if visual.grid is None else visual.grid.to(mllm.device)
    return mllm.model.get_rope_index(ids, mm_token_type_ids=is_image.int(), image_grid_thw=grid)[0]


def _encode_image_llava(
    mllm: Mllm, image_processor: Any, image: Image.Image, max_tokens: int | None
) -> VisualTokens:
    inputs = image_processor(images=[image], return_tensors="pt")
    pixels = inputs["pixel_values"].to(mllm.device, mllm.dtype)
    features = mllm.model.get_image_features(pixels).pooler_output[0]
    return VisualTokens(features, tuple(pixels.shape[-2:]))


def _encode_image_internvl(
    mllm: Mllm, image_processor: Any, image: Image.Image, max_tokens: int | None
) -> VisualTokens:
    # as one image: among tiles of it the index of a token would not tell its cell
    return _encode_image_llava(
        mllm, partial(image_processor, crop_to_patches=False), image, max_tokens
    )


def _positions_llava(mllm: Mllm, ids: Tensor, is_image: Tensor, visual: VisualTokens) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device)[None]


_QWEN = Architecture(_encode_image_qwen, _positions_qwen)
ARCHITECTURES = {
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_5": _QWEN,
    "llava": Architecture(_encode_image_llava, _positions_llava),
    "internvl": Architecture(_encode_image_internvl, _positions_llava),
}
"""By `model_type` of the Hugging Face config."""


def architecture(mllm: Mllm) -> Architecture:
    """The `Architecture` of a model; raises `CoPRSError` where its family is not supported."""
    kind = mllm.config.model_type
    if kind not in ARCHITECTURES:
        raise CoPRSError(
            "Models of type {kind!r} are not supported: use one of {names}.",
            kind=kind,
            names=", ".join(ARCHITECTURES),
        )
    return ARCHITECTURES[kind]


@torch.no_grad()
def encode_image(
    mllm: Mllm, image_processor: Any, image: Image.Image, max_tokens: int | None = None
) -> VisualTokens:
    """Run the model's vision tower on an RGB image that is already in the MLLM frame.

    `max_tokens` bounds the number of visual tokens, in models that take images of any size.
    """
    return architecture(mllm).encode_image(mllm, image_processor, image, max_tokens)


def embed_prompt(mllm: Mllm, ids: list[int], visual: VisualTokens) -> tuple[Tensor, Tensor]:
    """Embed a prompt with the visual tokens in their places.

    Returns:
        embeddings [1, L, D], and rope positions ([3, 1, L] for Qwen,
        [1, L] for others).
    """
    tokens = torch.tensor([ids], device=mllm.device)
    is_image = tokens == mllm.config.image_token_id
    embeddings = mllm.get_input_embeddings()(tokens).clone()
    embeddings[is_image] = visual.features.to(embeddings.dtype)
    return embeddings, architecture(mllm).positions(mllm, tokens, is_image, visual)


_CHUNK_TOKENS = 1024
"""A longer text is fed in parts, as attention takes memory for each pair of tokens."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The prefilled beginning of a prompt, which all instructions about a photo share.

    Attributes:
        ids: its token ids; none where instructions share nothing.
        states: the cache of each layer.
        next_position: the rope position of the token that follows.
        position_axes: the shape of rope positions before their length.
        image_span: the positions of the visual tokens.
    """

    ids: tuple[int, ...] = ()
    states: tuple[LayerState, ...] = field(default=(), repr=False)
    next_position: int = 0
    position_axes: tuple[int, ...] = ()
    image_span: slice = field(default_factory=lambda: slice(0))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, to count their memory."""
        return [t for state in self.states for t in state]

    def to(self, device: torch.device | str) -> "Prefix":
        """Return a copy on another device."""
        return replace(self, states=tuple(tuple(t.to(device) for t in s) for s in self.states))


class PromptSession:
    """A prompt in the language model's cache, and the tokens that are fed after it.

    It starts after a `Prefix`, which stays as it is. `last_hidden` [1, D] is the hidden state,
    after the final norm, at the last token; `next_position`, `position_axes` and `image_span` are
    as in `Prefix`.
    """

    last_hidden: Tensor

    def __init__(self, mllm: Mllm, prefix: Prefix = Prefix()):
        self._mllm = mllm
        self._cache = new_cache(mllm.model.language_model.config, prefix.states)
        self._cache_argument = cache_argument_name(type(mllm.model.language_model))
        self.next_position, self.position_axes = prefix.next_position, prefix.position_axes
        self.image_span = prefix.image_span

    @torch.no_grad()
    def prefill(self, ids: list[int], visual: VisualTokens) -> None:
        """Feed the tokens with which a prompt begins, the visual tokens among them."""
        embeddings, positions = embed_prompt(self._mllm, ids, visual)
        self.next_position, self.position_axes = int(positions.max()) + 1, positions.shape[:-1]
        image_id = self._mllm.config.image_token_id
        self.image_span = _image_span(ids, image_id)
        deepstack = {}
        if visual.deepstack:
            is_image = torch.tensor([ids], device=self._mllm.device) == image_id
            deepstack = {
                "visual_pos_masks": is_image,
                "deepstack_visual_embeds": list(visual.deepstack),
            }
        self.last_hidden = self._forward(embeddings, positions, **deepstack)[:, -1]

    @property
    def states(self) -> tuple[LayerState, ...]:
        """The cache of each layer; it may change when more is fed."""
        return layer_states(self._cache)

    @property
    def length(self) -> int:
        """How many tokens were fed."""
        return self._cache.get_seq_length()

    def to_prefix(self, ids: Iterable[int] = ()) -> Prefix:
        """Return all that was fed, the tokens `ids`, as a prefix; its states change with this
        session's."""
        return Prefix(
            tuple(ids), self.states, self.next_position, self.position_axes, self.image_span
        )

    def fork(self) -> "PromptSession":
        """Return a session that goes on from here by itself: neither changes the other."""
        fork = PromptSession(self._mllm, self.to_prefix())
        fork.last_hidden = self.last_hidden
        return fork

    @torch.no_grad()
    def feed(self, ids: list[int]) -> Tensor:
        """Feed n more tokens; return the last hidden states [n, D] at each of them."""
        parts = [ids[i : i + _CHUNK_TOKENS] for i in range(0, len(ids), _CHUNK_TOKENS)] or [ids]
        return torch.cat([self._feed_chunk(part) for part in parts])

    def _feed_chunk(self, ids: list[int]) -> Tensor:
        tokens = torch.tensor([ids], device=self._mllm.device)
        positions = torch.arange(
            self.next_position, self.next_position + len(ids), device=tokens.device
        )
        embeddings = self._mllm.get_input_embeddings()(tokens)
        hidden = self._forward(embeddings, positions.expand(*self.position_axes, -1))
        self.next_position, self.last_hidden = self.next_position + len(ids), hidden[:, -1]
        return hidden[0]

    @torch.no_grad()
    def next_token(self) -> int:
        """Return the token that greedy decoding writes next."""
        return argmax_tokens(self._mllm, self.last_hidden)[0]

    def _forward(self, embeddings: Tensor, positions: Tensor, **extra) -> Tensor:
        inputs = {"inputs_embeds": embeddings, "position_ids": positions, "use_cache": True}
        inputs[self._cache_argument] = self._cache
        return self._mllm.model.language_model(**inputs, **extra).last_hidden_state


def prefill_prefix(mllm: Mllm, ids: list[int], visual: VisualTokens) -> Prefix:
    """Feed the tokens that all prompts about a photo begin with; an empty prefix where the photo is
    not among them."""
    if mllm.config.image_token_id not in ids:
        return Prefix()
    session = PromptSession(mllm)
    session.prefill(ids, visual)
    return session.to_prefix(ids)


def prefill_prompt(
    mllm: Mllm, ids: list[int], visual: VisualTokens, prefix: Prefix
) -> PromptSession:
    """Feed a whole prompt, ready for a reply.

    It is fed in two steps, always the same: its prefix, which may have been cached, and the rest.
    In one step sums would be rounded otherwise, and an answer would depend on what was cached.
    """
    count = len(prefix.ids)
    if not count or tuple(ids[:count]) != prefix.ids:
        session = PromptSession(mllm)
        session.prefill(ids, visual)
    else:
        session = PromptSession(mllm, prefix)
        session.feed(ids[count:])
    return session


def _image_span(ids: list[int], image_id: int) -> slice:
    """The positions of the visual tokens in a prompt; they stand side by side."""
    if image_id not in ids:
        return slice(0)
    start = ids.index(image_id)
    return slice(start, start + ids.count(image_id))
