"""A Hugging Face model together with its tokenizer and image processor: words and photos in, words
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

    `heads` are those that tell a place, where they are known (see `AttentionTrace`). `batch` are the replies
    that it writes now.
    """

    def __init__(self, mllm: Mllm, tokenizer: Any, image_processor: Any):
        self.mllm, self.tokenizer, self.image_processor = mllm, tokenizer, image_processor
        self.localization_heads: tuple[int, ...] = ()
        self.batch = ContinuousBatch(mllm)
        install_recorder(mllm)

    def encode_image(self, image: Image.Image, max_tokens: int | None = None) -> VisualTokens:
        """The visual tokens, at most so many, of an RGB picture that is already in the MLLM
        frame."""
        return encode_image(self.mllm, self.image_processor, image, max_tokens)

    def encode_prompt(self, template: str, instruction: str, visual: VisualTokens) -> list[int]:
        """Token ids of a template with a photo and an instruction in it."""
        return encode_prompt(self.tokenizer, template, instruction, self._image_ids(visual))

    def prefill_prefix(self, template: str, visual: VisualTokens) -> Prefix:
        """What all questions about a photo begin with, read."""
        prefix = shared_prefix(self.tokenizer, template)
        ids = encode_prompt(self.tokenizer, prefix, "", self._image_ids(visual))
        return prefill_prefix(self.mllm, ids, visual)

    def start_session(
        self, template: str, instruction: str, visual: VisualTokens, prefix: Prefix
    ) -> PromptSession:
        """The prompt, read and ready for a reply."""
        return prefill_prompt(
            self.mllm, self.encode_prompt(template, instruction, visual), visual, prefix
        )

    def _image_ids(self, visual: VisualTokens) -> list[int]:
        return [self.mllm.config.image_token_id] * len(visual.features)

    def new_attention_trace(self, visual: VisualTokens) -> AttentionTrace:
        """For what a reply's words attend to in a picture; nothing yet."""
        return AttentionTrace(visual.grid_size(self.mllm), self.localization_heads)

    def generate(
        self,
        session: PromptSession,
        focus_id: int | None,
        max_new_tokens: int,
        trace: AttentionTrace | None = None,
    ) -> Iterator[Step]:
        """Greedy decoding, with the text that each token adds; see `ContinuousBatch.write`.

        Where `trace` are given, what each token attends to is added to them.
        """
        decode = DecodeStream(skip_special_tokens=False)
        for step in self.batch.generate(session, focus_id, self.stop_ids, max_new_tokens, trace):
            ends = step.token in self.stop_ids
            text = "" if ends else decode.step(self.tokenizer.backend_tokenizer, step.token) or ""
            yield replace(step, text=text, ends=ends, looks=trace)

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
        """Token ids of a text; where it is `is_plain_text`, special tokens in it are read letter by
        letter."""
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
