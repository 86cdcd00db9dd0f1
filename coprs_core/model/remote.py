"""A third kind of model: one that runs on another machine, behind a server that speaks OpenAI's
chat protocol (vLLM, SGLang, Ollama, LM Studio, llama.cpp, hosted ones).

It is sent a small picture and a question, thinks there, and writes coordinates. No such server
tells where its words looked: the prior is those coordinates, drawn. SAM draws the masks here.
"""

import base64
import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou

from coprs_core.errors import CoPRSError, shortened
from coprs_core.model.boxes import THOUSANDTHS, drawn_prior, read_answer
from coprs_core.model.coordinates import QWEN3, STOCK, CoordinatePrompt, Pointing, located
from coprs_core.model.sam import PromptedSam
from coprs_core.model.segmenter import Located, Transcript, Written
from coprs_core.photos import Photo
from coprs_core.prompts import COORDINATES_PRIOR, INSTRUCTION_SLOT, Detail, PriorKind

SIDE = 1024
"""Longest side of the picture that is sent, in pixels: servers make larger ones small unasked."""
SECONDS = 120.0
"""A server that sends nothing for so long is given up."""
CHARACTERS_A_TOKEN = 40
"""A reply longer than this for each token that was asked for is cut off."""
CHECK_TOKENS = 1000
CHECK_SQUARE = 384, 96, 512, 224
"""Of the picture that a server is asked about at the start: XYXY in pixels of 640×480."""


@dataclass(frozen=True)
class Server:
    """A model on a server.

    Attributes:
        client: of the `openai` package; it alone knows the key.
        model: the name by which the server knows it.
        host: for messages.
    """

    client: openai.OpenAI = field(repr=False)
    model: str
    host: str

    def write(self, picture: str, question: str, max_new_tokens: int) -> Iterator[Written]:
        """The reply to a question about a picture (a data URL), as it comes.

        The thought stands between <think> and </think>, whichever way the server sends it.
        Closing the generator ends the request.

        Raises:
            CoPRSError: what the server refused or broke off, and what to do.
        """
        content: Any = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": question},
        ]
        with self._in_a_sentence(has_begun=False):
            stream = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=max_new_tokens,
                temperature=0,
                stream=True,
            )
        with self._in_a_sentence(has_begun=True), stream:
            yield from self._written(stream, CHARACTERS_A_TOKEN * max_new_tokens)

    def _written(self, stream: Any, most: int) -> Iterator[Written]:
        in_thought, length, finish = False, 0, None
        for chunk in stream:
            for choice in chunk.choices or ():
                thought, answer = _texts(choice.delta)
                text = thought if in_thought or not thought else f"<think>{thought}"
                in_thought = in_thought or bool(thought)
                if in_thought and answer:
                    text, in_thought = f"{text}</think>", False
                text += answer
                finish = choice.finish_reason or finish
                length += len(text)
                if text:
                    yield Written(text)
            if length > most:
                finish = "length"
                break
        if finish is None and not length:
            raise ValueError("nothing at all was sent")
        if finish is None:
            raise CoPRSError(f"The server {self.host} broke off in mid-answer: ask again.")
        yield Written("</think>" if in_thought else "", ends=finish != "length")

    @contextmanager
    def _in_a_sentence(self, has_begun: bool) -> Generator[None, None, None]:
        """Whatever goes wrong between here and there, in one sentence; the key is in none."""
        try:
            yield
        except (openai.OpenAIError, ValueError) as problem:
            raise CoPRSError(self._sentence(problem, has_begun)) from None

    def _sentence(self, problem: Exception, has_begun: bool) -> str:
        server = f"The server {self.host}"
        if isinstance(problem, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"{server} refuses the key: set COPRS_API_KEY to one that it takes."
        if isinstance(problem, openai.NotFoundError):
            return (
                f"{server} knows no model {self.model!r} at this address: give "
                "openai:NAME@http://host:port/v1 with a name that it lists."
            )
        if isinstance(problem, openai.RateLimitError):
            return f"{server} has no room now, or its quota is used up: ask again later."
        if isinstance(problem, openai.APITimeoutError):
            return f"{server} sent nothing for {SECONDS:.0f} s: ask again, or try a smaller model."
        if isinstance(problem, openai.APIStatusError) and problem.status_code < 500:
            return (
                f"{server} refused the question with its picture{self._why(problem)}: choose a "
                "model that reads pictures."
            )
        if isinstance(problem, openai.APIStatusError):
            return f"{server} failed (status {problem.status_code}): look at its own messages."
        if isinstance(problem, openai.APIConnectionError) and not has_begun:
            return f"{server} cannot be reached: check that it runs, and the address."
        if isinstance(problem, openai.APIConnectionError) or type(problem) is openai.APIError:
            return f"{server} broke off in mid-answer: ask again."
        return f"{server} sent something that is no answer: check that the address ends in /v1."

    def _why(self, problem: openai.APIStatusError) -> str:
        body: Any = problem.body
        said = body.get("message", "") if isinstance(body, dict) else ""
        said = str(said).replace(self.client.api_key, "…")
        return f" (“{shortened(said, 120)}”)" if said else ""


def _texts(delta: Any) -> tuple[str, str]:
    """What a piece of a reply adds to the thought and to the answer."""
    names = (("reasoning", "reasoning_content"), ("content",))
    texts = [[getattr(delta, name, None) for name in group] for group in names]
    thought, answer = (next((t for t in g if isinstance(t, str) and t), "") for g in texts)
    return thought, answer


@dataclass(frozen=True, eq=False)
class RemoteFeatures:
    """The `Features` of such a model: SAM's `embedding`, and the `picture` that is sent (a data
    URL) with its size, (height, width)."""

    embedding: tuple[Tensor, ...]
    picture: str = field(repr=False)
    seen_size: tuple[int, int]
    photo_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.embedding) + len(self.picture)

    def to(self, device: torch.device | str) -> "RemoteFeatures":
        """The same on another device."""
        embedding = tuple(t.to(device) for t in self.embedding)
        return RemoteFeatures(embedding, self.picture, self.seen_size, self.photo_size)


