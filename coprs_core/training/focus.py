"""Prior and mask of replies while the language model is trained: computed with it in one forward
pass, trained with it in one backward."""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from coprs_core.checkpoints.tensors import write_errors_as_user_error
from coprs_core.datasets.dataset import Dataset
from coprs_core.example import Example
from coprs_core.geometry import to_mllm_frame, to_sam_frame, unpadded_size
from coprs_core.model.coprs import CoPRS
from coprs_core.prompts import encode_prompt
from coprs_core.training.data import to_soft_target
from coprs_core.training.embedding_cache import EmbeddingCache
from coprs_core.training.rates import HEADS_MODULE, LearningRates

TRAINED_FILE = "trained.safetensors"
MAX_CACHED_EMBEDDINGS, MAX_CACHED_ITEMS = 512, 64
"""So many embeddings of photos, and so many items, whose photos may be large, are kept."""
_ALWAYS_FROZEN = (".visual.", "iou_prediction_head", "point_embed", "no_mask_embed")
"""The vision tower, and what the decoder does not use where the prior is its prompt."""
IMAGE_TOKEN = "<|image_pad|>"


@dataclass
class FocusBatch:
    """The focus tokens of a batch of replies, N in all.

    Attributes:
        rows, columns: int [N], where they stand in the token ids.
        embedding: [N, C, h, w], SAM's of the photo of each.
        sizes: int [N, 2], (height, width) of the photo in SAM's frame.
        target: float32 [N, 1, p, p] in [0, 1], the mask that each is to draw.
    """

    rows: Tensor
    columns: Tensor
    embedding: Tensor
    sizes: Tensor
    target: Tensor


