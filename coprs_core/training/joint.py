"""The joint stage: GRPO on the reply and L_SEG on prior and mask, from one forward pass, in one
backward (paper, section 3.4).

The engine is TRL's `GRPOTrainer`: sampling, groups, clipping, KL, accumulation, several processes.
What it does not know stands here: what a mask earns, and the segmentation loss.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset as TableOfNumbers
from torch import Tensor
from torch.utils.data import Sampler
from transformers.utils import ModelOutput
from trl import GRPOConfig, GRPOTrainer

from coprs_core.datasets.dataset import Dataset
from coprs_core.errors import CoPRSError
from coprs_core.example import Example
from coprs_core.metrics import iou
from coprs_core.model.coprs import CoPRS
from coprs_core.prompts import FOCUS_TOKEN, IMAGE_SLOT, INSTRUCTION_SLOT
from coprs_core.training.focus import (
    IMAGE_TOKEN,
    MAX_CACHED_ITEMS,
    FocusBatch,
    TrainableCoPRS,
    TrainerMixin,
)
from coprs_core.training.objective import Objective, score_reply, segmentation_term
from coprs_core.training.rates import HEADS_MODULE, LearningRates
from coprs_core.training.rewards import mask_reward


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
    """Gives the mask's reward its name in TRL's log, which is this function's name; what a reply
    earns is computed by `JointTrainer`."""
    raise NotImplementedError


def form(**_: Any) -> list[float]:
    """As `mask`, for the form of the reply."""
    raise NotImplementedError


class _EpochSeededSampler(Sampler):
    """A sampler of TRL's, seeded anew in each epoch, so that a resumed run sees the same order."""

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]):
        self._sampler, self._seed, self._epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator.manual_seed(self._seed + self._epoch())
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


_TrlTrainer: Any = GRPOTrainer


class JointTrainer(TrainerMixin, _TrlTrainer):
    """`GRPOTrainer` with the mask's reward, and λ_SEG · L_SEG added to its loss.

    Its overridden methods are TRL 1.16's; its tests hold their signatures.
    """

    def __init__(
        self,
        model: CoPRS,
        processor: Any,
        dataset: Dataset,
        objective: Objective,
        args: GRPOConfig,
        rates: LearningRates = LearningRates(),  # noqa: B008
        embeddings: Path | None = None,
        **options: Any,
    ):
        self.coprs = TrainableCoPRS(model, processor, dataset, embeddings)
        # one picture for all replies to a question: each part of a step asks for all of the step's
        self._mllm_image = lru_cache(MAX_CACHED_ITEMS)(
            lambda number: self.coprs.mllm_image(self.coprs.get_example(number))
        )
        self.rates, self._objective = rates, objective
        self._segmentation: Any = None
        mllm = model.mllm
        processor.tokenizer.padding_side = "left"  # as TRL pads prompts
        processor.chat_template = to_chat_template(model.config.prompt_template)
        numbers = TableOfNumbers.from_dict({"index": range(len(dataset))})
        super().__init__(
            model=mllm,
            reward_funcs=[mask, form],
            args=args,
            train_dataset=numbers.with_transform(self._to_trl_rows),
            processing_class=processor,
            **options,
        )
        self.coprs.set_trainable(self.model)
        # sharded processes must all write a word at a time until the last one has ended
        mllm._is_fsdp_managed_module = self.is_fsdp_enabled
        # vLLM loads weights by name and fails over any that it does not know
        if self.use_vllm:
            self._hide_heads_from_vllm()
        # TRL patched it before, and names a step of learning so
        self.coprs.patch_forward(self._add_segmentation_loss, only_with="fused_lm_head")

    def _hide_heads_from_vllm(self) -> None:
        """Send vLLM, which writes replies alone, the language model without prior and decoder."""
        generation: Any = self.vllm_generation
        everything = generation._iter_named_params
        generation._iter_named_params = lambda: (
            p for p in everything() if HEADS_MODULE not in p[0]
        )

    # --- data

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        """TRL's sampler, whose order in an epoch does not depend on where a run was resumed."""
        sampler: Any = super()._get_train_sampler(dataset)
        return _EpochSeededSampler(sampler, self.args.seed, lambda: int(self.state.epoch or 0))

    def _to_trl_rows(self, batch: dict[str, list]) -> dict[str, list]:
        """Items by number, as TRL takes them: a conversation and its image."""
        items = [self.coprs.get_example(i) for i in batch["index"]]
        tokens = self._tokenizer.get_added_vocab()
        for item in items:
            _check_no_special_tokens(item.instruction, tokens)
        return {
            "index": batch["index"],
            "prompt": [[{"role": "user", "content": item.instruction}] for item in items],
            "image": [self._mllm_image(number) for number in batch["index"]],
        }

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([row["index"] for row in inputs])
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        first = self.accelerator.process_index * len(inputs)
        of_each = self._is_flat.repeat_interleave(self.num_generations)
        is_flat = of_each[first : first + len(inputs)]
        # the mean of equal rewards is off by a rounding, which is no advantage
        advantages = batch["advantages"].masked_fill(is_flat, 0.0)
        return batch | {"index": numbers, "advantages": advantages}

    # --- rewards

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        items = [self.coprs.get_example(row["index"]) for row in inputs]
        size = self.args.per_device_train_batch_size
        earned: list[tuple[float, float]] = []
        for start in range(0, len(items), size):
            part = slice(start, start + size)
            earned += self._score_replies(items[part], completion_ids_list[part])
        everyone = gather(torch.tensor(earned, device=self.accelerator.device))
        self._is_flat = find_flat_groups(everyone, self.num_generations, self._objective)
        self._log_metric("flat", float(self._is_flat.float().mean()))
        return equalize_flat_groups(everyone, self.num_generations, self._is_flat)

    @torch.no_grad()
    def _score_replies(
        self, items: list[Example], reply_tokens: list[list[int]]
    ) -> list[tuple[float, float]]:
        """(mask, form) of each reply: it is read once more, and prior and mask are drawn."""
        inputs, starts = self.coprs.encode_batch(items, reply_tokens)
        focus_batch = self.coprs.focus_batch(items, inputs["input_ids"], starts)
        with self.accelerator.autocast(), self.coprs.drawing(focus_batch):
            self.model(**inputs, use_cache=False, logits_to_keep=1)
        logits = self.coprs.last_logits
        scores = mask_reward(logits[1].float().sigmoid(), focus_batch.target)[:, 0].tolist()
        self._log_ious(focus_batch, *logits)
        earned = []
        for i, (item, reply_ids) in enumerate(zip(items, reply_tokens, strict=True)):
            reply = self._tokenizer.decode([t for t in reply_ids if t not in self.eos_token_ids])
            if reply.count(FOCUS_TOKEN) != list(reply_ids).count(self.coprs.focus_id):
                earned.append((0.0, 0.0))  # it spelled the token out, which draws nothing
                continue
            own = [s for s, row in zip(scores, focus_batch.rows.tolist(), strict=True) if row == i]
            most = max(reply.count(FOCUS_TOKEN), len(item.masks), 1)
            earned.append(score_reply(reply, sum(own) / most, len(item.masks)))
        return earned

    def _log_ious(self, focus_batch: FocusBatch, prior_logits: Tensor, mask_logits: Tensor) -> None:
        target = (focus_batch.target > 0.5).cpu().numpy()
        for name, logits in (("prior_iou", prior_logits), ("mask_iou", mask_logits)):
            found = (logits > 0).cpu().numpy()
            for one, true in zip(found, target, strict=True):
                if true.any():  # else it is too small to be seen at this size
                    self._log_metric(name, iou(one, true))

    # --- the segmentation loss

    def _compute_loss(self, model, inputs):
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        items = [self.coprs.get_example(i) for i in inputs["index"].tolist()]
        starts = [inputs["prompt_ids"].shape[1]] * len(items)
        ends = inputs["completion_mask"].sum(1).tolist()
        with self.coprs.drawing(self.coprs.focus_batch(items, ids, starts, ends)):
            loss = super()._compute_loss(model, inputs)
        self._metrics["train"]["segmentation"].append(float(self._segmentation.detach()))
        segmentation = self._objective.segmentation * self._segmentation
        return (
            self._objective.policy * loss + segmentation / self.current_gradient_accumulation_steps
        )

    def _add_segmentation_loss(
        self, outputs: Any, focus_batch: FocusBatch, prior_logits: Tensor, mask_logits: Tensor
    ) -> _JointOutput:
        """The model's output in a training step; L_SEG is kept for `_compute_loss`."""
        logits, step = (prior_logits, mask_logits), self.state.global_step
        self._segmentation = segmentation_term(self._objective, *logits, focus_batch.target, step)
        fields = outputs.loss, outputs.log_probs, outputs.entropy, outputs.aux_loss
        return _JointOutput(*fields, *logits)


