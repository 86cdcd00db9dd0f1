"""Where models of each kind lie, which files they want, and how they are loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import nn

from coprs_core.checkpoints.downloads import Report
from coprs_core.checkpoints.familiar import load_familiar
from coprs_core.checkpoints.heads import known_heads
from coprs_core.checkpoints.hugging_face import (
    chat_template,
    check_focus_token,
    focus_token_id,
    load_image_processor,
    load_mllm,
    load_tokenizer,
    read_config,
    weight_files,
)
from coprs_core.checkpoints.memory import check_memory, room_for_encoding
from coprs_core.checkpoints.options import DETAILS, LoadOptions
from coprs_core.checkpoints.quantization import choose_quantization
from coprs_core.checkpoints.rehearsal import rehearse
from coprs_core.checkpoints.sams import choose_sam, open_sam, place_of
from coprs_core.checkpoints.tensors import count_weights, load_part
from coprs_core.errors import CoPRSError, Phrase, truncated
from coprs_core.machine import as_user_error, choose_dtype
from coprs_core.model.backends.coordinates import (
    PROMPTS,
    VISUAL_TOKENS,
    CoordinateModel,
    CoordinatePrompt,
    CoordinateSegmenter,
)
from coprs_core.model.backends.cpu import optimize
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.model.segmenter import Segmenter
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR, Detail, PriorKind

PARTS = ("image_encoder", "prior", "decoder")
"""Of a CoPRS checkpoint folder, beside its language model: each a .safetensors file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model with its name and the quantization that it was loaded with.

    `language_folder` is the Hugging Face folder of its language model, None where that runs
    elsewhere. `is_proven` is False where it was asked for a place that is known, and missed it.
    """

    name: str
    segmenter: Segmenter
    quantization: str = "none"
    language_folder: Path | None = None
    is_proven: bool = True


class Source(Protocol):
    """Where a model lies and how it becomes a `Segmenter`."""

    @property
    def name(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def prior_kind(self) -> PriorKind: ...
    @property
    def language_folder(self) -> Path:
        """The Hugging Face folder of its language model."""
        ...

    def files(self, sam: str) -> list[Path]:
        """Every file that it needs beside the language model's, there or not."""
        ...

    def special_tokens(self) -> dict[str, int]:
        """Ids of the tokens that it cannot do without; raises `CoPRSError` where one is missing."""
        ...

    def load(self, options: LoadOptions, device: torch.device, report: Report | None) -> Checkpoint:
        """The model, on a device, strictly.

        Weights are read straight from the files' pages as they are needed: loading takes little
        more memory than the model. Raises `CoPRSError`: what is missing, broken, or too large.
        """
        ...


@dataclass(frozen=True)
class CoPRSSource:
    """A CoPRS checkpoint folder:

    coprs.json                   sizes, prompt template, focus token (CoPRSConfig)
    mllm/                        a Hugging Face folder: config, weights, tokenizer, processor
    image_encoder.safetensors    SAM's image encoder, SAM's names
    prior.safetensors            the query head, the image keys and the fusion
    decoder.safetensors          SAM's prompt encoder and mask decoder, SAM's names
    familiar.safetensors         optional: what its pictures look like (`model.familiar`)
    """

    name: str
    folder: Path
    prior_kind: ClassVar[PriorKind] = FOCUS_TOKEN_PRIOR

    @property
    def language_folder(self) -> Path:
        return self.folder / "mllm"

    def _parts(self) -> list[Path]:
        return [self.folder / f"{part}.safetensors" for part in PARTS]

    def files(self, sam: str) -> list[Path]:
        return [self.folder / "coprs.json", *self._parts()]

    def special_tokens(self) -> dict[str, int]:
        tokens = _image_token(self.language_folder)
        focus_token = CoPRSConfig.read(self.folder / "coprs.json").focus_token
        tokenizer = load_tokenizer(self.language_folder)
        return tokens | {focus_token: focus_token_id(tokenizer, focus_token, self.language_folder)}

    def load(self, options: LoadOptions, device: torch.device, report: Report | None) -> Checkpoint:
        config = CoPRSConfig.read(self.folder / "coprs.json")
        weights = _sum(
            count_weights(p) for p in (*weight_files(self.language_folder), *self._parts())
        )
        dtype = choose_dtype(options.dtype, device, sum(weights) * 2)
        quantization = choose_quantization(options.quantization, device, sum(weights) * 2)
        room = room_for_encoding(config.vision.grid, config.vision.width)
        check_memory(self.name, weights, device, dtype, quantization, room)
        mllm = load_mllm(self.language_folder, device, dtype, quantization)
        width = mllm.get_input_embeddings().embedding_dim
        if width != config.llm_width:
            raise CoPRSError(
                "coprs.json says llm_width {stated} and mllm/ has {width}: the two are of "
                "different models.",
                stated=config.llm_width,
                width=width,
            )
        fault = Phrase("coprs.json does not describe a CoPRS model")
        with as_user_error(fault, Phrase("correct its sizes")), torch.device("meta"):
            model = CoPRS(config, nn.Module())
        model.mllm = mllm
        for part, file in zip(PARTS, self._parts(), strict=True):
            load_part(model.get_submodule(part), file, device, dtype)
        tokenizer = load_tokenizer(self.language_folder)
        image_processor = load_image_processor(self.language_folder)
        rows = mllm.get_input_embeddings().num_embeddings
        check_focus_token(tokenizer, config.focus_token, rows, self.language_folder)
        model.eval().requires_grad_(False)
        optimize.apply(model, shortlist=quantization != "none")
        familiar = load_familiar(self.folder, config.vision.channels)
        segmenter = FocusTokenSegmenter(model, tokenizer, image_processor, familiar)
        segmenter.language.heads = known_heads(self.language_folder)
        rehearse(segmenter.language, config.prompt_template, self.language_folder)
        return Checkpoint(self.name, segmenter, quantization, self.language_folder)


