"""One generator: a photo and an instruction in, updates out. App, command line and evaluation all
consume it."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coprs_core.answer.results import Region, Result, max_prior
from coprs_core.answer.updates import Update, check_max_new_tokens, last_result
from coprs_core.checkpoints.downloads import Report
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import MAX_KEPT_PHOTOS, room_for_photos
from coprs_core.checkpoints.sources import Checkpoint
from coprs_core.errors import Cancelled, CoPRSError, Phrase
from coprs_core.fair_semaphore import FairSemaphore
from coprs_core.machine import out_of_memory_as_user_error, package_versions
from coprs_core.model.backends.cancellation import cancellable, current_check, install_checks
from coprs_core.model.backends.coordinates import CoordinateSegmenter
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.model.segmenter import Located, PhotoFeatures, Segmenter, Transcript
from coprs_core.photos.photo import Photo, PhotoLike, open_photo
from coprs_core.prompts import PriorKind, check_instruction, parse_reply


class Engine:
    """A loaded checkpoint that answers.

    Safe to share between threads; keeps the features of the last 8 photos, or of fewer where they
    take more than `room_for_photos`.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.segmenter: Segmenter = checkpoint.segmenter
        self._features: OrderedDict[str, PhotoFeatures] = OrderedDict()
        self._room = room_for_photos(self.segmenter.device)
        self._lock, self._reading = threading.Lock(), FairSemaphore()
        self._awaited: Counter[str] = Counter()
        if self.model is not None:
            install_checks(self.model)

    # --- what it is

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def prior_kind(self) -> PriorKind:
        """What the prior is made of: one of `PRIOR_KINDS`."""
        return self.segmenter.prior_kind

    @property
    def has_focus_token(self) -> bool:
        """Whether the model writes a focus token, so that the probes can ask about it."""
        return isinstance(self.segmenter, FocusTokenSegmenter)

    @property
    def focus(self) -> FocusTokenSegmenter:
        """The model as one that writes a focus token; raises `CoPRSError` where it is none."""
        if not isinstance(self.segmenter, FocusTokenSegmenter):
            raise CoPRSError(
                "{model} writes coordinates and this asks about a focus token: load a CoPRS "
                "checkpoint.",
                model=self.name,
            )
        return self.segmenter

    @property
    def is_local(self) -> bool:
        """Whether its language model runs here, so that it can be looked into."""
        return isinstance(self.segmenter, FocusTokenSegmenter | CoordinateSegmenter)

    @property
    def local(self) -> FocusTokenSegmenter | CoordinateSegmenter:
        """The model as one whose language model runs here; raises `CoPRSError` where it does
        not."""
        if not isinstance(self.segmenter, FocusTokenSegmenter | CoordinateSegmenter):
            raise CoPRSError(
                "{model} runs elsewhere and its attention is not seen from here: load a model "
                "that runs here.",
                model=self.name,
            )
        return self.segmenter

    @property
    def model(self) -> Any:
        """The network itself; None where the model runs elsewhere."""
        return getattr(self.segmenter, "model", None)

    @property
    def settings(self) -> dict:
        """Device, precision and quantization, by name; `is_proven` where it is False."""
        unproven = {} if self.checkpoint.is_proven else {"is_proven": False}
        return unproven | {
            "device": str(self.segmenter.device),
            "dtype": str(self.segmenter.dtype).removeprefix("torch."),
            "quantization": self.checkpoint.quantization,
        }

    @property
    def max_new_tokens(self) -> int:
        """The model's own bound of a reply, in tokens."""
        return self.segmenter.max_new_tokens

    # --- answering

    def segment(
        self, image: PhotoLike, instruction: str, max_new_tokens: int | None = None
    ) -> Result:
        """The answer as one `Result`; see `stream`."""
        return last_result(self.stream(image, instruction, max_new_tokens))

    def stream(
        self,
        image: PhotoLike,
        instruction: str,
        max_new_tokens: int | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Iterator[Update]:
        """Answer step by step.

        Args:
            image: a path, the bytes of a picture file, a PIL image, an array or a `Photo`.
            instruction: any text of 1 to 2,000 characters.
            max_new_tokens: bound of the reply; the model's own by default.
            is_wanted: asked while the photo is read and the model thinks, which ends where it says
                no.

        Yields:
            `Update`s in the order reading (two), thinking (one for each token that shows; while a
            model on another machine is waited for, one every half second), focus (where something
            is found), done. The language model runs once. Closing the generator stops the work
            within one decoding step.

        Raises:
            CoPRSError: the photo, the instruction or the bound cannot be used; before any work.
            Cancelled: the answer is no longer waited for.
        """
        photo, instruction = open_photo(image), check_instruction(instruction)
        if max_new_tokens is None:
            limit = self.max_new_tokens
        else:
            limit = check_max_new_tokens(max_new_tokens)
        with self.within_memory():
            yield from _AnswerRun(self, photo, instruction, limit, is_wanted=is_wanted).updates()

    def read_ahead(
        self, photo: Photo, is_wanted: Callable[[], bool] | None = None
    ) -> Iterator[Update]:
        """Read a photo before anything is asked about it: the two updates with which an answer
        begins, whose photo then was read before. Until it is asked about it is the first to go.

        Raises `Cancelled` where `is_wanted` says no, or another photo waits to be read.
        """

        def comes_first() -> bool:
            return (is_wanted is None or is_wanted()) and self._awaited.total() == 1

        reading = _AnswerRun(self, photo, "", 0, is_wanted=comes_first)
        with self.within_memory():
            yield from reading.read()
        with self._lock:
            if not reading.photo_reused and photo.key in self._features:
                self._features.move_to_end(photo.key, last=False)

    def answer_with_features(
        self, photo: Photo, features: PhotoFeatures, instruction: str
    ) -> Result:
        """The answer about a photo that was read in another way than `read` does."""
        answer = _AnswerRun(self, photo, instruction, self.max_new_tokens, features)
        return last_result(answer.updates())

    def within_memory(self) -> AbstractContextManager[None]:
        """For work with the model: where memory runs out, the kept features go and a `CoPRSError`
        says so."""
        smaller = Phrase(
            "ask again with a smaller photo, or start with --quantize nf4, --sam sam2.1-tiny "
            "or a smaller model"
        )
        what, device = Phrase("This answer"), self.segmenter.device
        return out_of_memory_as_user_error(what, device, smaller, self._features.clear)

    # --- what is kept of photos

    def read(self, photo: Photo, is_wanted: Callable[[], bool] | None = None) -> PhotoFeatures:
        """The features of a photo: read, or kept from before.

        One photo is read at a time: two would each take twice as long. Raises `Cancelled` where
        `is_wanted`, or what is asked around this (`cancellable`), says no, unless others wait for
        the same photo.
        """
        if features := self.cached_features(photo):
            return features
        is_wanted = is_wanted or current_check()

        def goes_on() -> bool:
            return is_wanted is None or self._awaited[photo.key] > 1 or is_wanted()

        with self._awaiting(photo), self._reading.acquired(), cancellable(goes_on):
            # perhaps somebody else asked about it meanwhile
            return self.cached_features(photo) or self.keep(photo, self.segmenter.read(photo))

    @contextmanager
    def _awaiting(self, photo: Photo) -> Generator[None, None, None]:
        with self._lock:
            self._awaited[photo.key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._awaited[photo.key] -= 1
                self._awaited += Counter()  # those that nobody waits for go

    def cached_features(self, photo: Photo) -> PhotoFeatures | None:
        """What is kept of a photo that was read before."""
        with self._lock:
            if photo.key in self._features:
                self._features.move_to_end(photo.key)
            return self._features.get(photo.key)

    def keep(self, photo: Photo, features: PhotoFeatures) -> PhotoFeatures:
        """Keep a photo's features, on the model's device; the oldest of too many go."""
        features = features.to(self.segmenter.device)
        with self._lock:
            self._features[photo.key] = features
            while len(self._features) > 1 and not self._has_room():
                self._features.popitem(last=False)
        return features

    def _has_room(self) -> bool:
        kept = self._features.values()
        return len(kept) <= MAX_KEPT_PHOTOS and sum(f.nbytes for f in kept) <= self._room


class _AnswerRun:
    """One answer on its way: read, think, locate, draw."""

    def __init__(
        self,
        engine: Engine,
        photo: Photo,
        instruction: str,
        limit: int,
        features: PhotoFeatures | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ):
        self.engine, self.segmenter, self.features = engine, engine.segmenter, features
        self.is_wanted = is_wanted
        self.photo, self.instruction, self.limit = photo, instruction, limit
        self.photo_reused = engine.cached_features(photo) is not None
        self.clock = _StageTimer()
        self.text, self.rate = "", 0.0
        self.distance: float | None = None
        self.tokens: list[int] = []

    def read(self):
        """Yields an `Update` before the photo is read and one after; returns its features."""
        yield Update("reading", seconds=self.clock.total, photo_reused=self.photo_reused)
        features = self.features or self.engine.read(self.photo, self.is_wanted)
        self.distance = self.segmenter.distance(features)
        self.clock.finish("reading")
        yield self.update("reading")
        return features

    def updates(self) -> Iterator[Update]:
        features = yield from self.read()
        transcript = yield from self.think(features)
        self.clock.finish("thinking")
        located = self.segmenter.locate(transcript, features)
        prior, regions = None, ()
        if located.places:
            prior = max_prior(p.prior for p in located.places)
            self.clock.finish("focusing")
            yield self.update("focus", prior=prior)
            regions = self.draw(located, features)
            self.clock.finish("drawing")
        result = self.result(located, regions, features.seen_size)
        yield self.update("done", prior=prior, result=result)

    def think(self, features: PhotoFeatures):
        """Yields an `Update` for all that shows, and where a model elsewhere is waited for; returns
        the `Transcript`."""
        is_finished, looks = False, None
        focused: list[Tensor] = []
        pieces: list[str] = []
        for step in self.segmenter.think(self.instruction, features, self.limit):
            if step.token is not None:
                self.tokens.append(step.token)
                pieces.append(step.text)
            looks = step.looks
            is_finished = step.ends
            if step.focus_embedding is not None:
                focused.append(step.focus_embedding)
            self.text += step.text
            if self.is_wanted is not None and not self.is_wanted():
                raise Cancelled("Nobody waits any more for this: ask again.")
            if step.text or step.is_waiting:
                self.rate = len(self.tokens) / max(self.clock.running, 1e-6)
                yield self.update("thinking", new=step.text)
        embedding = torch.cat(focused) if focused else None
        return Transcript(self.text, is_finished, self.limit, embedding, tuple(pieces), looks)

    def draw(self, located: Located, features: PhotoFeatures) -> tuple[Region, ...]:
        return tuple(
            Region(p.prior, self.segmenter.draw(p, features), p.box, p.points, p.label)
            for p in located.places
        )

    def update(self, stage: str, new: str = "", prior=None, result=None) -> Update:
        return Update(
            stage=stage,
            text=self.text,
            new=new,
            prior=prior,
            result=result,
            seconds=self.clock.total,
            stage_seconds=dict(self.clock.stages),
            rate=self.rate,
            photo_reused=self.photo_reused,
            distance=self.distance,
        )

    def result(
        self, located: Located, regions: tuple[Region, ...], seen_size: tuple[int, int]
    ) -> Result:
        how = getattr(self.segmenter, "decoding", "greedy")  # a server may have its own
        decoding = {"max_new_tokens": self.limit, "decoding": how, "seed": None}
        return Result(
            outcome=located.outcome,
            reason=located.reason,
            instruction=self.instruction,
            reasoning=parse_reply(self.text).reasoning,
            reply=self.text,
            regions=regions,
            photo_size=self.photo.size,
            seconds=self.clock.stages,
            tokens=len(self.tokens),
            photo_reused=self.photo_reused,
            model=self.engine.name,
            settings=self.engine.settings | decoding,
            versions=package_versions(),
            prior_kind=self.segmenter.prior_kind,
            reply_ids=tuple(self.tokens),
            distance=self.distance,
            seen_size=seen_size,
            full_size=self.photo.original_size,
            orientation=self.photo.orientation,
            stretched=self.photo.stretched,
        )


def load(
    name: str = "mini",
    options: LoadOptions | None = None,
    report: Report | None = None,
    **choices: str,
) -> Engine:
    """An engine for "mini", a listed name, a folder or a Hugging Face id.

    `choices` are fields of `LoadOptions`, in place of those of `options`: `load("mini",
    device="cpu")`. Raises `CoPRSError` as `load_checkpoint` does.
    """
    return Engine(load_checkpoint(name, replace(options or LoadOptions(), **choices), report))


class _StageTimer:
    """Time since the start, and the time that each stage took."""

    def __init__(self):
        self._start = self._last = time.perf_counter()
        self.stages: dict[str, float] = {}

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start

    @property
    def running(self) -> float:
        """Time since the last stage ended."""
        return time.perf_counter() - self._last

    def finish(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage], self._last = now - self._last, now