def _check_no_special_tokens(instruction: str, tokens: Iterable[str]) -> None:
    """Raises `CoPRSError` for an instruction with a special token: TRL would read it as that token,
    the engine as plain text."""
    for token in tokens:
        if token in instruction:
            raise CoPRSError(
                f"The instruction “{instruction}” holds {token}, which is a token of its own to "
                "this model: write it otherwise."
            )


def find_flat_groups(earned: Tensor, group: int, objective: Objective) -> Tensor:
    """bool [N], for each group: whether what its replies earn, [N × group, 2] for mask and form,
    makes rewards that are equal, or differ by less than `objective.least_spread`."""
    # the rewards must be equal, not mask and form each: TRL scales their weighted sum
    groups = earned.view(-1, group, 2)
    share = groups.new_tensor([objective.mask_share, 1 - objective.mask_share])
    rewards = (groups * share).sum(-1)
    spread = rewards.amax(1) - rewards.amin(1)
    return (spread == 0) | (spread < objective.least_spread)


def equalize_flat_groups(earned: Tensor, group: int, is_flat: Tensor) -> Tensor:
    """What replies earn [N × group, 2] for mask and form, with one value for all of a flat
    group."""
    groups = earned.view(-1, group, 2)
    same = groups.mean(1, keepdim=True).expand_as(groups)
    return torch.where(is_flat[:, None, None], same, groups).view_as(earned)


def to_chat_template(template: str) -> str:
    """Convert a prompt template to a processor's Jinja template, with which TRL writes prompts."""
    before, after = template.split(INSTRUCTION_SLOT)
    before, after = (part.replace(IMAGE_SLOT, IMAGE_TOKEN) for part in (before, after))
    content = (
        "{% if messages[0].content is string %}{{ messages[0].content }}{% else %}"
        "{% for part in messages[0].content %}"
        "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    )
    return "{{ " + repr(before) + " }}" + content + "{{ " + repr(after) + " }}"