class RemoteSegmenter(Pointing):
    """A model on a server, with a SAM that runs here; implements `Segmenter`."""

    prior_kind: PriorKind = COORDINATES_PRIOR

    def __init__(self, server: Server, sam: PromptedSam, prompt: CoordinatePrompt):
        super().__init__(sam, prompt)
        self.server = server

    @torch.no_grad()
    def read(self, photo: Photo, detail: Detail | None = None) -> RemoteFeatures:
        sent = to_send(photo.image, unit_of(self.prompt))
        size = sent.height, sent.width
        return RemoteFeatures(self.sam.embed(photo.image), as_data_url(sent), size, photo.size)

    def think(
        self, instruction: str, features: RemoteFeatures, max_new_tokens: int
    ) -> Iterator[Written]:
        question = self.prompt.question.replace(INSTRUCTION_SLOT, instruction)
        return self.server.write(features.picture, question, max_new_tokens)

    def locate(self, transcript: Transcript, features: RemoteFeatures) -> Located:
        answer = self.answer(transcript, features)
        priors = [drawn_prior(o, features.photo_size) for o in answer.objects]
        return located(answer, transcript, priors)


def unit_of(prompt: CoordinatePrompt) -> int:
    """Pixels that one visual token stands for: sides are rounded to multiples of it."""
    return 32 if prompt.thousandths else 28


def to_send(photo: Image.Image, unit: int) -> Image.Image:
    """An RGB photo as it is sent: at most 1,024 pixels a side, each side a multiple of `unit`."""
    factor = min(1.0, SIDE / max(photo.size))
    width, height = (max(unit, unit * round(side * factor / unit)) for side in photo.size)
    most = SIDE // unit * unit
    return photo.resize((min(width, most), min(height, most)), Image.Resampling.BICUBIC)


def as_data_url(picture: Image.Image) -> str:
    """A picture as a JPEG in a data URL."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def ask_for_a_square(server: Server) -> CoordinatePrompt | None:
    """How a server's model is to be asked, found out by one question about a drawn red square: in
    thousandths of the picture's sides, or in pixels; None where it puts the square elsewhere.

    The same weights can point worse when they are served: pictures are made small, or patches are
    read in another order.
    """
    picture = Image.new("RGB", (640, 480), "white")
    x0, y0, x1, y1 = CHECK_SQUARE
    ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill="red")
    question = QWEN3.question.replace(INSTRUCTION_SLOT, "the red square")
    steps = server.write(as_data_url(picture), question, CHECK_TOKENS)
    reply = "".join(step.text for step in steps)
    size = picture.height, picture.width
    for prompt, unit in ((QWEN3, THOUSANDTHS), (STOCK, size)):
        boxes = [o.box for o in read_answer(reply, unit, size).objects if o.box]
        true = torch.tensor([CHECK_SQUARE], dtype=torch.float)
        if len(boxes) == 1 and box_iou(torch.tensor(boxes), true).item() >= 0.5:
            return prompt
    return None
