"""Where the language model itself looks: the attention of its words to the picture's tokens,
observed while it writes.

Transformers lets an attention function be registered under a name. Ours computes a single query
with two plain products, which a CPU does faster than the fused kernel, and gives the weights away;
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
"""More words than this at once are not observed: their weights would take too much memory."""
NUM_LOCALIZATION_HEADS = 8
MIN_IMAGE_SHARE = 0.1
"""Of its attention that a head has to give the picture to be asked where it looks."""
MAX_BYTES = 256_000_000
"""Of a reply's observed attention; the earliest words go first."""


@dataclass(eq=False)
class StepAttention:
    """What one step of the language model attends to: for each layer, one [words, heads, N] a row
    of the batch, where the N tokens of its picture are those of `pictures`."""

    image_spans: list[slice]
    layers: list[list[Tensor]] = field(default_factory=list)

    def weights(self, row: int = 0) -> Tensor:
        """float16 [words, layers × heads, N]."""
        return torch.cat([layer[row] for layer in self.layers], dim=1).half()


_recording: ContextVar[StepAttention | None] = ContextVar("observed", default=None)


@contextmanager
def record_attention(image_spans: list[slice]) -> Generator[StepAttention, None, None]:
    """Inside, what the language model attends to is kept, among the picture's tokens of each row of
    a batch."""
    recorded = StepAttention(image_spans)
    token = _recording.set(recorded)
    try:
        yield recorded
    finally:
        _recording.reset(token)


