"""A Hugging Face model together with its tokenizer and image processor: text and images in, text
out."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from PIL import Image
from tokenizers.decoders import DecodeStream

from coprs_core.model.backends.attention import AttentionTrace, install_recorder
from coprs_core.model.backends.decoding import ContinuousBatch
from coprs_core.model.backends.mllm import (
    Mllm,
    Prefix,
    PromptSession,
    VisualTokens,
    encode_image,
    prefill_prefix,
    prefill_prompt,
)
from coprs_core.model.segmenter import Step
from coprs_core.prompts import encode_prompt, shared_prefix


class LanguageModel:
    """`mllm`, its `tokenizer` and its `image_processor`, all of Hugging Face.

    `localization_heads` are the attention heads that show where a token looks, where they were
    calibrated (see `AttentionTrace`); `batch` holds the replies that are being written.
    """

    def __init__(self, mllm: Mllm, tokenizer: Any, image_processor: Any):
        self.mllm, self.tokenizer, self.image_processor = mllm, tokenizer, image_processor
        self.localization_heads: tuple[int, ...] = ()
        self.batch = ContinuousBatch(mllm)
        install_recorder(mllm)

    def encode_image(self, image: Image.Image, max_tokens: int | None = None) -> VisualTokens:
        """Encode an RGB image that is already in the MLLM frame into at most `max_tokens` visual
        tokens."""
        return encode_image(self.mllm, self.image_processor, image, max_tokens)

    def encode_prompt(self, template: str, instruction: str, visual: VisualTokens) -> list[int]:
        """Token ids of a template with an image and an instruction in it."""
        return encode_prompt(self.tokenizer, template, instruction, self._image_ids(visual))

    def prefill_prefix(self, template: str, visual: VisualTokens) -> Prefix:
        """Feed the beginning that all instructions about a photo share."""
        beginning = shared_prefix(self.tokenizer, template)
        ids = encode_prompt(self.tokenizer, beginning, "", self._image_ids(visual))
        return prefill_prefix(self.mllm, ids, visual)

    def start_session(
        self, template: str, instruction: str, visual: VisualTokens, prefix: Prefix
    ) -> PromptSession:
        """Feed the prompt, ready for a reply."""
        ids = self.encode_prompt(template, instruction, visual)
        return prefill_prompt(self.mllm, ids, visual, prefix)

    def _image_ids(self, visual: VisualTokens) -> list[int]:
        return [self.mllm.config.image_token_id] * len(visual.features)

    def new_attention_trace(self, visual: VisualTokens) -> AttentionTrace:
        """An empty trace for a reply about an image."""
        return AttentionTrace(visual.grid_size(self.mllm), self.localization_heads)

    def generate(
        self,
        session: PromptSession,
        focus_id: int | None,
        max_new_tokens: int,
        trace: AttentionTrace | None = None,
    ) -> Iterator[Step]:
        """Decode greedily, with the text that each token adds; see `ContinuousBatch.generate`.

        What each token attends to is added to `trace`, where one is given.
        """
        decode = DecodeStream(skip_special_tokens=False)  # holds back half a character
        for step in self.batch.generate(session, focus_id, self.stop_ids, max_new_tokens, trace):
            is_end = step.token in self.stop_ids
            text = "" if is_end else decode.step(self.tokenizer.backend_tokenizer, step.token) or ""
            yield replace(step, text=text, is_end=is_end, attention=trace)

    @property
    def stop_ids(self) -> set[int]:
        """The tokens that end a reply."""
        ids = self.mllm.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}

    @property
    def vocab_size(self) -> int:
        """How many token ids the model has."""
        return self.mllm.get_input_embeddings().num_embeddings

    def encode_text(self, text: str, is_plain_text: bool = False) -> list[int]:
        """Token ids of a text; special tokens in an `is_plain_text` are split into characters."""
        return self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=is_plain_text
        ).input_ids

    def decode_ids(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def token_texts(self, ids: list[int] | tuple[int, ...]) -> list[str]:
        """The text of each token; the texts joined are the whole."""
        decode = DecodeStream(skip_special_tokens=False)
        return [decode.step(self.tokenizer.backend_tokenizer, i) or "" for i in ids]
