"""The one model in use: loaded behind the page, all work goes through it, switched while the app
runs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import LocalContext

from app.options import ServerOptions
from app.server.answers import AnswerStore
from coprs_core.checkpoints.options import LoadOptions, is_remote_name
from coprs_core.checkpoints.plan import answer_cache_budget
from coprs_core.errors import Cancelled, CoPRSError, Phrase
from coprs_core.fair_semaphore import FairSemaphore
from coprs_core.machine import release_memory, trim_memory
from coprs_core.photos.photo import Photo

if TYPE_CHECKING:
    from coprs_core.answer.engine import Engine, Update
    from coprs_core.checkpoints.catalogue import ModelRow
    from coprs_core.checkpoints.plan import LoadPlan
    from coprs_core.model.segmenter import PhotoFeatures

Work = Callable[..., Generator[Any, None, None]]
TRIM_INTERVAL = 10.0
"""Memory is given back at most so often: it takes some 30 ms."""
MAX_PIXELS_AT_ONCE = 12_000_000
"""Photos are worked on together up to so many pixels; a larger one is worked on alone."""
Worker = Callable[[Work], Work]
"""Wraps the generator function through which all work goes."""


@dataclass(frozen=True, eq=False)
class CarriedFeatures:
    """What a worker in another process keeps of the photo."""

    features: PhotoFeatures


@contextmanager
def _gpu_loss_as_user_error() -> Generator[None, None, None]:
    """Where a borrowed GPU goes in the middle of the work, `spaces` raises this error of
    Gradio's."""
    try:
        yield
    except gr.Error as problem:
        if "aborted" not in str(problem.message).lower():
            raise
        raise CoPRSError(
            "The borrowed GPU was taken away before this was finished: ask again, or ask for "
            "something shorter."
        ) from problem


def wanted_check(is_wanted: Callable[[], bool] | None = None) -> Callable[[], bool]:
    """Asks whether what is done in this thread is still wanted: as long as `is_wanted` says so, and
    whoever asked for it through Gradio's queue reads the answer."""
    page, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    asked = page._queue.event_ids_to_events.get(event_id) if page and event_id else None

    def is_awaited() -> bool:
        if page and asked:
            awaited = page._queue.pending_event_ids_session.get(asked.session_hash, ())
            if not asked.alive or event_id not in awaited:
                return False
        return is_wanted is None or is_wanted()

    return is_awaited


