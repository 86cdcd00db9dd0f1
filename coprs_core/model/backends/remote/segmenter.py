"""A third kind of model: one that runs on another machine, behind a server that speaks OpenAI's
chat protocol (vLLM, SGLang, Ollama, LM Studio, llama.cpp, hosted ones).

It is sent a small picture and a question, thinks there, and writes coordinates. No such server
tells where its words looked: the prior is those coordinates, drawn. SAM draws the masks here.
"""

import base64
import io
from collections.abc import Iterator

import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

from coprs_core.model.backends.boxes import THOUSANDTHS, coordinates_to_prior, parse_coordinates
from coprs_core.model.backends.coordinates import (
    QWEN2_5_PROMPT,
    QWEN3_PROMPT,
    BaseCoordinateSegmenter,
    CoordinatePrompt,
    localization_of,
)
from coprs_core.model.backends.mllm import Prefix, VisualTokens
from coprs_core.model.backends.remote.chat import ChatEndpoint
from coprs_core.model.backends.sam import PromptedSam
from coprs_core.model.segmenter import Localization, PhotoFeatures, Step, Transcript
from coprs_core.photos.photo import Photo
from coprs_core.prompts import COORDINATES_PRIOR, INSTRUCTION_SLOT, Detail, PriorKind

MAX_IMAGE_SIDE = 1024
"""Longest side of the picture that is sent, in pixels: servers make larger ones small unasked."""
MAX_QUIET_SECONDS = 120.0
"""A server that sends nothing of an answer for so long is given up, however busy the line."""
TEST_MAX_TOKENS = 1000
TEST_SQUARE = 384, 96, 512, 224
"""Of the picture that a server is asked about at the start: XYXY in pixels of 640×480."""


class RemoteSegmenter(BaseCoordinateSegmenter):
    """A model on a server, with a SAM that runs here; implements `Segmenter`."""

    prior_kind: PriorKind = COORDINATES_PRIOR

    def __init__(self, server: ChatEndpoint, sam: PromptedSam, prompt: CoordinatePrompt):
        super().__init__(sam, prompt)
        self.server = server

    @property
    def decoding(self) -> str:
        """How tokens are chosen: "greedy", or "the server's" where it refuses a temperature."""
        return "the server's" if "temperature" in self.server.unsupported_parameters else "greedy"

    @torch.no_grad()
    def encode_photo(self, photo: Photo, detail: Detail | None = None) -> PhotoFeatures:
        sent = resize_for_server(photo.image, visual_token_side(self.prompt))
        nothing = VisualTokens(torch.empty(0, 0), (sent.height, sent.width))  # it is seen elsewhere
        embedding = self.sam.embed(photo.image)
        return PhotoFeatures(photo.size, nothing, Prefix(), embedding, to_data_url(sent))

    def generate(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Step]:
        question = self.prompt.question.replace(INSTRUCTION_SLOT, instruction)
        return self.server.stream_reply(features.data_url, question, max_new_tokens)

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Localization:
        answer = self.answer(transcript, features)
        priors = [coordinates_to_prior(o, features.photo_size) for o in answer.objects]
        return localization_of(answer, transcript, priors)


def visual_token_side(prompt: CoordinatePrompt) -> int:
    """Pixels that one visual token stands for: sides are rounded to multiples of it."""
    return 32 if prompt.in_thousandths else 28


def resize_for_server(photo: Image.Image, unit: int) -> Image.Image:
    """An RGB photo as it is sent: at most 1,024 pixels a side, each side a multiple of `unit`."""
    factor = min(1.0, MAX_IMAGE_SIDE / max(photo.size))
    width, height = (max(unit, unit * round(side * factor / unit)) for side in photo.size)
    most = MAX_IMAGE_SIDE // unit * unit
    return photo.resize((min(width, most), min(height, most)), Image.Resampling.BICUBIC)


def to_data_url(picture: Image.Image) -> str:
    """A picture as a JPEG in a data URL."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def detect_coordinate_prompt(server: ChatEndpoint) -> CoordinatePrompt | None:
    """How a server's model is to be asked, found out by one question about a drawn red square: in
    thousandths of the picture's sides, or in pixels; None where it puts the square elsewhere.

    The same weights can point worse when they are served: pictures are made small, or patches are
    read in another order.
    """
    picture = Image.new("RGB", (640, 480), "white")
    x0, y0, x1, y1 = TEST_SQUARE
    ImageDraw.Draw(picture).rectangle((x0, y0, x1 - 1, y1 - 1), fill="red")
    question = QWEN3_PROMPT.question.replace(INSTRUCTION_SLOT, "the red square")
    steps = server.stream_reply(to_data_url(picture), question, TEST_MAX_TOKENS)
    reply = "".join(step.text for step in steps)
    size = picture.height, picture.width
    for prompt, unit in ((QWEN3_PROMPT, THOUSANDTHS), (QWEN2_5_PROMPT, size)):
        boxes = [o.box for o in parse_coordinates(reply, unit, size).objects if o.box]
        true = torch.tensor([TEST_SQUARE], dtype=torch.float)
        if len(boxes) == 1 and box_iou(torch.tensor(boxes), true).item() >= 0.5:
            return prompt
    return None
