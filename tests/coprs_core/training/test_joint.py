"""The joint stage on the real miniature: TRL's engine with our reward and loss, against plain
formulas."""

import inspect
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
pytest.importorskip("trl")

from peft import LoraConfig  # noqa: E402
from safetensors import SafetensorError  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoProcessor, get_scheduler  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from coprs_core import CoPRSError, load  # noqa: E402
from coprs_core.__main__ import main  # noqa: E402
from coprs_core.answer.engine import Engine  # noqa: E402
from coprs_core.checkpoints.load import MINIATURE_FOLDER, load_checkpoint  # noqa: E402
from coprs_core.checkpoints.options import LoadOptions  # noqa: E402
from coprs_core.checkpoints.save import save_checkpoint  # noqa: E402
from coprs_core.checkpoints.tensors import write_errors_as_user_error  # noqa: E402
from coprs_core.commands import train  # noqa: E402
from coprs_core.datasets import open_dataset  # noqa: E402
from coprs_core.datasets.dataset import Dataset  # noqa: E402
from coprs_core.datasets.folder import LISTING  # noqa: E402
from coprs_core.datasets.scenes import training_scenes  # noqa: E402
from coprs_core.example import Example  # noqa: E402
from coprs_core.mini.train.recipe import MINI_RECIPE  # noqa: E402
from coprs_core.mini.world.questions import QuestionMix, draw_examples  # noqa: E402
from coprs_core.photos.photo import Photo  # noqa: E402
from coprs_core.prompts import FOCUS_TOKEN, encode_prompt, is_well_formed  # noqa: E402
from coprs_core.training import embedding_cache as embeddings
from coprs_core.training import run_joint
from coprs_core.training.data import to_soft_target  # noqa: E402
from coprs_core.training.embedding_cache import EmbeddingCache  # noqa: E402
from coprs_core.training.focus import TrainerMixin  # noqa: E402
from coprs_core.training.joint import (  # noqa: E402
    JointTrainer,
    equalize_flat_groups,
    find_flat_groups,
    to_chat_template,
)
from coprs_core.training.objective import (  # noqa: E402
    PRESETS,
    score_reply,
)  # noqa: E402
from coprs_core.training.plan import TrainingPlan, plan_training  # noqa: E402
from coprs_core.training.rates import HEADS_MODULE, LearningRates  # noqa: E402
from coprs_core.training.recipe import RECIPE_NAMES, JointRecipe, read_recipe  # noqa: E402
from coprs_core.training.run_folder import save_recipe  # noqa: E402
from coprs_core.training.warmup import imitation_reply  # noqa: E402
from tests import ROOT, tiny  # noqa: E402
from tests.formulas import Rollouts, group_advantages, unified_loss  # noqa: E402

FAMILIES = QuestionMix({"name": 1.0, "colour": 1.0, "several": 1.0}, nothing=0.3)
OBJECTIVE = PRESETS["paper"]