class ModelServer:
    """Holds the engine in use, and the options with which others are loaded.

    Args:
        model: an engine, or a name that is loaded in a thread of its own from now on.
        options: how models are loaded.
        worker: where it runs the work in another process, on a Space with a borrowed GPU, arguments
            and what is yielded go through pickle, and the features of photos are carried in and
            out.
        at_once: how many pieces of work are done at once, whatever door they came through.
        start_loading: whether loading begins here; else with `start`.
    """

    def __init__(
        self,
        model: Engine | str,
        options: LoadOptions | None = None,
        worker: Worker | None = None,
        at_once: int = ServerOptions.at_once,
        start_loading: bool = True,
    ):
        self._options = options or LoadOptions()
        self._lock = threading.Lock()
        self.semaphore = FairSemaphore(at_once, MAX_PIXELS_AT_ONCE)
        self.answer_store = AnswerStore(answer_cache_budget())
        self._last_trim = time.monotonic()
        self._has_worker, self._is_started = worker is not None, False
        self._work = worker(self._work_in_process) if worker else self._work_in_process
        self._name = model if isinstance(model, str) else model.name
        self._loading: Future[Engine] = Future()
        if not isinstance(model, str):
            self._loading.set_result(model)
        elif worker:  # a borrowed GPU needs the model loaded before the first request
            self._load_first(model)
        elif start_loading:
            self.start()

    def start(self) -> None:
        """Load the model in a thread of its own: together with its libraries, which take longer
        than the page."""
        if not self._is_started and not self._loading.done():
            self._is_started = True
            work = threading.Thread(target=self._load_first, args=(self._name,), daemon=True)
            work.start()

    def _load(
        self, name: str, report: Callable[[str], None] | None = None, on_cpu: bool = False
    ) -> Engine:
        from coprs_core.answer.engine import Engine
        from coprs_core.checkpoints.load import load_checkpoint

        options = LoadOptions(device="cpu") if on_cpu else self._options
        return Engine(load_checkpoint(name, options, report))

    def _load_first(self, name: str) -> None:
        try:
            self._loading.set_result(self._load(name))
        except BaseException as problem:  # for whoever waits
            self._loading.set_exception(problem)
        else:
            self._calibrate_in_background()

    def _calibrate_in_background(self) -> None:
        """On a GPU, find out which heads of the model in use tell a place, between the visitors'
        questions; where that fails each answer goes on choosing for itself."""
        engine = self.engine
        is_fast = engine.segmenter.device.type == "cuda" and not self._has_worker
        if not is_fast or engine.has_focus_token or not engine.is_local:
            return
        if engine.local_segmenter.language.localization_heads:
            return

        from coprs_core.calibrate import calibrate

        def work() -> None:
            steps = calibrate(engine)
            with suppress(CoPRSError, OSError):  # a cache that cannot be written
                while self.engine is engine:
                    with self.semaphore.acquire():
                        if next(steps, None) is None:
                            break

        threading.Thread(target=work, daemon=True).start()

    @property
    def name(self) -> str:
        """The name under which the model in use is, or is being, loaded."""
        return self._name

    @property
    def is_gpu_borrowed(self) -> bool:
        """Whether the work runs on a borrowed GPU, whose seconds are counted for each visitor."""
        return self._has_worker

    @property
    def is_ready(self) -> bool:
        """Whether loading has ended, well or not."""
        return self._loading.done()

    @property
    def engine(self) -> Engine:
        """The engine in use, waited for; raises the `CoPRSError` that loading it ended in."""
        return self._loading.result()

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._loading = Future()
        self._loading.set_result(engine)

    def wait_until_loaded(self) -> None:
        """Block until the first model is loaded; raises as `engine` does."""
        self._loading.result()

    # --- work

    @contextmanager
    def reserved(
        self, pixels: int, key: str = "", is_wanted: Callable[[], bool] | None = None
    ) -> Generator[None, None, None]:
        """Waits in line; inside there is room for work on so many pixels, of the photo `key`.

        Raises `Cancelled` where the work is no longer wanted while it waits.
        """
        with self.semaphore.acquire(pixels, key, is_wanted):
            try:
                yield
            finally:
                if pixels > MAX_PIXELS_AT_ONCE:
                    trim_memory()  # before the next large one comes in

    def run(
        self,
        work: Callable[..., Any],
        photo: Photo,
        *args: Any,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Generator[Any, None, None]:
        """Everything that `work(engine, photo, *args)` yields, or the one thing it returns.

        Closing the generator ends the work. Raises `CoPRSError` as `work` does, and `Cancelled`
        where it is no longer wanted, or nobody waits for it any more, before there is room for it.
        """
        is_wanted = wanted_check(is_wanted)
        features = self.engine.cached_features(photo) if self._has_worker else None
        carried = features and features.to("cpu")
        inside = closing(self._work(work, photo, carried, args))
        place = self.reserved(photo.pixels, photo.key, is_wanted)
        with place, _gpu_loss_as_user_error(), inside as working:
            for message in working:
                if isinstance(message, CarriedFeatures):
                    self.engine.cache_features(photo, message.features)
                elif isinstance(message, CoPRSError):
                    raise message
                else:
                    yield message
        self._trim()

    def _trim(self) -> None:
        if time.monotonic() - self._last_trim > TRIM_INTERVAL:
            self._last_trim = time.monotonic()
            trim_memory()

    def stream(
        self, photo: Photo, instruction: str, is_wanted: Callable[[], bool] | None = None
    ) -> Iterator[Update]:
        """The updates of an answer; the bound of its tokens is passed on, so that a worker knows
        how long it may take."""
        from coprs_core.answer.engine import Engine
        from coprs_core.answer.updates import Update

        # another process cannot ask, and is on a GPU, where reading is short
        asked = () if self._has_worker else (wanted_check(is_wanted),)
        args = instruction, self.engine.max_new_tokens, *asked
        if not self.semaphore.has_room_for(photo.pixels):
            yield Update("reading")  # it waits, and may be stopped
        yield from self.run(Engine.stream, photo, *args, is_wanted=is_wanted)

    def read_ahead(self, photo: Photo, is_wanted: Callable[[], bool]) -> Iterator[Update]:
        """Read a photo before anything is asked about it: the updates with which an answer would
        begin."""
        from coprs_core.answer.engine import Engine

        def comes_first() -> bool:
            waiting = self.semaphore.waiting_keys
            return is_wanted() and (not waiting or photo.key in waiting)

        return self.run(Engine.prefetch, photo, comes_first)

    @property
    def is_idle(self) -> bool:
        """Whether no work is under way, and the model's seconds are not counted."""
        return not self.is_gpu_borrowed and not self.semaphore.total_size

    def call(
        self,
        work: Callable[..., Any],
        photo: Photo,
        *args: Any,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Any:
        """The one thing that `work(engine, photo, *args)` returns; otherwise as `run`.

        It ends between two layers of the model where it is no longer wanted.
        """
        from coprs_core.model.backends.cancellation import cancellable

        def watched(*given: Any) -> Any:
            with cancellable(awaited):
                return work(*given)

        awaited = wanted_check(is_wanted)
        here = work if self._has_worker else watched  # another process cannot ask
        # to its end: what is kept of the photo comes after the answer
        return list(self.run(here, photo, *args, is_wanted=is_wanted))[0]

    def _work_in_process(
        self, work: Callable[..., Any], photo: Photo, features: PhotoFeatures | None, args: tuple
    ) -> Generator[Any, None, None]:
        engine = self.engine
        if features and not engine.cached_features(photo):
            engine.cache_features(photo, features)
        try:
            answer: Any = work(engine, photo, *args)
            if isinstance(answer, Generator):
                yield from answer
            else:
                yield answer
        except Cancelled:
            raise  # in this process alone is there somebody to ask
        except CoPRSError as problem:
            # given, not raised: exceptions do not leave another process; without what holds memory
            yield copy(problem)
        if self._has_worker and not features and (kept := engine.cached_features(photo)):
            yield CarriedFeatures(kept.to("cpu"))

    # --- models

    def model_rows(self) -> list[ModelRow]:
        """The table of models for this machine as it is now."""
        from coprs_core.checkpoints.catalogue import list_models

        return list_models(self._options)

    def plan_for_photos(self) -> LoadPlan:
        """How the best listed model for photos that fits this machine as it is now would be loaded;
        raises `CoPRSError` where none does."""
        from coprs_core.checkpoints.catalogue import choose_model
        from coprs_core.checkpoints.plan import inspect_machine

        return choose_model(inspect_machine(self._options.device), self._options)

    def switch_model(self, name: str) -> Iterator[str]:
        """Load another model in place of the one in use; yields what is going on, one line at a
        time.

        The old one makes room first. Where the new one cannot be loaded the old one comes back.
        What was begun is ended though its page be closed.

        Raises:
            CoPRSError: why the new one cannot be loaded. A model on another machine is chosen when
                the app is started, and by nobody who sees the page.
        """
        if is_remote_name(name):
            raise CoPRSError(
                "A model on another machine can only be named when the app is started (--model): "
                "choose one that runs here."
            )
        from coprs_core.checkpoints.load import check_model_name

        check_model_name(name)  # before the one in use makes room
        self.wait_until_loaded()
        self._lock.acquire()  # the thread releases it
        if name in (self._name, self.engine.name):
            self._lock.release()
            return
        lines: queue.Queue[str | Exception | None] = queue.Queue()
        threading.Thread(target=self._switch, args=(name, lines), daemon=True).start()
        yield Phrase("Loading {name}", name=name)
        while isinstance(line := lines.get(), str):
            yield line
        if line is not None:
            raise line

    def _switch(self, name: str, lines: queue.Queue[str | Exception | None]) -> None:
        """The work of `switch_model`, which ends what it began whoever still looks on; tells its
        progress, at last None or the problem."""
        old = self._name
        try:
            # so that the app stays able to answer
            self.engine, self._name = self._load("mini", on_cpu=True), "mini"
            release_memory()
            try:
                self.engine, self._name = self._load(name, lines.put), name
            except BaseException:
                self.engine, self._name = self._load(old), old
                raise
            self._calibrate_in_background()
        except Exception as problem:  # carried over to the thread that waits
            lines.put(problem)
        else:
            lines.put(None)
        finally:
            self._lock.release()
