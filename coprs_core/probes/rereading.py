"""Read an answer once more, for the probes: checks that the model in use gave it, the session after
its question, and where hidden states of its reply look."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import numpy as np

from coprs_core.answer.regions import max_prior
from coprs_core.answer.results import Result, check_photo_size
from coprs_core.errors import CoPRSError
from coprs_core.metrics import prior_mask_iou
from coprs_core.model.backends.boxes import max_objects
from coprs_core.photos.photo import Photo, PhotoLike, open_photo
from coprs_core.probes.trace import FocusView, normalized_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from coprs_core.answer.engine import Engine
    from coprs_core.model.backends.mllm import PromptSession
    from coprs_core.model.segmenter import PhotoFeatures

P = ParamSpec("P")
T = TypeVar("T")


def with_memory_guard(
    probe: Callable[Concatenate[Engine, P], T],
) -> Callable[Concatenate[Engine, P], T]:
    """Decorate a probe: where memory runs out, a `CoPRSError` says so, as it does for an answer."""

    @wraps(probe)
    def guarded(engine: Engine, *args: P.args, **kwargs: P.kwargs) -> T:
        with engine.memory_guard():
            return probe(engine, *args, **kwargs)

    return guarded


def reread_answer(
    engine: Engine, image: PhotoLike, result: Result
) -> tuple[Photo, PhotoFeatures, PromptSession]:
    """A photo, its features, and the question of an answer, read and ready for its reply.

    Raises:
        CoPRSError: the photo or the model is not the one of the answer.
    """
    focus, photo = engine.focus, open_photo(image)
    check_photo_size(result.photo_size, photo.size)
    check_reply_ids(engine, result)
    check_reply_text(engine, result)
    features = engine.read(photo)
    return photo, features, focus.start_session(result.instruction, features)


def check_model(engine: Engine, result: Result, has_given: bool = True) -> None:
    """Raises `CoPRSError` where an answer was not given by the model in use."""
    if not has_given or result.model != engine.name:
        raise CoPRSError(
            "This answer was given by {other!r} and {model!r} is in use: load that model.",
            other=result.model,
            model=engine.name,
        )


def check_reply_ids(engine: Engine, result: Result) -> None:
    """Raises `CoPRSError` where a reply is not one that this model wrote."""
    language = engine.local_segmenter.language
    check_model(engine, result, has_given=bool(result.reply_ids))
    if max(result.reply_ids) >= language.vocab_size or min(result.reply_ids) < 0:
        raise CoPRSError(
            "This answer holds token ids that {model!r} does not have: load the model that "
            "gave it.",
            model=engine.name,
        )


def check_reply_text(engine: Engine, result: Result) -> None:
    """Raises `CoPRSError` where the tokens of a reply are not its text to this model: an earlier
    version of the model wrote it, with another vocabulary."""
    language, ids = engine.local_segmenter.language, list(result.reply_ids)
    text, piece_by_piece = language.decode_ids(ids), "".join(language.token_texts(ids))
    if result.reply not in text and result.reply not in piece_by_piece:
        raise CoPRSError(
            "This answer was written by another version of {model!r}, whose tokens mean "
            "something else: ask the question again.",
            model=engine.name,
        )


def focus_view(
    engine: Engine,
    embeddings: Tensor,
    features: PhotoFeatures,
    answer_mask: np.ndarray,
    text: str,
    trained: bool = True,
) -> FocusView:
    """Where hidden states [N, D] look, one of each thing, all together as in an answer; compared
    with an answer's mask bool [H, W]."""
    per_object = embeddings.split(1)[: max_objects(features.photo_size)]
    priors, masks = zip(*(engine.focus.prior_and_mask(e, features) for e in per_object))
    prior, mask = max_prior(priors), np.any(masks, axis=0)
    return FocusView(
        text, prior, mask, prior_mask_iou(prior, answer_mask), normalized_entropy(prior), trained
    )
