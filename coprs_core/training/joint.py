"""The joint stage: GRPO on the reply and L_SEG on prior and mask, from one forward pass, in one
backward (paper, section 3.4).

The engine is TRL's `GRPOTrainer`: sampling, groups, clipping, KL, accumulation, several processes.
What it does not know stands here: what a mask earns, and the segmentation loss.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput
from trl import GRPOConfig, GRPOTrainer

from coprs_core.geometry import to_mllm_frame, to_sam_frame, unpadded_size
from coprs_core.metrics import iou
from coprs_core.model.coprs import CoPRS
from coprs_core.prompts import FOCUS_TOKEN, IMAGE_SLOT, INSTRUCTION_SLOT
from coprs_core.training.items import Item, Items, target_of
from coprs_core.training.losses import segmentation_loss
from coprs_core.training.objective import Objective, reply_scores
from coprs_core.training.rewards import mask_reward

HEADS = "focus_heads"
"""Under this name prior and decoder hang beside the language model while it is trained."""
TRAINED = "trained.safetensors"
REMEMBERED = 512
"""So many items, and embeddings of their photos, are kept."""
_IMAGE_TOKEN, _VISION_TOWER = "<|image_pad|>", ".visual."


@dataclass(frozen=True)
class Rates:
    """Learning rates as multiples of the language model's (paper's scripts: 25, 10, 5)."""

    prior: float = 25.0
    prompt_encoder: float = 10.0
    mask_decoder: float = 5.0

    def of(self, name: str) -> float:
        """The multiple for a parameter by its name, with or without the prefixes of adapters."""
        part = re.search(rf"(?:^|\.){HEADS}\.(?:decoder\.)?(\w+)\.", name)
        return 1.0 if part is None else getattr(self, part[1])


@dataclass
class _FocusRows:
    """The focus tokens of a batch: `rows`, `columns` [N] in the token ids; `embedding`
    [N, C, h, w], `sizes` [N, 2], and the soft `target` [N, 1, p, p] of what each is to find."""

    rows: Tensor
    columns: Tensor
    embedding: Tensor
    sizes: Tensor
    target: Tensor


@dataclass
class _JointOutput(ModelOutput):
    """What the model gives back in a step: TRL's own fields, and the logits of prior and mask, so
    that other processes know that their parameters were used."""

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    aux_loss: Tensor | None = None
    prior_logits: Tensor | None = None
    mask_logits: Tensor | None = None


def mask(**_: Any) -> list[float]:
    """Names the share of the mask in TRL's log; what it earns is worked out by `JointTrainer`."""
    raise NotImplementedError


def form(**_: Any) -> list[float]:
    """As `mask`, for the form of the reply."""
    raise NotImplementedError


_Engine: Any = GRPOTrainer