def trainer(folder, items=None, peft=None, **changes) -> JointTrainer:
    loaded = load_checkpoint("mini", LoadOptions(device="cpu"))
    model = loaded.segmenter.model.float()
    model.mllm.config._name_or_path = str(loaded.language_folder)
    options = dict(
        output_dir=str(folder), per_device_train_batch_size=8, num_generations=4, max_completion_length=90,
        beta=OBJECTIVE.kl, epsilon=OBJECTIVE.clip, loss_type="bnpo", scale_rewards="group", learning_rate=1e-4,
        use_bias_correction_kl=False, max_grad_norm=1.0, logging_steps=1, max_steps=1, report_to=[], use_cpu=True,
        bf16=False, gradient_checkpointing=False, remove_unused_columns=False, save_strategy="no", disable_tqdm=True,
        reward_weights=[OBJECTIVE.mask_share, 1 - OBJECTIVE.mask_share], temperature=1.0, seed=0,
    )  # fmt: skip
    return JointTrainer(
        model,
        AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm", trust_remote_code=False),
        items or training_scenes(64, asking=FAMILIES, name="joint test"),
        OBJECTIVE,
        GRPOConfig(**options | changes),
        peft_config=peft,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trainer, and a batch that it sampled and scored before any step."""
    one = trainer(tmp_path_factory.mktemp("joint"))
    one.model.train()
    one.create_optimizer_and_scheduler(1)
    rows = [one.train_dataset[i // 4] for i in range(8)]
    one.current_gradient_accumulation_steps = 1
    return one, one._generate_and_score_completions(rows)


def plain(one, batch, log_probs=None):
    """Everything that the objective needs, without TRL: from the model's own logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    start, mllm = batch["prompt_ids"].shape[1], one.coprs.model.mllm
    out = one.coprs.model.mllm.base_model(
        input_ids=ids, attention_mask=seen, pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"], mm_token_type_ids=batch["mm_token_type_ids"], use_cache=False,
    )  # fmt: skip
    hidden = out.last_hidden_state
    logits = mllm.lm_head(hidden[:, start - 1 : -1]).log_softmax(-1)
    own = logits.gather(-1, batch["completion_ids"][..., None])[..., 0]
    focus_id = one._tokenizer.convert_tokens_to_ids(FOCUS_TOKEN)
    embeddings, features, targets = [], [], []
    for row, number in enumerate(batch["index"].tolist()):
        item = one.coprs.get_example(number)
        length = int(batch["completion_mask"][row].sum())
        places = [k for k in range(length) if batch["completion_ids"][row, k] == focus_id]
        for k, mask in zip(places, item.masks, strict=False):
            embeddings.append(hidden[row, start + k])
            features.append(one.coprs.image_embedding(item))
            targets.append(to_soft_target(mask, one.coprs.model.config.vision))
    side = one.coprs.model.config.vision.side
    sizes = torch.tensor([[side, side]] * len(targets))
    drawn = one.coprs.model.focus(torch.stack(embeddings), torch.stack(features), sizes)
    return own, drawn, torch.stack(targets)


def test_the_overridden_methods_are_those_that_trl_calls():
    expected = {
        "_generate_and_score_completions": ["self", "inputs"],
        "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
        "_compute_loss": ["self", "model", "inputs"],
        "_get_train_sampler": ["self", "dataset"],
        "create_optimizer": ["self", "model"],
        "_save": ["self", "output_dir", "state_dict"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    }
    own = {name for kind in (JointTrainer, TrainerMixin) for name in vars(kind)}
    overridden = {name for name in own if callable(getattr(GRPOTrainer, name, None))}
    assert {n for n in overridden if not n.startswith("__")} == expected.keys()
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters, name


def test_prompts_are_written_as_the_engine_writes_them(mini):
    processor = AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm", trust_remote_code=False)
    template = mini.model.config.prompt_template
    processor.chat_template = to_chat_template(template)
    for _, question in draw_examples("train", 0, 20):
        said = [{"role": "user", "content": question.instruction}]
        text = processor.apply_chat_template(said, add_generation_prompt=True)
        ids = processor.tokenizer(text).input_ids
        image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        assert ids == encode_prompt(processor.tokenizer, template, question.instruction, [image])


@pytest.mark.parametrize("updates", [0, 1])
def test_loss_and_gradients_equal_the_plain_formulas(made, updates):
    """Also in the second pass over one batch, where old probabilities differ from the model's,
    most of them by so much that they are clipped."""
    one, batch = made
    old = None
    if updates:
        apart = torch.randn(batch["ref_per_token_logps"].shape, generator=torch.manual_seed(0))
        old = batch["ref_per_token_logps"] + 0.4 * apart
        batch = {**batch, "old_per_token_logps": old}
    one.model.zero_grad()
    loss = one._compute_loss(one.model, batch)
    loss.backward()
    theirs = {n: p.grad.clone() for n, p in one.model.named_parameters() if p.grad is not None}
    one.model.zero_grad()
    own, drawn, target = plain(one, batch)
    written = batch["completion_mask"]
    old = own.detach() if old is None else old
    rollouts = Rollouts(own, old, batch["ref_per_token_logps"], batch["advantages"], written)
    terms = unified_loss(OBJECTIVE, rollouts, *drawn, target)
    terms.total.backward()
    assert loss.item() == pytest.approx(terms.total.item(), abs=2e-5)
    ours = {n: p.grad for n, p in one.model.named_parameters() if p.grad is not None}
    assert theirs.keys() >= ours.keys() and any(HEADS_MODULE in n for n in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=2e-6)


def test_kl_is_nothing_before_the_first_update(made):
    one, batch = made
    one._metrics["train"]["kl"].clear()
    with torch.no_grad():
        one._compute_loss(one.model, batch)
    assert one._metrics["train"]["kl"] == [0.0]


def test_rewards_and_advantages_are_those_of_the_method(made):
    one, batch = made
    rewards = torch.tensor(
        [
            [OBJECTIVE.mask_share * m + (1 - OBJECTIVE.mask_share) * f]
            for m, f in zip(
                *(list(one._logs["rewards"][k])[-8:] for k in ("mask", "form")), strict=True
            )
        ]
    ).view(2, 4)
    assert ((rewards >= 0) & (rewards <= 1.0001)).all()
    expected = group_advantages(rewards, eps=1e-4).flatten()
    torch.testing.assert_close(batch["advantages"], expected, rtol=1e-3, atol=2e-3)


def test_every_row_keeps_its_prompt_its_picture_and_its_masks(made):
    from trl.trainer.utils import shuffle_sequence_dict, split_pixel_values_by_grid

    one, batch = made
    random.seed(3), torch.manual_seed(3)
    shuffled = shuffle_sequence_dict(split_pixel_values_by_grid(dict(batch)))
    assert shuffled["index"].tolist() != batch["index"].tolist()
    for row, number in enumerate(shuffled["index"].tolist()):
        item = one.coprs.get_example(number)
        ids = shuffled["prompt_ids"][row][shuffled["prompt_mask"][row].bool()]
        assert item.instruction in one._tokenizer.decode(ids)
        seen = one.processing_class.image_processor(images=[item.photo], return_tensors="pt")
        torch.testing.assert_close(shuffled["pixel_values"][row], seen["pixel_values"])


def test_each_term_teaches_what_it_should_and_nothing_else(made, monkeypatch):
    one, batch = made
    names = {n for n, p in one.model.named_parameters() if p.requires_grad}
    assert not any(".visual." in n for n in names)
    assert not any(p.requires_grad for p in one.coprs.model.image_encoder.parameters())
    one.model.zero_grad()
    flat = {**batch, "advantages": torch.zeros_like(batch["advantages"])}
    one._compute_loss(one.model, flat).backward()  # the segmentation term alone, KL being nothing
    taught = {n for n, p in one.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(f"{HEADS_MODULE}.prior" in n for n in taught)
    assert any(f"{HEADS_MODULE}.decoder.mask_decoder" in n for n in taught)
    assert any("language_model.layers.0" in n for n in taught)  # through the focus token
    one.model.zero_grad()
    monkeypatch.setattr(one, "_objective", replace(OBJECTIVE, segmentation=0.0))
    told = torch.linspace(-1, 1, len(batch["advantages"]))
    one._compute_loss(one.model, {**batch, "advantages": told}).backward()  # the policy alone
    taught = {n for n, p in one.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught and not any(HEADS_MODULE in n for n in taught)


def test_without_the_policy_s_weight_segmentation_alone_is_learnt(made, monkeypatch):
    one, batch = made
    monkeypatch.setattr(one, "_objective", replace(OBJECTIVE, policy=0.0))
    with torch.no_grad():
        loss = one._compute_loss(one.model, batch)
    segmentation = one._metrics["train"]["segmentation"][-1]
    assert loss.item() == pytest.approx(OBJECTIVE.segmentation * segmentation, rel=1e-6)
    assert segmentation > 0 and read_recipe("mini-joint", ["policy=0.0"]).objective.policy == 0


def test_a_group_whose_rewards_hardly_differ_teaches_nothing():
    close, apart = [[0.90, 1.0], [0.91, 1.0]], [[0.90, 1.0], [0.2, 1.0]]
    earned, near = torch.tensor([*close, *apart]), replace(OBJECTIVE, least_spread=0.03)
    kept = equalize_flat_groups(earned, 2, find_flat_groups(earned, 2, near))
    assert torch.equal(kept[2:], earned[2:]) and kept[0].tolist() == kept[1].tolist()
    assert kept[0].tolist() == pytest.approx([0.905, 1.0])
    weights = torch.tensor([OBJECTIVE.mask_share, 1 - OBJECTIVE.mask_share])
    assert group_advantages((kept @ weights).view(2, 2), eps=1e-4)[0].tolist() == [0, 0]
    assert not find_flat_groups(earned, 2, OBJECTIVE).any()  # as the paper has it


def test_groups_that_earn_the_same_are_counted_and_have_no_advantages(made, monkeypatch):
    """Of eight equal rewards the mean is off by a rounding: by its deviation a group is not flat."""
    earned = torch.tensor([[0.7123, 1.0]] * 8 + [[0.7123, 1.0]] * 7 + [[0.0, 0.0]])
    assert find_flat_groups(earned, 8, OBJECTIVE).tolist() == [True, False]
    one, batch = made
    assert batch["advantages"].any()
    monkeypatch.setattr(one, "_objective", replace(OBJECTIVE, least_spread=10.0))
    again = one._generate_and_score_completions([one.train_dataset[i // 4] for i in range(8)])
    assert not again["advantages"].any() and one._metrics["train"]["flat"][-1] == 1


def test_an_instruction_that_holds_a_token_is_refused(made, monkeypatch):
    one, _ = made
    item = one.coprs.get_example
    monkeypatch.setattr(
        one.coprs, "get_example", lambda i: replace(item(i), instruction="the cat<|im_end|>")
    )
    with pytest.raises(CoPRSError, match=r"holds <\|im_end\|>"):
        one.train_dataset[0]


def test_a_focus_token_that_is_spelled_out_earns_nothing(made):
    one, _ = made
    tokenizer = one._tokenizer
    before = tokenizer("<think>I see a cup.</think>It is here:", add_special_tokens=False).input_ids
    spelled = [tokenizer.convert_tokens_to_ids(c) for c in tokenizer.tokenize("<REF")]
    spelled += tokenizer("_POS>", add_special_tokens=False).input_ids
    assert FOCUS_TOKEN in tokenizer.decode([*before, *spelled])
    item = next(i for i in map(one.coprs.get_example, range(64)) if len(i.masks) == 1)
    assert one._score_replies([item], [[*before, *spelled]]) == [(0.0, 0.0)]
    (earned,) = one._score_replies([item], [[*before, one.coprs.focus_id]])
    assert earned[1] == 1


WRITTEN = {
    "none": "<think>I see a cup.</think>Nothing in this picture fits.",
    "one": f"<think>I see a cup.</think>It is here: {FOCUS_TOKEN}",
    "two": f"<think>I see a cup.</think>They are here: {FOCUS_TOKEN} {FOCUS_TOKEN}",
}


@pytest.mark.parametrize("said, things, rows", [("none", 1, 0), ("one", 1, 1), ("two", 1, 1), ("two", 2, 2), ("one", 0, 0)])  # fmt: skip
def test_focus_tokens_are_paired_with_things(made, said, things, rows):
    one, _ = made
    photo = Image.new("RGB", (256, 256))
    masks = tuple(np.eye(256, dtype=bool) for _ in range(things))
    item = Example(photo, "the cup", masks)
    ids = torch.tensor([[5, 6, *one._tokenizer(WRITTEN[said]).input_ids]])
    found = one.coprs.focus_batch([item], ids, [2])
    assert len(found.rows) == rows == len(found.target) and found.embedding.shape[0] == rows
    written = [t for t in ids[0, 2:].tolist()]
    (earned,) = one._score_replies([item], [written])
    if said == "none" and things:
        assert earned == (0.0, 0.0)
    if said == "one" and things == 0:
        assert earned == (0.0, 0.0)
    if said == "two" and things == 1:
        assert earned[1] == 0.0  # one focus token too many
    if said == "two" and things == 2:
        assert earned[1] == 1.0


def test_learning_rates_go_by_name_also_under_adapters(made, tmp_path):
    rates = LearningRates(prior=25, prompt_encoder=10, mask_decoder=5)
    adapted = trainer(tmp_path, peft=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    adapted.create_optimizer()
    for one in (made[0], adapted):
        by_id = {id(p): n for n, p in one.model.named_parameters()}
        groups = {g["lr"] / 1e-4: [by_id[id(p)] for p in g["params"]] for g in one.optimizer.param_groups}  # fmt: skip
        assert sorted(round(times) for times in groups) == [1, 5, 10, 25]
        for times, names in groups.items():
            assert all(round(times) == rates.multiple_for(n) for n in names)
        heads = sum(len(n) for t, n in groups.items() if round(t) > 1)
        parts = [*one.coprs.model.prior.parameters(), *one.coprs.model.decoder.parameters()]
        assert heads == sum(p.requires_grad for p in parts) > 100
    assert {n.rsplit(".", 3)[1] for n in groups[1.0]} <= {"lora_A", "lora_B"}


def test_the_schedule_is_one_cycle_without_warm_up(mini, tmp_path):
    asked = run_joint._shared_arguments(JointRecipe(), tmp_path, mini.model)
    kind, options = asked["lr_scheduler_type"], asked["lr_scheduler_kwargs"]

    def rates(make):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
        scheduler, found = make(optimizer), []
        for _ in range(200):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step(), scheduler.step()
        return np.array(found)

    ours = rates(lambda o: get_scheduler(kind, o, 0, 200, scheduler_specific_kwargs=options))
    theirs = rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 1e-4, total_steps=201, pct_start=1e-9, div_factor=1.0, final_div_factor=6.67
        )
    )
    np.testing.assert_allclose(ours[1:], theirs[1:], rtol=0.01)


def test_a_run_goes_on_bit_for_bit_and_its_checkpoint_gives_the_same_mask(tmp_path, mini):
    whole = trainer(tmp_path / "whole", max_steps=2, save_strategy="steps", save_steps=1)
    whole.train()
    again = trainer(tmp_path / "again", max_steps=2, save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    ours = dict(again.model.named_parameters())
    changed = 0
    for name, p in whole.model.named_parameters():
        assert torch.equal(p, ours[name]), name
        changed += p.requires_grad
    assert changed > 50 and whole.state.log_history[-2]["kl"] > 0
    finished = whole.coprs.detach_model()
    processor = AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm", trust_remote_code=False)
    save_checkpoint(tmp_path / "saved", finished, processor)
    engine = load(str(tmp_path / "saved"), device="cpu")
    scene, question = next(draw_examples("validation", 3, 1))
    photo = Image.fromarray(scene.image)
    result = engine.segment(photo, question.instruction)
    before = mini.segment(photo, question.instruction)
    assert result.regions and not np.array_equal(result.prior, before.prior)  # it was trained
    state = finished.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in engine.model.state_dict().items())


def test_a_run_goes_on_at_the_rates_that_are_asked_for_now(made, tmp_path):
    """Those of the saved step would undo what is advised where a run diverges."""
    one, _ = made
    first = trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    first.train()
    slower = trainer(tmp_path, max_steps=4, learning_rate=1e-5)
    slower.create_optimizer_and_scheduler(4)
    slower._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-1"))
    assert slower.optimizer.state  # the moments are the saved ones
    for group, like in zip(slower.optimizer.param_groups, one.optimizer.param_groups, strict=True):
        assert group["initial_lr"] == pytest.approx(like["initial_lr"] / 10)
        assert 0 < group["lr"] < group["initial_lr"]


def test_each_epoch_has_its_own_order_also_where_a_run_goes_on_in_it(made, monkeypatch):
    one, _ = made
    orders = {}
    for epoch in (0.0, 1.0, 1.25, 2.0):
        monkeypatch.setattr(one.state, "epoch", epoch)
        orders[epoch] = list(one._get_train_sampler())
    assert orders[1.0] == orders[1.25] and len({tuple(o) for o in orders.values()}) == 3
    assert all(sorted(order) == sorted(orders[0.0]) for order in orders.values())


def test_a_base_of_16_bits_with_heads_of_32_draws_pictures():
    loaded = load_checkpoint("mini", LoadOptions(device="cpu", dtype="bf16"))
    loaded.segmenter.model.prior.float(), loaded.segmenter.model.decoder.float()
    scene, question = next(draw_examples("validation", 3, 1))
    assert Engine(loaded).segment(scene.image, question.instruction, 60).photo_size == (256, 256)


TWO = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid
from tests.coprs_core.training.test_joint import trainer

batch, expected = torch.load(sys.argv[1], weights_only=False)
one = trainer(sys.argv[2])
one.model.train()
one.current_gradient_accumulation_steps = 1
model = DistributedDataParallel(one.model, find_unused_parameters=True)
own = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
half = {k: v if k == "num_items_in_batch" else v[own] for k, v in split_pixel_values_by_grid(batch).items()}
one._compute_loss(model, unsplit_pixel_values_by_grid(half)).backward()
for name, p in one.model.named_parameters():
    if name in expected:
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=2e-6)
sys.stdout.write(f"rank {dist.get_rank()} equal {len(expected)}\\n")  # one write: two processes share this pipe
"""


def test_two_processes_learn_what_one_does(made, tmp_path):
    from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

    one, batch = made
    one.model.zero_grad()
    for start in (0, 4):
        rows = split_pixel_values_by_grid(dict(batch)).items()
        half = {k: v if k == "num_items_in_batch" else v[start : start + 4] for k, v in rows}
        (one._compute_loss(one.model, unsplit_pixel_values_by_grid(half)) / 2).backward()
    expected = {n: p.grad.clone() for n, p in one.model.named_parameters() if p.grad is not None}
    torch.save((dict(batch), expected), tmp_path / "batch.pt")
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    asked = [*command, str(tmp_path / "two.py"), str(tmp_path / "batch.pt"), str(tmp_path / "out")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(asked, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(f"rank {rank} equal {len(expected)}\n" in done.stdout for rank in (0, 1)), (
        done.stdout
    )


# --- recipes, data, and whole runs


@pytest.mark.parametrize(
    "changes, said",
    [
        (["stepz=3"], "no 'stepz', did you mean steps"),
        (["steps"], "write --set key=value"),
        (["steps=many"], "steps is 'many' and a whole number was expected"),
        (["rate=-1"], "a number from 0 up"),
        (["preset=best"], "no preset 'best': choose paper, released"),
        (["rows_at_once=5"], "choose a divisor"),
        (["group=1"], "at least 2"),
        (["quantize=nf4"], "set lora, such as"),
        (["lora=8", "quantize=int3"], "choose none or nf4"),
        (["lora=8", "quantize=nf4", "vllm=http://host:8000"], "leave quantize or vllm out"),
        (["lora=8", "sharded=true"], "Adapters are not sharded"),
        (["checkpointing=1"], "true or false was expected"),
        (["steps=0"], "at least 1"),
        (["temperature=0"], "temperature is over 0"),
        (["max_new_tokens=0"], "at least 1"),
        (["max_new_tokens=5000"], "a reply has at most 4,096"),
        (["lora=8", "vllm=http://host:8000"], "leave lora or vllm out"),
        (["iterations=0"], "at least 1"),
        (["iterations=3"], "set save_every to a multiple of iterations"),
        (["mask_share=70"], "from 0 to 1"),
        (["other_shapes=5"], "other_shapes is 5 and is a share"),
        (["final_rate=4"], "is a share, from 0 to 1"),
        (["clip=0"], "clip is over 0"),
    ],
)
def test_a_wrong_line_of_a_recipe_is_one_sentence(changes, said):
    with pytest.raises(CoPRSError, match=said):
        read_recipe("mini-joint", changes)


def test_recipes_are_found_by_name_and_by_file(tmp_path):
    assert read_recipe("mini-joint").objective.dice == 0.5
    own = tmp_path / "own.toml"
    own.write_text('preset = "released"\nsteps = 7\n')
    recipe = read_recipe(str(own), ["model=some/folder", "steps=8"])
    assert (recipe.steps, recipe.model) == (8, "some/folder")
    assert recipe.objective == PRESETS["released"]
    with pytest.raises(CoPRSError, match="did you mean mini-joint"):
        read_recipe("mini-joynt")
    own.write_text("steps = = 7")
    with pytest.raises(CoPRSError, match="is no TOML"):
        read_recipe(str(own))


def test_a_plan_tells_memory_by_part_and_refuses_what_cannot_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        run_joint, "measure_step", lambda recipe, device: (30.0, 2**30)
    )  # tested below
    assert (
        main(["train", "mini-joint", "--dry-run", "--out", str(tmp_path), "--device", "cpu"]) == 0
    )
    said = capsys.readouterr().out
    assert "language model, gradients, AdamW" in said and "120 steps, 15,360 replies" in said
    assert "A step takes 30.0 s and 1.1 GB of memory at its peak here (1 measured), all 120" in said
    assert "about 1.0 h" in said
    full = plan_training(read_recipe("mini-joint"), tmp_path, "cpu")
    adapted = plan_training(read_recipe("mini-joint", ["lora=4", "quantize=nf4"]), tmp_path, "cpu")
    assert sum(adapted.parts.values()) < 0.5 * sum(full.parts.values())
    model = load("mini", device="cpu").model
    learnt = sum(p.numel() for n, p in model.mllm.named_parameters() if ".visual." not in n)
    tower = sum(p.numel() for n, p in model.mllm.named_parameters() if ".visual." in n)
    assert full.parts["language model, gradients, AdamW"] == 16 * learnt + 4 * tower
    monkeypatch.setenv("WORLD_SIZE", "2")
    warm = plan_training(read_recipe("mini-joint", ["warmup_steps=2"]), tmp_path, "cpu")
    assert full.saved * 1.5 < warm.saved < full.saved * 2  # what it leaves lies there, too
    twice = plan_training(read_recipe("mini-joint", ["iterations=2"]), tmp_path, "cpu")
    assert 2 * twice.replies == full.replies
    sharded = plan_training(read_recipe("mini-joint", ["sharded=true"]), tmp_path, "cpu").parts
    assert sharded["language model, gradients, AdamW, over 2 cards"] == 8 * learnt + 2 * tower
    assert sharded["its reference, for the KL, over 2 cards"] == 2 * (learnt + tower)
    alone = plan_training(read_recipe("mini-joint", ["kl=0.0"]), tmp_path, "cpu").parts
    assert not any("reference" in part for part in alone)  # nothing is loaded for no KL
    monkeypatch.delenv("WORLD_SIZE")
    dry = ["train", "mini-joint", "--dry-run", "--out", str(tmp_path), "--device", "cpu"]
    for free, sets, said in (
        (
            60,
            [],
            r"before any activation and 60 MB are free: set lora=16 and quantize=nf4 \(\d+ MB\) or",
        ),
        (1, [], "and 1 MB are free: take a smaller model"),
        (1, ["--set=lora=4", "--set=quantize=nf4"], "and 1 MB are free: take a smaller model"),
    ):
        monkeypatch.setattr(
            "coprs_core.training.plan.free_memory", lambda device, free=free: free * 1_000_000
        )
        assert main([*dry, *sets]) == 2
        assert re.search(said, capsys.readouterr().err), said


def test_no_step_of_a_large_model_is_measured_on_a_cpu():
    large = TrainingPlan({"weights": 3 * 10**9}, free=0, saved=0, disk=0, steps=1, replies=8)
    assert "without a GPU" in train._estimate_time(JointRecipe(steps=1), large, "cpu")


def test_every_recipe_of_ours_can_be_shared_out(monkeypatch):
    for name in RECIPE_NAMES:
        recipe = read_recipe(name)
        monkeypatch.setenv("WORLD_SIZE", "8" if name.endswith("-8gpu") else "1")
        run_joint._check_divisible(recipe, training_scenes(recipe.questions))
        assert recipe.sharded == name.endswith("-8gpu"), name
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(CoPRSError, match="512 replies .* and all processes hold 24"):
        run_joint._check_divisible(
            read_recipe("qwen2.5-vl-3b-8gpu", ["warmup_steps=0"]), training_scenes(64)
        )
    with pytest.raises(CoPRSError, match=r"64 replies \(questions\) and 3 processes share them"):
        run_joint._check_divisible(read_recipe("qwen2.5-vl-3b-8gpu"), training_scenes(64))


def folder_of_items(folder) -> list[dict]:
    """A plain folder of two photos, three items: one thing, two things, nothing."""
    folder.mkdir()
    lines = []
    asked = (e for e in draw_examples("train", 0, 40, "several") if len(e[1].targets) > 1)
    for name, (scene, question) in zip("ab", asked, strict=False):
        Image.fromarray(scene.image).save(folder / f"{name}.png")
        masks = []
        for i in question.targets:
            masks.append(f"{name}_{i}.png")
            Image.fromarray(scene.mask(i)).save(folder / masks[-1])
        lines.append({"photo": f"{name}.png", "instruction": question.instruction, "masks": masks})
    lines.append({"photo": "a.png", "instruction": "the submarine", "masks": []})
    (folder / LISTING).write_text("\n".join(map(json.dumps, lines)))
    return lines


def items_in(root) -> Dataset:
    return open_dataset("folder", root)


def test_a_plain_folder_is_read_and_its_mistakes_are_sentences(tmp_path):
    root = tmp_path / "data"
    lines = folder_of_items(root)
    items = items_in(root)
    assert len(items) == 3 and items[2].masks == () and items[0].photo.size == (256, 256)
    assert items[0].masks[0].dtype == bool and items[0].masks[0].any()
    for wrong, said in (
        ({"photo": "a.png"}, "Line 1 of .* is no item"),
        (lines[0] | {"photo": "gone.png"}, "Line 1 of .* names gone.png, which is not there"),
        (lines[0] | {"instruction": " "}, "instruction is empty"),
        (lines[2] | {"reply": "It is red."}, "The reply in line 1 .* that nothing fits, in words"),
        (lines[1] | {"reply": "<think>Two.</think><REF_POS>"}, "2 <REF_POS>, one a mask"),
        (lines[0] | {"reply": "<think>A cup.</think>Nothing fits."}, "has not the form to imitate"),
    ):
        (root / LISTING).write_text(json.dumps(wrong))
        with pytest.raises(CoPRSError, match=said):
            items_in(root)
    Image.new("L", (9, 9)).save(root / "small.png")
    (root / LISTING).write_text(json.dumps(lines[0] | {"masks": ["small.png"]}))
    with pytest.raises(
        CoPRSError,
        match="small.png cannot be used. The true mask has 9×9 pixels and the photo 256×256",
    ):
        items_in(root)[0]
    (root / "small.png").write_bytes((root / "a.png").read_bytes()[:400])
    (root / LISTING).write_text(json.dumps(lines[0] | {"photo": "small.png"}))
    with pytest.raises(CoPRSError, match="The photo .*small.png cannot be used. This file cannot"):
        items_in(root)[0]
    with pytest.raises(CoPRSError, match="write one line an item"):
        items_in(tmp_path)
    (root / LISTING).write_bytes(b"\xff\xfe")
    with pytest.raises(CoPRSError, match="no UTF-8"):
        items_in(root)


def test_a_folder_may_be_called_what_it_likes(tmp_path, monkeypatch, capsys):
    """What reads as a number or a date is a name all the same, with a slash behind it or without."""
    folder_of_items(tmp_path / "2024-11-27")
    monkeypatch.chdir(tmp_path)
    for given in (["--data", "2024-11-27/"], ["--data", "folder", "--root", "2024-11-27"]):
        told = ["train", "mini-joint", "--out", "out", *given, "--dry-run", "--set", "steps=0"]
        assert main([*told, "--set", "warmup_steps=1"]) == 0, capsys.readouterr().err
        assert "embeddings of the photos" in capsys.readouterr().out
    assert main(["train", "mini-joint", "--data", "2024-11-27", "--root", "x", "--dry-run"]) == 2
    assert "leave root out" in capsys.readouterr().err
    assert main(["train", "qwen3-vl-2b-1gpu", "--data", "2024-11-27", "--dry-run"]) == 2
    assert "no folder runs/qwen3-vl-2b" in capsys.readouterr().err


def test_a_plain_folder_is_evaluated_on(tmp_path, capsys):
    folder_of_items(tmp_path / "data")
    asked = ["evaluate", "--model", "mini", "--data", "folder", "--split", "all", "--json"]
    assert main([*asked, "--root", str(tmp_path / "data"), "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["all"]["count"] == 3 and told["groups"]["nothing there"]["count"] == 1
    assert main(asked) == 2 and "give its folder with --root" in capsys.readouterr().err


SMALL = ("steps=2", "questions=2", "group=2", "rows_at_once=4", "max_new_tokens=90", "save_every=1")


def test_a_run_by_command_on_a_folder_ends_in_a_checkpoint_that_answers(tmp_path, capsys):
    folder_of_items(tmp_path / "data")
    out, sets = tmp_path / "out", [word for line in SMALL for word in ("--set", line)]
    asked = ["train", "mini-joint", "--out", str(out), "--data", str(tmp_path / "data")]
    assert main([*asked, "--device", "cpu", *sets]) == 0
    assert f"finished: {out / 'checkpoint'}" in capsys.readouterr().out
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2] and logged[0]["kl"] == 0
    assert {"reward", "mask_iou", "prior_iou", "segmentation"} <= logged[0].keys()
    assert list((out / "runs").rglob("events.out.tfevents*"))
    drawn = sorted(path.name for path in (out / "pictures").iterdir())
    assert drawn == [f"step-0000{step}-{i}.png" for step in (1, 2) for i in range(3)]
    engine = load(str(out / "checkpoint"), device="cpu")
    scene, question = next(draw_examples("validation", 1, 1))
    result = engine.segment(Image.fromarray(scene.image), question.instruction)
    assert result.reply and result.distance is not None  # it knows what its pictures look like


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_adapters_are_trained_and_their_folder_is_a_checkpoint(tmp_path, quantize):
    changes = [*SMALL, "lora=4", f"quantize={quantize}", "warmup_steps=1", "rate=1e-3"]
    changes += ["checkpointing=true"] if quantize == "nf4" else []  # as for one card
    assert run_joint.train_joint(read_recipe("mini-joint", changes), tmp_path, "cpu")
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-6) and len(logged) == 2
    written = load_file(tmp_path / "trained.safetensors")
    assert any("lora_A" in name for name in written)
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in written if "lora_" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
    warm = load(str(tmp_path / "warm"), device="cpu").model.state_dict()
    done = load(str(tmp_path / "checkpoint"), device="cpu")
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {
        ".json",
        ".safetensors",
        ".md",
    }
    config = json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../warm"  # both may be moved together
    state, layer = done.model.state_dict(), "mllm.model.language_model.layers.0.self_attn.q_proj."
    assert not torch.equal(state[layer + "weight"], warm[layer + "weight"])
    heads = [n for n in state if n.startswith(("prior.", "decoder.mask_decoder."))]
    assert any("focus_heads.prior" in name for name in written)
    assert sum(not torch.equal(state[n], warm[n]) for n in heads) > len(heads) / 2
    tower = [n for n in state if ".visual." in n]
    assert tower and all(torch.equal(state[n], warm[n]) for n in tower)
    scene, question = next(draw_examples("validation", 1, 1))
    assert done.segment(Image.fromarray(scene.image), question.instruction).reply


def test_a_warm_up_teaches_the_form_and_the_joint_stage_begins_there(tmp_path):
    """From a model of random weights: its replies get likelier, and the reference is the warm one."""
    folder_of_items(tmp_path / "data")
    base = tmp_path / "base"
    model = tiny.coprs(tiny.qwen())
    processor = AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm", trust_remote_code=False)
    save_checkpoint(base, model, processor)
    lines = [
        "warmup_steps=12",
        "warmup_rate=1e-3",
        "steps=1",
        *SMALL[1:],
        "prior=1",
        "mask_decoder=1",
    ]
    recipe = read_recipe("mini-joint", [f"model={base}", f"data={tmp_path / 'data'}", *lines])
    out = tmp_path / "out"
    out.mkdir()
    assert run_joint.train_joint(recipe, out, "cpu") == out / "checkpoint"
    logged = [json.loads(line) for line in (out / "warm-steps" / "metrics.jsonl").open()]
    state = json.loads((out / "warm-steps" / "checkpoint-12" / "trainer_state.json").read_text())
    assert state["train_batch_size"] == math.gcd(recipe.questions, recipe.rows_at_once)
    assert len(logged) == 12 and logged[-1]["loss"] < 0.8 * logged[0]["loss"]
    (joint,) = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert joint["kl"] < 1e-4  # bfloat16 in the file, float32 in both


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_teach_a_prepared_model_to_write_its_focus_token(tmp_path, tied):
    """`prepare` makes its row the mean of all: while it stays so, no hidden state makes it the
    likeliest."""
    folder_of_items(tmp_path / "data")
    mllm, sam = tiny.qwen(tied), tmp_path / "sam.pth"
    base = tiny.save_mllm(tmp_path / "base", mllm)
    tiny.save_sam(sam, tiny.coprs(mllm))
    (base / "chat_template.jinja").write_text(tiny.CHAT)
    start, out = tmp_path / "start", tmp_path / "out"
    assert main(["prepare", str(base), "--sam", str(sam), "--out", str(start)]) == 0
    lines = ["warmup_steps=150", "warmup_rate=1e-2", "lora=8", "steps=1", *SMALL[1:], "pictures=0"]
    recipe = read_recipe("mini-joint", [f"model={start}", f"data={tmp_path / 'data'}", *lines])
    assert run_joint.train_joint(recipe, out, "cpu")
    rows = load_file(out / "warm-steps" / "adapters" / "adapter_model.safetensors")
    assert sum("trainable_tokens" in name for name in rows) == (1 if tied else 2)
    item = open_dataset("folder", tmp_path / "data")[0]
    for folder, quantization in (
        (out / "warm", "none"),
        (out / "checkpoint", "none"),
        (out / "checkpoint", "nf4"),
    ):
        engine = load(str(folder), device="cpu", quantization=quantization)
        assert FOCUS_TOKEN in engine.segment(item.photo, item.instruction).reply


def test_the_commands_of_the_readme_lead_from_a_folder_to_an_answer(tmp_path, monkeypatch):
    """Train your own, with a tiny model in place of the one to download and a photo of ours."""
    block = (ROOT / "README.md").read_text().partition("## Train your own")[2].split("```")[1]
    commands = [line.split() for line in block.splitlines() if "bin/coprs " in line]
    assert [c[1] for c in commands] == ["prepare", "train", "train", "segment"]
    folder_of_items(tmp_path / "folder")
    model = tiny.qwen()
    base, sam = tiny.save_mllm(tmp_path / "base", model), tmp_path / "sam.pth"
    tiny.save_sam(sam, tiny.coprs(model))
    (base / "chat_template.jinja").write_text(tiny.CHAT)
    ours = {
        "Qwen/Qwen3-VL-2B-Instruct": str(base), "vit_h": str(sam), "path/to/folder": str(tmp_path / "folder"),
        "photo.jpg": str(ROOT / "assets/examples/rain.png"),
    }  # fmt: skip
    small = [w for line in (*SMALL[1:], "steps=1", "warmup_steps=1", "max_new_tokens=16", "quantize=none",
             "checkpointing=false") for w in ("--set", line)]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    on_cpu, short = ["--device", "cpu"], ["--max-new-tokens", "8"]
    for command in commands:
        words = " ".join(command[1:]).replace('"the cat"', "cat").split()
        words = [ours.get(word, word) for word in words]
        words += {"train": [*small, *on_cpu], "segment": [*on_cpu, *short]}.get(words[0], [])
        assert main(words) == {"segment": 4}.get(words[0], 0), words  # 4: it ran out of tokens
    assert (
        json.loads((tmp_path / "runs" / "answer" / "result.json").read_text())["instruction"]
        == "cat"
    )


def test_a_reply_without_a_thought_of_its_own_has_the_form():
    photo, mask = Image.new("RGB", (8, 8)), np.ones((8, 8), bool)
    for things in range(3):
        reply = imitation_reply(Example(photo, "the <REF_POS> cat.", (mask,) * things))
        assert is_well_formed(reply, things) and reply.count(FOCUS_TOKEN) == things
        assert score_reply(reply, 1.0, things) == (1.0, 1.0)
    assert imitation_reply(Example(photo, "x", reply="as it is")) == "as it is"


def test_a_run_that_is_told_to_stop_saves_and_goes_on(tmp_path, monkeypatch):
    recipe = read_recipe("mini-joint", [*SMALL])

    def told(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_joint.TrainingMonitor, "on_step_begin", told)
    assert run_joint.train_joint(recipe, tmp_path, "cpu") is None
    assert (tmp_path / "checkpoint-1").is_dir() and not (tmp_path / "checkpoint").exists()
    monkeypatch.undo()
    (tmp_path / "checkpoint-9").mkdir()  # the power went while a later step was written
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 2}\n{"step"')
    with pytest.raises(CoPRSError, match="holds a run with seed 0, and 1 is asked for"):
        run_joint.train_joint(replace(recipe, seed=1), tmp_path, "cpu")
    assert run_joint.train_joint(recipe, tmp_path, "cpu") == tmp_path / "checkpoint"
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [1, 2]
    monkeypatch.setattr(run_joint.JointTrainer, "train", None)  # a finished run trains no more,
    assert run_joint.train_joint(recipe, tmp_path, "cpu") == tmp_path / "checkpoint"
    weights = tmp_path / "checkpoint" / "prior.safetensors"
    before = weights.read_bytes()
    shutil.rmtree(tmp_path / "checkpoint")  # also where it was killed before it wrote the end
    assert run_joint.train_joint(recipe, tmp_path, "cpu") == tmp_path / "checkpoint"
    assert weights.read_bytes() == before


def test_a_run_that_is_told_in_the_last_step_of_its_warm_up_stops_before_the_joint_stage(
    tmp_path, monkeypatch
):
    recipe = read_recipe("mini-joint", [*SMALL, "warmup_steps=1"])
    monkeypatch.setattr(
        run_joint.TrainingMonitor,
        "on_step_begin",
        lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM),
    )
    assert run_joint.train_joint(recipe, tmp_path, "cpu") is None
    assert (tmp_path / "warm" / "coprs.json").exists()
    assert not list(tmp_path.glob("checkpoint*")) and not (tmp_path / "metrics.jsonl").exists()


def test_replies_that_are_learnt_from_twice_go_on_to_the_bit(tmp_path, monkeypatch):
    """A stop waits for the last step on them, since nobody keeps them."""
    changes = [*SMALL, "steps=4", "iterations=2", "save_every=2", "pictures=0", "rate=1e-3"]
    recipe = read_recipe("mini-joint", changes)
    assert run_joint.train_joint(recipe, tmp_path / "whole", "cpu")
    with monkeypatch.context() as patch:
        told = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
        patch.setattr(run_joint.TrainingMonitor, "on_step_begin", told)
        assert run_joint.train_joint(recipe, tmp_path / "parts", "cpu") is None
    assert [p.name for p in (tmp_path / "parts").glob("checkpoint-*")] == ["checkpoint-2"]
    assert run_joint.train_joint(recipe, tmp_path / "parts", "cpu")
    whole, parts = (load_file(tmp_path / n / "trained.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_folder_holds_one_kind_of_run(tmp_path):
    save_recipe({"kind": "mini", **MINI_RECIPE.fixed_values}, tmp_path)
    with pytest.raises(CoPRSError, match="holds a run with kind 'mini', and 'joint' is asked for"):
        run_joint.train_joint(read_recipe("mini-joint", [*SMALL]), tmp_path, "cpu")


def test_what_is_remembered_of_photos_holds_no_photo(made):
    one, _ = made
    photo = Image.new("RGB", (64, 64))
    item = Example(photo, "the cat")
    first = one.coprs.image_embedding(item)
    kept = weakref.ref(item)
    del item
    assert kept() is None and torch.equal(first, one.coprs.image_embedding(Example(photo, "x")))


def test_a_run_that_diverges_names_the_last_good_step(tmp_path):
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").touch()
    watch = run_joint.TrainingMonitor(tmp_path, read_recipe("mini-joint"))
    watch.bar = SimpleNamespace(set_postfix=lambda *_, **__: None)
    state = SimpleNamespace(global_step=21, is_world_process_zero=True)
    watch.on_log(None, state, None, logs={"kl": 0.1, "loss": 0.2})
    for lost in ({"kl": 11.0}, {"loss": float("nan")}):
        with pytest.raises(CoPRSError, match="diverged at step 21.*checkpoint-20.*lower rate"):
            watch.on_log(None, state, None, logs={"loss": 0.5} | lost)


@pytest.mark.parametrize(
    "stage, key", [("joint", "rate=0.0003"), ("warm-up", "warmup_rate=0.0007")]
)
def test_a_run_whose_weights_are_no_numbers_ends_in_a_sentence(tmp_path, monkeypatch, stage, key):
    """The second step of either stage reads, and writes replies, with weights that are NaN."""

    def break_weights(_self, args, state, control, model=None, **_):
        if state.global_step == 1:
            with torch.no_grad():
                next(p for n, p in model.named_parameters() if "layers.0.mlp.up" in n).fill_(
                    math.nan
                )

    monkeypatch.setattr(run_joint.TrainingMonitor, "on_step_begin", break_weights)
    more = ["warmup_steps=2", "warmup_rate=2e-3"] if stage == "warm-up" else []
    recipe = read_recipe("mini-joint", [*SMALL, *more, "rate=1e-3"])
    with pytest.raises(CoPRSError, match=f"diverged at step 2 .*nan.*checkpoint-1;.*--set {key}"):
        run_joint.train_joint(recipe, tmp_path, "cpu")
    logged = (tmp_path / ("warm-steps" if more else "") / "metrics.jsonl").read_text()
    assert len(logged.splitlines()) == 2


def test_a_folder_of_fewer_items_than_a_step_asks_is_one_sentence(tmp_path):
    folder_of_items(tmp_path / "data")
    recipe = read_recipe("mini-joint", [f"data={tmp_path / 'data'}"])
    recipe = replace(recipe, warmup_steps=1)
    with pytest.raises(CoPRSError, match="asks 16 questions and the data holds 3 items"):
        run_joint.train_joint(recipe, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()  # said before the warm-up


def test_options_of_the_other_kind_of_run_are_refused(tmp_path, capsys):
    told = ["train", "mini-joint", "--out", str(tmp_path), "--stage", "eyes"]
    assert main(told) == 2
    assert "--stage and --workers belong to the recipe mini" in capsys.readouterr().err


def test_a_run_does_not_replace_the_model_it_begins_with(tmp_path, capsys):
    told = ["train", "mini-joint", "--out", str(tmp_path), "--model", str(tmp_path / "checkpoint")]
    assert main(told) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "seen, device, sees, named",
    [
        (None, "auto", "0", "auto"),
        (None, "cuda:1", "1", "cuda"),
        ("2,3", "cuda:1", "3", "cuda"),
        ("2,3", "cuda:5", "2,3", "cuda:5"),  # refused later, by name
        ("", "auto", "", "auto"),
        ("2,3", "cpu", "2,3", "cpu"),
    ],
)
def test_a_process_by_itself_sees_one_card(monkeypatch, seen, device, sees, named):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen or "")
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert train._restrict_to_one_gpu(device) == named
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == sees
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (
        train._restrict_to_one_gpu("auto") == "auto" and os.environ["CUDA_VISIBLE_DEVICES"] == sees
    )


def test_a_disk_that_is_full_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(embeddings, "save_file", full)
    item = Example(Image.new("RGB", (8, 8)), "x")
    kept = EmbeddingCache(tmp_path, torch.nn.Linear(2, 2), lambda _: torch.zeros(1, 1, 1))
    with pytest.raises(CoPRSError, match="No space left.*make room and start the same command"):
        kept(item)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with (
        pytest.raises(CoPRSError, match="make room"),
        write_errors_as_user_error(tmp_path),
    ):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    with pytest.raises(RuntimeError, match="other"), write_errors_as_user_error(tmp_path):
        raise RuntimeError("other")


def test_a_model_without_a_focus_token_is_not_trained(tmp_path):
    folder = tiny.save_mllm(tmp_path / "qwen", tiny.qwen())
    recipe = read_recipe("mini-joint", [f"model={folder}"])
    with pytest.raises(CoPRSError):
        run_joint.train_joint(recipe, tmp_path / "out", "cpu")


# --- SAM's embeddings, once


def test_embeddings_are_computed_once_and_kept_by_picture_and_backbone(tmp_path, mini):
    encoder, calls = mini.model.image_encoder, []
    photo = Photo(Image.new("RGB", (8, 8)), "ab12")

    def encode(example):
        calls.append(example.photo.key)
        return torch.full((4, 2, 2), float(len(calls)))

    kept = EmbeddingCache(tmp_path, encoder, encode)
    first, again = (Example(photo, "x") for _ in range(2))
    assert torch.equal(kept(first), kept(again)) and kept(first).dtype == torch.float16
    assert calls == ["ab12"] and len(list(tmp_path.rglob("ab/ab12.safetensors"))) == 1
    assert torch.equal(EmbeddingCache(tmp_path, encoder, encode)(first), kept(first))
    other = torch.nn.Linear(2, 2)
    assert EmbeddingCache(tmp_path, other, encode)(first).mean() == 2  # another backbone


def test_a_run_on_photos_keeps_their_embeddings_and_says_their_size_before(tmp_path, capsys):
    folder_of_items(tmp_path / "data")
    out = tmp_path / "out"
    told = [
        "train",
        "mini-joint",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    small = [w for line in SMALL for w in ("--set", line)]
    assert main([*told, *small, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"embeddings of the photos, on disk +\d+ kB", said), said
    assert re.search(
        r"A step takes \d+\.\d s and [\d.]+ GB of memory .*all 2 about 0\.0 h", said
    ), said
    assert not list(out.rglob("*.safetensors"))  # the measured steps are forgotten
    assert main([*told, *small]) == 0
    files = list((out / "embeddings").rglob("*.safetensors"))
    assert len(files) == 2 and load_file(files[0])["embedding"].dtype == torch.float16
    assert load_file(files[0])["embedding"].shape == (96, 20, 20)


SHARDED = """
import sys
import accelerate.state
from accelerate.utils import DistributedType

before = accelerate.state.PartialState.__init__

def init(self, *args, **options):  # accelerate shards on cards alone; these two take a CPU for one
    before(self, *args, **options)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

if "sharded=true" in sys.argv:
    accelerate.state.PartialState.__init__ = init
from coprs_core.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def two_processes(*asked: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *asked], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_sharded_weights_learn_what_whole_ones_do_and_go_on_to_the_bit(tmp_path):
    """Warm-up and joint stage; some batches ask for nothing, so that one process draws nothing."""
    (tmp_path / "run.py").write_text(SHARDED)
    small = ["steps=2", "questions=4", "group=2", "rows_at_once=4", "max_new_tokens=100"]
    small += ["save_every=1", "warmup_steps=1", "temperature=1.3", "rate=1e-4"]

    def trained(name: str, *more: str) -> dict[str, torch.Tensor]:
        out = tmp_path / name
        sets = [word for line in (*small, *more) for word in ("--set", line)]
        told = ["train", "mini-joint", "--out", str(out), "--device", "cpu"]
        two_processes(str(tmp_path / "run.py"), *told, *sets)
        load(str(out / "checkpoint"), device="cpu")
        return load_file(out / "trained.safetensors")

    whole, sharded = trained("whole", "pictures=0"), trained("sharded", "sharded=true")
    assert whole.keys() == sharded.keys()
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=2e-5)
    shutil.rmtree(tmp_path / "sharded" / "checkpoint-2")
    shutil.rmtree(tmp_path / "sharded" / "checkpoint")
    again = trained("sharded", "sharded=true")
    assert all(torch.equal(again[name], value) for name, value in sharded.items())


ONE_IS_TOLD = """
import os, signal, sys
from coprs_core.__main__ import main
from coprs_core.training.callbacks import TrainingMonitor

if os.environ["RANK"] == "1":
    TrainingMonitor.on_step_begin = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(main(sys.argv[1:]))
"""


def test_all_processes_stop_after_the_same_step(tmp_path):
    """Also where only one of them is told to before its step ends."""
    (tmp_path / "run.py").write_text(ONE_IS_TOLD)
    small = ["steps=3", "questions=2", "group=2", "rows_at_once=2", "max_new_tokens=8"]
    sets = [word for line in (*small, "save_every=9", "pictures=0") for word in ("--set", line)]
    told = ["train", "mini-joint", "--out", str(tmp_path / "out"), "--device", "cpu"]
    two_processes(str(tmp_path / "run.py"), *told, *sets)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint*")] == ["checkpoint-1"]


def test_sharded_weights_need_several_processes(tmp_path):
    with pytest.raises(CoPRSError, match="this is the only one: start it with torchrun"):
        run_joint.train_joint(read_recipe("mini-joint", ["sharded=true"]), tmp_path, "cpu")


@pytest.mark.slow
def test_two_processes_run_a_whole_recipe(tmp_path):
    """Warm-up and joint stage with adapters, under torchrun."""
    small = [*SMALL[:3], "rows_at_once=2", *SMALL[4:], "warmup_steps=1", "lora=4", "rate=1e-3"]
    asked = ["-m", "coprs_core", "train", "mini-joint", "--out", str(tmp_path), "--device", "cpu"]
    two_processes(*asked, *(word for line in small for word in ("--set", line)))
    assert (tmp_path / "checkpoint" / "adapter_config.json").is_file()
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["step"] for row in logged] == [1, 2] and logged[0]["kl"] == pytest.approx(
        0, abs=1e-6
    )
