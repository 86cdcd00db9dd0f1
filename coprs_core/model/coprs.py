"""CoPRS: its config, and the four boxes of the paper's figure as one module."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coprs_core.errors import CoPRSError, Phrase, from_os_error, truncate
from coprs_core.files import read_text
from coprs_core.geometry import unpadded_prior_size
from coprs_core.model.backends.mllm import Mllm
from coprs_core.model.decoder import DecoderConfig, PriorDecoder
from coprs_core.model.prior import PositionalPrior
from coprs_core.model.vision import VisionConfig, build_image_encoder
from coprs_core.parsing import parse_json
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
                    "The prompt template must contain {slot} exactly once: correct it (--prompt or "
                    "coprs.json).",
                    slot=slot,
                )
        for name, whole, divisor_name, divisor in _divisibility_rules(self):
            if whole % divisor:
                raise CoPRSError(
                    "{name} is {whole} and a multiple of {divisor_name} {divisor} was expected: "
                    "correct coprs.json.",
                    name=name,
                    whole=whole,
                    divisor_name=divisor_name,
                    divisor=divisor,
                )

    def to_dict(self) -> dict:
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "CoPRSConfig":
        """Build the config that `to_dict` wrote; raises `CoPRSError` for another format version or
        unknown entries."""
        if not isinstance(values, dict):
            raise CoPRSError("coprs.json holds no entries: copy it again from its source.")
        values = dict(values)
        version = values.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise CoPRSError(
                "This checkpoint has format version {version} and {own} is read: use the "
                "matching release.",
                version=truncate(repr(version), 40),
                own=FORMAT_VERSION,
            )
        _check_entries("", values, asdict(cls(1)))
        try:
            vision = VisionConfig(**_lists_to_tuples(values.pop("vision")))
            decoder = DecoderConfig(**values.pop("decoder"))
            return cls(vision=vision, decoder=decoder, **_lists_to_tuples(values))
        except (KeyError, TypeError) as problem:
            raise CoPRSError(
                "coprs.json does not describe a CoPRS model ({reason}): copy it again from its "
                "source.",
                reason=truncate(problem, 120),
            ) from problem

    @classmethod
    def from_file(cls, path: Path) -> "CoPRSConfig":
        """Read the config in a file coprs.json; raises `CoPRSError` where it is broken."""
        try:
            return cls.from_dict(parse_json(read_text(path)))
        except OSError as problem:
            raise from_os_error(problem) from problem
        except ValueError as problem:
            raise CoPRSError(
                "{path} cannot be read as JSON ({reason}): copy it again from its source.",
                path=path,
                reason=truncate(problem, 120),
            ) from problem


_MAX_VALUES = {
    "max_new_tokens": MAX_NEW_TOKENS,
    "vision.side": 4096,
    "vision.depth": 512,
    "vision.mlp_ratio": 64,
    "decoder.depth": 64,
    "decoder.iou_depth": 64,
    "mllm_pixels": 2**27,
    "focus_token": 100,
    "prompt_template": 8000,
    "note": 10_000,
}
"""Largest value of a number, or length of a text; of any other number, 65536."""
_MIN_VALUES = {"vision.window": 0, "vision.global_layers": 0, "note": 0}
_MAX_LIST_LENGTH = 512
_MAX_MIN_PIXELS = 2**20
"""Largest area that a small photo is stretched to."""


def _check_entries(prefix: str, values: dict, defaults: dict) -> None:
    """Raise `CoPRSError` where an entry has another type than in `defaults`, or a number or text
    is out of range."""
    for name in sorted(values.keys() & defaults.keys()):
        key, value = prefix + name, values[name]
        what, is_right = _check_entry(key, value, defaults[name])
        if not is_right:
            raise CoPRSError(
                "coprs.json: {key} is {value!r} and {what} was expected: correct it, or copy the "
                "file again from its source.",
                key=key,
                value=truncate(value, 40),
                what=what,
            )
        if isinstance(defaults[name], dict):
            _check_entries(f"{key}.", value, defaults[name])


def _check_entry(key: str, value: Any, default: Any) -> tuple[Phrase, bool]:
    """What is expected of an entry, in words, and whether its value is that."""
    least, most = _MIN_VALUES.get(key, 1), _MAX_VALUES.get(key, 65536)
    if isinstance(default, dict):
        return Phrase("a group of entries"), isinstance(value, dict)
    if isinstance(default, str):
        is_right = isinstance(value, str) and least <= len(value) <= most
        is_right = is_right and not any("\ud800" <= c <= "\udfff" for c in value)
        if key == "focus_token":
            one_line = Phrase("one line of {least} to {most} characters", least=least, most=most)
            return one_line, is_right and value.isprintable()
        text = Phrase("valid text of {least} to {most:,} characters", least=least, most=most)
        return text, is_right
    if isinstance(default, float):
        is_right = type(value) in (int, float) and least <= value <= most
        return Phrase("a number from {least} to {most}", least=least, most=most), is_right
    what = Phrase("a whole number from {least} to {most}", least=least, most=most)
    numbers = value if isinstance(default, tuple) else [value]
    is_right = (
        isinstance(numbers, list | tuple)
        and len(numbers) <= _MAX_LIST_LENGTH
        and all(type(n) is int and least <= n <= most for n in numbers)
    )
    if key == "mllm_pixels":
        is_right = is_right and len(numbers) == 2 and numbers[0] <= numbers[1]
        is_right = is_right and numbers[0] <= _MAX_MIN_PIXELS
        two = Phrase(
            "two numbers, each {what}, the first up to {bound} and not above the second,",
            what=what,
            bound=_MAX_MIN_PIXELS,
        )
        return two, is_right
    if isinstance(default, tuple):
        what = Phrase("a list, each {what},", what=what)
    return what, is_right


def _divisibility_rules(config: "CoPRSConfig") -> tuple[tuple[str, int, str, int], ...]:
    """What must be a multiple of what: names and values."""
    vision, decoder = config.vision, config.decoder
    return (
        ("prior_width", config.prior_width, "prior_heads", config.prior_heads),
        ("vision.side", vision.side, "vision.patch", vision.patch),
        ("vision.width", vision.width, "vision.heads", vision.heads),
        ("vision.channels", vision.channels, Phrase("the number"), 8),
        (Phrase("half of vision.channels"), vision.channels // 2, "decoder.heads", decoder.heads),
        ("decoder.mask_channels", decoder.mask_channels, Phrase("the number"), 4),
    )


def _lists_to_tuples(values: dict) -> dict:
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

    def compute_prior_logits(
        self, focus_embedding: Tensor, image_embedding: Tensor, unpadded_size: Tensor
    ) -> Tensor:
        """Prior logits [B, 1, 4h, 4w], −50 in the padding. Arguments as for `focus`."""
        vision = self.config.vision
        return self.prior(
            focus_embedding,
            image_embedding,
            unpadded_prior_size(unpadded_size, vision.side, vision.prior_side),
        )

    def focus(
        self, focus_embedding: Tensor, image_embedding: Tensor, unpadded_size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prior logits of the focus token, and the mask logits that the decoder makes of them.

        Args:
            focus_embedding: float [B, D].
            image_embedding: float [B, C, h, w].
            unpadded_size: int [B, 2], (height, width) in pixels of the photo inside SAM's square
                input.

        Returns:
            prior logits [B, 1, 4h, 4w] (−50 in the padding) and mask logits of the same shape.
        """
        prior_logits = self.compute_prior_logits(focus_embedding, image_embedding, unpadded_size)
        return prior_logits, self.decoder(prior_logits, image_embedding)

    @property
    def device(self) -> torch.device:
        return next(self.prior.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.prior.parameters()).dtype