class TrainableCoPRS:
    """A CoPRS model made ready for a trainer of its language model: prior and decoder are
    submodules of it, its last hidden states are kept; image encoder and vision tower are frozen.

    `embeddings` is a folder for what the image encoder sees, which is the same in every run.
    """

    def __init__(
        self, model: CoPRS, processor: Any, dataset: Dataset, embeddings: Path | None = None
    ):
        self.model, self.tokenizer = model, processor.tokenizer
        self.image_processor = processor.image_processor
        self.focus_id: int = self.tokenizer.convert_tokens_to_ids(model.config.focus_token)
        self.get_example = lru_cache(MAX_CACHED_ITEMS)(dataset.__getitem__)
        encode: Callable[[Example], Tensor] = self._encode
        if embeddings is not None:
            encode = EmbeddingCache(embeddings, model.image_encoder, encode)
        self._encoded, self._embeddings = encode, dict[str, Tensor]()
        self._hidden: Any = None
        self._active_batch: FocusBatch | None = None
        self.last_logits: tuple[Tensor, Tensor] = torch.empty(0), torch.empty(0)
        _attach_heads(model)
        self._hook = model.mllm.base_model.register_forward_hook(self._store_hidden)

    def set_trainable(self, trained: nn.Module) -> None:
        """Switch gradients on, for prior and decoder as far as they are used, and the whole
        language model but its vision tower; where it has adapters, which choose for themselves, for
        those alone. All of it becomes float32: at these rates most steps are lost in bfloat16."""
        is_adapted = any("lora_" in name for name, _ in trained.named_parameters())
        for name, parameter in trained.named_parameters():
            if f"{HEADS_MODULE}." in name or not is_adapted:
                parameter.requires_grad_(not any(part in name for part in _ALWAYS_FROZEN))
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def patch_forward(self, make_output: Callable[..., Any], only_with: str | None = None) -> None:
        """Let the language model draw prior and mask of the focus tokens that `drawing` names, in
        its own forward pass: several processes could not agree on gradients of what runs outside
        of it.

        The logits are kept as `last_logits`. `make_output(outputs, focus_batch, prior_logits,
        mask_logits)` makes what it returns, unless `only_with`, an option of the call, is not set.
        It keeps its own signature, which sampling reads.
        """
        mllm = self.model.mllm
        original = mllm.forward

        @wraps(type(mllm).forward)
        def forward(*args: Any, **options: Any) -> Any:
            outputs, focus_batch = original(*args, **options), self._active_batch
            if focus_batch is None:
                return outputs
            self.last_logits = self._compute_logits(focus_batch)
            is_asked = only_with is None or options.get(only_with)
            return make_output(outputs, focus_batch, *self.last_logits) if is_asked else outputs

        mllm.forward = forward

    @contextmanager
    def drawing(self, focus_batch: FocusBatch) -> Generator[None, None, None]:
        """Inside, the language model draws prior and mask of these focus tokens (see
        `patch_forward`)."""
        self._active_batch = focus_batch
        try:
            yield
        finally:
            self._active_batch = None

    def detach_model(self) -> CoPRS:
        """Undo all patches; returns the model with its trained weights."""
        self._hook.remove()
        _detach_heads(self.model)
        self.model.mllm.__dict__.pop("forward", None)  # a trainer's stood before the class's own
        return self.model

    def image_embedding(self, example: Example) -> Tensor:
        """SAM's image embedding [C, h, w], cached by the photo's key: an example as a key would
        keep its photo in memory."""
        key = example.load_photo().key
        if key not in self._embeddings:
            if len(self._embeddings) >= MAX_CACHED_EMBEDDINGS:
                # a dictionary keeps the order of insertion
                del self._embeddings[next(iter(self._embeddings))]  # the oldest
            self._embeddings[key] = self._encoded(example)
        return self._embeddings[key]

    def mllm_image(self, example: Example) -> Any:
        """The photo in the frame of the language model."""
        return to_mllm_frame(example.load_photo().image, self.model.config.mllm_pixels)

    def encode_batch(
        self, items: list[Example], replies: list[list[int]]
    ) -> tuple[dict, list[int]]:
        """What the model reads, [B, L] padded on the right, for prompts with their replies in
        tokens; and where each reply begins."""
        pictures = [self.mllm_image(item) for item in items]
        image_inputs = self.image_processor(images=pictures, return_tensors="pt")
        merged = self.image_processor.merge_size**2
        image_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        template, sequences, starts = self.model.config.prompt_template, [], []
        for item, grid, reply in zip(items, image_inputs["image_grid_thw"], replies, strict=True):
            image_ids = [image_id] * (int(grid.prod()) // merged)
            prompt = encode_prompt(self.tokenizer, template, item.instruction, image_ids)
            sequences.append(torch.tensor(prompt + reply))
            starts.append(len(prompt))
        ids = nn.utils.rnn.pad_sequence(sequences, True, self.tokenizer.pad_token_id)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(w) for w in sequences], True)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": image_inputs["pixel_values"],
            "image_grid_thw": image_inputs["image_grid_thw"],
            "mm_token_type_ids": torch.eq(ids, image_id).int(),
        }
        return {name: value.to(self.model.device) for name, value in inputs.items()}, starts

    def focus_batch(
        self, items: list[Example], ids: Tensor, starts: list[int], ends: list[int] | None = None
    ) -> FocusBatch:
        """The focus tokens of replies that have a thing to find, in order, the k-th with the k-th
        thing; replies begin at `starts` and are `ends` tokens long."""
        rows, columns, embeddings, sizes, targets = [], [], [], [], []
        vision, device = self.model.config.vision, self.model.device
        for row, item in enumerate(items):
            stop = None if ends is None else starts[row] + ends[row]
            is_focus = torch.eq(ids[row, starts[row] : stop], self.focus_id)
            places = is_focus.nonzero()[:, 0] + starts[row]
            for place, true in zip(places.tolist(), item.masks, strict=False):
                rows.append(row)
                columns.append(place)
                embeddings.append(self.image_embedding(item))
                sizes.append(unpadded_size(true.shape, vision.side))
                targets.append(to_soft_target(true, vision))
        if not rows:
            none = torch.zeros(0, dtype=torch.long, device=device)
            target = torch.zeros(0, 1, vision.prior_side, vision.prior_side, device=device)
            return FocusBatch(none, none, target, none.view(0, 2), target)
        return FocusBatch(
            torch.tensor(rows, device=device),
            torch.tensor(columns, device=device),
            torch.stack(embeddings).to(device, self.model.dtype),
            torch.tensor(sizes, device=device),
            torch.stack(targets).to(device),
        )

    def _compute_logits(self, focus_batch: FocusBatch) -> tuple[Tensor, Tensor]:
        """Prior and mask logits [N, 1, p, p] from the hidden states that were read last."""
        hidden, count = self._hidden[focus_batch.rows, focus_batch.columns], len(focus_batch.rows)
        embedding, sizes = focus_batch.embedding, focus_batch.sizes
        if not count:  # nothing, in the way that other processes draw something meanwhile
            vision = self.model.config.vision
            hidden = self._hidden[:1, 0]
            embedding = hidden.new_zeros(1, vision.channels, vision.grid, vision.grid)
            sizes = torch.tensor([[vision.side, vision.side]], device=hidden.device)
        dtype = self.model.dtype  # bfloat16 inside a forward pass of sharded weights
        is_half = dtype == torch.bfloat16
        with torch.autocast(hidden.device.type, dtype) if is_half else nullcontext():
            prior_logits, mask_logits = self.model.focus(
                hidden.to(dtype), embedding.to(dtype), sizes
            )
        return prior_logits[:count], mask_logits[:count]

    def _store_hidden(self, _module: nn.Module, _args: tuple, outputs: Any) -> None:
        self._hidden = outputs.last_hidden_state

    @torch.no_grad()
    def _encode(self, example: Example) -> Tensor:
        """SAM's image embedding [C, h, w]."""
        encoder, side = self.model.image_encoder, self.model.config.vision.side
        place = next(encoder.parameters())
        embedding = encoder(
            to_sam_frame(example.load_photo().image, side).to(place.device, place.dtype)
        )[0]
        return embedding.to(self.model.dtype)


