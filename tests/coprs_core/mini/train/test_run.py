"""The training command at its real sizes, two steps a stage: it runs, stops, goes on, and ends in a
checkpoint."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from coprs_core import CoPRSError, load
from coprs_core.__main__ import main
from coprs_core.geometry import to_photo_frame, to_sam_frame, unpadded_size
from coprs_core.metrics import iou
from coprs_core.mini.train import oracle, recipe, run
from coprs_core.mini.train.build import build_miniature
from coprs_core.mini.train.data import (
    Collator,
    SceneQuestions,
    batches,
    pack_questions,
    split_reply,
)
from coprs_core.mini.train.run import lr_factor, train_miniature
from coprs_core.mini.train.stages import Scaffold
from coprs_core.mini.world.questions import draw_examples, draw_question
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.prompts import FOCUS_TOKEN
from tests import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole run of two steps a stage."""
    folder = tmp_path_factory.mktemp("run")
    names = [stage.name for stage in recipe.MINI_RECIPE.stages]
    short = [f"stages.{name}.{key}=2" for name in names for key in ("steps", "scenes")]
    changes = [word for line in short for word in ("--set", line)]
    assert main(["train", "mini", "--out", str(folder), "--device", "cpu", *changes]) == 0
    return folder


def test_every_stage_leaves_a_checkpoint_and_the_run_a_model_that_answers(folder):
    for stage in recipe.MINI_RECIPE.stages:
        assert torch.load(folder / f"{stage.name}.pt", weights_only=True)["step"] == 2
    result = load(str(folder / "checkpoint"), device="cpu").segment(
        draw_scene(1).image, "x", max_new_tokens=3
    )
    assert result.outcome == "unfinished"


def test_a_run_goes_on_where_it_stopped(folder):
    longer = tuple(
        replace(s, steps=60 if s.name == "focus" else 2, scenes=1)
        for s in recipe.MINI_RECIPE.stages
    )
    before = torch.load(folder / "focus.pt", weights_only=True)
    train_miniature(replace(recipe.MINI_RECIPE, stages=longer), folder, "cpu", only="focus")
    after = torch.load(folder / "focus.pt", weights_only=True)
    assert (before["step"], after["step"]) == (2, 60) and after["seconds"] > before["seconds"]
    logged = [
        json.loads(line)["step"] for line in (folder / "focus.jsonl").read_text().splitlines()
    ]
    assert logged == [50]


