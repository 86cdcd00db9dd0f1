"""Heads: the attention maps from which the prior is made.

With a focus token they are those of the query head, before they are fused. In a model that writes
coordinates they are those of its localization heads, while it wrote the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from coprs_core.answer.pictures import COLOUR_MAP, heatmap, normalize_map, prior_overlay
from coprs_core.answer.results import Result
from coprs_core.masks import encode_prior
from coprs_core.photos.photo import Photo, PhotoLike
from coprs_core.probes.finding import Finding, NotApplicable, Picture
from coprs_core.probes.reply_attention import compute_reply_attention, pointing_tokens
from coprs_core.probes.rereading import reread_answer, with_memory_guard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from coprs_core.answer.engine import Engine


@dataclass(frozen=True, eq=False)
class HeadMaps(Finding):
    """`maps` float32 [heads, H, W] are scaled dot products, unbounded, or each cell's share of
    attention; `prior` is what they become. `names` tell them apart."""

    maps: np.ndarray = field(repr=False)
    prior: np.ndarray = field(repr=False)
    names: tuple[str, ...]

    def stem(self) -> str:
        return "heads"

    def to_dict(self) -> dict:
        return {"heads": [_value_range(head, name) for head, name in self._named_maps()]}

    def summary(self) -> str:
        ranges = (_format_range(head, name) for head, name in self._named_maps())
        return "; ".join("{name}: {low} to {high}".format(**r) for r in ranges)

    def payloads(self) -> Iterator[Any]:
        yield [
            _value_range(head, name) | {"map": encode_prior(normalize_map(head))}
            for head, name in self._named_maps()
        ]

    def pictures(self, photo: Photo) -> list[Picture]:
        heads = [
            Picture("head", _format_range(head, name), heatmap(normalize_map(head)))
            for head, name in self._named_maps()
        ]
        return [*heads, Picture("fused", {}, heatmap(self.prior))]

    def array(self) -> np.ndarray:
        return self.maps

    def _named_maps(self) -> Iterator[tuple[np.ndarray, str]]:
        return zip(self.maps, self.names, strict=True)

    def figure(self, photo: Photo) -> Figure:
        """Each head from its least to its most, and the fused prior beside them."""
        count = len(self.maps) + 1
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2 * count, 3.5), layout="constrained", facecolor="white")
        axes = figure.subplots(1, count)
        for ax, (head, name) in zip(axes[:-1], self._named_maps(), strict=True):
            ax.imshow(head, cmap=COLOUR_MAP)
            ax.set_title(
                "head {name}: {low} to {high}".format(**_format_range(head, name)), fontsize=9
            )
        axes[-1].imshow(prior_overlay(np.asarray(photo.image), self.prior))
        axes[-1].set_title("fused: the positional prior", fontsize=9)
        for ax in axes:
            ax.set_axis_off()
        return figure


@with_memory_guard
def run(engine: Engine, image: PhotoLike, result: Result) -> HeadMaps:
    """The attention maps before they are fused, at the photo's size."""
    if result.prior is None:
        raise NotApplicable(
            "This answer looks nowhere, so there are no heads to show: ask one that finds "
            "something.",
            "heads",
        )
    if not engine.has_focus_token:
        return _run_attention(engine, image, result, result.prior)
    if len(result.regions) > 1:
        raise NotApplicable(
            "This answer found several things, each with heads of its own: ask for one of them "
            "to see its heads.",
            "heads",
        )
    _, features, session = reread_answer(engine, image, result)
    embedding = session.feed(list(result.reply_ids))[-1:]
    maps = engine.focus.head_maps(embedding, features)
    return HeadMaps(maps, result.prior, tuple(str(i) for i in range(1, len(maps) + 1)))


def _run_attention(engine: Engine, image: PhotoLike, result: Result, prior: np.ndarray) -> HeadMaps:
    """The localization heads, over the tokens that wrote the numbers."""
    from coprs_core.model.backends.attention import resize_map

    reply = compute_reply_attention(engine, image, result, "heads")
    words = pointing_tokens(engine, result)
    maps = [
        resize_map(reply.trace.attention_map(words, [head]), reply.photo.size)
        for head in reply.heads
    ]
    layers = engine.local_segmenter.language.mllm.config.get_text_config().num_hidden_layers
    heads_per_layer = reply.trace.num_heads // layers
    names = tuple(
        f"{h % heads_per_layer + 1} of layer {h // heads_per_layer + 1}" for h in reply.heads
    )
    return HeadMaps(np.stack(maps), prior, names)


def _value_range(head: np.ndarray, name: str) -> dict:
    return {"name": name, "low": float(head.min()), "high": float(head.max())}


def _format_range(head: np.ndarray, name: str) -> dict:
    """Name, lowest and highest value as text."""
    # dot products are of the order of 10, shares of attention of 0.001
    digits = 1 if np.abs(head).max() >= 1 else 4
    return {"name": name, "low": f"{head.min():.{digits}f}", "high": f"{head.max():.{digits}f}"}
