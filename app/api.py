"""The API: what the page's buttons do, for programs; typed, documented, without a session."""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app.server.answers import MAX_PIXELS, StoredAnswer, open_visitor_photo
from app.server.model import ModelServer
from app.server.uploads import checked_path
from app.visitors import save_answer_zip, user_errors_as_gr_error
from coprs_core.answer.compare import compare_answers, compare_with_truth, read_truth
from coprs_core.answer.results import Result
from coprs_core.errors import CoPRSError
from coprs_core.export.archive import count_pixels, open_answer
from coprs_core.probes import PROBES, load_probe, words
from coprs_core.probes.thought import answer_after_thought

_user_errors_as_gr_error = partial(user_errors_as_gr_error, "en", on_page=False)


def add_endpoints(server: ModelServer, may_switch: bool) -> None:
    """Make every endpoint of the app that is being built."""
    api = Api(server)
    endpoints: dict[str, Callable] = {"segment": api.segment}
    endpoints |= {name: _probe_endpoint(server, name) for name in PROBES}
    for name in ("word", "focus_again", "compare", "truth", "download", "open", "models"):
        endpoints[name] = getattr(api, name)
    if may_switch:
        endpoints["use_model"] = api.use_model
    for name, endpoint in endpoints.items():
        gr.api(endpoint, api_name=name, concurrency_id="model")


def _probe_endpoint(server: ModelServer, name: str) -> Callable:
    """The endpoint of a probe, with its description; what takes steps streams them."""

    def ask(photo: gr.FileData, result: dict) -> Iterator[Any]:
        with _user_errors_as_gr_error():
            answer = _stored_answer(photo, result)
            finding = server.call(load_probe(name).run, answer.photo, answer.result)
            yield from finding.payloads()

    ask.__doc__ = (inspect.getdoc(load_probe(name).run) or "").partition("\n\n")[0]
    return ask


class Api:
    """One endpoint a method. `result` is what `segment` gave last under "result"."""

    def __init__(self, server: ModelServer):
        self.server = server

    def segment(self, photo: gr.FileData, instruction: str) -> Iterator[dict]:
        """Answer step by step: stage, text so far, what is new, seconds; the last one has the whole
        result, priors as PNG."""
        with _user_errors_as_gr_error():
            for update in self.server.stream(
                open_visitor_photo(_uploaded_path(photo)), instruction
            ):
                values: dict[str, Any] = {
                    "stage": update.stage,
                    "text": update.text,
                    "new": update.new,
                    "seconds": round(update.seconds, 4),
                }
                if update.result:
                    values["result"] = update.result.to_dict(with_priors=True)
                yield values

    def word(self, photo: gr.FileData, result: dict, word: str) -> dict:
        """Where a word's own hidden state looks (a probe): a word of the reply, or the number of
        one of its tokens."""
        with _user_errors_as_gr_error():
            answer = _stored_answer(photo, result)
            finding = self.server.call(words.focus_of_word, answer.photo, answer.result, word)
            return next(finding.payloads())

    def focus_again(self, photo: gr.FileData, instruction: str, thought: str) -> dict:
        """The result that the model comes to when it reads this thought instead of thinking
        itself."""
        with _user_errors_as_gr_error():
            opened = open_visitor_photo(_uploaded_path(photo))
            other = self.server.call(answer_after_thought, opened, instruction, thought)
            return other.to_dict(with_priors=True)

    def compare(self, first: dict, second: dict) -> dict:
        """IoU of two results' masks and priors."""
        with _user_errors_as_gr_error():
            return asdict(compare_answers(Result.from_dict(first), Result.from_dict(second)))

    def truth(self, result: dict, truth: gr.FileData) -> dict:
        """A result against a true mask (PNG of the photo's size, or COCO RLE as .json): IoU over
        the threshold, the best one."""
        with _user_errors_as_gr_error():
            answer = Result.from_dict(result)
            true_mask = read_truth(
                _uploaded_path(truth), answer.photo_size, answer.orientation or 1
            )
            return compare_with_truth(answer, true_mask).to_dict()

    def download(self, photo: gr.FileData, result: dict) -> Iterator[gr.FileData]:
        """The answer's files as one zip, its trace included."""
        with _user_errors_as_gr_error(), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            answer = _stored_answer(photo, result)
            yield gr.FileData(path=str(save_answer_zip(Path(folder), self.server, answer)))

    def open(self, archive: gr.FileData) -> dict:
        """The result in a zip that `download` or the command line wrote; needs no model."""
        with _user_errors_as_gr_error():
            path = _uploaded_path(archive)
            with self.server.reserved(count_pixels(path)):
                return open_answer(path, MAX_PIXELS).result.to_dict(with_priors=True)

    def models(self) -> list[dict]:
        """What can be loaded by name, and whether it fits this machine."""
        return [asdict(row) for row in self.server.model_rows()]

    def use_model(self, name: str) -> Iterator[str]:
        """Load another model for everybody who uses this app; yields what is going on."""
        with _user_errors_as_gr_error():
            yield from map(
                str, self.server.switch_model(name.strip() if isinstance(name, str) else name)
            )
            yield f"{self.server.engine.name} is in use."


def _stored_answer(photo: Any, result: Any) -> StoredAnswer:
    """A photo and the answer about it; the photo bounds what is decoded of the answer."""
    opened = open_visitor_photo(_uploaded_path(photo))
    return StoredAnswer(opened, Result.from_dict(result, photo_size=opened.size))


def _uploaded_path(upload: Any) -> str:
    """The path of an uploaded file; raises `CoPRSError` where it is none."""
    if not isinstance(upload, dict):
        raise CoPRSError("This is not an uploaded file: pass handle_file(path) of gradio_client.")
    return checked_path(upload.get("path"))
