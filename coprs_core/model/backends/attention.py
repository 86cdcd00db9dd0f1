"""The language model's own attention: from the tokens that it writes to the tokens of the image.

Transformers lets an attention function be registered under a name. Ours computes a single query
with two plain products, which a CPU does faster than the fused kernel and which give the weights;
a prompt goes through the fused kernel as ever.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from coprs_core.model.backends.mllm import Mllm, PromptSession

IMPLEMENTATION_NAME = "observed"
MAX_RECORDED_QUERIES = 64
"""More tokens than this at once are not recorded: their weights would take too much memory."""
NUM_LOCALIZATION_HEADS = 8
MIN_IMAGE_SHARE = 0.1
"""A head that gives the image a smaller share of its attention is no localization head."""
MAX_BYTES = 256_000_000
"""Of a reply's recorded attention; the earliest tokens are dropped first."""


@dataclass(eq=False)
class StepAttention:
    """Attention to the image in one step of the language model.

    `layers` holds for each layer one [tokens, heads, N] a row of the batch; the N image tokens of a
    row are those of its slice in `image_spans`.
    """

    image_spans: list[slice]
    layers: list[list[Tensor]] = field(default_factory=list)

    def weights(self, row: int = 0) -> Tensor:
        """All layers of one row: float16 [tokens, layers × heads, N]."""
        return torch.cat([layer[row] for layer in self.layers], dim=1).half()


_recording: ContextVar[StepAttention | None] = ContextVar("recording", default=None)


@contextmanager
def record_attention(image_spans: list[slice]) -> Generator[StepAttention, None, None]:
    """Record, inside, the attention of the language model to the image tokens of each row of a
    batch.

    A context variable, not an attribute of the model: threads that share it must not record one
    another's steps.
    """
    recorded = StepAttention(image_spans)
    token = _recording.set(recorded)
    try:
        yield recorded
    finally:
        _recording.reset(token)


def install_recorder(mllm: Mllm) -> None:
    """Let the attention of this model be recorded; unrecorded it computes as before, bit for
    bit."""
    mllm.model.language_model.config._attn_implementation = IMPLEMENTATION_NAME


