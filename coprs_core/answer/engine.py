"""The engine: a photo and an instruction in, a stream of updates out. App, command line and
evaluation all consume it."""

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
from coprs_core.checkpoints.downloads import ProgressCallback
from coprs_core.checkpoints.load import load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import MAX_CACHED_PHOTOS, photo_cache_budget
from coprs_core.checkpoints.sources import Checkpoint
from coprs_core.errors import Cancelled, CoPRSError, Phrase
from coprs_core.fair_semaphore import FairSemaphore
from coprs_core.machine import out_of_memory_as_user_error, package_versions
from coprs_core.model.backends.cancellation import cancellable, current_check, install_checks
from coprs_core.model.backends.coordinates import CoordinateSegmenter
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.model.segmenter import Localization, PhotoFeatures, Segmenter, Transcript
from coprs_core.photos.photo import Photo, PhotoLike, open_photo
from coprs_core.prompts import PriorKind, check_instruction, parse_reply


class Engine:
    """A loaded checkpoint that answers.

    Safe to share between threads; keeps the features of the last 8 photos, or of fewer where they
    take more than `photo_cache_budget`.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.segmenter: Segmenter = checkpoint.segmenter
        self._features: OrderedDict[str, PhotoFeatures] = OrderedDict()
        self._max_bytes = photo_cache_budget(self.segmenter.device)
        self._lock, self._read_semaphore = threading.Lock(), FairSemaphore()
        self._num_waiting: Counter[str] = Counter()
        if self.model is not None:
            install_checks(self.model)

    # --- description

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
        """Whether its language model runs here, so that the probes can read its attention."""
        return isinstance(self.segmenter, FocusTokenSegmenter | CoordinateSegmenter)

    @property
    def local_segmenter(self) -> FocusTokenSegmenter | CoordinateSegmenter:
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
        """Device, precision and quantization, by name; `is_proven`: False where the model failed
        the test of pointing."""
        unproven = {} if self.checkpoint.passed_pointing_test else {"is_proven": False}
        return unproven | {
            "device": str(self.segmenter.device),
            "dtype": str(self.segmenter.dtype).removeprefix("torch."),
            "quantization": self.checkpoint.quantization,
        }

    @property
    def max_new_tokens(self) -> int:
        """The model's own limit of a reply, in tokens."""
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
            max_new_tokens: limit of the reply; the model's own by default.
            is_wanted: called while the photo is read and between two tokens; work stops where it
                returns False.

        Yields:
            `Update`s in the order reading (two), thinking (one for each token that shows; while a
            model on another machine is waited for, one every half second), focus (where something
            is found), done. The language model runs once. Closing the generator stops the work
            within one decoding step.

        Raises:
            CoPRSError: the photo, the instruction or the limit cannot be used; before any work.
            Cancelled: the answer is no longer waited for.
        """
        photo, instruction = open_photo(image), check_instruction(instruction)
        if max_new_tokens is None:
            max_new_tokens = self.max_new_tokens
        else:
            check_max_new_tokens(max_new_tokens)
        with self.memory_guard():
            run = _AnswerRun(self, photo, instruction, max_new_tokens, is_wanted=is_wanted)
            yield from run.updates()

    def prefetch(
        self, photo: Photo, is_wanted: Callable[[], bool] | None = None
    ) -> Iterator[Update]:
        """Read a photo before anything is asked about it; yields the two "reading" updates.

        Until a question comes, its features are the first to leave the cache. Raises `Cancelled`
        where `is_wanted` returns False, or another photo waits to be read.
        """

        def should_continue() -> bool:
            # a photo that somebody asks about goes before one that nobody has asked about yet
            return (is_wanted is None or is_wanted()) and self._num_waiting.total() == 1

        run = _AnswerRun(self, photo, "", 0, is_wanted=should_continue)
        with self.memory_guard():
            yield from run.read()
        with self._lock:
            if not run.photo_reused and photo.key in self._features:
                self._features.move_to_end(photo.key, last=False)

    def answer_with_features(
        self, photo: Photo, features: PhotoFeatures, instruction: str
    ) -> Result:
        """Answer about a photo whose features were not made by `read`, such as a crop's."""
        run = _AnswerRun(self, photo, instruction, self.max_new_tokens, features)
        return last_result(run.updates())

    def memory_guard(self) -> AbstractContextManager[None]:
        """A context for work with the model: where memory runs out, the cached features are dropped
        and a `CoPRSError` says so."""
        remedy = Phrase(
            "ask again with a smaller photo, or start with --quantize nf4, --sam sam2.1-tiny "
            "or a smaller model"
        )
        subject, device = Phrase("This answer"), self.segmenter.device
        return out_of_memory_as_user_error(subject, device, remedy, self._features.clear)

    # --- cache of photo features

    def read(self, photo: Photo, is_wanted: Callable[[], bool] | None = None) -> PhotoFeatures:
        """The features of a photo, from the cache or read now.

        One photo is read at a time: two would each take twice as long. Raises `Cancelled` where
        `is_wanted`, or the check of an enclosing `cancellable`, returns False, unless others wait
        for the same photo.
        """
        if features := self.cached_features(photo):
            return features
        is_wanted = is_wanted or current_check()

        def check() -> bool:
            return is_wanted is None or self._num_waiting[photo.key] > 1 or is_wanted()

        with self._count_waiting(photo), self._read_semaphore.acquire(), cancellable(check):
            # another thread may have read it while this one waited for its turn
            cached = self.cached_features(photo)
            return cached or self.cache_features(photo, self.segmenter.encode_photo(photo))

    @contextmanager
    def _count_waiting(self, photo: Photo) -> Generator[None, None, None]:
        with self._lock:
            self._num_waiting[photo.key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_waiting[photo.key] -= 1
                self._num_waiting += Counter()  # drops zero counts, so that it cannot grow

    def cached_features(self, photo: Photo) -> PhotoFeatures | None:
        """The cached features of a photo; None where there are none."""
        with self._lock:
            if photo.key in self._features:
                self._features.move_to_end(photo.key)
            return self._features.get(photo.key)

    def cache_features(self, photo: Photo, features: PhotoFeatures) -> PhotoFeatures:
        """Cache a photo's features, on the model's device; the least recently used leave."""
        features = features.to(self.segmenter.device)
        with self._lock:
            self._features[photo.key] = features
            # the newest always stays: an answer about it is about to begin
            while len(self._features) > 1 and not self._fits_cache():
                self._features.popitem(last=False)
        return features

    def _fits_cache(self) -> bool:
        cached = self._features.values()
        return len(cached) <= MAX_CACHED_PHOTOS and sum(f.nbytes for f in cached) <= self._max_bytes


class _AnswerRun:
    """One answer under way: read, think, locate, draw."""

    def __init__(
        self,
        engine: Engine,
        photo: Photo,
        instruction: str,
        max_new_tokens: int,
        features: PhotoFeatures | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ):
        self.engine, self.segmenter, self.features = engine, engine.segmenter, features
        self.is_wanted = is_wanted
        self.photo, self.instruction, self.max_new_tokens = photo, instruction, max_new_tokens
        self.photo_reused = engine.cached_features(photo) is not None
        self.timer = _StageTimer()
        self.text, self.rate = "", 0.0
        self.distance: float | None = None
        self.tokens: list[int] = []

    def read(self):
        """Yields an `Update` before the photo is read and one after; returns its features."""
        yield Update("reading", seconds=self.timer.total, photo_reused=self.photo_reused)
        features = self.features or self.engine.read(self.photo, self.is_wanted)
        self.distance = self.segmenter.ood_distance(features)
        self.timer.finish("reading")
        yield self.make_update("reading")
        return features

    def updates(self) -> Iterator[Update]:
        features = yield from self.read()
        transcript = yield from self.think(features)
        self.timer.finish("thinking")
        located = self.segmenter.locate(transcript, features)
        prior, regions = None, ()
        if located.proposals:
            prior = max_prior(p.prior for p in located.proposals)
            self.timer.finish("focusing")
            yield self.make_update("focus", prior=prior)
            regions = self.draw(located, features)
            self.timer.finish("drawing")
        result = self._make_result(located, regions, features.mllm_image_size)
        yield self.make_update("done", prior=prior, result=result)

    def think(self, features: PhotoFeatures):
        """Yields an `Update` for each piece of text, and while a remote model is waited for;
        returns the `Transcript`."""
        is_finished, attention = False, None
        embeddings: list[Tensor] = []
        pieces: list[str] = []
        for step in self.segmenter.generate(self.instruction, features, self.max_new_tokens):
            if step.token is not None:
                self.tokens.append(step.token)
                pieces.append(step.text)
            attention = step.attention
            is_finished = step.is_end
            if step.focus_embedding is not None:
                embeddings.append(step.focus_embedding)
            self.text += step.text
            if self.is_wanted is not None and not self.is_wanted():
                raise Cancelled("Nobody waits any more for this: ask again.")
            if step.text or step.is_waiting:
                self.rate = len(self.tokens) / max(self.timer.current_stage, 1e-6)
                yield self.make_update("thinking", new=step.text)
        embedding = torch.cat(embeddings) if embeddings else None
        return Transcript(
            self.text, is_finished, self.max_new_tokens, embedding, tuple(pieces), attention
        )

    def draw(self, located: Localization, features: PhotoFeatures) -> tuple[Region, ...]:
        return tuple(
            Region(p.prior, self.segmenter.predict_mask(p, features), p.box, p.points, p.label)
            for p in located.proposals
        )

    def make_update(self, stage: str, new: str = "", prior=None, result=None) -> Update:
        return Update(
            stage=stage,
            text=self.text,
            new=new,
            prior=prior,
            result=result,
            seconds=self.timer.total,
            stage_seconds=dict(self.timer.stages),
            rate=self.rate,
            photo_reused=self.photo_reused,
            distance=self.distance,
        )

    def _make_result(
        self, located: Localization, regions: tuple[Region, ...], seen_size: tuple[int, int]
    ) -> Result:
        method = getattr(self.segmenter, "decoding", "greedy")  # a server may have its own
        decoding = {"max_new_tokens": self.max_new_tokens, "decoding": method, "seed": None}
        return Result(
            outcome=located.outcome,
            reason=located.reason,
            instruction=self.instruction,
            reasoning=parse_reply(self.text).reasoning,
            reply=self.text,
            regions=regions,
            photo_size=self.photo.size,
            seconds=self.timer.stages,
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
    report: ProgressCallback | None = None,
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
    def current_stage(self) -> float:
        """Time since the last stage ended."""
        return time.perf_counter() - self._last

    def finish(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage], self._last = now - self._last, now
