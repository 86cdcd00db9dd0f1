"""What the engine needs of a model, whatever its kind: the one protocol behind which kinds
differ."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from coprs_core.model.backends.attention import AttentionTrace
from coprs_core.model.backends.mllm import Prefix, VisualTokens
from coprs_core.photos.photo import Photo
from coprs_core.prompts import Detail, Outcome, PriorKind


@dataclass(frozen=True, eq=False)
class PhotoFeatures:
    """What any kind of model keeps of a photo, so that it is read once.

    Attributes:
        photo_size: (height, width) of the photo in pixels.
        visual: what the language model sees of it; no tokens where it runs elsewhere.
        prefix: what every question about it begins with, read; empty where nothing was.
        image_embedding: of SAM's image encoder: [1, C, h, w], in SAM 2 one of each level.
        data_url: the picture that is sent, where the language model runs elsewhere.
    """

    photo_size: tuple[int, int]
    visual: VisualTokens
    prefix: Prefix = field(default_factory=Prefix)
    image_embedding: tuple[Tensor, ...] = ()
    data_url: str = field(default="", repr=False)

    @property
    def mllm_image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the picture that the language model was given."""
        return self.visual.image_size

    @property
    def nbytes(self) -> int:
        """The memory that the features take."""
        tensors = (*self.image_embedding, *self.visual.tensors, *self.prefix.tensors)
        return sum(t.nbytes for t in tensors) + len(self.data_url)

    def to(self, device: torch.device | str) -> "PhotoFeatures":
        """The same on another device."""
        return replace(
            self,
            visual=self.visual.to(device),
            prefix=self.prefix.to(device),
            image_embedding=tuple(t.to(device) for t in self.image_embedding),
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a reply: a token, or a piece of text from a model that runs elsewhere.

    Attributes:
        token: its id; None where a model gives text alone.
        text: what it adds to the reply; empty where a token completes no character.
        ends: whether the model ended its reply here.
        focus_embedding: [1, D], with a focus token, when that has been fed back in.
        looks: what the tokens of this reply attend to, so far; None where it is not observed.
        is_waiting: whether nothing has come: whoever asked may stop here.
    """

    token: int | None = None
    text: str = ""
    is_end: bool = False
    focus_embedding: Tensor | None = None
    attention: AttentionTrace | None = None
    is_waiting: bool = False


@dataclass(frozen=True, eq=False)
class Transcript:
    """A whole reply, as `Segmenter.locate` takes it.

    Attributes:
        text: everything that the model wrote.
        is_finished: False where it ran out of tokens.
        max_new_tokens: the bound that it was given.
        focus_embedding: [n, D], of the n focus tokens that it wrote; None without any.
        pieces: what each token added to the text.
        looks: what the tokens attend to; None where it was not observed.
    """

    text: str
    is_finished: bool
    max_new_tokens: int
    focus_embedding: Tensor | None = None
    token_texts: tuple[str, ...] = ()
    attention: AttentionTrace | None = None


@dataclass(frozen=True, eq=False)
class RegionProposal:
    """One thing that a reply points at, before its mask is drawn.

    Attributes:
        prior: float32 [H, W] in [0, 1] at the photo's size.
        prior_logits: [1, 1, p, p], where the prior comes from a focus token.
        box: XYXY in pixels of the photo, where the model wrote one; `points`: XY; `label`: its
            word.
    """

    prior: np.ndarray = field(repr=False)
    prior_logits: Tensor | None = field(default=None, repr=False)
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    label: str = ""


@dataclass(frozen=True, eq=False)
class Localization:
    """What a reply amounts to: its outcome, one sentence why, and the places where it is
    "found"."""

    outcome: Outcome
    reason: str
    proposals: tuple[RegionProposal, ...] = ()


class Segmenter(Protocol):
    """A loaded model of any kind: it reads a photo, thinks, says where to look, and draws masks.

    Attributes:
        prior_kind: what its priors are made of.
        note: what its pictures are, where it knows only some ("picture-book scenes"); else empty.
        max_new_tokens: its own bound of a reply, in tokens.
        device, dtype: where it runs and how precisely.
    """

    @property
    def prior_kind(self) -> PriorKind: ...
    @property
    def note(self) -> str: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def encode_photo(self, photo: Photo, detail: Detail | None = None) -> PhotoFeatures:
        """Everything that is worth keeping of a photo; `detail` in place of the model's own, where
        it can be chosen."""
        ...

    def ood_distance(self, features: PhotoFeatures) -> float | None:
        """How unlike the pictures that the model knows a photo is: over 1 it is unfamiliar; None
        where the model cannot tell."""
        ...

    def generate(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Step]:
        """The reply, step by step. Closing the generator stops the work within one step."""
        ...

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Localization:
        """Where a whole reply points: outcome, reason, and a prior for each thing."""
        ...

    def predict_mask(self, place: RegionProposal, features: PhotoFeatures) -> np.ndarray:
        """The mask of one place, bool [H, W] at the photo's size."""
        ...
