"""A Hugging Face model together with its tokenizer and image processor: words and photos in, words
out."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from PIL import Image
from tokenizers.decoders import DecodeStream

from coprs_core.model.backends.attention import Looks, observe
from coprs_core.model.backends.decoding import Batch
from coprs_core.model.backends.mllm import (
    Mllm,
    Prefix,
    Reading,
    VisualTokens,
    read_prefix,
    read_prompt,
    see,
)
from coprs_core.model.segmenter import Step
from coprs_core.prompts import encode_prompt, shared_prefix


class LanguageModel:
    """`mllm`, its `tokenizer` and its `image_processor`, all of Hugging Face.

    `heads` are those that tell a place, where they are known (see `Looks`). `batch` are the replies
    that it writes now.
    """

    def __init__(self, mllm: Mllm, tokenizer: Any, image_processor: Any):
        self.mllm, self.tokenizer, self.image_processor = mllm, tokenizer, image_processor
        self.heads: tuple[int, ...] = ()
        self.batch = Batch(mllm)
        observe(mllm)

    def see(self, picture: Image.Image, most: int | None = None) -> VisualTokens:
        """The visual tokens, at most so many, of an RGB picture that is already in the MLLM
        frame."""
        return see(self.mllm, self.image_processor, picture, most)

    def prompt(self, template: str, instruction: str, visual: VisualTokens) -> list[int]:
        """Token ids of a template with a photo and an instruction in it."""
        return encode_prompt(self.tokenizer, template, instruction, self._image_ids(visual))

    def prefix(self, template: str, visual: VisualTokens) -> Prefix:
        """What all questions about a photo begin with, read."""
        beginning = shared_prefix(self.tokenizer, template)
        ids = encode_prompt(self.tokenizer, beginning, "", self._image_ids(visual))
        return read_prefix(self.mllm, ids, visual)

    def reading(
        self, template: str, instruction: str, visual: VisualTokens, prefix: Prefix
    ) -> Reading:
        """The prompt, read and ready for a reply."""
        return read_prompt(self.mllm, self.prompt(template, instruction, visual), visual, prefix)

    def _image_ids(self, visual: VisualTokens) -> list[int]:
        return [self.mllm.config.image_token_id] * len(visual.features)

    def looks(self, visual: VisualTokens) -> Looks:
        """For what a reply's words attend to in a picture; nothing yet."""
        return Looks(visual.cells(self.mllm), self.heads)

    def write(
        self,
        reading: Reading,
        focus_id: int | None,
        max_new_tokens: int,
        looks: Looks | None = None,
    ) -> Iterator[Step]:
        """Greedy decoding, with the text that each token adds; see `Batch.write`.

        Where `looks` are given, what each token attends to is added to them.
        """
        decode = DecodeStream(skip_special_tokens=False)
        for step in self.batch.write(reading, focus_id, self.stop_ids, max_new_tokens, looks):
            ends = step.token in self.stop_ids
            text = "" if ends else decode.step(self.tokenizer.backend_tokenizer, step.token) or ""
            yield replace(step, text=text, ends=ends, looks=looks)

    @property
    def stop_ids(self) -> set[int]:
        """The tokens that end a reply."""
        ids = self.mllm.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}

    @property
    def vocabulary(self) -> int:
        """How many token ids the model has."""
        return self.mllm.get_input_embeddings().num_embeddings

    def ids_of(self, text: str, plain: bool = False) -> list[int]:
        """Token ids of a text; where it is `plain`, special tokens in it are read letter by
        letter."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=plain).input_ids

    def text_of(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def pieces_of(self, ids: list[int] | tuple[int, ...]) -> list[str]:
        """The text of each token; the texts joined are the whole."""
        decode = DecodeStream(skip_special_tokens=False)
        return [decode.step(self.tokenizer.backend_tokenizer, i) or "" for i in ids]
