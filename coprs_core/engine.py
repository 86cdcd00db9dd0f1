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

from coprs_core.checkpoints import Checkpoint, load_checkpoint
from coprs_core.errors import CoPRSError
from coprs_core.geometry import to_mllm_frame, to_photo_frame, to_sam_frame, unpadded_size
from coprs_core.model.mllm import VisualTokens, generate, image_token_count, see
from coprs_core.photos import Photo, open_photo
from coprs_core.prompts import check_instruction, encode_prompt, parse_reply
from coprs_core.results import FOUND, NOTHING_FOUND, UNFINISHED, Outcome, Region, Result

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
        photo_reused: whether the photo had been read before.
    """

    stage: str
    text: str = ""
    new: str = ""
    prior: np.ndarray | None = field(default=None, repr=False)
    result: Result | None = None
    seconds: float = 0.0
    photo_reused: bool = False


@dataclass(frozen=True)
class PhotoFeatures:
    """What is kept of a photo: `image_embedding` [1, C, h, w] and the language model's visual tokens."""

    image_embedding: Tensor
    visual: VisualTokens


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
    def settings(self) -> dict:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"device": str(self.model.device), "dtype": dtype, "quantization": self.checkpoint.quantization}

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
        clock = _Clock()
        reused = photo.key in self._features
        yield Update("reading", seconds=clock.total, photo_reused=reused)
        features = self._read(photo)
        clock.lap("reading")
        tokens, text, focus_embedding = 0, "", None
        ids, stop_ids = self._prompt(instruction, features.visual), self._stop_ids()
        focus_id = self.tokenizer.convert_tokens_to_ids(self.model.config.focus_token)
        decode, finished = DecodeStream(skip_special_tokens=False), False
        for step in generate(self.model.mllm, ids, features.visual, focus_id, stop_ids, limit):
            tokens, focus_embedding, finished = tokens + 1, step.focus_embedding, step.token in stop_ids
            new = "" if finished else decode.step(self.tokenizer.backend_tokenizer, step.token) or ""
            text += new
            if new:
                yield Update("thinking", text, new, seconds=clock.total, photo_reused=reused)
        clock.lap("thinking")
        outcome, reason = _outcome(text, focus_embedding is not None, finished, limit)
        regions = ()
        if outcome == FOUND:
            prior_logits = self._prior_logits(focus_embedding, features, photo.size)
            prior = self._at_photo_size(prior_logits, photo.size).sigmoid().numpy()
            clock.lap("focusing")
            yield Update("focus", text, prior=prior, seconds=clock.total, photo_reused=reused)
            with torch.no_grad():
                mask_logits = self.model.decoder(prior_logits, features.image_embedding)
            regions = (Region(prior, (self._at_photo_size(mask_logits, photo.size) > 0).numpy()),)
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
            tokens=tokens,
            photo_reused=reused,
            model=self.name,
            settings=self.settings | {"max_new_tokens": limit},
        )
        prior = regions[0].prior if regions else None
        yield Update("done", text, prior=prior, result=result, seconds=clock.total, photo_reused=reused)

    def _limit(self, max_new_tokens: int | None) -> int:
        most = self.model.config.max_new_tokens
        if max_new_tokens is None:
            return most
        if not isinstance(max_new_tokens, int) or not 1 <= max_new_tokens <= 4096:
            raise CoPRSError(
                f"max_new_tokens is {max_new_tokens!r} and a whole number from 1 to 4096 was expected: {most} is usual."
            )
        return max_new_tokens

    def _read(self, photo: Photo) -> PhotoFeatures:
        """Both vision encoders on a photo, or what was kept of it."""
        with self._lock:
            if photo.key in self._features:
                self._features.move_to_end(photo.key)
                return self._features[photo.key]
        model = self.model
        with torch.no_grad():
            pixels = to_sam_frame(photo.image, model.config.vision.side).to(model.device, model.dtype)
            image_embedding = model.image_encoder(pixels)
        visual = see(model.mllm, self.checkpoint.image_processor, to_mllm_frame(photo.image, model.config.mllm_pixels))
        with self._lock:
            self._features[photo.key] = PhotoFeatures(image_embedding, visual)
            while len(self._features) > CACHED_PHOTOS:
                self._features.popitem(last=False)
            return self._features[photo.key]

    def _prompt(self, instruction: str, visual: VisualTokens) -> list[int]:
        mllm = self.model.mllm
        image_ids = [mllm.config.image_token_id] * image_token_count(visual.grid, mllm)
        return encode_prompt(self.tokenizer, self.model.config.prompt_template, instruction, image_ids)

    def _stop_ids(self) -> set[int]:
        ids = self.model.mllm.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}

    @torch.no_grad()
    def _prior_logits(self, focus_embedding: Tensor, features: PhotoFeatures, photo_size: tuple[int, int]) -> Tensor:
        size = torch.tensor([unpadded_size(photo_size, self.model.config.vision.side)])
        return self.model.prior_logits(focus_embedding.to(self.model.dtype), features.image_embedding, size)

    def _at_photo_size(self, logits: Tensor, photo_size: tuple[int, int]) -> Tensor:
        return to_photo_frame(logits, photo_size, self.model.config.vision.side)[0, 0].cpu()


def load(name: str = "mini", device: str = "auto", dtype: str = "auto", quantization: str = "none") -> Engine:
    """An engine for "mini" or a checkpoint folder; see `checkpoints.load_checkpoint` for the arguments."""
    return Engine(load_checkpoint(name, device, dtype, quantization))


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

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage], self._last = now - self._last, now
