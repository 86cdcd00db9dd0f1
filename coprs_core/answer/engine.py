"""One generator: a photo and an instruction in, updates out. App, command line and evaluation all consume it."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from coprs_core.checkpoints.load import Checkpoint, load_checkpoint, within_memory
from coprs_core.coordinates import Located, coordinates_prior, read_answer
from coprs_core.checkpoints.downloads import Report
from coprs_core.errors import CoPRSError
from coprs_core.geometry import (
    to_mllm_frame,
    to_photo_frame,
    to_sam_frame,
    to_sam_points,
    to_square,
    unpadded_size,
)  # fmt: skip
from coprs_core.machine import package_versions
from coprs_core.model.mllm import Reading, VisualTokens, generate, see
from coprs_core.photos import Photo, open_photo
from coprs_core.prompts import check_instruction, encode_prompt, parse_reply
from coprs_core.answer.results import COORDINATES_PRIOR, FOUND, NOTHING_FOUND, UNFINISHED, Outcome, Region, Result

CACHED_PHOTOS = 8


@dataclass(frozen=True)
class Update:
    """One thing that happened on the way to an answer.

    Attributes:
        stage: "reading" (the photo), "thinking", "focus" (the prior is there) or "done".
        text: the reply so far; `new`: what the last step added to it.
        prior: float32 [H, W] in [0, 1] at the photo's size, from "focus" on.
        result: the `Result`, with "done".
        seconds: time since the question was put.
        laps: the time that each finished stage took, by name.
        rate: tokens a second of the thought so far; 0 before it.
        photo_reused: whether the photo had been read before.
    """

    stage: str
    text: str = ""
    new: str = ""
    prior: np.ndarray | None = field(default=None, repr=False)
    result: Result | None = None
    seconds: float = 0.0
    laps: dict[str, float] = field(default_factory=dict)
    rate: float = 0.0
    photo_reused: bool = False


@dataclass(frozen=True)
class PhotoFeatures:
    """What is kept of a photo: `image_embedding` [1, C, h, w] and the language model's visual tokens."""

    image_embedding: Tensor
    visual: VisualTokens

    def to(self, device: torch.device | str) -> "PhotoFeatures":
        """The same on another device."""
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        seen = self.visual
        visual = VisualTokens(move(seen.features), move(seen.grid), tuple(map(move, seen.deepstack)))
        return PhotoFeatures(move(self.image_embedding), visual)


def check_max_new_tokens(most: int) -> int:
    """The bound of a reply as it is; raises `CoPRSError` where it is no whole number from 1 to 4096."""
    if not isinstance(most, int) or not 1 <= most <= 4096:
        raise CoPRSError(f"max_new_tokens is {most!r} and a whole number from 1 to 4096 was expected: leave it out.")
    return most


