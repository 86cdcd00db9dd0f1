"""Sentences: cut the thought after each sentence, close it, and let the model focus there.

The model really reads the shortened thought and its focus token. Its keys and values are reused
from sentence to sentence, so that the whole trace costs less than one more answer. A model that
writes coordinates has no focus token: there it is where the words of each sentence looked.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from coprs_core.answer.results import Result
from coprs_core.metrics import prior_mask_iou
from coprs_core.photos.photo import PhotoLike
from coprs_core.probes.finding import NotApplicable
from coprs_core.probes.reply_attention import compute_reply_attention, visible_text
from coprs_core.probes.rereading import (
    check_reply_ids,
    focus_view,
    reread_answer,
    with_memory_guard,
)
from coprs_core.probes.trace import MAX_SENTENCES, SentenceTrace, normalized_entropy
from coprs_core.prompts import SENTENCE_END, find_thought_end

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine
    from coprs_core.model.backends.language import LanguageModel
    from coprs_core.model.focus_token import FocusTokenSegmenter


@with_memory_guard
def run(engine: Engine, image: PhotoLike, result: Result) -> SentenceTrace:
    """Where the model would have focused after each sentence of its thought, one after the
    other; in a model that writes coordinates, where each sentence looked."""
    if not engine.has_focus_token:
        return _run_attention(engine, image, result)
    check_reply_ids(engine, result)
    ids, views, num_read = list(result.reply_ids), [], 0
    thought = _split_thought(engine, ids)
    _, features, session = reread_answer(engine, image, result)
    closing, last_closing = _closing_ids(engine.focus, ids)
    for end, sentence in thought:
        if end > num_read:
            session.feed(ids[num_read:end])
            num_read = end
        ending = last_closing if end == thought[-1][0] else closing
        # a fork: the sentence after this one goes on from the thought, not from its closing
        states = session.fork().feed(ending)
        focus_at = [i for i, token in enumerate(ending) if token == engine.focus.focus_id]
        views.append(focus_view(engine, states[focus_at], features, result.mask, sentence))
    return SentenceTrace(tuple(views))


def _split_thought(engine: Engine, ids: list[int]) -> list[tuple[int, str]]:
    """Split the thought of a reply into sentences, as `sentence_token_ends` does; raises
    `NotApplicable` where there are none, or too many."""
    sentences = sentence_token_ends(
        engine.local_segmenter.language, ids, engine.local_segmenter.thought_stop_ids
    )
    if len(sentences) > MAX_SENTENCES:
        raise NotApplicable(
            "This thought has {count} sentences and at most {most} are traced: ask for a "
            "shorter one.",
            "sentences",
            count=len(sentences),
            most=MAX_SENTENCES,
        )
    if not sentences:
        raise NotApplicable(
            "This answer holds no thought to trace: ask again with more tokens.", "sentences"
        )
    return sentences


def _run_attention(engine: Engine, image: PhotoLike, result: Result) -> SentenceTrace:
    check_reply_ids(engine, result)
    language, ids = engine.local_segmenter.language, list(result.reply_ids)
    sentences, first, views = _split_thought(engine, ids), 0, []
    reply = compute_reply_attention(engine, image, result, "sentences")
    for end, text in sentences:
        views.append(reply.focus_view(range(first, end), text))
        first = end
    if first < len(ids) and (text := visible_text(language, ids[first:])):
        last = reply.focus_view(range(first, len(ids)), text)
        if result.prior is not None:  # made by the tokens of the numbers alone, not by all these
            answer_iou = prior_mask_iou(result.prior, result.mask)
            last = replace(
                last, prior=result.prior, iou=answer_iou, spread=normalized_entropy(result.prior)
            )
        views.append(last)
    return SentenceTrace(tuple(views))


def sentence_token_ends(
    language: LanguageModel, ids: list[int], ends: set[int]
) -> list[tuple[int, str]]:
    """(number of reply tokens, text) at the end of each sentence of a thought, which a closing tag
    or one of the tokens `ends` ends."""
    pieces = language.token_texts(ids)
    last, characters = _find_thought_end(pieces, ids, ends)
    lengths, text = list(accumulate(map(len, pieces))), "".join(pieces)[:characters]
    start = text.find("<think>") + len("<think>") if "<think>" in text else 0
    sentences = []
    for end in [*(m.end() for m in SENTENCE_END.finditer(text, start)), len(text)]:
        if sentence := text[start:end].strip():
            tokens = 1 + bisect_left(lengths, end)
            sentences.append((min(tokens, last), sentence))
            start = end
    return sentences


def _find_thought_end(pieces: list[str], ids: list[int], ends: set[int]) -> tuple[int, int]:
    """Index of the token in which what ends a thought begins (see `find_thought_end`), else of the
    one in `ends`, else how many there are; and how many characters come before.

    Where the tag is no token of its own, it may begin in the one that holds the full stop.
    """
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = "".join(pieces[:stop])
    characters = find_thought_end(text)
    if characters == len(text):
        return stop, characters
    lengths = accumulate(map(len, pieces))
    return next(i for i, length in enumerate(lengths) if length > characters), characters


def _closing_ids(focus: FocusTokenSegmenter, ids: list[int]) -> tuple[list[int], list[int]]:
    """What ends a thought that is cut short and focuses; and what does so after its last sentence:
    as the reply itself did, else closing tag and focus token."""
    tag = focus.language.encode_text("</think>")
    if ids[-1:] != [focus.focus_id]:
        usual = [*tag, focus.focus_id]
        return usual, usual
    pieces = focus.language.token_texts(ids)
    last, characters = _find_thought_end(pieces, ids, focus.thought_stop_ids)
    own = ids[last:]
    if len("".join(pieces[:last])) == characters:
        return own, own
    behind = characters + len("</think>")
    lengths = list(accumulate(map(len, pieces)))
    rest = next(i for i, length in enumerate(lengths) if length >= behind) + 1
    return [*tag, *ids[rest:]], own
