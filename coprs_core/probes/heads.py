"""Heads: the attention maps of the query head before they are fused into the prior."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from coprs_core.answer.engine import Engine
from coprs_core.answer.pictures import COLOUR_MAP, heatmap, prior_overlay, stretched
from coprs_core.answer.results import Result
from coprs_core.masks import encode_prior
from coprs_core.photos import Photo, PhotoLike
from coprs_core.probes.finding import Finding, NotApplicable, Picture
from coprs_core.probes.focus import guarded, reread


@dataclass(frozen=True, eq=False)
class Heads(Finding):
    """`maps` float32 [heads, H, W], scaled dot products, unbounded; `prior` is what they become."""

    maps: np.ndarray = field(repr=False)
    prior: np.ndarray = field(repr=False)

    def stem(self) -> str:
        return "heads"

    def to_dict(self) -> dict:
        return {"heads": [_range(head) for head in self.maps]}

    def payloads(self) -> Iterator[Any]:
        yield [_range(head) | {"map": encode_prior(stretched(head))} for head in self.maps]

    def pictures(self, photo: Photo) -> list[Picture]:
        heads = [
            Picture("head", {"number": i, **_range(head)}, heatmap(stretched(head)))
            for i, head in enumerate(self.maps, start=1)
        ]
        return [*heads, Picture("fused", {}, heatmap(self.prior))]

    def array(self) -> np.ndarray:
        return self.maps

    def figure(self, photo: Photo) -> Figure:
        """Each head from its least to its most, and the fused prior beside them."""
        count = len(self.maps) + 1
        figure = Figure(figsize=(3.2 * count, 3.5), layout="constrained", facecolor="white")
        axes = figure.subplots(1, count)
        for i, (ax, head) in enumerate(zip(axes[:-1], self.maps, strict=True), start=1):
            ax.imshow(head, cmap=COLOUR_MAP)
            ax.set_title(f"head {i}: {head.min():.1f} to {head.max():.1f}", fontsize=9)
        axes[-1].imshow(prior_overlay(np.asarray(photo.image), self.prior))
        axes[-1].set_title("fused: the positional prior", fontsize=9)
        for ax in axes:
            ax.set_axis_off()
        return figure


@guarded
def ask(engine: Engine, image: PhotoLike, result: Result) -> Heads:
    """The attention maps before they are fused, at the photo's size."""
    _, features, reading = reread(engine, image, result)
    if result.prior is None:
        raise NotApplicable(
            "This answer has no focus token, so there are no heads to show: "
            "ask one that finds something.",
            "heads",
        )
    embedding = reading.feed(list(result.reply_ids))[-1:]
    return Heads(engine.focus.head_maps(embedding, features), result.prior)


def _range(head: np.ndarray) -> dict:
    return {"low": float(head.min()), "high": float(head.max())}
