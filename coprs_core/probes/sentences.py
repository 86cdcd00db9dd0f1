"""Sentence by sentence: the thought is cut after each sentence, closed, and the model focuses
there.

The model really reads the shortened thought and its focus token. What it read is kept from
sentence to sentence, so that the whole trace costs less than one more answer. A model that writes
coordinates has no focus token: there it is where the words of each sentence looked.
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
from coprs_core.probes.focus import (
    check_reply_ids,
    focus_view,
    out_of_memory_guarded,
    reread_answer,
)
from coprs_core.probes.looks import observe_reply, visible_text
from coprs_core.probes.trace import MAX_SENTENCES, Sentences, normalized_entropy
from coprs_core.prompts import SENTENCE_END, thought_end

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine
    from coprs_core.model.backends.language import LanguageModel
    from coprs_core.model.focus_token import FocusTokenSegmenter


@out_of_memory_guarded
def run(engine: Engine, image: PhotoLike, result: Result) -> Sentences:
    """Where the model would have focused after each sentence of its thought, one after the
    other; in a model that writes coordinates, where each sentence looked."""
    if not engine.has_focus_token:
        return _attended(engine, image, result)
    check_reply_ids(engine, result)
    ids, views, read = list(result.reply_ids), [], 0
    thought = _thought_of(engine, ids)
    _, features, reading = reread_answer(engine, image, result)
    closing, own = _closings(engine.focus, ids)
    for end, sentence in thought:
        if end > read:
            reading.feed(ids[read:end])
            read = end
        ending = own if end == thought[-1][0] else closing
        states = reading.fork().feed(ending)
        focused = [i for i, token in enumerate(ending) if token == engine.focus.focus_id]
        views.append(focus_view(engine, states[focused], features, result.mask, sentence))
    return Sentences(tuple(views))


def _thought_of(engine: Engine, ids: list[int]) -> list[tuple[int, str]]:
    """`sentences_of` a reply; raises `NotApplicable` where there are none, or too many."""
    sentences = sentences_of(engine.local.language, ids, engine.local.ends)
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


def _attended(engine: Engine, image: PhotoLike, result: Result) -> Sentences:
    check_reply_ids(engine, result)
    language, ids = engine.local.language, list(result.reply_ids)
    sentences, first, views = _thought_of(engine, ids), 0, []
    reply = observe_reply(engine, image, result, "sentences")
    for end, text in sentences:
        views.append(reply.view(range(first, end), text))
        first = end
    if first < len(ids) and (text := visible_text(language, ids[first:])):
        last = reply.view(range(first, len(ids)), text)
        if result.prior is not None:  # the numbers alone made it
            own = prior_mask_iou(result.prior, result.mask)
            last = replace(
                last, prior=result.prior, iou=own, spread=normalized_entropy(result.prior)
            )
        views.append(last)
    return Sentences(tuple(views))


def sentences_of(language: LanguageModel, ids: list[int], ends: set[int]) -> list[tuple[int, str]]:
    """(number of reply tokens, text) at the end of each sentence of a thought, which a closing tag
    or one of the tokens `ends` ends."""
    pieces = language.pieces_of(ids)
    last, characters = _thought_end(pieces, ids, ends)
    lengths, text = list(accumulate(map(len, pieces))), "".join(pieces)[:characters]
    start = text.find("<think>") + len("<think>") if "<think>" in text else 0
    found = []
    for end in [*(m.end() for m in SENTENCE_END.finditer(text, start)), len(text)]:
        if sentence := text[start:end].strip():
            tokens = 1 + bisect_left(lengths, end)
            found.append((min(tokens, last), sentence))
            start = end
    return found


def _thought_end(pieces: list[str], ids: list[int], ends: set[int]) -> tuple[int, int]:
    """Index of the token in which what ends a thought begins (see `thought_end`), else of the one
    in `ends`, else how many there are; and how many characters come before.

    Where the tag is no token of its own, it may begin in the one that holds the full stop.
    """
    stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    text = "".join(pieces[:stop])
    characters = thought_end(text)
    if characters == len(text):
        return stop, characters
    lengths = accumulate(map(len, pieces))
    return next(i for i, length in enumerate(lengths) if length > characters), characters


def _closings(focus: FocusTokenSegmenter, ids: list[int]) -> tuple[list[int], list[int]]:
    """What ends a thought that is cut short and focuses; and what does so after its last sentence:
    as the reply itself did, else closing tag and focus token."""
    tag = focus.language.ids_of("</think>")
    if ids[-1:] != [focus.focus_id]:
        made_up = [*tag, focus.focus_id]
        return made_up, made_up
    pieces = focus.language.pieces_of(ids)
    last, characters = _thought_end(pieces, ids, focus.ends)
    own = ids[last:]
    if len("".join(pieces[:last])) == characters:
        return own, own
    behind = characters + len("</think>")
    lengths = list(accumulate(map(len, pieces)))
    rest = next(i for i, length in enumerate(lengths) if length >= behind) + 1
    return [*tag, *ids[rest:]], own
