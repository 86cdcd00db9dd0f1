"""Heads: the attention maps from which the prior is made.

With a focus token they are those of the query head, before they are fused. In a model that writes
coordinates they are of the language model's heads that tell a place, while it wrote the numbers.
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
from coprs_core.probes.focus import out_of_memory_guarded, reread_answer
from coprs_core.probes.looks import observe_reply, pointing_words

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
        return {"heads": [_range(head, name) for head, name in self._named()]}

    def summary(self) -> str:
        shown = (_shown(head, name) for head, name in self._named())
        return "; ".join("{name}: {low} to {high}".format(**head) for head in shown)

    def payloads(self) -> Iterator[Any]:
        yield [
            _range(head, name) | {"map": encode_prior(normalize_map(head))}
            for head, name in self._named()
        ]

    def pictures(self, photo: Photo) -> list[Picture]:
        heads = [
            Picture("head", _shown(head, name), heatmap(normalize_map(head)))
            for head, name in self._named()
        ]
        return [*heads, Picture("fused", {}, heatmap(self.prior))]

    def array(self) -> np.ndarray:
        return self.maps

    def _named(self) -> Iterator[tuple[np.ndarray, str]]:
        return zip(self.maps, self.names, strict=True)

    def figure(self, photo: Photo) -> Figure:
        """Each head from its least to its most, and the fused prior beside them."""
        count = len(self.maps) + 1
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2 * count, 3.5), layout="constrained", facecolor="white")
        axes = figure.subplots(1, count)
        for ax, (head, name) in zip(axes[:-1], self._named(), strict=True):
            ax.imshow(head, cmap=COLOUR_MAP)
            ax.set_title("head {name}: {low} to {high}".format(**_shown(head, name)), fontsize=9)
        axes[-1].imshow(prior_overlay(np.asarray(photo.image), self.prior))
        axes[-1].set_title("fused: the positional prior", fontsize=9)
        for ax in axes:
            ax.set_axis_off()
        return figure


@out_of_memory_guarded
def run(engine: Engine, image: PhotoLike, result: Result) -> HeadMaps:
    """The attention maps before they are fused, at the photo's size."""
    if result.prior is None:
        raise NotApplicable(
            "This answer looks nowhere, so there are no heads to show: ask one that finds "
            "something.",
            "heads",
        )
    if not engine.has_focus_token:
        return _attended(engine, image, result, result.prior)
    if len(result.regions) > 1:
        raise NotApplicable(
            "This answer found several things, each with heads of its own: ask for one of them "
            "to see its heads.",
            "heads",
        )
    _, features, reading = reread_answer(engine, image, result)
    embedding = reading.feed(list(result.reply_ids))[-1:]
    maps = engine.focus.head_maps(embedding, features)
    return HeadMaps(maps, result.prior, tuple(str(i) for i in range(1, len(maps) + 1)))


def _attended(engine: Engine, image: PhotoLike, result: Result, prior: np.ndarray) -> HeadMaps:
    """The heads that tell a place, over the tokens that wrote the numbers."""
    from coprs_core.model.backends.attention import at_size

    reply = observe_reply(engine, image, result, "heads")
    words = pointing_words(engine, result)
    maps = [at_size(reply.looks.map(words, [head]), reply.photo.size) for head in reply.heads]
    layers = engine.local.language.mllm.config.get_text_config().num_hidden_layers
    a_layer = reply.looks.heads_in_all // layers
    names = tuple(f"{h % a_layer + 1} of layer {h // a_layer + 1}" for h in reply.heads)
    return HeadMaps(np.stack(maps), prior, names)


def _range(head: np.ndarray, name: str) -> dict:
    return {"name": name, "low": float(head.min()), "high": float(head.max())}


def _shown(head: np.ndarray, name: str) -> dict:
    """Name, least and most, as they are read."""
    digits = 1 if np.abs(head).max() >= 1 else 4
    return {"name": name, "low": f"{head.min():.{digits}f}", "high": f"{head.max():.{digits}f}"}