@dataclass(frozen=True)
class CoordinateSource:
    """A Hugging Face folder of a model that writes coordinates; SAM lies elsewhere.

    `prompt`: how it is asked; None: as stock models of its family are.
    """

    name: str
    folder: Path
    prompt: CoordinatePrompt | None = None
    prior_kind: ClassVar[PriorKind] = ATTENTION_PRIOR

    @property
    def language_folder(self) -> Path:
        return self.folder

    def files(self, sam: str) -> list[Path]:
        return [place_of(sam)]

    def special_tokens(self) -> dict[str, int]:
        load_tokenizer(self.folder)
        return _image_token(self.folder)

    def load(self, options: LoadOptions, device: torch.device, report: Report | None) -> Checkpoint:
        kind = read_config(self.folder).model_type
        if kind not in PROMPTS:
            raise CoPRSError(
                "{model} is of type {kind!r} and coordinates are read from {names}: choose a "
                "model that `python -m coprs_core models` lists with coordinates.",
                model=self.name,
                kind=kind,
                names=", ".join(PROMPTS),
            )
        prompt = self.prompt or PROMPTS[kind]
        sam = open_sam(choose_sam(options.sam, device), report)
        weights = _sum([*(count_weights(p) for p in weight_files(self.folder)), (0, sam.weights)])
        dtype = choose_dtype(options.dtype, device, sum(weights) * 2)
        quantization = choose_quantization(options.quantization, device, sum(weights) * 2)
        check_memory(self.name, weights, device, dtype, quantization, sam.room)
        model = CoordinateModel(
            sam.load(device, dtype), load_mllm(self.folder, device, dtype, quantization)
        )
        tokenizer = load_tokenizer(self.folder)
        image_processor = load_image_processor(self.folder)
        model.eval().requires_grad_(False)
        optimize.apply(model, shortlist=quantization != "none")
        chat = chat_template(self.folder, tokenizer, model.mllm.config.image_token_id)
        detail = choose_detail(options.detail, device)
        segmenter = CoordinateSegmenter(model, tokenizer, image_processor, prompt, chat, detail)
        segmenter.language.heads = known_heads(self.folder)
        rehearse(segmenter.language, segmenter.template, self.folder)
        return Checkpoint(self.name, segmenter, quantization, self.folder)


def choose_detail(detail: str, device: torch.device) -> Detail:
    """The detail of a name; "auto" is low on a CPU, where each visual token is waited for, and
    normal on a GPU. Raises `CoPRSError` for any other."""
    if detail == "auto":
        return "low" if device.type == "cpu" else "normal"
    if detail not in VISUAL_TOKENS:
        raise CoPRSError(
            "Detail {detail!r} is not known: choose auto, {names}.",
            detail=truncated(detail, 40),
            names=", ".join(DETAILS),
        )
    return detail


def _sum(counts) -> tuple[int, int]:
    linear, other = zip(*counts)
    return sum(linear), sum(other)


def _image_token(folder: Path) -> dict[str, int]:
    return {"image": read_config(folder).image_token_id}