class TrainerMixin:
    """Over a Hugging Face trainer: which weights are trained and how fast, and saving them alone.

    Needs `coprs`, a `TrainableCoPRS`, and `rates`; the rest is the trainer's.
    """

    coprs: TrainableCoPRS
    rates: LearningRates
    optimizer: Any
    lr_scheduler: Any
    model: Any
    args: Any

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.rates.build_optimizer(model or self.model, self.args)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:  # all processes gather what is sharded; one writes it
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        own = dict(self.model.named_parameters())
        learnt, values = [name for name, p in own.items() if p.requires_grad], state_dict or own
        whole = {name: values[name].detach().cpu().clone() for name in learnt}
        with write_errors_as_user_error(folder):
            save_file(whole, folder / TRAINED_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore the moments as saved, but the learning rates as the recipe sets them now."""
        base: Any = super()
        rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        base._load_optimizer_and_scheduler(checkpoint)
        self.lr_scheduler.base_lrs = rates
        for group, rate, share in zip(
            self.optimizer.param_groups, rates, self.lr_scheduler.lr_lambdas, strict=True
        ):
            group["initial_lr"] = rate
            group["lr"] = rate * share(self.lr_scheduler.last_epoch)
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained_weights(self.model, Path(resume_from_checkpoint) / TRAINED_FILE)


def load_trained_weights(model: nn.Module, trained: Path) -> None:
    """Load what `TrainerMixin` saved into a model, be it sharded."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in load_file(trained).items():
            place = own[name]
            if isinstance(place, DTensor):
                value = distribute_tensor(
                    value.to(place.device), place.device_mesh, place.placements
                )
            place.copy_(value)


def apply_trained_weights(model: CoPRS, trained: Path) -> CoPRS:
    """Load what `TrainerMixin` saved into a model that is not in training."""
    _attach_heads(model)
    load_trained_weights(model.mllm, trained)
    return _detach_heads(model)


def _attach_heads(model: CoPRS) -> None:
    """Make prior and decoder submodules of the language model, so that its trainer, which knows
    that alone, saves, shards and steps them, too."""
    heads = nn.ModuleDict({"prior": model.prior, "decoder": model.decoder})
    model.mllm.add_module(HEADS_MODULE, heads)


def _detach_heads(model: CoPRS) -> CoPRS:
    del model.mllm._modules[HEADS_MODULE]
    return model