class JointTrainer(_Engine):
    """`GRPOTrainer` with the mask's reward, and λ_SEG · L_SEG added to its loss.

    Its overridden methods are TRL 1.16's; `tests/test_joint.py` holds their signatures.
    """

    def __init__(
        self,
        model: CoPRS,
        processor: Any,
        items: Items,
        objective: Objective,
        args: GRPOConfig,
        rates: Rates = Rates(),  # noqa: B008
        **options: Any,
    ):
        self.coprs = model
        self._objective, self._rates = objective, rates
        self.item = lru_cache(REMEMBERED)(items.__getitem__)
        self._embedding = lru_cache(REMEMBERED)(self._encode)
        self._pending: _FocusRows | None = None
        self._hidden: Any = None
        self._segmentation: Any = None
        mllm = self.coprs.mllm
        heads = {"prior": self.coprs.prior, "decoder": self.coprs.decoder}
        mllm.add_module(HEADS, nn.ModuleDict(heads))
        self._pixels = self.coprs.config.mllm_pixels
        processor.tokenizer.padding_side = "left"  # as TRL pads prompts
        processor.chat_template = chat_template(model.config.prompt_template)
        numbers = Dataset.from_dict({"index": range(len(items))})
        super().__init__(
            model=mllm,
            reward_funcs=[mask, form],
            args=args,
            train_dataset=numbers.with_transform(self._shown),
            processing_class=processor,
            **options,
        )
        self._base = mllm
        is_adapted = any("lora_" in name for name, _ in self.model.named_parameters())
        for name, parameter in self.model.named_parameters():
            if (
                f"{HEADS}." in name or not is_adapted
            ):  # adapters are chosen by whoever asks for them
                parameter.requires_grad_(_VISION_TOWER not in name)
        mllm.base_model.register_forward_hook(self._keep_hidden)
        mllm.forward = self._with_segmentation(mllm.forward, type(mllm).forward)

    # --- data

    def _shown(self, batch: dict[str, list]) -> dict[str, list]:
        """Items by number, as TRL takes them: a conversation and its picture."""
        items = [self.item(i) for i in batch["index"]]
        return {
            "index": batch["index"],
            "prompt": [[{"role": "user", "content": item.instruction}] for item in items],
            "image": [to_mllm_frame(item.photo, self._pixels) for item in items],
        }

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([row["index"] for row in inputs])
        return super()._generate_and_score_completions(inputs) | {"index": numbers}

    # --- rewards

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        items = [self.item(row["index"]) for row in inputs]
        size = self.args.per_device_train_batch_size
        earned: list[tuple[float, float]] = []
        for start in range(0, len(items), size):
            part = slice(start, start + size)
            earned += self._earned(items[part], prompts[part], completion_ids_list[part])
        return gather(torch.tensor(earned, device=self.accelerator.device))

    @torch.no_grad()
    def _earned(self, items: list[Item], prompts: list, written: list[list[int]]) -> list[tuple]:
        """(mask, form) of each reply: it is read once more, and prior and mask are drawn."""
        prompt_ids, _, fields = self._tokenize_prompts(prompts)
        whole = [torch.tensor([*p, *w]) for p, w in zip(prompt_ids, written, strict=True)]
        ids = nn.utils.rnn.pad_sequence(whole, True, self._tokenizer.pad_token_id)
        seen = nn.utils.rnn.pad_sequence([torch.ones_like(w) for w in whole], True)
        starts = [len(p) for p in prompt_ids]
        device = self.accelerator.device
        fields = {k: v.to(device) for k, v in fields.items() if isinstance(v, Tensor)}
        if "image_grid_thw" in fields:
            fields["mm_token_type_ids"] = torch.eq(ids, self._image_pad_token_id).int().to(device)
        with self.accelerator.autocast():
            self._base.base_model(
                input_ids=ids.to(device), attention_mask=seen.to(device), use_cache=False, **fields
            )
            rows = self._focus_rows(items, ids, starts)
            logits = self._focus(rows)
        scores = mask_reward(logits[1].float().sigmoid(), rows.target)[:, 0].tolist()
        self._report(rows, *logits)
        earned = []
        for i, (item, reply_ids) in enumerate(zip(items, written, strict=True)):
            reply = self._tokenizer.decode([t for t in reply_ids if t not in self.eos_token_ids])
            own = [s for s, row in zip(scores, rows.rows.tolist(), strict=True) if row == i]
            most = max(reply.count(FOCUS_TOKEN), len(item.masks), 1)
            earned.append(reply_scores(reply, sum(own) / most, len(item.masks)))
        return earned

    def _report(self, rows: _FocusRows, prior_logits: Tensor, mask_logits: Tensor) -> None:
        target = (rows.target > 0.5).cpu().numpy()
        for name, logits in (("prior_iou", prior_logits), ("mask_iou", mask_logits)):
            found = (logits > 0).cpu().numpy()
            for one, true in zip(found, target, strict=True):
                self._log_metric(name, iou(one, true))

    # --- the segmentation loss

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        items = [self.item(i) for i in inputs["index"].tolist()]
        starts = [inputs["prompt_ids"].shape[1]] * len(items)
        ends = inputs["completion_mask"].sum(1).tolist()
        self._pending = self._focus_rows(items, ids, starts, ends)
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._pending = None
        self._metrics["train"]["segmentation"].append(float(self._segmentation.detach()))
        segmentation = self._objective.segmentation * self._segmentation
        return loss + segmentation / self.current_gradient_accumulation_steps

    def _with_segmentation(self, fused: Callable, signature: Callable) -> Callable:
        """The language model's forward as TRL patched it, which in a step of learning draws prior
        and mask from the same hidden states; it keeps the model's own `signature`, which sampling
        reads."""

        @wraps(signature)
        def forward(*args: Any, **options: Any) -> Any:
            outputs, rows = fused(*args, **options), self._pending
            if rows is None or not options.get("fused_lm_head"):
                return outputs
            prior_logits, mask_logits = self._focus(rows)
            self._segmentation = (prior_logits.sum() + mask_logits.sum()) * 0.0
            if len(rows.rows):
                weights = self._objective.weights(self.state.global_step)
                self._segmentation = segmentation_loss(
                    prior_logits, mask_logits, rows.target, *weights
                )
            told = outputs.loss, outputs.log_probs, outputs.entropy, outputs.aux_loss
            return _JointOutput(*told, prior_logits, mask_logits)

        return forward

    def _keep_hidden(self, _module: nn.Module, _args: tuple, outputs: Any) -> None:
        self._hidden = outputs.last_hidden_state

    def _focus(self, rows: _FocusRows) -> tuple[Tensor, Tensor]:
        """Prior and mask logits [N, 1, p, p] from the hidden states that were read last."""
        if not len(rows.rows):
            return rows.target, rows.target  # nothing, of the right shape
        focus_embedding = self._hidden[rows.rows, rows.columns].to(self.coprs.dtype)
        return self.coprs.focus(focus_embedding, rows.embedding, rows.sizes)

    def _focus_rows(
        self, items: list[Item], ids: Tensor, starts: list[int], ends: list[int] | None = None
    ) -> _FocusRows:
        """The focus tokens of replies that have a thing to find, in order, the k-th with the k-th
        thing; replies begin at `starts` and are `ends` tokens long."""
        focus_id = self._tokenizer.convert_tokens_to_ids(self.coprs.config.focus_token)
        rows, columns, embeddings, sizes, targets = [], [], [], [], []
        vision, device = self.coprs.config.vision, self.accelerator.device
        for row, item in enumerate(items):
            stop = None if ends is None else starts[row] + ends[row]
            is_focus = torch.eq(ids[row, starts[row] : stop], focus_id)
            places = is_focus.nonzero()[:, 0] + starts[row]
            for place, true in zip(places.tolist(), item.masks, strict=False):
                rows.append(row)
                columns.append(place)
                embeddings.append(self._embedding(item))
                sizes.append(unpadded_size(true.shape, vision.side))
                targets.append(target_of(true, vision))
        if not rows:
            return _empty(vision, device, self.coprs.dtype)
        return _FocusRows(
            torch.tensor(rows, device=device),
            torch.tensor(columns, device=device),
            torch.stack(embeddings).to(device),
            torch.tensor(sizes, device=device),
            torch.stack(targets).to(device),
        )

    @torch.no_grad()
    def _encode(self, item: Item) -> Tensor:
        """SAM's image embedding [C, h, w]; its encoder is not trained."""
        encoder, side = self.coprs.image_encoder, self.coprs.config.vision.side
        place = next(encoder.parameters())
        return encoder(to_sam_frame(item.photo, side).to(place.device, place.dtype))[0]

    # --- what is learnt, and how fast

    def create_optimizer(self, model: nn.Module | None = None):
        if self.optimizer is None:
            groups: dict[float, list[nn.Parameter]] = {}
            for name, parameter in (model or self.model).named_parameters():
                if parameter.requires_grad:
                    groups.setdefault(self._rates.of(name), []).append(parameter)
            a = self.args
            self.optimizer = torch.optim.AdamW(
                [{"params": p, "lr": a.learning_rate * times} for times, p in groups.items()],
                betas=(a.adam_beta1, a.adam_beta2),
                eps=a.adam_epsilon,
                weight_decay=a.weight_decay,
            )
        return self.optimizer

    # --- what is written, to go on from

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        learnt = {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file({n: p.clone() for n, p in learnt.items()}, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        learnt = load_file(Path(resume_from_checkpoint) / TRAINED)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in learnt.items():
                own[name].copy_(value)

    def finished(self) -> CoPRS:
        """The trained model, as it was before it hung on the trainer."""
        del self._base._modules[HEADS]
        del self._base.forward  # TRL's and ours stood before the class's own
        return self.coprs


def _empty(vision: Any, device: torch.device, dtype: torch.dtype) -> _FocusRows:
    none = torch.zeros(0, dtype=torch.long, device=device)
    shape = 0, vision.channels, vision.grid, vision.grid
    embedding = torch.zeros(shape, device=device, dtype=dtype)
    target = torch.zeros(0, 1, vision.prior_side, vision.prior_side, device=device)
    return _FocusRows(none, none, embedding, none.view(0, 2), target)


def chat_template(template: str) -> str:
    """A prompt template of ours as the Jinja template of a processor; TRL writes prompts so."""
    before, after = template.split(INSTRUCTION_SLOT)
    before, after = (part.replace(IMAGE_SLOT, _IMAGE_TOKEN) for part in (before, after))
    said = (
        "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}"
        "{% for part in messages[0].content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    )
    return "{{ " + repr(before) + " }}" + said + "{{ " + repr(after) + " }}"
