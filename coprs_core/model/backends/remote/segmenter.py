"""Models on a server that speaks OpenAI's chat protocol (vLLM, SGLang, Ollama, LM Studio,
llama.cpp, hosted ones), as a `Segmenter`.

The server is sent a small image and a question, and its model writes coordinates. No such server
gives attention: the prior is those coordinates, drawn. SAM predicts the masks here.
"""

import io
from collections.abc import Iterator

import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_iou

from coprs_core.masks import data_url
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
"""Longest side of the image that is sent, in pixels: servers downscale larger ones unasked."""
MAX_QUIET_SECONDS = 120.0
"""A server that sends nothing of a reply for so long is given up, whatever else it sends."""
TEST_MAX_TOKENS = 1000
TEST_SQUARE = 384, 96, 512, 224
"""Of the image that a server is asked about when it is loaded: XYXY in pixels of 640×480."""


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
        image = resize_for_server(photo.image, visual_token_side(self.prompt))
        no_tokens = VisualTokens(torch.empty(0, 0), (image.height, image.width))
        embedding = self.sam.embed(photo.image)
        return PhotoFeatures(photo.size, no_tokens, Prefix(), embedding, to_data_url(image))

    def generate(
        self, instruction: str, features: PhotoFeatures, max_new_tokens: int
    ) -> Iterator[Step]:
        question = self.prompt.question.replace(INSTRUCTION_SLOT, instruction)
        return self.server.stream_reply(features.data_url, question, max_new_tokens)

    def locate(self, transcript: Transcript, features: PhotoFeatures) -> Localization:
        coordinates = self.parse_coordinates(transcript, features)
        priors = [coordinates_to_prior(o, features.photo_size) for o in coordinates.objects]
        return localization_of(coordinates, transcript, priors)


def visual_token_side(prompt: CoordinatePrompt) -> int:
    """Side in pixels of what one visual token covers: an image's sides are rounded to multiples
    of it, or the server would round them, and coordinates would be off."""
    return 32 if prompt.in_thousandths else 28


def resize_for_server(photo: Image.Image, unit: int) -> Image.Image:
    """Resize an RGB photo to at most 1,024 pixels a side, each side a multiple of `unit`."""
    factor = min(1.0, MAX_IMAGE_SIDE / max(photo.size))
    width, height = (max(unit, unit * round(side * factor / unit)) for side in photo.size)
    most = MAX_IMAGE_SIDE // unit * unit
    return photo.resize((min(width, most), min(height, most)), Image.Resampling.BICUBIC)


def to_data_url(image: Image.Image) -> str:
    """Encode an image as a JPEG in a data URL."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return data_url("jpeg", file)


def detect_coordinate_prompt(server: ChatEndpoint) -> CoordinatePrompt | None:
    """Find out, by one question about a drawn red square, how a server's model is prompted: for
    thousandths of the image's sides, or pixels; None where it puts the square elsewhere.

    The same weights can point worse when they are served: images are downscaled, or patches are
    taken in another order.
    """
    image = Image.new("RGB", (640, 480), "white")
    x0, y0, x1, y1 = TEST_SQUARE
    ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill="red")
    question = QWEN3_PROMPT.question.replace(INSTRUCTION_SLOT, "the red square")
    steps = server.stream_reply(to_data_url(image), question, TEST_MAX_TOKENS)
    reply = "".join(step.text for step in steps)
    size = image.height, image.width
    for prompt, image_size in ((QWEN3_PROMPT, THOUSANDTHS), (QWEN2_5_PROMPT, size)):
        boxes = [o.box for o in parse_coordinates(reply, image_size, size).objects if o.box]
        true = torch.tensor([TEST_SQUARE], dtype=torch.float)
        if len(boxes) == 1 and box_iou(torch.tensor(boxes), true).item() >= 0.5:
            return prompt
    return None
