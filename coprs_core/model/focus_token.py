"""CoPRS itself as a `Segmenter`: a prior from each focus token, and a mask from each prior."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coprs_core.geometry import to_mllm_frame, to_photo_frame, to_sam_frame, unpadded_size
from coprs_core.model.backends.boxes import max_objects
from coprs_core.model.backends.language import LanguageModel
from coprs_core.model.backends.mllm import PromptSession
from coprs_core.model.backends.ood import OodStatistics, image_statistics
from coprs_core.model.coprs import CoPRS
from coprs_core.model.segmenter import Localization, PhotoFeatures, RegionProposal, Step, Transcript
from coprs_core.photos.photo import Photo
from coprs_core.prompts import (
    FOCUS_TOKEN_PRIOR,
    FOUND,
    NOTHING_FOUND,
    UNFINISHED,
    Detail,
    PriorKind,
    parse_reply,
)


class FocusTokenSegmenter:
    """A CoPRS checkpoint in use; implements `Segmenter`."""

    prior_kind: PriorKind = FOCUS_TOKEN_PRIOR

    def __init__(
        self,
        model: CoPRS,
        tokenizer: Any,
        image_processor: Any,
        ood_statistics: OodStatistics | None = None,
    ):
        self.model, self.ood_statistics = model, ood_statistics
        self.language = LanguageModel(model.mllm, tokenizer, image_processor)
        self.note = model.config.note
        self.max_new_tokens = model.config.max_new_tokens
        self.focus_id: int = tokenizer.convert_tokens_to_ids(model.config.focus_token)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    # --- Segmenter

    @torch.no_grad()
    def encode_photo(self, photo: Photo, detail: Detail | None = None) -> PhotoFeatures:
        config = self.model.config
        image_embedding = self.embed(photo)
        visual = self.language.encode_image(to_mllm_frame(photo.image, config.mllm_pixels))
        prefix = self.language.prefill_prefix(config.prompt_template, visual)
        return PhotoFeatures(photo.size, visual, prefix, (image_embedding,))

    def ood_distance(self, features: PhotoFeatures) -> float | None:
        if self.ood_statistics is None:
            return None
        side = self.model.config.vision.side
        statistics = image_statistics(features.image_embedding[0], features.photo_size, side)
        return self.ood_statistics.distance(statistics)

    def generate(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Step]:
        session = self.start_session(instruction, features)
        return self.language.generate(session, self.focus_id, max_new_tokens)

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Localization:
        if transcript.focus_embedding is None:
            return _localize_without_focus_token(transcript)
        proposals = []
        embeddings = transcript.focus_embedding.split(1)
        for embedding in embeddings[: max_objects(features.photo_size)]:
            prior_logits = self.compute_prior_logits(embedding, features)
            proposals.append(
                RegionProposal(self.compute_prior(prior_logits, features.photo_size), prior_logits)
            )
        number = "its focus token" if len(embeddings) == 1 else f"{len(embeddings)} focus tokens"
        return Localization(FOUND, f"The model wrote {number}.", tuple(proposals))

    def predict_mask(self, proposal: RegionProposal, features: PhotoFeatures) -> np.ndarray:
        if proposal.prior_logits is None:
            raise ValueError("this proposal does not come from a focus token")
        return self.decode_mask(proposal.prior_logits, features)

    def embed(self, photo: Photo) -> Tensor:
        """The image embedding of a photo, [1, C, h, w]."""
        pixels = to_sam_frame(photo.image, self.model.config.vision.side)
        weight = next(self.model.image_encoder.parameters())  # in training not of the heads' dtype
        return self.model.image_encoder(pixels.to(weight.device, weight.dtype)).to(self.dtype)

    @torch.no_grad()
    def photo_statistics(self, photo: Photo) -> Tensor:
        """The channel statistics of a photo (see `ood.image_statistics`), without the language
        model's part of `encode_photo`."""
        return image_statistics(self.embed(photo), photo.size, self.model.config.vision.side)

    # --- for the probes

    @property
    def thought_stop_ids(self) -> set[int]:
        """The tokens that end a thought at the latest."""
        return {self.focus_id, *self.language.stop_ids}

    def encode_prompt(self, instruction: str, features: PhotoFeatures) -> list[int]:
        """Token ids of the prompt for an instruction about a photo."""
        template = self.model.config.prompt_template
        return self.language.encode_prompt(template, instruction, features.visual)

    def start_session(self, instruction: str, features: PhotoFeatures) -> PromptSession:
        """Feed the prompt for an instruction about a photo, ready for a reply."""
        template = self.model.config.prompt_template
        return self.language.start_session(template, instruction, features.visual, features.prefix)

    def prior_and_mask(
        self, embedding: Tensor, features: PhotoFeatures
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute prior and mask with any hidden state in place of the focus embedding.

        Only the focus token's own state was trained for this.

        Args:
            embedding: [1, D].

        Returns:
            prior float32 [H, W] in [0, 1], and the mask that the decoder makes of it, bool [H, W].
        """
        prior_logits = self.compute_prior_logits(embedding, features)
        return self.compute_prior(prior_logits, features.photo_size), self.decode_mask(
            prior_logits, features
        )

    @torch.no_grad()
    def compute_prior_logits(self, embedding: Tensor, features: PhotoFeatures) -> Tensor:
        """Prior logits [1, 1, p, p] of an embedding [1, D]."""
        size = torch.tensor([unpadded_size(features.photo_size, self.model.config.vision.side)])
        return self.model.compute_prior_logits(
            embedding.to(self.dtype), features.image_embedding[0], size
        )

    def compute_prior(self, prior_logits: Tensor, photo_size: tuple[int, int]) -> np.ndarray:
        """Prior logits [1, 1, p, p] → the prior float32 [H, W] in [0, 1] at the photo's size."""
        side = self.model.config.vision.side
        return to_photo_frame(prior_logits, photo_size, side)[0, 0].sigmoid().cpu().numpy()

    @torch.no_grad()
    def decode_mask(self, prior_logits: Tensor, features: PhotoFeatures) -> np.ndarray:
        """Prior logits [1, 1, p, p] → the mask that the decoder predicts, bool [H, W]."""
        mask_logits = self.model.decoder(prior_logits, features.image_embedding[0])
        return self.resize_to_photo(mask_logits, features.photo_size)[0] > 0

    @torch.no_grad()
    def head_maps(self, embedding: Tensor, features: PhotoFeatures) -> np.ndarray:
        """The attention maps before they are fused, float32 [heads, H, W], unbounded."""
        maps = self.model.prior.head_maps(embedding.to(self.dtype), features.image_embedding[0])
        return self.resize_to_photo(maps.transpose(0, 1), features.photo_size)

    def resize_to_photo(self, logits: Tensor, photo_size: tuple[int, int]) -> np.ndarray:
        """Logits [N, 1, h, w] of SAM's square → float32 [N, H, W] of the photo."""
        side = self.model.config.vision.side
        return to_photo_frame(logits, photo_size, side)[:, 0].cpu().numpy()


def _localize_without_focus_token(transcript: Transcript) -> Localization:
    """The outcome of a reply without a focus token, which never has a mask."""
    reply = parse_reply(transcript.text)
    if not transcript.is_finished:
        limit = f"{transcript.max_new_tokens:,} tokens"
        return Localization(
            UNFINISHED, f"The model used up its {limit} before it wrote a focus token."
        )
    if reply.is_thought_closed and reply.answer:
        return Localization(
            NOTHING_FOUND, f"The model wrote no focus token and says: “{reply.answer}”"
        )
    return Localization(
        UNFINISHED,
        "The model ended its reply without a focus token and without saying that nothing fits.",
    )
