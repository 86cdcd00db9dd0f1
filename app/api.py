"""What the page's buttons do, for programs: typed, documented, without a session."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import gradio as gr

from app.handlers import Answered, Page, in_a_sentence
from coprs_core import probes
from coprs_core.archive import open_answer
from coprs_core.answer.compare import against_answer, against_truth, read_truth
from coprs_core.errors import CoPRSError
from coprs_core.photos import open_photo
from coprs_core.answer.pictures import stretched
from coprs_core.answer.results import Result, encode_prior, encode_rle
from app.serving import Shelf
from coprs_core.zoom import zoom_in


class Endpoints:
    """One endpoint a method. `result` is what `segment` gave last under "result"."""

    def __init__(self, shelf: Shelf):
        self.shelf = shelf

    def segment(self, photo: gr.FileData, instruction: str) -> Iterator[dict]:
        """Answer step by step: stage, text so far, what is new, seconds; the last one has the whole result, priors as PNG."""
        with in_a_sentence("en"):
            for update in self.shelf.stream(open_photo(_uploaded(photo)), instruction):
                told = {
                    "stage": update.stage,
                    "text": update.text,
                    "new": update.new,
                    "seconds": round(update.seconds, 4),
                }
                yield told | ({"result": update.result.to_dict(with_priors=True)} if update.result else {})

    def sentences(self, photo: gr.FileData, result: dict) -> Iterator[dict]:
        """Where the model would have focused after each sentence of its thought: one look each, `settled` on one of them."""
        with in_a_sentence("en"):
            looks = self.shelf.ask(
                probes.focus_after_each_sentence, open_photo(_uploaded(photo)), Result.from_dict(result)
            )
            settled = probes.settles_at(looks)
            for i, look in enumerate(looks):
                yield _told(look) | {"settled": i == settled}

    def word(self, photo: gr.FileData, result: dict, word: str) -> dict:
        """Where a word's own hidden state looks (a probe): a word of the reply, or the number of one of its tokens."""
        with in_a_sentence("en"):
            answer = Result.from_dict(result)
            number = probes.find_word(self.shelf.engine, answer, word)
            look = self.shelf.ask(probes.focus_at_word, open_photo(_uploaded(photo)), answer, number)
            return _told(look) | {"number": number}

    def heads(self, photo: gr.FileData, result: dict) -> list[dict]:
        """The attention maps before they are fused, each as a PNG from its least (0) to its most (1), with both values."""
        with in_a_sentence("en"):
            maps = self.shelf.ask(probes.heads, open_photo(_uploaded(photo)), Result.from_dict(result))
        return [{"low": float(m.min()), "high": float(m.max()), "map": encode_prior(stretched(m))} for m in maps]

    def focus_again(self, photo: gr.FileData, instruction: str, thought: str) -> dict:
        """The result that the model comes to when it reads this thought instead of thinking itself."""
        with in_a_sentence("en"):
            opened = open_photo(_uploaded(photo))
            return self.shelf.ask(probes.focus_again, opened, instruction, thought).to_dict(with_priors=True)

    def compare(self, first: dict, second: dict) -> dict:
        """IoU of two results' masks and priors."""
        with in_a_sentence("en"):
            return asdict(against_answer(Result.from_dict(first), Result.from_dict(second)))

    def truth(self, result: dict, truth: gr.FileData) -> dict:
        """A result against a true mask (PNG of the photo's size, or COCO RLE as .json): IoU over the threshold, the best one."""
        with in_a_sentence("en"):
            answer = Result.from_dict(result)
            return against_truth(answer, read_truth(_uploaded(truth), answer.photo_size)).to_dict()

    def zoom(self, photo: gr.FileData, result: dict) -> dict:
        """The result with prior and mask read again around the prior's mass, and the crop (top, left, side in pixels)."""
        with in_a_sentence("en"):
            zoomed, crop = self.shelf.ask(zoom_in, open_photo(_uploaded(photo)), Result.from_dict(result))
            return {"result": zoomed.to_dict(with_priors=True), "crop": asdict(crop)}

    def download(self, photo: gr.FileData, result: dict) -> Iterator[gr.FileData]:
        """The answer's files as one zip, its trace included."""
        with in_a_sentence("en"), tempfile.TemporaryDirectory(prefix="coprs-") as folder:
            answered = Answered(open_photo(_uploaded(photo)), Result.from_dict(result))
            yield gr.FileData(path=str(Page(self.shelf).zipped(Path(folder), answered)))

    def open(self, archive: gr.FileData) -> dict:
        """The result in a zip that `download` or the command line wrote; needs no model."""
        with in_a_sentence("en"):
            return open_answer(_uploaded(archive)).result.to_dict(with_priors=True)

    def models(self) -> list[dict]:
        """What can be loaded by name, and whether it fits this machine."""
        return [asdict(row) for row in self.shelf.rows()]

    def use_model(self, name: str) -> Iterator[str]:
        """Load another model for everybody who uses this app; yields what is going on."""
        with in_a_sentence("en"):
            yield from self.shelf.exchange(name.strip() if isinstance(name, str) else name)
            yield f"{self.shelf.engine.name} is in use."


def _told(look: probes.Look) -> dict:
    return probes.without_pixels(look) | {"prior": encode_prior(look.prior), "mask": encode_rle(look.mask)}


def _uploaded(upload: dict) -> str:
    """The path of an uploaded file. Gradio checks only files that say what they are: without that, the path might be
    any on this server."""
    meta = upload.get("meta") if isinstance(upload, dict) else None
    if not isinstance(meta, dict) or meta.get("_type") != "gradio.FileData" or not isinstance(upload.get("path"), str):
        raise CoPRSError("This is no uploaded file: pass handle_file(path) of gradio_client.")
    return upload["path"]
