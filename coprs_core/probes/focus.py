"""What the probes of a focus token share: an answer read once more, and where the model looks in
it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import numpy as np

from coprs_core.answer.results import Result, check_photo_size
from coprs_core.errors import CoPRSError
from coprs_core.metrics import prior_mask_iou
from coprs_core.model.backends.boxes import most_objects
from coprs_core.photos.photo import Photo, PhotoLike, open_photo
from coprs_core.probes.trace import FocusView, normalized_entropy

if TYPE_CHECKING:
    from torch import Tensor

    from coprs_core.answer.engine import Engine
    from coprs_core.model.backends.mllm import Reading
    from coprs_core.model.segmenter import PhotoFeatures

P = ParamSpec("P")
T = TypeVar("T")


def out_of_memory_guarded(
    ask: Callable[Concatenate[Engine, P], T],
) -> Callable[Concatenate[Engine, P], T]:
    """A probe that runs out of memory as an answer does: in one sentence."""

    @wraps(ask)
    def guarded_ask(engine: Engine, *args: P.args, **kwargs: P.kwargs) -> T:
        with engine.within_memory():
            return ask(engine, *args, **kwargs)

    return guarded_ask


def reread_answer(
    engine: Engine, image: PhotoLike, result: Result
) -> tuple[Photo, PhotoFeatures, Reading]:
    """A photo, its features, and the question of an answer, read and ready for its reply.

    Raises:
        CoPRSError: the photo or the model is not the one of the answer.
    """
    focus, photo = engine.focus, open_photo(image)
    check_photo_size(result.photo_size, photo.size)
    check_reply_ids(engine, result)
    check_reply(engine, result)
    features = engine.read(photo)
    return photo, features, focus.reading(result.instruction, features)


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
    language = engine.local.language
    check_model(engine, result, has_given=bool(result.reply_ids))
    if max(result.reply_ids) >= language.vocabulary or min(result.reply_ids) < 0:
        raise CoPRSError(
            "This answer holds token ids that {model!r} does not have: load the model that "
            "gave it.",
            model=engine.name,
        )


def check_reply(engine: Engine, result: Result) -> None:
    """Raises `CoPRSError` where the tokens of a reply are not its text to this model: an earlier
    version of the model wrote it, with another vocabulary."""
    language, ids = engine.local.language, list(result.reply_ids)
    whole, piece_by_piece = language.text_of(ids), "".join(language.pieces_of(ids))
    if result.reply not in whole and result.reply not in piece_by_piece:
        raise CoPRSError(
            "This answer was written by another version of {model!r}, whose tokens mean "
            "something else: ask the question again.",
            model=engine.name,
        )


def focus_view(
    engine: Engine,
    embeddings: Tensor,
    features: PhotoFeatures,
    answered: np.ndarray,
    text: str,
    trained: bool = True,
) -> FocusView:
    """Where hidden states [N, D] look, one of each thing, all together as in an answer; compared
    with an answer's mask bool [H, W]."""
    each = embeddings.split(1)[: most_objects(features.photo_size)]
    prior, mask = engine.focus.look(each[0], features)
    for embedding in each[1:]:
        another, drawn = engine.focus.look(embedding, features)
        np.maximum(prior, another, out=prior)
        mask |= drawn
    return FocusView(
        text, prior, mask, prior_mask_iou(prior, answered), normalized_entropy(prior), trained
    )
