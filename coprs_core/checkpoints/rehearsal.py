"""A language model's first word, asked for while it is loaded: what cannot answer is refused then,
not at the first question."""

from pathlib import Path

from PIL import Image

from coprs_core.errors import CoPRSError, Phrase
from coprs_core.machine import as_user_error
from coprs_core.model.backends.language import LanguageModel

_PICTURE = Image.new("RGB", (56, 56), "gray")


def rehearse(language: LanguageModel, template: str, folder: Path) -> None:
    """Raises `CoPRSError` where tokenizer, image processor and model of a folder cannot read a
    question together, or would fail over one word of it."""
    fault = Phrase(
        "Tokenizer, image processor and model in {folder} do not work together", folder=folder
    )
    with as_user_error(fault, Phrase("take all files of a model from one source")):
        _check_tokens(language, folder)
        visual = language.see(_PICTURE)
        prefix = language.prefix(template, visual)
        reading_so_far = language.reading(template, "the umbrella", visual, prefix)
        for _ in language.write(reading_so_far, None, 2):
            pass


def _check_tokens(language: LanguageModel, folder: Path) -> None:
    tokenizer, rows = language.tokenizer, language.vocabulary
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise CoPRSError(
            "The tokenizer in {folder} writes ids up to {largest:,} and the embeddings have "
            "{rows:,} rows: tokenizer and weights are of different models.",
            folder=folder,
            largest=largest,
            rows=rows,
        )
    image_id = language.mllm.config.image_token_id
    if image_id not in tokenizer.added_tokens_decoder:
        raise CoPRSError(
            "{path} has image_token_id {image_id}, which is no special token of the "
            "tokenizer: the two are of different models.",
            path=folder / "config.json",
            image_id=image_id,
        )
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CoPRSError(
            "The tokenizer in {folder} is of an old kind: add its tokenizer.json.", folder=folder
        )
