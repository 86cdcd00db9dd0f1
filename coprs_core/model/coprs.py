"""The whole figure: one frozen config, the four boxes as one module, and the stage in the
middle."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coprs_core.errors import CoPRSError
from coprs_core.geometry import prior_valid_size
from coprs_core.model.decoder import DecoderConfig, PriorDecoder
from coprs_core.model.mllm import Mllm
from coprs_core.model.prior import PositionalPrior
from coprs_core.model.vision import VisionConfig, build_image_encoder
from coprs_core.prompts import (
    FOCUS_TOKEN,
    IMAGE_SLOT,
    INSTRUCTION_SLOT,
    MAX_NEW_TOKENS,
    QWEN_TEMPLATE,
)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CoPRSConfig:
    """Everything about a checkpoint that its Hugging Face folder does not already say.

    `llm_width` is the language model's hidden size D; the prior has `prior_heads` heads over
    `prior_width` channels; `mllm_pixels` bounds the area of the photo that the language model sees,
    in pixels.
    """

    llm_width: int
    vision: VisionConfig = field(default_factory=VisionConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    prior_heads: int = 4
    prior_width: int = 256
    focus_token: str = FOCUS_TOKEN
    prompt_template: str = QWEN_TEMPLATE
    mllm_pixels: tuple[int, int] = (3136, 705600)
    max_new_tokens: int = 2000
    note: str = ""

    def __post_init__(self):
        for slot in (IMAGE_SLOT, INSTRUCTION_SLOT):
            if self.prompt_template.count(slot) != 1:
                raise CoPRSError(
                    f"The prompt template must contain {slot} exactly once: correct it (--prompt "
                    "or coprs.json)."
                )
        if self.prior_width % self.prior_heads:
            raise CoPRSError(
                f"prior_width {self.prior_width} does not divide into {self.prior_heads} heads: "
                "correct coprs.json."
            )

    def to_dict(self) -> dict:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "CoPRSConfig":
        """The config written by `to_dict`; raises `CoPRSError` for another format version or
        unknown entries."""
        if not isinstance(values, dict):
            raise CoPRSError("coprs.json holds no entries: copy it again from its source.")
        values = dict(values)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise CoPRSError(
                f"This checkpoint has format version {version} and {FORMAT_VERSION} is read: use "
                "the matching release."
            )
        _check_entries("", values, asdict(cls(1)))
        try:
            vision = VisionConfig(**_tuples(values.pop("vision")))
            decoder = DecoderConfig(**values.pop("decoder"))
            return cls(vision=vision, decoder=decoder, **_tuples(values))
        except (KeyError, TypeError) as problem:
            raise CoPRSError(
                f"coprs.json does not describe a CoPRS model ({problem}): copy it again from its "
                "source."
            ) from problem

    @classmethod
    def read(cls, path: Path) -> "CoPRSConfig":
        """The config in a file coprs.json; raises `CoPRSError` where it is broken."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as problem:
            raise CoPRSError(
                f"{path} is not valid JSON ({problem}): copy it again from its source."
            ) from problem


_MOST = {"max_new_tokens": MAX_NEW_TOKENS, "vision.side": 4096, "mllm_pixels": 2**27}
_LEAST = {"vision.window": 0, "vision.global_layers": 0}


def _check_entries(prefix: str, values: dict, like: dict) -> None:
    """Raises `CoPRSError` where an entry has another type than in `like`, or a number is out of
    range."""
    for name in sorted(values.keys() & like.keys()):
        key, value, expected = prefix + name, values[name], like[name]
        least, most = _LEAST.get(key, 1), _MOST.get(key, 65536)
        numbers = value if isinstance(expected, tuple) else [value]
        if isinstance(expected, dict):
            what, is_right = "a group of entries", isinstance(value, dict)
        elif isinstance(expected, str):
            what, is_right = "text", isinstance(value, str)
        elif isinstance(expected, float):
            what = f"a number from {least} to {most}"
            is_right = type(value) in (int, float) and least <= value <= most
        else:
            what = f"a whole number from {least} to {most}"
            is_right = isinstance(numbers, list | tuple) and all(
                type(n) is int and least <= n <= most for n in numbers
            )
            if key == "mllm_pixels":
                what, is_right = f"two numbers, each {what},", is_right and len(numbers) == 2
            elif isinstance(expected, tuple):
                what = f"a list, each {what},"
        if not is_right:
            raise CoPRSError(
                f"coprs.json: {key} is {str(value)[:40]!r} and {what} was expected: copy it again "
                "from its source."
            )
        if isinstance(expected, dict):
            _check_entries(f"{key}.", value, expected)


def _tuples(values: dict) -> dict:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


class CoPRS(nn.Module):
    """The four boxes: `mllm` (a Hugging Face model, never subclassed), `image_encoder`, `prior`,
    `decoder`."""

    mllm: Mllm
    image_encoder: Any
    prior: PositionalPrior
    decoder: PriorDecoder

    def __init__(self, config: CoPRSConfig, mllm: Mllm):
        super().__init__()
        self.config = config
        self.mllm = mllm
        self.image_encoder = build_image_encoder(config.vision)
        self.prior = PositionalPrior(
            config.llm_width, config.vision.channels, config.prior_heads, config.prior_width
        )
        self.decoder = PriorDecoder(config.decoder, config.vision)

    def prior_logits(
        self, focus_embedding: Tensor, image_embedding: Tensor, unpadded_size: Tensor
    ) -> Tensor:
        """Where the focus token looks: prior logits [B, 1, 4h, 4w], −50 in the padding. Arguments
        as for `focus`."""
        vision = self.config.vision
        return self.prior(
            focus_embedding,
            image_embedding,
            prior_valid_size(unpadded_size, vision.side, vision.prior_side),
        )

    def focus(
        self, focus_embedding: Tensor, image_embedding: Tensor, unpadded_size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The stage in the middle: where the focus token looks, and the mask that the decoder makes
        of it.

        Args:
            focus_embedding: float [B, D].
            image_embedding: float [B, C, h, w].
            unpadded_size: int [B, 2], (height, width) in pixels of the photo inside SAM's square
                input.

        Returns:
            prior logits [B, 1, 4h, 4w] (−50 in the padding) and mask logits of the same shape.
        """
        prior_logits = self.prior_logits(focus_embedding, image_embedding, unpadded_size)
        return prior_logits, self.decoder(prior_logits, image_embedding)

    @property
    def device(self) -> torch.device:
        return self.prior.q_proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.prior.q_proj.weight.dtype