class Engine:
    """A loaded checkpoint that answers. Safe to share between threads; keeps the features of the last 8 photos."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.model, self.tokenizer = checkpoint.model, checkpoint.tokenizer
        self._features: OrderedDict[str, PhotoFeatures] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.checkpoint.name

    @property
    def prior_kind(self) -> str:
        """ "focus token" or "coordinates": what the prior is made of."""
        return self.checkpoint.prior

    @property
    def settings(self) -> dict:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"device": str(self.model.device), "dtype": dtype, "quantization": self.checkpoint.quantization}

    @property
    def max_new_tokens(self) -> int:
        """The checkpoint's own bound of a reply, in tokens."""
        return self.model.config.max_new_tokens

    def segment(self, image, instruction: str, max_new_tokens: int | None = None) -> Result:
        """The answer as one `Result`; see `stream`."""
        *_, last = self.stream(image, instruction, max_new_tokens)
        return last.result

    def stream(self, image, instruction: str, max_new_tokens: int | None = None) -> Iterator[Update]:
        """Answer step by step.

        Args:
            image: a path, the bytes of a picture file, a PIL image, an array or a `Photo`.
            instruction: any text of 1 to 2,000 characters.
            max_new_tokens: bound of the reply; the checkpoint's own by default.

        Yields:
            `Update`s in the order reading, thinking (one for each token that shows), focus (where there is one), done.
            The language model runs once. Closing the generator stops the work within one decoding step.

        Raises:
            CoPRSError: the photo, the instruction or the bound cannot be used; before any work is done.
        """
        photo, instruction = open_photo(image), check_instruction(instruction)
        limit = self._limit(max_new_tokens)
        with self.within_memory():
            yield from self._answer(photo, instruction, limit)

    def within_memory(self):
        """For work with the model: where memory runs out inside, the kept features go too and a `CoPRSError` says so."""
        smaller = "ask again with a smaller photo, or start with --quantize nf4, --sam vit_b or a smaller model"
        return within_memory(
            "This answer", self.model.device, self.checkpoint.quantization, smaller, let_go=self._features.clear
        )

    def _answer(self, photo: Photo, instruction: str, limit: int) -> Iterator[Update]:
        clock = _Clock()
        reused = photo.key in self._features
        yield Update("reading", seconds=clock.total, photo_reused=reused)
        features = self.read(photo)
        clock.lap("reading")
        written, text, focus_embedding, rate = [], "", None, 0.0
        ids, stop_ids = self.prompt(instruction, features.visual), self.stop_ids
        decode, finished = DecodeStream(skip_special_tokens=False), False
        reading = Reading(self.model.mllm, ids, features.visual)
        for step in generate(reading, self.focus_id, stop_ids, limit):
            focus_embedding, finished = step.focus_embedding, step.token in stop_ids
            written.append(step.token)
            new = "" if finished else decode.step(self.tokenizer.backend_tokenizer, step.token) or ""
            text += new
            if new:
                rate = len(written) / max(clock.running, 1e-6)
                yield Update("thinking", text, new, None, None, clock.total, dict(clock.laps), rate, reused)
        clock.lap("thinking")
        if self.prior_kind == COORDINATES_PRIOR:
            outcome, reason, located = _pointed(
                text, finished, limit, features.visual.seen_size(self.model.mllm), photo.size
            )
            priors = [coordinates_prior(o, photo.size) for o in located]
        else:
            outcome, reason = _outcome(text, focus_embedding is not None, finished, limit)
            located, priors = (), []
            if outcome == FOUND:
                prior_logits = self.prior_logits(focus_embedding, features, photo.size)
                priors = [self.prior_of(prior_logits, photo.size)]
        shown = np.maximum.reduce(priors) if priors else None
        regions = ()
        if priors:
            clock.lap("focusing")
            yield Update("focus", text, "", shown, None, clock.total, dict(clock.laps), rate, reused)
            if located:
                masks = [self._mask_at(o, features, photo.size) for o in located]
            else:
                masks = [self.mask_of(prior_logits, features, photo.size)]
            regions = tuple(
                Region(p, m, o.box if o else None, o.points if o else (), o.label if o else "")
                for p, m, o in zip(priors, masks, located or (None,), strict=True)
            )
            clock.lap("drawing")
        result = Result(
            outcome=outcome,
            reason=reason,
            instruction=instruction,
            reasoning=parse_reply(text).reasoning,
            reply=text,
            regions=regions,
            photo_size=photo.size,
            seconds=clock.laps,
            tokens=len(written),
            photo_reused=reused,
            model=self.name,
            settings=self.settings | {"max_new_tokens": limit, "decoding": "greedy", "seed": None},
            versions=package_versions(),
            prior_kind=self.prior_kind,
            reply_ids=tuple(written),
        )
        yield Update("done", text, "", shown, result, clock.total, dict(clock.laps), rate, reused)

    def _limit(self, max_new_tokens: int | None) -> int:
        return self.max_new_tokens if max_new_tokens is None else check_max_new_tokens(max_new_tokens)

    def read(self, photo: Photo) -> PhotoFeatures:
        """Both vision encoders on a photo, or what was kept of it."""
        if kept := self.kept(photo):
            return kept
        model = self.model
        with torch.no_grad():
            pixels = to_sam_frame(photo.image, model.config.vision.side).to(model.device, model.dtype)
            image_embedding = model.image_encoder(pixels)
        visual = see(model.mllm, self.checkpoint.image_processor, self.mllm_frame(photo))
        return self.keep(photo, PhotoFeatures(image_embedding, visual))

    def kept(self, photo: Photo) -> PhotoFeatures | None:
        """What is kept of a photo that was read before."""
        with self._lock:
            if photo.key in self._features:
                self._features.move_to_end(photo.key)
            return self._features.get(photo.key)

    def keep(self, photo: Photo, features: PhotoFeatures) -> PhotoFeatures:
        """Keep a photo's features, on the model's device; the oldest of more than 8 goes."""
        features = features.to(self.model.device)
        with self._lock:
            self._features[photo.key] = features
            while len(self._features) > CACHED_PHOTOS:
                self._features.popitem(last=False)
        return features

    def mllm_frame(self, photo: Photo):
        """What is given to the language model's own image processor."""
        dialect = self.checkpoint.dialect
        if dialect is None:
            return to_mllm_frame(photo.image, self.model.config.mllm_pixels)
        return to_square(photo.image, dialect.square) if dialect.square else photo.image

    @property
    def focus_id(self) -> int | None:
        """The focus token's id; None where the model writes coordinates instead."""
        if self.prior_kind == COORDINATES_PRIOR:
            return None
        return self.tokenizer.convert_tokens_to_ids(self.model.config.focus_token)

    def prompt(self, instruction: str, visual: VisualTokens) -> list[int]:
        mllm = self.model.mllm
        image_ids = [mllm.config.image_token_id] * len(visual.features)
        return encode_prompt(self.tokenizer, self.model.config.prompt_template, instruction, image_ids)

    @property
    def stop_ids(self) -> set[int]:
        ids = self.model.mllm.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}

    @torch.no_grad()
    def prior_logits(self, focus_embedding: Tensor, features: PhotoFeatures, photo_size: tuple[int, int]) -> Tensor:
        """Where a focus embedding [1, D] looks: prior logits [1, 1, p, p]."""
        size = torch.tensor([unpadded_size(photo_size, self.model.config.vision.side)])
        return self.model.prior_logits(focus_embedding.to(self.model.dtype), features.image_embedding, size)

    def look(
        self, embedding: Tensor, features: PhotoFeatures, photo_size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where a hidden state [1, D] looks when it is taken for the focus embedding: prior float32 [H, W] in [0, 1], mask
        bool [H, W]. Only the focus token's own state was trained for this."""
        prior_logits = self.prior_logits(embedding, features, photo_size)
        return self.prior_of(prior_logits, photo_size), self.mask_of(prior_logits, features, photo_size)

    def prior_of(self, prior_logits: Tensor, photo_size: tuple[int, int]) -> np.ndarray:
        """Prior logits [1, 1, p, p] → the prior float32 [H, W] in [0, 1] at the photo's size."""
        return to_photo_frame(prior_logits, photo_size, self.model.config.vision.side)[0, 0].sigmoid().cpu().numpy()

    @torch.no_grad()
    def mask_of(self, prior_logits: Tensor, features: PhotoFeatures, photo_size: tuple[int, int]) -> np.ndarray:
        """Prior logits [1, 1, p, p] → the mask that the decoder draws, bool [H, W] at the photo's size."""
        mask_logits = self.model.decoder(prior_logits, features.image_embedding)
        return self.at_photo_size(mask_logits, photo_size)[0] > 0

    @torch.no_grad()
    def _mask_at(self, located: Located, features: PhotoFeatures, photo_size: tuple[int, int]) -> np.ndarray:
        """The mask that SAM draws when prompted by a box and points in pixels of the photo."""
        side, device = self.model.config.vision.side, self.model.device
        corners = None if located.box is None else np.array(located.box).reshape(2, 2)
        box = None if corners is None else to_sam_points(corners, photo_size, side).reshape(1, 4).to(device)
        points = to_sam_points(np.array(located.points), photo_size, side)[None].to(device) if located.points else None
        mask_logits = self.model.decoder.from_coordinates(features.image_embedding, box, points)
        return self.at_photo_size(mask_logits, photo_size)[0] > 0

    def at_photo_size(self, logits: Tensor, photo_size: tuple[int, int]) -> np.ndarray:
        """Logits [N, 1, h, w] of SAM's square → float32 [N, H, W] of the photo."""
        return to_photo_frame(logits, photo_size, self.model.config.vision.side)[:, 0].cpu().numpy()


def load(
    name: str = "mini", device: str = "auto", dtype: str = "auto", quantization: str = "none", sam: str = "vit_h",
    report: Report | None = None,
) -> Engine:  # fmt: skip
    """An engine for "mini", a listed name, a folder or a Hugging Face id; see `checkpoints.load_checkpoint`."""
    return Engine(load_checkpoint(name, device, dtype, quantization, sam, report))


def _pointed(text: str, finished: bool, limit: int, seen_size, photo_size) -> tuple[Outcome, str, tuple[Located, ...]]:
    """What a reply with coordinates amounts to, why, and what it located."""
    answer = read_answer(text, seen_size, photo_size)
    if answer.located:
        count = len(answer.located)
        said = f"The model wrote the coordinates of {count} thing{'s' * (count > 1)}."
        return FOUND, f"{said} {answer.problem}".strip(), answer.located
    if not finished:
        return UNFINISHED, f"The model used up its {limit:,} tokens before it wrote coordinates.", ()
    if answer.readable:
        return NOTHING_FOUND, "The model wrote an empty list: nothing fits.", ()
    return UNFINISHED, answer.problem, ()


def _outcome(text: str, focused: bool, finished: bool, limit: int) -> tuple[Outcome, str]:
    """What a reply amounts to, and why. A reply without a focus token is never a mask."""
    if focused:
        return FOUND, "The model wrote its focus token."
    reply = parse_reply(text)
    if not finished:
        return UNFINISHED, f"The model used up its {limit:,} tokens before it wrote a focus token."
    if reply.closed and reply.answer:
        return NOTHING_FOUND, f"The model wrote no focus token and says: “{reply.answer}”"
    return UNFINISHED, "The model ended its reply without a focus token and without saying that nothing fits."


class _Clock:
    """Time since the start, and the time that each stage took."""

    def __init__(self):
        self._start = self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start

    @property
    def running(self) -> float:
        """Time since the last lap."""
        return time.perf_counter() - self._last

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage], self._last = now - self._last, now
