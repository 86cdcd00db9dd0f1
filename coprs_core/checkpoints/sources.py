"""The kinds of models on disk: which files each has, how it is planned and loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, cast

import torch
from PIL import Image
from torch import nn

from coprs_core.checkpoints.downloads import ProgressCallback
from coprs_core.checkpoints.hugging_face import (
    check_focus_token,
    focus_token_id,
    load_image_processor,
    load_mllm,
    load_tokenizer,
    make_prompt_template,
    read_config,
    weight_files,
)
from coprs_core.checkpoints.localization_heads import load_heads
from coprs_core.checkpoints.ood_statistics import load_ood_statistics
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import (
    LoadPlan,
    Machine,
    ModelSize,
    choose_detail,
    make_plan,
    sam_encoder_memory,
)
from coprs_core.checkpoints.sam_models import load_sam, plan_with_sam, sam_weights_path
from coprs_core.checkpoints.tensors import count_parameters, load_module
from coprs_core.errors import CoPRSError, Phrase
from coprs_core.machine import as_user_error, parse_dtype
from coprs_core.model.backends.coordinates import (
    PROMPTS_BY_MODEL_TYPE,
    CoordinateModel,
    CoordinatePrompt,
    CoordinateSegmenter,
)
from coprs_core.model.backends.cpu import optimize
from coprs_core.model.backends.language import LanguageModel
from coprs_core.model.coprs import CoPRS, CoPRSConfig
from coprs_core.model.focus_token import FocusTokenSegmenter
from coprs_core.model.segmenter import Segmenter
from coprs_core.prompts import ATTENTION_PRIOR, FOCUS_TOKEN_PRIOR, Detail, PriorKind

CHECKPOINT_PARTS = ("image_encoder", "prior", "decoder")
"""Of a CoPRS checkpoint folder, beside its language model: each a .safetensors file."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded model with its name and the quantization that it was loaded with.

    `language_folder` is the Hugging Face folder of its language model, None where that runs
    elsewhere. `passed_pointing_test` is False where it was asked for a place that is known, and
    missed it.
    """

    name: str
    segmenter: Segmenter
    quantization: str = "none"
    language_folder: Path | None = None
    passed_pointing_test: bool = True


class ModelSource(Protocol):
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

    def files_beside_language_model(self, sam: str) -> list[Path]:
        """Every file that it needs beside the language model's, there or not."""
        ...

    def special_token_ids(self) -> dict[str, int]:
        """Ids of the tokens that it cannot do without; raises `CoPRSError` where one is missing."""
        ...

    def plan(self, options: LoadOptions, machine: Machine) -> LoadPlan:
        """How it will be loaded, from its files' headers alone; raises `CoPRSError`: what is
        missing or broken."""
        ...

    def load(self, plan: LoadPlan, report: ProgressCallback | None) -> Checkpoint:
        """The model as planned, strictly.

        Weights are read straight from the files' pages as they are needed: loading takes little
        more memory than the model. Raises `CoPRSError`: what is missing or broken.
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
    familiar.safetensors         optional: out-of-distribution statistics (`ood_statistics`)
    """

    name: str
    folder: Path
    prior_kind: ClassVar[PriorKind] = FOCUS_TOKEN_PRIOR

    @property
    def language_folder(self) -> Path:
        return self.folder / "mllm"

    def _part_files(self) -> list[Path]:
        return [self.folder / f"{part}.safetensors" for part in CHECKPOINT_PARTS]

    def files_beside_language_model(self, sam: str) -> list[Path]:
        return [self.folder / "coprs.json", *self._part_files()]

    def special_token_ids(self) -> dict[str, int]:
        tokens = _image_token_id(self.language_folder)
        focus_token = CoPRSConfig.from_file(self.folder / "coprs.json").focus_token
        tokenizer = load_tokenizer(self.language_folder)
        return tokens | {focus_token: focus_token_id(tokenizer, focus_token, self.language_folder)}

    def plan(self, options: LoadOptions, machine: Machine) -> LoadPlan:
        vision = CoPRSConfig.from_file(self.folder / "coprs.json").vision
        size = _measure_size([*weight_files(self.language_folder), *self._part_files()])
        size += ModelSize(working=sam_encoder_memory(vision.grid, vision.width))
        return make_plan(self.name, size, options, machine)

    def load(self, plan: LoadPlan, report: ProgressCallback | None) -> Checkpoint:
        config = CoPRSConfig.from_file(self.folder / "coprs.json")
        device, dtype = torch.device(plan.device), parse_dtype(plan.dtype)
        mllm = load_mllm(self.language_folder, device, dtype, plan.quantization)
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
        for part, file in zip(CHECKPOINT_PARTS, self._part_files(), strict=True):
            load_module(model.get_submodule(part), file, device, dtype)
        tokenizer = load_tokenizer(self.language_folder)
        image_processor = load_image_processor(self.language_folder)
        num_embeddings = mllm.get_input_embeddings().num_embeddings
        check_focus_token(tokenizer, config.focus_token, num_embeddings, self.language_folder)
        model.eval().requires_grad_(False)
        optimize.apply(model, shortlist=plan.quantization != "none")
        ood_statistics = load_ood_statistics(self.folder, config.vision.channels)
        segmenter = FocusTokenSegmenter(model, tokenizer, image_processor, ood_statistics)
        segmenter.language.localization_heads = load_heads(self.language_folder)
        _check_first_tokens(segmenter.language, config.prompt_template, self.language_folder)
        return Checkpoint(self.name, segmenter, plan.quantization, self.language_folder)


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

    def files_beside_language_model(self, sam: str) -> list[Path]:
        return [sam_weights_path(sam)]

    def special_token_ids(self) -> dict[str, int]:
        load_tokenizer(self.folder)
        return _image_token_id(self.folder)

    def plan(self, options: LoadOptions, machine: Machine) -> LoadPlan:
        self._choose_prompt()  # a type without a prompt is refused before its weights are read
        size = _measure_size(weight_files(self.folder))
        detail = choose_detail(options.detail, machine.device_type)
        return plan_with_sam(self.name, size, options, machine, detail=detail)

    def _choose_prompt(self) -> CoordinatePrompt:
        kind = read_config(self.folder).model_type
        if kind not in PROMPTS_BY_MODEL_TYPE:
            raise CoPRSError(
                "{model} is of type {kind!r} and coordinates are read from {names}: choose a "
                "model that `coprs models` lists with coordinates.",
                model=self.name,
                kind=kind,
                names=", ".join(PROMPTS_BY_MODEL_TYPE),
            )
        return self.prompt or PROMPTS_BY_MODEL_TYPE[kind]

    def load(self, plan: LoadPlan, report: ProgressCallback | None) -> Checkpoint:
        prompt, device, dtype = (
            self._choose_prompt(),
            torch.device(plan.device),
            parse_dtype(plan.dtype),
        )
        sam = load_sam(plan.sam, device, dtype, report)
        model = CoordinateModel(sam, load_mllm(self.folder, device, dtype, plan.quantization))
        tokenizer = load_tokenizer(self.folder)
        image_processor = load_image_processor(self.folder)
        model.eval().requires_grad_(False)
        optimize.apply(model, shortlist=plan.quantization != "none")
        chat = make_prompt_template(self.folder, tokenizer, model.mllm.config.image_token_id)
        detail = cast(Detail, plan.detail)
        segmenter = CoordinateSegmenter(model, tokenizer, image_processor, prompt, chat, detail)
        segmenter.language.localization_heads = load_heads(self.folder)
        _check_first_tokens(segmenter.language, segmenter.template, self.folder)
        return Checkpoint(self.name, segmenter, plan.quantization, self.folder)


