"""Questions about an answer: where the model would have focused after each sentence, at any word, in each head, or after
another thought. Each reads the answer again through the model that gave it and changes nothing of it."""

from dataclasses import dataclass, field
from functools import wraps
from itertools import accumulate

import numpy as np
import torch
from tokenizers.decoders import DecodeStream

from coprs_core.answer.engine import Engine, PhotoFeatures
from coprs_core.errors import CoPRSError
from coprs_core.metrics import iou
from coprs_core.model.mllm import Reading, generate
from coprs_core.photos import Photo, open_photo
from coprs_core.prompts import SENTENCE_END, check_characters, check_instruction
from coprs_core.answer.results import FOCUS_TOKEN_PRIOR, FOUND, Region, Result

MOST_CLOSING_TOKENS = 24
SETTLED = 0.5
"""From the sentence on whose prior, and every later one's, has at least this IoU with the last, the focus has settled."""


@dataclass(frozen=True)
class Look:
    """Where the model looks at one point of its reply.

    Attributes:
        text: the sentence or the word that was read last.
        prior: float32 [H, W] in [0, 1]; `mask`: bool [H, W]; both at the photo's size.
        iou: of the prior (≥ 0.5) with the answer's mask.
        spread: entropy of the prior, as a share of the highest possible: 0 for one point, 1 for everywhere alike.
        trained: True where the focus token itself was read; the query head was trained for no other token.
    """

    text: str
    prior: np.ndarray = field(repr=False)
    mask: np.ndarray = field(repr=False)
    iou: float
    spread: float
    trained: bool = True


def _within_memory(probe):
    """A probe that runs out of memory says so as an answer does, and gives everything back."""

    @wraps(probe)
    def guarded(engine: Engine, *args, **options):
        with engine.within_memory():
            return probe(engine, *args, **options)

    return guarded


@_within_memory
def focus_after_each_sentence(engine: Engine, image, result: Result) -> tuple[Look, ...]:
    """Cut the thought after each sentence, close it, and let the model focus there; one `Look` a sentence.

    The model really reads the shortened thought and its focus token. The cache is kept from sentence to sentence, so that
    the whole trace costs less than one more answer. Where the answer found something the last look is the answer's own.
    """
    photo, features, reading = again(engine, image, result)
    ids, looks, read = list(result.reply_ids), [], 0
    closing = _closing(engine, ids)
    for end, sentence in _sentences(engine, result):
        if end > read:
            reading.feed(ids[read:end])
            read = end
        embedding = reading.feed(closing)[-1:]
        reading.forget(len(closing))
        looks.append(_look(engine, embedding, features, photo, result, sentence))
    if not looks:
        raise CoPRSError("This answer holds no thought, so there is nothing to trace: ask again with more tokens.")
    return tuple(looks)


def settles_at(looks: tuple[Look, ...]) -> int | None:
    """Index of the sentence after which the focus stays where it ends; None without any look."""
    settled = None
    for i in reversed(range(len(looks))):
        if iou(looks[i].prior >= 0.5, looks[-1].prior >= 0.5) < SETTLED:
            break
        settled = i
    return settled


def words(engine: Engine, result: Result) -> list[str]:
    """The reply token by token, as text; `focus_at_word` takes an index into it."""
    _check_ids(engine, result)
    decode = DecodeStream(skip_special_tokens=False)
    return [decode.step(engine.tokenizer.backend_tokenizer, i) or "" for i in result.reply_ids]


def find_word(engine: Engine, result: Result, word: str) -> int:
    """The number of a token of the reply: a number as it stands, or where a text is written for the last time."""
    if not isinstance(word, str) or len(word) > 200:
        raise CoPRSError(f"{str(word)[:40]!r} is no word of the reply: give one, or a number from words.json.")
    if word.isdecimal() and len(word) < 10:
        return int(word)
    pieces = words(engine, result)
    place = "".join(pieces).rfind(word)
    if not word or place < 0:
        raise CoPRSError(f"The reply does not hold {word!r}: give a word of it, or a number from words.json.")
    end = place + len(word)
    return next(n for n, length in enumerate(accumulate(map(len, pieces))) if length >= end)


@_within_memory
def focus_at_word(engine: Engine, image, result: Result, index: int) -> Look:
    """The query head at any token of the reply, its own hidden state taken for the focus embedding: a probe, since only
    the focus token was trained for it."""
    if not isinstance(index, int) or not 0 <= index < len(result.reply_ids):
        raise CoPRSError(
            f"The reply has {len(result.reply_ids)} tokens and number {index!r} was asked for: count from 0."
        )
    photo, features, reading = again(engine, image, result)
    embedding = reading.feed(list(result.reply_ids[: index + 1]))[-1:]
    trained = result.reply_ids[index] == engine.focus_id
    return _look(engine, embedding, features, photo, result, words(engine, result)[index], trained)


@_within_memory
def heads(engine: Engine, image, result: Result) -> np.ndarray:
    """The attention maps before they are fused, float32 [heads, H, W] at the photo's size: scaled dot products, unbounded."""
    photo, features, reading = again(engine, image, result)
    if result.outcome != FOUND:
        raise CoPRSError("This answer has no focus token, so there are no heads to show: ask one that finds something.")
    embedding = reading.feed(list(result.reply_ids))[-1:]
    with torch.no_grad():
        maps = engine.model.prior.head_maps(embedding.to(engine.model.dtype), features.image_embedding)
    return engine.at_photo_size(maps.transpose(0, 1), photo.size)