@pytest.mark.parametrize("name", ["eyes", "language"])
def test_a_stage_that_is_told_to_stop_goes_on_to_the_bit(tmp_path, monkeypatch, name):
    stages = tuple(replace(s, steps=4, scenes=1) for s in recipe.MINI_RECIPE.stages)
    short, step = replace(recipe.MINI_RECIPE, stages=stages), run._train_step

    def told(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    def learnt(folder) -> dict:
        return torch.load(tmp_path / folder / f"{name}.pt", weights_only=True)

    assert train_miniature(short, tmp_path / "whole", "cpu", only=name)
    with monkeypatch.context() as patch:
        patch.setattr(run, "_train_step", told)
        assert not train_miniature(short, tmp_path / "parts", "cpu", only=name)
    assert learnt("parts")["step"] == 1
    assert train_miniature(short, tmp_path / "parts", "cpu", only=name)
    whole, parts = learnt("whole")["parts"], learnt("parts")["parts"]
    for part, state in whole.items():
        assert all(torch.equal(parts[part][n], value) for n, value in state.items())
    kept = json.loads((tmp_path / "whole" / "recipe.json").read_text())
    assert (kept["kind"], kept["stages"][0]["steps"]) == ("mini", 4)


def test_two_processes_wait_for_each_other_between_stages(tmp_path):
    names = [stage.name for stage in recipe.MINI_RECIPE.stages]
    short = [f"--set=stages.{name}.{key}=1" for name in names for key in ("steps", "scenes")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    told = ["-m", "coprs_core", "train", "mini", "--out", str(tmp_path), "--device", "cpu", *short]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *told], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("finished") == 1 and (tmp_path / "checkpoint" / "coprs.json").is_file()


def test_a_stage_that_diverges_keeps_what_was_learnt_before(tmp_path):
    stages = tuple(replace(s, steps=2, scenes=1) for s in recipe.MINI_RECIPE.stages)
    assert train_miniature(
        replace(recipe.MINI_RECIPE, stages=stages), tmp_path, "cpu", only="focus"
    )
    saved = torch.load(tmp_path / "focus.pt", weights_only=True)
    next(iter(saved["parts"]["prior"].values())).fill_(torch.nan)
    torch.save(saved, tmp_path / "focus.pt")
    before = (tmp_path / "focus.pt").read_bytes()
    longer = tuple(replace(s, steps=3) for s in stages)
    with pytest.raises(CoPRSError, match="focus diverged at step 3: .*--set stages.focus.rate="):
        train_miniature(replace(recipe.MINI_RECIPE, stages=longer), tmp_path, "cpu", only="focus")
    assert (tmp_path / "focus.pt").read_bytes() == before


def test_joint_needs_the_stages_before_it(tmp_path):
    assert (
        main(["train", "mini", "--out", str(tmp_path), "--stage", "joint", "--device", "cpu"]) == 2
    )


def test_the_last_stage_goes_on_from_the_one_before(tmp_path, folder, capsys):
    told = ["train", "mini", "--out", str(tmp_path), "--stage", "last", "--device", "cpu"]
    assert main(told) == 2  # nothing to go on from
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer", dirs_exist_ok=True)
    shutil.copy(folder / "joint.pt", tmp_path)
    assert main(told) == 2 and "come to step 2 of 900" in capsys.readouterr().err
    told += ["--set", "stages.joint.steps=2"]
    stood = [f"--set=stages.last.{rate}=0.0" for rate in ("rate", "adam_rate")]
    assert main([*told, "--set", "stages.last.steps=1", "--set=stages.last.scenes=1", *stood]) == 0
    before, after = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)["parts"]
        for name in ("joint", "last")
    )
    for part, state in before.items():
        assert all(torch.equal(state[name], value) for name, value in after[part].items()), part
    assert (tmp_path / "checkpoint" / "coprs.json").is_file()


def test_a_stage_asks_by_its_own_families(mini_parts):
    last = recipe.MINI_RECIPE.stages[-1]
    assert last.kind == "joint" and last.misread == 0 and last.families["relation"] > 1
    only = replace(
        last, families=dict.fromkeys(recipe.MINI_RECIPE.asking.weights, 1e-9) | {"name": 1.0}
    )
    scenes = SceneQuestions(
        replace(recipe.MINI_RECIPE, asking=replace(recipe.MINI_RECIPE.asking, nothing=0)), only
    )
    asked = [q.family for i in range(8) for q in scenes[i][1]]
    assert asked.count("name") > len(asked) / 2  # the others where no name is clear


def test_batches_are_the_same_from_any_start(mini_parts):
    tokenizer, image_processor = mini_parts
    stage = replace(recipe.MINI_RECIPE.stages[3], steps=3, scenes=2)
    whole = list(batches(Collator(recipe.MINI_RECIPE, stage, tokenizer, image_processor), 0, 0))
    (last,) = batches(Collator(recipe.MINI_RECIPE, stage, tokenizer, image_processor), 2, 0)
    assert torch.equal(whole[2].packed.ids, last.packed.ids) and torch.equal(
        whole[2].image, last.image
    )


@pytest.fixture(scope="module")
def mini_parts(mini):
    return mini.focus.language.tokenizer, mini.focus.language.image_processor


