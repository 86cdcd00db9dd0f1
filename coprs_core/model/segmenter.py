"""`Segmenter`, the protocol that every kind of model implements, and the values that it passes."""

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
    """A photo as a model has encoded it, once for all instructions.

    Attributes:
        photo_size: (height, width) of the photo in pixels.
        visual: its visual tokens; none where the language model runs on a server.
        prefix: the prefilled beginning of every prompt about it; may be empty.
        image_embedding: of SAM's image encoder: [1, C, h, w], in SAM 2 one of each level.
        data_url: the image that is sent, where the language model runs on a server.
    """

    photo_size: tuple[int, int]
    visual: VisualTokens
    prefix: Prefix = field(default_factory=Prefix)
    image_embedding: tuple[Tensor, ...] = ()
    data_url: str = field(default="", repr=False)

    @property
    def mllm_image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the image that the language model was given."""
        return self.visual.image_size

    @property
    def nbytes(self) -> int:
        """Memory that the features take."""
        tensors = (*self.image_embedding, *self.visual.tensors, *self.prefix.tensors)
        return sum(t.nbytes for t in tensors) + len(self.data_url)

    def to(self, device: torch.device | str) -> "PhotoFeatures":
        """Return a copy on another device."""
        return replace(
            self,
            visual=self.visual.to(device),
            prefix=self.prefix.to(device),
            image_embedding=tuple(t.to(device) for t in self.image_embedding),
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a reply: a token, or a piece of text from a model on a server.

    Attributes:
        token: its id; None where a model gives text alone.
        text: what it adds to the reply; empty where a token completes no character.
        is_end: whether the model ended its reply here.
        focus_embedding: [1, D], of a focus token, after it was fed back in.
        attention: of the reply's tokens so far to the image; None where it is not recorded.
        is_waiting: whether nothing has come yet: a chance to stop waiting.
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
        token_texts: what each token added to the text.
        attention: of the tokens to the image; None where it was not recorded.
    """

    text: str
    is_finished: bool
    max_new_tokens: int
    focus_embedding: Tensor | None = None
    token_texts: tuple[str, ...] = ()
    attention: AttentionTrace | None = None


@dataclass(frozen=True, eq=False)
class RegionProposal:
    """One object that a reply points at, before its mask is predicted.

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
    """What a reply amounts to: its outcome, one sentence why, and a proposal for each object
    found."""

    outcome: Outcome
    reason: str
    proposals: tuple[RegionProposal, ...] = ()


class Segmenter(Protocol):
    """A loaded model of any kind: it encodes a photo, writes a reply, locates what that points at,
    and predicts masks.

    Attributes:
        prior_kind: what its priors are made of.
        note: what its images are, where it knows only some ("picture-book scenes"); else empty.
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
        """Encode a photo; `detail` in place of the model's own, where it can be chosen."""
        ...

    def ood_distance(self, features: PhotoFeatures) -> float | None:
        """Distance of a photo from the training images: over 1 it is out of distribution; None
        where the model cannot tell."""
        ...

    def generate(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Step]:
        """Write the reply, step by step. Closing the generator stops the work within one step."""
        ...

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Localization:
        """Find where a whole reply points: outcome, reason, and a prior for each object."""
        ...

    def predict_mask(self, proposal: RegionProposal, features: PhotoFeatures) -> np.ndarray:
        """Predict the mask of one proposal, bool [H, W] at the photo's size."""
        ...