def _measure_size(files: list[Path]) -> ModelSize:
    """What is in safetensors files, from their headers alone."""
    linear, other = zip(*(count_parameters(path) for path in files), strict=True)
    return ModelSize(sum(linear), sum(other))


def _image_token_id(folder: Path) -> dict[str, int]:
    return {"image": read_config(folder).image_token_id}


# --- the first word, so that what cannot answer is refused now, not at the first question

_TEST_PHOTO = Image.new("RGB", (56, 56), "gray")


def _check_first_tokens(language: LanguageModel, template: str, folder: Path) -> None:
    """Raises `CoPRSError` where tokenizer, image processor and model of a folder cannot read a
    question together, or would fail over one word of it."""
    fault = Phrase(
        "Tokenizer, image processor and model in {folder} do not work together", folder=folder
    )
    with as_user_error(fault, Phrase("take all files of a model from one source")):
        _check_token_ids(language, folder)
        visual = language.encode_image(_TEST_PHOTO)
        prefix = language.prefill_prefix(template, visual)
        session = language.start_session(template, "the umbrella", visual, prefix)
        for _ in language.generate(session, None, 2):
            pass


def _check_token_ids(language: LanguageModel, folder: Path) -> None:
    tokenizer, num_embeddings = language.tokenizer, language.vocab_size
    largest = max(tokenizer.get_vocab().values())
    if largest >= num_embeddings:
        raise CoPRSError(
            "The tokenizer in {folder} writes ids up to {largest:,} and the embeddings have "
            "{rows:,} rows: tokenizer and weights are of different models.",
            folder=folder,
            largest=largest,
            rows=num_embeddings,
        )
    image_id = language.mllm.config.image_token_id
    if image_id not in tokenizer.added_tokens_decoder:
        raise CoPRSError(
            "{path} has image_token_id {image_id}, which is no special token of the "
            "tokenizer: the two are of different models.",
            path=folder / "config.json",
            image_id=image_id,
        )
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise CoPRSError(
            "The tokenizer in {folder} is of an old kind: add its tokenizer.json.", folder=folder
        )