def install_recorder(mllm: Mllm) -> None:
    """From now on the attention of this model's words can be observed; unobserved it computes as
    before, bit for bit."""
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
    batch, heads, words, depth = query.shape
    recording = _recording.get()
    if recording is None or words > MAX_RECORDED_QUERIES:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    groups = key.shape[1]
    grouped = query.reshape(batch, groups, heads // groups, words, depth)
    scale = depth**-0.5 if scaling is None else scaling
    scores = (grouped @ key[:, :, None].mT).float() * scale
    if words > 1 or attention_mask is not None:
        scores = scores.masked_fill(
            ~_visible_keys(attention_mask, words, key.shape[2], key.device), -1e9
        )
    weights = scores.softmax(-1)
    looks = (w[..., picture] for w, picture in zip(weights, recording.image_spans, strict=True))
    recording.layers.append([w.flatten(0, 1).transpose(0, 1).detach() for w in looks])
    mixed = weights.to(value.dtype) @ value[:, :, None]
    return mixed.reshape(batch, heads, words, depth).transpose(1, 2).contiguous(), None


def _visible_keys(mask: Tensor | None, words: int, length: int, device: torch.device) -> Tensor:
    """Which keys each of the last `words` positions may attend to, bool [..., words, length]."""
    if mask is not None:
        return mask[:, :, None] if mask.dtype == torch.bool else mask[:, :, None] >= 0
    positions = torch.arange(length, device=device)
    return positions[None] <= positions[-words:, None]


class AttentionTrace:
    """What the words of one reply attend to, observed while it is written.

    A model has hundreds of attention heads, and few of them tell a place ("localization heads",
    Kang et al., arXiv 2503.06287, CVPR 2025). They are chosen here from the reply itself, without
    labels, by how much a word tells about the place that its head looks at: the mutual information
    of word and place, times the square root of the share of attention that goes to the picture.
    A head that looks everywhere, or always at one spot, has none.

    `grid` is the (rows, columns) in which the picture's tokens lie; `known` are heads that were
    found to tell a place before, and are asked in place of a choice; `only` these heads are kept,
    where they were chosen before, and far more words; `num_heads` is how many the model has.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        known_heads: Sequence[int] = (),
        kept_heads: Sequence[int] | None = None,
    ):
        self.grid, self.known_heads, self._kept_heads = (
            grid,
            list(known_heads),
            kept_heads and list(kept_heads),
        )
        self._weights: deque[Tensor] = deque()
        self._num_dropped = self.num_heads = 0

    def feed(self, session: PromptSession, ids: list[int]) -> Tensor:
        """`PromptSession.feed`, observed; at most `MAX_RECORDED_QUERIES` tokens."""
        with record_attention([session.image_span]) as recorded:
            hidden = session.feed(ids)
        if recorded.layers:
            self.add(recorded.weights())
        return hidden

    def add(self, weights: Tensor) -> None:
        """Further words: [words, heads, N]."""
        self.num_heads = weights.shape[1]
        if self._kept_heads is not None:
            weights = weights[:, self._kept_heads]
        self._weights.extend(w.clone() for w in weights)  # each goes by itself
        max_words = max(1, MAX_BYTES // max(1, self._weights[-1].nbytes))
        while len(self._weights) > max_words:
            self._weights.popleft()
            self._num_dropped += 1

    def __len__(self) -> int:
        """How many words were observed."""
        return self._num_dropped + len(self._weights)

    @property
    def is_truncated(self) -> bool:
        """Whether the earliest words are no longer kept."""
        return self._num_dropped > 0

    def localization_heads(self, count: int = NUM_LOCALIZATION_HEADS) -> list[int]:
        """The heads that tell a place best in this reply, the best first; those that are known."""
        if self.known_heads and max(self.known_heads) < self.num_heads:
            return self.known_heads
        recorded, sums = tuple(self._weights), None
        for start in range(
            0, len(recorded), MAX_RECORDED_QUERIES
        ):  # all at once in float32 would be much
            weights = torch.stack(
                recorded[start : start + MAX_RECORDED_QUERIES]
            ).float()  # [words, heads, N]
            shares = weights.sum(-1)
            places = weights / shares.clamp(min=1e-9)[..., None]
            part = places.sum(0), _entropy(places).sum(0), shares.sum(0)
            sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
        if sums is None:
            raise ValueError("no word was observed")
        place, entropy, share = (total / len(recorded) for total in sums)
        information = _entropy(place) - entropy
        score = information * share.sqrt()
        score[share < MIN_IMAGE_SHARE] -= score.max() + 1  # only where there are too few others
        return score.topk(min(count, len(score))).indices.tolist()

    def attention_map(self, words: Iterable[int], heads: list[int]) -> np.ndarray:
        """Where these words look by these heads, together: float32 [rows, columns], the share of
        attention that each cell gets; zeros where none of the words is kept."""
        weights = [
            self._weights[i - self._num_dropped]
            for i in words
            if self._num_dropped <= i < len(self)
        ]
        if not weights:
            return np.zeros(self.grid, np.float32)
        columns = (
            heads if self._kept_heads is None else [self._kept_heads.index(head) for head in heads]
        )
        mean_attention = torch.stack([w[columns].float().mean(0) for w in weights]).mean(0)
        return mean_attention.reshape(self.grid).cpu().numpy()


def attention_to_prior(attention_map: np.ndarray, photo_size: tuple[int, int]) -> np.ndarray:
    """A map [rows, columns] → a prior float32 [H, W] in [0, 1] at the photo's size, its highest
    cell 1; bilinear."""
    return resize_map(attention_map / max(float(attention_map.max()), 1e-9), photo_size).clip(0, 1)


def resize_map(attention_map: np.ndarray, photo_size: tuple[int, int]) -> np.ndarray:
    """A map [rows, columns] → float32 [H, W] at the photo's size; bilinear."""
    cells = torch.from_numpy(attention_map)[None, None]
    return F.interpolate(cells, photo_size, mode="bilinear", align_corners=False)[0, 0].numpy()


def _entropy(shares: Tensor) -> Tensor:
    return -(shares * shares.clamp(min=1e-12).log()).sum(-1)


AttentionInterface.register(IMPLEMENTATION_NAME, _attention_forward)
AttentionMaskInterface.register(IMPLEMENTATION_NAME, sdpa_mask)
