"""The paper's tables in small: what is compared, how the camps differ, what the tables say."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from coprs_core import CoPRSError  # noqa: E402
from coprs_core.__main__ import main  # noqa: E402
from coprs_core.evaluation.rows import Measurement  # noqa: E402
from coprs_core.mini.ablation import run
from coprs_core.mini.ablation.arms import ARMS, REFERENCE_ARMS, TABLES, select_arms  # noqa: E402
from coprs_core.mini.ablation.camps import (  # noqa: E402
    CampCollator,
    HiddenStatePrompt,
    reply_with_boxes,
)
from coprs_core.mini.ablation.run import ArmResult, Budget  # noqa: E402
from coprs_core.mini.ablation.tables import build_tables, draw_figure, to_markdown  # noqa: E402
from coprs_core.mini.train.data import batches  # noqa: E402
from coprs_core.mini.train.recipe import MINI_RECIPE, Stage  # noqa: E402
from coprs_core.mini.world.questions import draw_examples  # noqa: E402
from coprs_core.model.backends.boxes import parse_coordinates  # noqa: E402
from coprs_core.model.decoder import PriorDecoder  # noqa: E402
from coprs_core.training.recipe import read_recipe  # noqa: E402

ARM = {arm.name: arm for arm in ARMS}


def test_every_table_has_its_reference_and_every_arm_its_table():
    assert {arm.table for arm in ARMS} == set(TABLES)
    assert set(REFERENCE_ARMS.values()) <= set(ARM) and "joint" in ARM
    assert len({arm.slug for arm in ARMS}) == len(ARMS)
    assert select_arms(["camp", "joint"]) == tuple(
        a for a in ARMS if a.table == "camp" or a.name == "joint"
    )
    with pytest.raises(CoPRSError, match="no arm or table 'camps', did you mean camp"):
        select_arms(["camps"])


def test_arms_of_the_joint_stage_spend_as_many_replies():
    for arm in ARMS:
        if arm.camp is None and arm.is_trained:
            recipe = read_recipe("mini-joint", ["questions=8", "rows_at_once=32", *arm.changes])
            each = 1 if arm.imitates else recipe.objective.group
            assert recipe.questions * each == 64, arm.name
    only_rl = read_recipe("mini-joint", [*ARM["only RL"].changes]).objective
    assert (only_rl.policy, only_rl.segmentation) == (1.0, 0.0)
    only_segmentation = read_recipe("mini-joint", [*ARM["only segmentation"].changes]).objective
    assert only_segmentation.policy == 0.0 and only_segmentation.segmentation > 0


def test_a_reply_in_coordinates_is_read_back_as_the_boxes_of_its_masks():
    scene, question = next(q for q in draw_examples("train", 5, 9) if q[1].targets)
    thing = scene.objects[question.targets[0]]
    rows, columns = np.nonzero(scene.mask(question.targets[0]))
    extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert thing.box == extent
    reply = reply_with_boxes("<think>I see.</think>It is here: <REF_POS>", [thing], 280)
    assert reply.startswith("<think>I see.</think><answer>[") and "<REF_POS>" not in reply
    (found,) = parse_coordinates(reply, (280, 280), (256, 256)).objects
    assert found.box == pytest.approx(extent, abs=0.5)
    nothing = reply_with_boxes("<think>I see.</think>Nothing fits.", [], 280)
    answer = parse_coordinates(nothing, (280, 280), (256, 256))
    assert answer.is_readable and not answer.objects


def test_batches_of_coordinates_teach_boxes_and_keep_their_targets(mini):
    language = mini.focus.language
    mini_parts = language.tokenizer, language.image_processor
    stage = Stage("joint", steps=1, scenes=2, questions=3, rate=1e-3, adam_rate=1e-3)
    drawn = {}
    for name in ("focus token and prior", "coordinates"):
        collate = CampCollator(MINI_RECIPE, stage, *mini_parts, 1, ARM[name])
        (drawn[name],) = batches(collate, 0, 0)
    focus, boxes = drawn.values()
    assert len(boxes.packed.focus) == 0 and len(focus.packed.focus) == len(focus.targets)
    assert [t for _, t in boxes.targets] == [t for _, t in focus.targets]
    assert torch.equal(boxes.masks, focus.masks)
    tokenizer = mini_parts[0]
    assert '"bbox_2d":[' in tokenizer.decode(boxes.packed.ids[0])


def test_a_hidden_state_prompts_the_decoder_and_nothing_is_drawn_in_the_padding():
    torch.manual_seed(0)
    head = HiddenStatePrompt(16, PriorDecoder(MINI_RECIPE.decoder, MINI_RECIPE.vision))
    grid, channels = MINI_RECIPE.vision.grid, MINI_RECIPE.vision.channels
    side, half = 4 * grid, 2 * grid
    image, size = torch.randn(2, channels, grid, grid), torch.tensor([[side, half], [side, side]])
    logits = head(torch.randn(2, 16), image, size)
    assert logits.shape == (2, 1, side, side)
    assert (logits[0, :, :, half:] == -50).all() and (logits[1] > -50).all()
    logits[:, :, :, :half].sum().backward()
    assert all(p.grad is not None for p in head.mlp.parameters())


def row(index: int, mask_iou: float, named: bool, outcome: str = "found") -> Measurement:
    return Measurement(
        index, {}, "the cat", 1, 0.1, outcome, "", True, {"named": named}, (1, 2), (1, 2),
        mask_iou, mask_iou / 2, (), 5, None, 20, 0.1,
    )  # fmt: skip


def test_tables_by_hand():
    joint = [[row(i, 0.8, True) for i in range(40)], [row(i, 0.6, True) for i in range(40)]]
    worse = [row(i, 0.5 + 0.01 * (i % 2), i % 2 == 0, "unfinished") for i in range(40)]
    measured = [ArmResult(ARM["joint"], i, rows) for i, rows in enumerate(joint)]
    measured.append(ArmResult(ARM["mask share 0"], 0, worse))
    tables = build_tables(measured)
    assert list(tables) == ["objective", "mask share"]
    reference, other = tables["mask share"]
    assert reference.arm.name == "joint" and reference.against is None and reference.seeds == 2
    assert reference.by_seed == pytest.approx((0.8, 0.6)) and reference.mask[0] == 0.7
    assert other.named[0] == 0.5 and other.unusable == 1.0
    gap = other.against
    assert gap.b - gap.a == pytest.approx(0.505 - 0.7) and gap.p < 0.001 and gap.worse == 40
    text = to_markdown(tables, Budget(scenes=40))
    assert "| mask share 0 | 1 | 0.500 [" in text and "-0.195 [" in text
    assert len(draw_figure(tables).axes) == 2


def test_attention_of_the_coordinates_camp_is_no_prior():
    (shown,) = build_tables([ArmResult(ARM["coordinates"], 0, [row(0, 0.8, True)] * 4)])["camp"]
    assert shown.prior is None and shown.mask[0] == pytest.approx(0.8)


def test_an_arm_is_trained_once_and_a_folder_holds_one_budget(tmp_path, capsys):
    told = ["ablate", "--out", str(tmp_path), "--camp-steps", "1", "--scenes", "3", "--device"]
    told += ["cpu", "--arm", "start", "--arm", "hidden state", "--seeds", "1"]
    assert main([*told, "--model", "no/such"]) == 2
    assert "no/such" in capsys.readouterr().err  # and the folder is not taken by it
    assert main(told) == 0
    said = capsys.readouterr().out
    assert "objective: start, seed 0" in said and "camp: hidden state, seed 0" in said
    assert (tmp_path / "ablation.png").is_file() and "| hidden state | 1 |" in said
    report = json.loads((tmp_path / "start-0" / "report.json").read_text())
    assert report["all"]["count"] == 3
    assert main(told) == 0
    assert "seed 0\n" not in capsys.readouterr().out  # nothing was left
    assert main(told[:-4]) == 0  # one arm is asked for, and all that is there is told
    assert "| hidden state | 1 |" in capsys.readouterr().out
    assert main([*told, "--scenes", "4"]) == 2
    assert "holds a run with scenes 3, and 4 is asked for" in capsys.readouterr().err


def test_arms_are_trained_side_by_side(tmp_path, capsys):
    told = ["ablate", "--out", str(tmp_path), "--camp-steps", "1", "--scenes", "3", "--device"]
    told += ["cpu", "--arm", "start", "--arm", "hidden state", "--seeds", "1", "--at-once", "2"]
    assert main([*told, "--model", "no/such"]) == 2
    assert "no/such" in capsys.readouterr().err  # what a process of its own could not do is told
    assert main(told) == 0
    said = capsys.readouterr().out
    assert "objective: start, seed 0" in said and "| hidden state | 1 |" in said
    assert "1/1" in (tmp_path / "hidden-state-0" / "log.txt").read_text()  # its bar
    assert main(told) == 0 and "seed 0\n" not in capsys.readouterr().out


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_process_that_is_killed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_with_own_log", _killed)  # as the system does where memory is short
    budget = Budget(scenes=3)
    with pytest.raises(CoPRSError, match="ended from outside.* smaller --at-once"):
        run.run_ablation(budget, (ARM["start"],), tmp_path, device="cpu", at_once=2)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of a group")
@pytest.mark.parametrize("seconds", [3, 45])  # while the processes load, and while they train
def test_ctrl_c_ends_all_processes_in_one_sentence(tmp_path, seconds):
    told = ["ablate", "--out", str(tmp_path), "--camp-steps", "500", "--at-once", "2", "--device"]
    started = subprocess.Popen(
        [sys.executable, "-m", "coprs_core", *told, "cpu", "--arm", "hidden state"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "ablation.json").is_file():
        time.sleep(0.1)
    time.sleep(seconds)
    os.killpg(started.pid, signal.SIGINT)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 130 and "Traceback" not in said and "stopped" in said


@pytest.mark.slow
def test_every_arm_runs(tmp_path, capsys):
    told = ["ablate", "--out", str(tmp_path), "--steps", "1", "--camp-steps", "1", "--seeds", "1"]
    assert main([*told, "--scenes", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert all(f"| {arm.name} |" in said for arm in ARMS)
    assert all(title in said for title in TABLES.values())
