"""The supervised warm-up: a model that does not know the form of a reply learns it by imitation,
for a format reward is not learnt from nothing."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments, set_seed

from coprs_core.datasets.dataset import Dataset
from coprs_core.example import Example
from coprs_core.model.coprs import CoPRS
from coprs_core.prompts import FOCUS_TOKEN
from coprs_core.training.focus import TrainableCoPRS, TrainerMixin
from coprs_core.training.objective import Objective, segmentation_term
from coprs_core.training.rates import LearningRates

_HuggingFaceTrainer: Any = Trainer


def imitation_reply(item: Example) -> str:
    """The reply to imitate: the item's own, or one that has the form and no more."""
    if item.reply:
        return item.reply
    request = item.instruction.strip().rstrip(".").replace("<", "")  # no special token of its own
    if not item.masks:
        return f"<think>I am asked for {request}. I see none.</think>Nothing in this picture fits."
    lead = "It is here:" if len(item.masks) == 1 else "They are here:"
    tokens = " ".join([FOCUS_TOKEN] * len(item.masks))
    return f"<think>I am asked for {request}.</think>{lead} {tokens}"


class WarmUpTrainer(TrainerMixin, _HuggingFaceTrainer):
    """Cross-entropy on the replies, and λ_SEG · L_SEG at their focus tokens."""

    def __init__(
        self,
        model: CoPRS,
        processor: Any,
        dataset: Dataset,
        objective: Objective,
        args: TrainingArguments,
        rates: LearningRates,
        adapters: LoraConfig | None = None,
        embeddings: Path | None = None,
        **options: Any,
    ):
        self.coprs = TrainableCoPRS(model, processor, dataset, embeddings)
        self.rates, self._objective = rates, objective
        set_seed(args.seed)  # the adapters are drawn before the trainer does so
        numbers: Any = [{"index": i} for i in range(len(dataset))]
        super().__init__(
            model=get_peft_model(model.mllm, adapters) if adapters else model.mllm,
            args=args,
            train_dataset=numbers,
            data_collator=lambda rows: {"index": torch.tensor([row["index"] for row in rows])},
            **options,
        )
        self.model_accepts_loss_kwargs = False  # else parts of a batch are added up, not averaged
        self.coprs.set_trainable(self.model)
        self.coprs.patch_forward(
            lambda outputs, _, prior, mask: {"logits": outputs.logits, "prior": prior, "mask": mask}
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        focus, tokenizer = self.coprs, self.coprs.tokenizer
        items = [focus.get_example(i) for i in inputs["index"].tolist()]
        replies = [
            [*tokenizer(imitation_reply(item)).input_ids, tokenizer.eos_token_id] for item in items
        ]
        read, starts = focus.encode_batch(items, replies)
        focus_batch = focus.focus_batch(items, read["input_ids"], starts)
        with focus.drawing(focus_batch):
            num_logits = read["input_ids"].shape[1] - min(starts) + 1
            outputs = model(**read, use_cache=False, logits_to_keep=num_logits)
        logits, step = (outputs["prior"], outputs["mask"]), self.state.global_step
        segmentation = segmentation_term(self._objective, *logits, focus_batch.target, step)
        return (
            _language_loss(outputs["logits"], read, starts)
            + self._objective.segmentation * segmentation
        )


def _language_loss(logits: Tensor, inputs: dict, starts: list[int]) -> Tensor:
    """Cross-entropy of the replies' tokens, averaged over all of them; `logits` of the last columns
    alone."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for row, start in enumerate(starts):
        labels[row, :start] = -100
    labels = labels[:, 1 - logits.shape[1] :].flatten()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels)
