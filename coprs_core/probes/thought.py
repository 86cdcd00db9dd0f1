"""Thought: give the model another thought to read instead of its own; it ends its reply and
focuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from coprs_core.answer.compare import compare_answers
from coprs_core.answer.results import MAX_REPLY_IDS, Region, Result
from coprs_core.errors import CoPRSError, Phrase
from coprs_core.machine import package_versions
from coprs_core.photos.photo import PhotoLike, open_photo
from coprs_core.probes.finding import ResultFinding
from coprs_core.probes.rereading import with_memory_guard
from coprs_core.prompts import (
    FOUND,
    MAX_GIVEN_THOUGHT_CHARACTERS,
    check_characters,
    check_instruction,
)

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine
    from coprs_core.model.backends.language import LanguageModel

MAX_CLOSING_TOKENS = 24
MAX_THOUGHT_TOKENS = MAX_REPLY_IDS - 192
"""What is left of the longest reply that can be kept: its tags and its end take some."""


@dataclass(frozen=True, eq=False)
class OtherThought(ResultFinding):
    """The answer after another thought, and the answer `before` it where there is one."""

    before: Result | None = None

    def stem(self) -> str:
        return "focus_again"

    def extra_fields(self) -> dict:
        return asdict(compare_answers(self.before, self.result)) if self.before else {}

    def payloads(self) -> Iterator[Any]:
        yield self.result.to_dict(with_priors=True)


def run(engine: Engine, image: PhotoLike, result: Result, thought: str) -> OtherThought:
    """Where the model focuses when it reads another thought than that of an answer."""
    return OtherThought(answer_after_thought(engine, image, result.instruction, thought), result)


@with_memory_guard
def answer_after_thought(
    engine: Engine, image: PhotoLike, instruction: str, thought: str
) -> Result:
    """Let the model read a thought instead of thinking itself, end its reply, and focus.

    Special tokens in the thought are plain text. Where the model ends its reply without a focus
    token of its own, the token is given to it and `reason` says so.
    """
    focus, language = engine.focus, engine.focus.language
    ids = _encode_thought(language, thought)
    photo, instruction = open_photo(image), check_instruction(instruction)
    features = engine.read(photo)
    session = focus.start_session(instruction, features)
    session.feed(ids)
    steps = list(language.generate(session, focus.focus_id, MAX_CLOSING_TOKENS))
    written = [s.token for s in steps if s.token is not None and not s.is_end]
    embeddings = [s.focus_embedding for s in steps if s.focus_embedding is not None]
    ending = language.decode_ids(written).strip()
    reason = f"After this thought, which was given to it, the model wrote: “{ending}”"
    if not embeddings:
        reason = (
            f"After this thought the model itself says: “{ending}”; the focus token was given to "
            "it."
        )
        session = focus.start_session(instruction, features)
        embeddings, written = [session.feed([*ids, focus.focus_id])[-1:]], [focus.focus_id]
    regions = tuple(Region(*focus.prior_and_mask(embedding, features)) for embedding in embeddings)
    ids = [*ids, *written]
    return Result(
        outcome=FOUND,
        reason=reason,
        instruction=instruction,
        reasoning=thought.strip(),
        reply=language.decode_ids(ids),
        regions=regions,
        photo_size=photo.size,
        seconds={},
        tokens=len(written),
        photo_reused=True,
        model=engine.name,
        settings=engine.settings,
        versions=package_versions(),
        reply_ids=tuple(ids),
        is_thought_given=True,
        distance=focus.ood_distance(features),
        seen_size=features.mllm_image_size,
        full_size=photo.original_size,
        orientation=photo.orientation,
        stretched=photo.stretched,
    )


def _encode_thought(language: LanguageModel, thought: str) -> list[int]:
    """The token ids of a thought that is given to the model, between its tags; raises `CoPRSError`
    where it is empty or too long to be read."""
    if not isinstance(thought, str) or not thought.strip():
        raise CoPRSError("The thought is empty: write at least one sentence.")
    if len(thought) > MAX_GIVEN_THOUGHT_CHARACTERS:
        raise CoPRSError(
            "The thought has {count:,} characters and at most {most:,} are read: shorten it.",
            count=len(thought),
            most=MAX_GIVEN_THOUGHT_CHARACTERS,
        )
    check_characters(thought, Phrase("thought"))
    ids = language.encode_text(thought.strip(), is_plain_text=True)
    if len(ids) > MAX_THOUGHT_TOKENS:  # one character may be several tokens
        raise CoPRSError(
            "The thought has {count:,} tokens and at most {most:,} are read: shorten it.",
            count=len(ids),
            most=MAX_THOUGHT_TOKENS,
        )
    return [*language.encode_text("<think>"), *ids, *language.encode_text("</think>")]