@_within_memory
def focus_again(engine: Engine, image, instruction: str, thought: str) -> Result:
    """Let the model read another thought instead of its own, end its reply, and focus. Special tokens in it are plain text.

    Where it ends its reply without a focus token of its own, the token is given to it and `reason` says so.
    """
    _needs_focus_token(engine)
    if not isinstance(thought, str) or not thought.strip():
        raise CoPRSError("The thought is empty: write at least one sentence.")
    check_characters(thought, "thought")
    photo, instruction = open_photo(image), check_instruction(instruction)
    features = engine.read(photo)
    plain = engine.tokenizer(thought.strip(), add_special_tokens=False, split_special_tokens=True).input_ids
    ids = [*_tag(engine, "<think>"), *plain, *_tag(engine, "</think>")]
    reading = Reading(engine.model.mllm, engine.prompt(instruction, features.visual), features.visual)
    reading.feed(ids)
    own = list(generate(reading, engine.focus_id, engine.stop_ids, MOST_CLOSING_TOKENS))
    written = [s.token for s in own if s.token not in engine.stop_ids]
    if own[-1].focus_embedding is not None:
        embedding, reason = own[-1].focus_embedding, "The model focused after a thought that was given to it."
    else:
        said = _text(engine, written).strip()
        reading = Reading(engine.model.mllm, engine.prompt(instruction, features.visual), features.visual)
        embedding, written = reading.feed([*ids, engine.focus_id])[-1:], [engine.focus_id]
        reason = f"After this thought the model itself says: “{said}”; the focus token was given to it."
    prior, mask = engine.look(embedding, features, photo.size)
    ids = [*ids, *written]
    return Result(
        outcome=FOUND, reason=reason, instruction=instruction, reasoning=thought.strip(), reply=_text(engine, ids),
        regions=(Region(prior, mask),), photo_size=photo.size, seconds={}, tokens=len(written), photo_reused=True,
        model=engine.name, settings=engine.settings, reply_ids=tuple(ids),
    )  # fmt: skip


def without_pixels(look: Look) -> dict:
    """A look's figures, for files."""
    return {"text": look.text, "iou": look.iou, "spread": look.spread, "trained": look.trained}


def again(engine: Engine, image, result: Result) -> tuple[Photo, PhotoFeatures, Reading]:
    """The photo's features and the prompt of an answer, read and ready for its reply."""
    _needs_focus_token(engine)
    photo = open_photo(image)
    if photo.size != result.photo_size:
        raise CoPRSError("This photo is not the one that the answer is about: give the same photo.")
    if not result.reply_ids or result.model != engine.name:
        raise CoPRSError(
            f"This answer was given by {result.model!r} and {engine.name!r} is asked about it: load that model."
        )
    _check_ids(engine, result)
    features = engine.read(photo)
    ids = engine.prompt(result.instruction, features.visual)
    return photo, features, Reading(engine.model.mllm, ids, features.visual)


def _check_ids(engine: Engine, result: Result) -> None:
    if not all(0 <= i < engine.model.mllm.get_input_embeddings().num_embeddings for i in result.reply_ids):
        raise CoPRSError(
            f"This answer holds token ids that {engine.name!r} does not have: load the model that gave it."
        )


def _needs_focus_token(engine: Engine) -> None:
    if engine.prior_kind != FOCUS_TOKEN_PRIOR:
        raise CoPRSError(
            f"{engine.name} writes coordinates and this asks about a focus token: load a CoPRS checkpoint."
        )


def _look(engine, embedding, features, photo, result: Result, text: str, trained: bool = True) -> Look:
    prior, mask = engine.look(embedding, features, photo.size)
    return Look(text, prior, mask, iou(prior >= 0.5, result.mask), spread(prior), trained)


def spread(prior: np.ndarray) -> float:
    """Entropy of a prior [H, W] as a share of that of an even one: 0 for one point, 1 for everywhere alike."""
    if prior.size < 2:
        return 0.0
    shares = prior.astype(np.float64).ravel() / max(float(prior.sum(dtype=np.float64)), 1e-12)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(prior.size))


def _thought_end(engine: Engine, ids: list[int]) -> int:
    """Index of the closing tag of a reply's thought, else of the focus or stop token that ends it, else its length."""
    tag, ends = _tag(engine, "</think>"), {engine.focus_id, *engine.stop_ids}
    return next((i for i in range(len(ids)) if ids[i] in ends or ids[i : i + len(tag)] == tag), len(ids))


def _closing(engine: Engine, ids: list[int]) -> list[int]:
    """What ends a thought and focuses: as the reply itself did, else the closing tag and the focus token."""
    if ids[-1:] == [engine.focus_id]:
        return ids[_thought_end(engine, ids) :]
    return [*_tag(engine, "</think>"), engine.focus_id]


def _tag(engine: Engine, tag: str) -> list[int]:
    return engine.tokenizer(tag, add_special_tokens=False).input_ids


def _sentences(engine: Engine, result: Result) -> list[tuple[int, str]]:
    """(number of reply tokens, text) at the end of each sentence of the thought."""
    pieces = words(engine, result)[: _thought_end(engine, list(result.reply_ids))]
    lengths, text = list(accumulate(map(len, pieces))), "".join(pieces)
    last = text.find("<think>") + len("<think>") if "<think>" in text else 0
    found = []
    for place in [*(m.end() for m in SENTENCE_END.finditer(text, last)), len(text)]:
        if sentence := text[last:place].strip():
            found.append((1 + next(n for n, length in enumerate(lengths) if length >= place), sentence))
            last = place
    return found


def _text(engine: Engine, ids: list[int]) -> str:
    return engine.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
