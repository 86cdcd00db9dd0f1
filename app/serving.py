"""The one model in use: loaded behind the page, asked through one door, exchanged while the app runs."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from inspect import isgenerator

from coprs_core.checkpoints.catalogue import Row, rows
from coprs_core.checkpoints.load import give_memory_back
from coprs_core.checkpoints.downloads import SAM_FILES
from coprs_core.answer.engine import Engine, PhotoFeatures, Update, load
from coprs_core.errors import CoPRSError
from coprs_core.machine import choose_device
from coprs_core.photos import Photo


@dataclass(frozen=True)
class Failure:
    """A mistake said on the other side of a border, where exceptions do not cross."""

    sentence: str


class Shelf:
    """Holds the engine in use, and the options with which others are loaded (see `engine.load`).

    `model` is an engine, or a name that is loaded in a thread of its own from now on. `border` wraps the generator
    function through which all work goes; where the work then runs in another process, on a Space with a borrowed GPU,
    arguments and what is yielded go through pickle, and the features of photos are carried in and out.
    """

    def __init__(
        self, model: Engine | str, device: str = "auto", dtype: str = "auto", quantization: str = "none",
        sam: str = "vit_h", border: Callable[[Callable], Callable] | None = None,
    ):  # fmt: skip
        self._options = (device, dtype, quantization, sam)
        self._lock = threading.Lock()
        self._has_border = border is not None
        self._work = border(self._inside) if border else self._inside
        self._loading: Future[Engine] = Future()
        if isinstance(model, Engine):
            self._loading.set_result(model)
        elif border:  # a borrowed GPU wants its models there before anything is asked
            self._load(model)
        else:
            threading.Thread(target=self._load, args=(model,), daemon=True).start()

    def _load(self, name: str) -> None:
        try:
            self._loading.set_result(load(name, *self._options))
        except BaseException as problem:  # for whoever waits
            self._loading.set_exception(problem)

    @property
    def is_ready(self) -> bool:
        return self._loading.done()

    @property
    def engine(self) -> Engine:
        """The engine in use, waited for; raises the `CoPRSError` that loading it ended in."""
        return self._loading.result()

    def wait(self) -> None:
        """Until there is a model; raises as `engine` does."""
        self._loading.result()

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._loading = Future()
        self._loading.set_result(engine)

    def run(self, work: Callable, photo: Photo, *args) -> Iterator:
        """Everything that `work(engine, photo, *args)` yields, or the one thing it returns. Closing it ends the work.

        Raises:
            CoPRSError: as `work` does.
        """
        features = self.engine.kept(photo) if self._has_border else None
        with closing(self._work(work, photo, features and features.to("cpu"), args)) as working:
            for said in working:
                if isinstance(said, PhotoFeatures):
                    self.engine.keep(photo, said)
                elif isinstance(said, Failure):
                    raise CoPRSError(said.sentence)
                else:
                    yield said

    def stream(self, photo: Photo, instruction: str) -> Iterator[Update]:
        """The updates of an answer; the bound of its tokens is said, so that a border knows how long it may take."""
        return self.run(Engine.stream, photo, instruction, self.engine.max_new_tokens)

    def ask(self, work: Callable, photo: Photo, *args):
        """The one thing that `work(engine, photo, *args)` returns; otherwise as `run`."""
        [answer] = self.run(work, photo, *args)
        return answer

    def _inside(self, work: Callable, photo: Photo, features: PhotoFeatures | None, args: tuple) -> Iterator:
        engine = self.engine
        if features and not engine.kept(photo):
            engine.keep(photo, features)
        try:
            said = work(engine, photo, *args)
            if isgenerator(said):
                yield from said
            else:
                yield said
        except CoPRSError as problem:
            yield Failure(str(problem))
        if self._has_border and not features and (features := engine.kept(photo)):
            yield features.to("cpu")

    def rows(self) -> list[Row]:
        """The table of models for this machine as it is now."""
        device, _, quantization, sam = self._options
        return rows(choose_device(device), quantization, sam if sam in SAM_FILES else "vit_h")

    def exchange(self, name: str) -> Iterator[str]:
        """Load another model in place of the one in use; yields what is going on, one line at a time.

        The old one makes room first. Where the new one cannot be loaded the old one comes back.

        Raises:
            CoPRSError: why the new one cannot be loaded.
        """
        with self._lock:
            old = self.engine.name
            if name == old:
                return
            self.engine = load("mini", device="cpu")  # so that the app stays able to answer
            give_memory_back(None)
            try:
                self.engine = yield from self._loaded(name)
            except BaseException:  # closing the page counts too
                self.engine = load(old, *self._options)
                raise

    def _loaded(self, name: str) -> Iterator[str]:
        lines: queue.Queue = queue.Queue()

        def work() -> None:
            try:
                lines.put(load(name, *self._options, report=lines.put))
            except Exception as problem:  # carried over to the thread that asked
                lines.put(problem)

        yield f"Loading {name}"
        threading.Thread(target=work, daemon=True).start()
        while isinstance(line := lines.get(), str):
            yield line
        if isinstance(line, Exception):
            raise line
        return line