@torch.no_grad()
@pytest.mark.parametrize("is_half", [False, True])
def test_packed_questions_see_only_the_picture_and_themselves(
    mini, mini_parts, monkeypatch, is_half
):
    """The hidden states of three questions packed in a row equal those of each question alone."""
    scaffold = Scaffold(recipe.MINI_RECIPE, mini.model, mini_parts[0])
    square = replace(recipe.MINI_RECIPE, other_shapes=0.0)
    (batch,) = batches(
        Collator(square, replace(recipe.MINI_RECIPE.stages[3], steps=1, scenes=2), *mini_parts),
        0,
        0,
    )
    packed, visual, mllm = batch.packed, scaffold.visual_tokens(batch), mini.model.mllm
    text = mllm.model.language_model

    def hidden(rows, columns, mask):
        ids, positions = packed.ids[rows][:, columns], scaffold.rope_positions(packed)[:, rows]
        embeddings = mllm.get_input_embeddings()(ids).clone()
        embeddings[ids == mllm.config.image_token_id] = visual[rows].flatten(0, 1)
        options = dict(inputs_embeds=embeddings, position_ids=positions[:, :, columns])
        masks = {"full_attention": mask, "sliding_attention": mask}
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            return text(**options, attention_mask=masks, use_cache=False).last_hidden_state

    with monkeypatch.context() as patch:
        patch.setattr(text.config, "_attn_implementation", "parts")
        together = hidden(slice(None), slice(None), packed.section_lengths)
    prefix, *columns = packed.section_lengths
    start = prefix
    for column in columns:
        for row in range(2):
            size = int((packed.position_offset[row, start : start + column] > 0).sum())
            assert 20 < size <= column
            keep = [*range(prefix), *range(start, start + size)]
            causal = torch.full((len(keep), len(keep)), -1e4).triu(1)[None, None]
            alone = hidden(slice(row, row + 1), keep, causal)
            error = (together[row, keep] - alone[0]).abs()[prefix:]
            assert error.max() < (0.5 if is_half else 1e-4) and error.mean() < 0.02
        start += column


def test_batches_of_other_shapes_are_seen_in_their_own_grid(mini_parts):
    tokenizer, image_processor = mini_parts
    stage = replace(recipe.MINI_RECIPE.stages[3], steps=12, scenes=2)
    wide = replace(recipe.MINI_RECIPE, other_shapes=1.0)
    scaffold = Scaffold(wide, build_miniature(wide, tokenizer), tokenizer)
    shapes = set()
    for batch in batches(Collator(wide, stage, tokenizer, image_processor), 0, 0):
        height, width = batch.image.shape[-2:]
        shapes.add((height, width))
        assert max(height, width) == 256 and (batch.grid[0] < batch.grid[1]) == (height < width)
        assert batch.tower_cells.shape[1] == batch.grid[0] * batch.grid[1]
        assert batch.pixel_values.shape[0] == 2 * 4 * batch.grid[0] * batch.grid[1]
        side = recipe.MINI_RECIPE.vision.prior_side
        assert batch.masks.shape[1:] == (1, side, side)
    assert len(shapes) > 4
    scaffold.model.mllm.set_attn_implementation("parts")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, scores = scaffold.loss("joint", batch)
    assert loss.isfinite() and scores["segmentation"] > 0


@torch.no_grad()
@pytest.mark.parametrize("side", [192, 256, 320])
def test_training_sees_pictures_as_answers_do(mini_parts, side):
    """In SAM's frame of any side: the same embeddings, and the prior covers the same part of it."""
    vision = replace(recipe.MINI_RECIPE.vision, side=side)
    sized = replace(recipe.MINI_RECIPE, vision=vision, other_shapes=1.0)
    scaffold = Scaffold(sized, build_miniature(sized, mini_parts[0]), mini_parts[0]).eval()
    stage = replace(sized.stages[1], steps=1, scenes=2)
    (batch,) = batches(Collator(sized, stage, *mini_parts), 0, 0)
    photos = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in batch.image]
    seen = torch.cat([scaffold.model.image_encoder(to_sam_frame(p, side)) for p in photos])
    assert torch.allclose(scaffold.image_embeddings(batch), seen, atol=0.05)
    assert scaffold.unpadded_size(batch) == unpadded_size((photos[0].height, photos[0].width), side)
    truth = to_photo_frame(batch.masks[:1] - 0.5, batch.image.shape[-2:], side)[0, 0] > 0
    row, thing = batch.targets[0]
    scene, _ = SceneQuestions(sized, stage)[row]
    assert iou(truth.numpy(), scene.mask(scene.objects.index(thing))) > 0.6