def _attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, heads, L, d] queries over [B, groups, S, d] keys and values → [B, L, heads, d]."""
    batch, heads, length, depth = query.shape
    recording = _recording.get()
    if recording is None or length > MAX_RECORDED_QUERIES:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups, length, depth)
    scale = depth**-0.5 if scaling is None else scaling
    scores = (grouped @ key[:, :, None].mT).float() * scale
    if length > 1 or attention_mask is not None:  # a single query sees all that was read
        visible = _visible_keys(attention_mask, length, key.shape[2], key.device)
        scores = scores.masked_fill(~visible, -1e9)
    weights = scores.softmax(-1)
    to_image = (w[..., span] for w, span in zip(weights, recording.image_spans, strict=True))
    recording.layers.append([w.flatten(0, 1).transpose(0, 1).detach() for w in to_image])
    mixed = weights.to(value.dtype) @ value[:, :, None]
    return mixed.reshape(batch, heads, length, depth).transpose(1, 2).contiguous(), None


def _visible_keys(
    mask: Tensor | None, num_queries: int, num_keys: int, device: torch.device
) -> Tensor:
    """Which keys each of the last positions may attend to, bool [..., queries, keys]."""
    if mask is not None:
        return mask[:, :, None] if mask.dtype == torch.bool else mask[:, :, None] >= 0
    positions = torch.arange(num_keys, device=device)
    return positions[None] <= positions[-num_queries:, None]


class AttentionTrace:
    """The attention of one reply's tokens to the image, recorded while it is written.

    A model has hundreds of attention heads, and few of them show where a token looks ("localization
    heads", Kang et al., arXiv 2503.06287, CVPR 2025). They are chosen here from the reply itself,
    without labels, by how much a token tells about the cell that its head looks at: the mutual
    information of token and cell, times the square root of the share of attention that goes to the
    image. A head that looks everywhere, or always at one spot, has none.

    Args:
        grid: (rows, columns) in which the image tokens lie.
        known_heads: localization heads of a calibration, taken in place of a choice.
        kept_heads: only these are kept, where they were chosen before: so far more tokens fit.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        known_heads: Sequence[int] = (),
        kept_heads: Sequence[int] | None = None,
    ):
        self.grid, self.known_heads = grid, list(known_heads)
        self._kept_heads = kept_heads and list(kept_heads)
        self._weights: deque[Tensor] = deque()
        self._num_dropped = self.num_heads = 0

    def feed(self, session: PromptSession, ids: list[int]) -> Tensor:
        """`PromptSession.feed`, recorded; at most `MAX_RECORDED_QUERIES` tokens."""
        with record_attention([session.image_span]) as recorded:
            hidden = session.feed(ids)
        if recorded.layers:
            self.add(recorded.weights())
        return hidden

    def add(self, weights: Tensor) -> None:
        """Add tokens: [tokens, heads, N]."""
        self.num_heads = weights.shape[1]
        if self._kept_heads is not None:
            weights = weights[:, self._kept_heads]
        self._weights.extend(w.clone() for w in weights)  # a view would hold all of them in memory
        max_tokens = max(1, MAX_BYTES // max(1, self._weights[-1].nbytes))
        while len(self._weights) > max_tokens:
            self._weights.popleft()
            self._num_dropped += 1

    def __len__(self) -> int:
        """How many tokens were recorded, those that were dropped among them."""
        return self._num_dropped + len(self._weights)

    @property
    def is_truncated(self) -> bool:
        """Whether the earliest tokens were dropped."""
        return self._num_dropped > 0

    def localization_heads(self, count: int = NUM_LOCALIZATION_HEADS) -> list[int]:
        """The best localization heads of this reply, the best first; else those of a
        calibration."""
        if self.known_heads and max(self.known_heads) < self.num_heads:
            return self.known_heads
        recorded, sums = tuple(self._weights), None
        # in parts: float32 of all tokens at once would take twice the memory of what is kept
        for start in range(0, len(recorded), MAX_RECORDED_QUERIES):
            weights = torch.stack(recorded[start : start + MAX_RECORDED_QUERIES]).float()
            shares = weights.sum(-1)  # [tokens, heads]
            cells = weights / shares.clamp(min=1e-9)[..., None]  # [tokens, heads, N]
            part = cells.sum(0), _entropy(cells).sum(0), shares.sum(0)
            sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
        if sums is None:
            raise ValueError("no token was recorded")
        mean_cells, mean_entropy, share = (total / len(recorded) for total in sums)
        information = _entropy(mean_cells) - mean_entropy
        score = information * share.sqrt()
        score[share < MIN_IMAGE_SHARE] -= score.max() + 1  # only where there are too few others
        return score.topk(min(count, len(score))).indices.tolist()

    def attention_map(self, tokens: Iterable[int], heads: list[int]) -> np.ndarray:
        """Mean attention of tokens, by their index, and heads: float32 [rows, columns], the share
        that each cell gets; zeros where none of the tokens is kept."""
        dropped = self._num_dropped
        weights = [self._weights[i - dropped] for i in tokens if dropped <= i < len(self)]
        if not weights:
            return np.zeros(self.grid, np.float32)
        kept = self._kept_heads
        columns = heads if kept is None else [kept.index(head) for head in heads]
        mean_attention = torch.stack([w[columns].float().mean(0) for w in weights]).mean(0)
        return mean_attention.reshape(self.grid).cpu().numpy()


def attention_to_prior(attention_map: np.ndarray, photo_size: tuple[int, int]) -> np.ndarray:
    """A map [rows, columns] → a prior float32 [H, W] in [0, 1] at the photo's size, its highest
    cell 1; bilinear.

    Attention has no scale of its own, so it is divided by its maximum.
    """
    return resize_map(attention_map / max(float(attention_map.max()), 1e-9), photo_size).clip(0, 1)


def resize_map(attention_map: np.ndarray, photo_size: tuple[int, int]) -> np.ndarray:
    """A map [rows, columns] → float32 [H, W] at the photo's size; bilinear."""
    cells = torch.from_numpy(attention_map)[None, None]
    return F.interpolate(cells, photo_size, mode="bilinear", align_corners=False)[0, 0].numpy()


def _entropy(shares: Tensor) -> Tensor:
    """Entropy in nats over the last axis."""
    return -(shares * shares.clamp(min=1e-12).log()).sum(-1)


AttentionInterface.register(IMPLEMENTATION_NAME, _attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION_NAME, sdpa_mask)
