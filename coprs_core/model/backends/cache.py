"""The cache of a language model, layer by layer: every token is fed once.

Attention keeps keys and values of every token. Linear attention (Qwen3.5's gated delta net) and
short convolutions (LFM2) keep one state of a fixed size, which each token changes for good: it is
copied before it may change, never cut, and never padded.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

LayerState = tuple[Tensor, ...]
"""What one layer keeps of one text: keys and values, each [1, groups, L, d]; or the last inputs of
its convolution [1, C, K] and, in linear attention, the recurrent state [1, heads, d, d_v]."""

_LINEAR_LAYER_TYPES = ("linear_attention", "conv")
"""Transformers' names, in `layer_types`, of layers without keys and values."""
GROWTH_TOKENS = 128
"""Tokens by which the room for keys and values grows, at least: to grow copies all of them."""


@cache
def cache_argument_name(language_model: type[nn.Module]) -> str:
    """The name under which a class of language model takes the cache.

    It is `cache` in newer versions of transformers, `past_key_values` in older ones; 5.40 removes
    the old name.
    """
    names = inspect.signature(language_model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def new_cache(config: Any, states: Sequence[LayerState] = ()) -> Cache:
    """A cache for one text, by the language model's config; it goes on from `states` (one a layer)
    and leaves them as they are."""
    kinds = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    layers: list[Any] = [
        LinearAttentionLayer() if kind in _LINEAR_LAYER_TYPES else DynamicLayer() for kind in kinds
    ]
    for layer, state in zip(layers, states):
        if isinstance(layer, LinearAttentionLayer):
            layer.update_conv_state(state[0])  # copies, as the model writes into it
            for recurrent in state[1:]:
                layer.update_recurrent_state(recurrent)
        else:
            layer.lazy_initialization(*state)
            layer.keys, layer.values = state  # shared: longer ones are put beside them
    return Cache(layers=layers)


def layer_states(cache: Cache) -> tuple[LayerState, ...]:
    """What each layer keeps. The cache itself may still change those of linear attention."""
    return tuple(_layer_state(layer) for layer in cache.layers)


def _layer_state(layer: Any) -> LayerState:
    if isinstance(layer, LinearAttentionLayer):
        states = layer.conv_states[0], layer.recurrent_states[0]
        return tuple(t for t in states if t is not None)
    return layer.keys, layer.values


def new_slots(config: Any) -> "list[KeyValueSlots | StateSlots]":
    """Slots for the states of several replies, one for each layer, by the language model's
    config."""
    layers = new_cache(config).layers
    return [
        StateSlots() if isinstance(x, LinearAttentionLayer) else KeyValueSlots() for x in layers
    ]


class KeyValueSlots(DynamicLayer):
    """Keys and values [slots, groups, room, d] of one layer, a reply in each slot from its start
    on."""

    keys: Any
    values: Any

    def __init__(self):
        super().__init__()
        self._lengths, self._longest = torch.zeros(0, dtype=torch.long), 0

    @property
    def nbytes(self) -> int:
        """Memory that is allocated."""
        return self.keys.nbytes + self.values.nbytes if self.is_initialized else 0

    @staticmethod
    def slot_nbytes(state: LayerState, length: int) -> int:
        """Memory that one slot needs, for a reply of that many tokens."""
        return length * sum(t[0, :, 0].nbytes for t in state)

    def store_prompt(self, slot: int, state: LayerState) -> None:
        """Copy a prompt's keys and values into a slot."""
        keys, values = state
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = (
                t.new_empty(0, t.shape[1], 0, t.shape[3]) for t in (keys, values)
            )
        length = keys.shape[2]
        self._grow(slot + 1, length + GROWTH_TOKENS)
        self.keys[slot, :, :length], self.values[slot, :, :length] = keys[0], values[0]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one reply to another slot."""
        for tensor in (self.keys, self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def begin_step(self, lengths: Tensor, longest: int) -> None:
        """Before a step: the index of the next token of each reply, and the longest length with
        it."""
        self._lengths, self._longest = lengths, longest
        self._grow(len(lengths), longest)

    def commit_step(self) -> None:
        """After a step: nothing. One that failed left keys and values that the next overwrites."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any):
        """Store the keys and values [B, groups, 1, d] of a step; return all so far."""
        count, longest = len(key_states), self._longest
        if count == 1:  # plain indexing, much faster than two index tensors
            self.keys[0, :, longest - 1] = key_states[0, :, 0]
            self.values[0, :, longest - 1] = value_states[0, :, 0]
        else:
            slots = torch.arange(count, device=key_states.device)
            self.keys[slots, :, self._lengths] = key_states[:, :, 0]
            self.values[slots, :, self._lengths] = value_states[:, :, 0]
        so_far = slice(count), slice(None), slice(longest)
        return self.keys[so_far], self.values[so_far]

    def get_seq_length(self) -> int:
        return self._longest - 1

    def _grow(self, num_slots: int, num_tokens: int) -> None:
        old_shape = self.keys.shape
        if num_slots <= old_shape[0] and num_tokens <= old_shape[2]:
            return
        num_slots = old_shape[0] if num_slots <= old_shape[0] else max(num_slots, 2 * old_shape[0])
        num_tokens = (
            old_shape[2]
            if num_tokens <= old_shape[2]
            else max(num_tokens, old_shape[2] + old_shape[2] // 2)
        )
        old = self.keys, self.values
        new = [
            t.new_zeros(num_slots, old_shape[1], num_tokens, t.shape[3]) for t in old
        ]  # no numbers would spread
        for larger, smaller in zip(new, old, strict=True):
            larger[: old_shape[0], :, : old_shape[2]] = smaller
        self.keys, self.values = new  # both, or neither where there is no memory


class StateSlots(LinearAttentionLayer):
    """The state of one layer without keys and values, [slots, …], that of a reply in each slot.

    A step works on a copy, which is kept when all of the step has succeeded: what failed half-way
    is tried again, and a state that has seen a token cannot forget it.
    """

    def __init__(self):
        super().__init__()
        self._states: LayerState = ()

    @property
    def nbytes(self) -> int:
        """Memory that is allocated."""
        return sum(t.nbytes for t in self._states)

    @staticmethod
    def slot_nbytes(state: LayerState, length: int) -> int:
        """Memory that one slot needs, whatever the length: the copy of a step is half of it."""
        return 2 * sum(t.nbytes for t in state)

    def store_prompt(self, slot: int, state: LayerState) -> None:
        """Copy a prompt's state into the slot after the last that is taken."""
        had = self._states or tuple(t[:0] for t in state)
        self._states = tuple(torch.cat([h[:slot], t]) for h, t in zip(had, state, strict=True))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy one reply to another slot."""
        for state in self._states:
            state[target] = state[source]

    def begin_step(self, lengths: Tensor, longest: int) -> None:
        """Before a step: copy the state of each reply, for the model to change."""
        conv, *recurrent = (t[: len(lengths)].clone() for t in self._states)
        self.conv_states[0], self.conv_kernel_size[0] = conv, conv.shape[-1]
        self.is_conv_states_initialized[0] = self.has_previous_state[0] = True
        for state in recurrent:
            self.recurrent_states[0], self.is_recurrent_states_initialized[0] = state, True

    def commit_step(self) -> None:
        """After a step that succeeded: its copy becomes the state."""
        self._states = _layer_state(self)