def test_every_one_of_several_things_has_its_focus_token(mini_parts):
    tokenizer, _ = mini_parts
    scene, question = next(
        (s, q) for s, q in draw_examples("train", 0, 50, "several") if len(q.targets) > 2
    )
    packed = pack_questions(recipe.MINI_RECIPE, [(scene, [question])], tokenizer, (10, 10))
    targets = [oracle.object_features(scene.objects[i]) for i in question.targets]
    assert torch.equal(packed.focus_features, torch.stack(targets))
    focus_id = tokenizer.convert_tokens_to_ids(FOCUS_TOKEN)
    assert all(packed.ids[row, column] == focus_id for row, column in packed.focus.tolist())


def test_target_replies_fall_into_four_sections():
    asked = [*draw_examples("train", 0, 300), *draw_examples("train", 0, 100, "several")]
    for _, question in [*asked, *draw_examples("train", 0, 100, "unknown word")]:
        sections = split_reply(question.reply)
        assert "".join(sections) == question.reply and sections[1].startswith(" You ask for")


def test_tokens_of_a_reply_are_those_of_its_sections(mini):
    tokenizer = mini.focus.language.tokenizer
    asked = [*draw_examples("train", 0, 100), *draw_examples("train", 0, 50, "several")]
    for _, question in [*asked, *draw_examples("train", 0, 50, "unknown word")]:
        pieces = [
            tokenizer(s, add_special_tokens=False).input_ids for s in split_reply(question.reply)
        ]
        assert sum(pieces, []) == tokenizer(question.reply, add_special_tokens=False).input_ids


def test_learning_rate_rises_holds_and_falls_to_nothing():
    stage = replace(recipe.MINI_RECIPE.stages[0], steps=1000)
    factors = [lr_factor(s, stage) for s in range(1000)]
    assert factors[0] < 0.05 and factors[200] == 1 and factors[-1] < 0.001
    assert all(a >= b for a, b in zip(factors[400:], factors[401:]))


def test_the_oracles_code_tells_kind_colour_and_place():
    frame, query_frame = oracle.orthogonal_frames(192)
    assert torch.allclose(frame.T @ frame, torch.eye(64) * 0.36, atol=1e-5)
    assert torch.allclose(query_frame.T @ query_frame, torch.eye(62) * 16, atol=1e-4)
    scene = draw_scene(3)
    cells = oracle.cell_features(
        torch.from_numpy(scene.instance_map), scene.objects, (10, 10), 0.15
    )
    for t in scene.objects:
        column, row = int(t.centre[0] * 10 / 256), int(t.centre[1] * 10 / 256)
        if scene.instance_map[int(t.centre[1]), int(t.centre[0])]:
            assert cells[row * 10 + column, oracle.GROUND_FLAG] == 0


def test_ask_of_every_family_is_reproducible():
    scene = draw_scene(12)
    assert draw_question(scene, random.Random(3)) == draw_question(scene, random.Random(3))


@pytest.mark.parametrize(
    "change, said",
    [
        ("stages.eyes.scenes=0", "stages.eyes.scenes is 0 and is at least 1"),
        ("stages.joint.rate=-1.0", "is at least 0"),
        ("vocabulary=10", "vocabulary is 10 and is at least 300"),
        ("stages.joint.stepz=3", "has no 'stages.joint.stepz', did you mean stages.joint.steps"),
        ("vision=3", "has no 'vision'"),
        (
            "stages.eyes.steps=x",
            f"is 'x' and one like {recipe.MINI_RECIPE.stages[0].steps} was expected",
        ),
        ("stages.eyes.steps", "sets nothing: write --set key=value"),
    ],
)
def test_a_wrong_change_of_the_recipe_is_one_sentence(change, said, tmp_path, capsys):
    assert main(["train", "mini", "--out", str(tmp_path), "--set", change]) == 2
    assert said in capsys.readouterr().err


def test_changes_reach_the_recipe():
    changed = recipe.read_mini_recipe(
        ["stages.joint.steps=7", "asking.nothing=0.5", "other_shapes=1"]
    )
    assert changed.stages[3].steps == 7 and changed.asking.nothing == 0.5
    assert changed.other_shapes == 1 and changed.vision == recipe.MINI_RECIPE.vision
