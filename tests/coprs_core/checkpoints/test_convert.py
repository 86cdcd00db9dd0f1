"""`convert` and `prepare`: the authors' layout in, the same masks out; every break in its own
sentence, nothing half done."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coprs_core import CoPRSError, load
from coprs_core.__main__ import main
from coprs_core.checkpoints.convert import convert_checkpoint, prepare_for_training
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.photos.photo import open_photo
from tests import tiny

WRITE_SHARDS = """
import sys, torch, torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
state = torch.load(sys.argv[1], weights_only=True)
sharded = {k: distribute_tensor(v, mesh, [Shard(0)]) if v.dim() else v for k, v in state.items()}
torch.save(sharded, f"{sys.argv[2]}/model_world_size_{world}_rank_{rank}.pt")
"""


@pytest.fixture(scope="module")
def model():
    return tiny.coprs(tiny.qwen())


@pytest.fixture(scope="module")
def direct(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("direct") / "checkpoint"
    folder.mkdir()
    return focused(tiny.save_checkpoint_by_hand(folder, model))


@pytest.fixture(scope="module")
def sam(model, tmp_path_factory):
    return tiny.save_sam(tmp_path_factory.mktemp("sam") / "sam.pth", model)


@pytest.fixture(scope="module")
def shards(model, tmp_path_factory):
    """FSDP shards written by real processes, for one and for two of them."""
    folder = tmp_path_factory.mktemp("shards")
    whole = {
        f"llm.{k}": v.contiguous() for k, v in model.mllm.state_dict().items()
    } | tiny.heads_of(model)
    torch.save(whole, folder / "whole.pt")
    (folder / "write.py").write_text(WRITE_SHARDS)
    for world in (1, 2):
        run = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(world),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*run, folder / "write.py", folder / "whole.pt", folder], check=True, capture_output=True, env=environment)  # fmt: skip
    return folder


def actor(folder: Path, model, shards: Path, layout: str) -> Path:
    """The authors' folder: "export" (weights in llm_hf), "bin" (the same as .bin), or the shards of
    1 or 2 processes."""
    folder.mkdir()
    tiny.save_mllm(folder / "llm_hf", model.mllm, weights=layout == "export")
    if layout == "bin":
        torch.save(dict(model.mllm.state_dict()), folder / "llm_hf" / "pytorch_model.bin")
    if layout in ("export", "bin"):
        torch.save(tiny.heads_of(model), folder / "refseg_modules.pt")
    else:
        for file in shards.glob(f"model_world_size_{layout}_*.pt"):
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def exported(tmp_path, model, shards):
    return actor(tmp_path / "actor", model, shards, "export")


@pytest.fixture
def sharded(tmp_path, model, shards):
    return actor(tmp_path / "actor", model, shards, "2")


def focused(folder: Path):
    """Prior and mask at the focus token after a fixed prompt, from a checkpoint folder."""
    engine = load(str(folder), device="cpu", dtype="fp32")
    photo = open_photo(draw_scene(3).image[:200])
    features = engine.read(photo)
    session = engine.focus.start_session("the largest thing", features)
    return engine.focus.prior_and_mask(session.feed([engine.focus.focus_id])[-1:], features)


@pytest.mark.parametrize("layout", ["export", "bin", "1", "2"])
def test_converted_weights_give_the_same_mask(tmp_path, model, sam, shards, direct, layout):
    folder = actor(tmp_path / "actor", model, shards, layout)
    code = main(
        [
            "convert",
            str(folder),
            "--sam",
            str(sam),
            "--out",
            str(tmp_path / "out"),
            "--dtype",
            "fp32",
        ]
    )
    assert code == 0
    prior, mask = focused(tmp_path / "out")
    np.testing.assert_allclose(prior, direct[0], atol=1e-6)
    assert np.array_equal(mask, direct[1]) and 0 < mask.mean() < 1
    assert not (tmp_path / "out.part").exists()


def test_heads_beside_shards_are_taken_from_their_own_file(tmp_path, model, sam, sharded):
    heads = tiny.heads_of(model)
    heads["heatmap_head.fuser.2.bias"] = torch.tensor([0.25])
    torch.save(heads, sharded / "refseg_modules.pt")
    convert_checkpoint(sharded, str(sam), tmp_path / "out")
    assert load_file(tmp_path / "out" / "prior.safetensors")["fuser.2.bias"] == 0.25


def test_the_prompt_template_is_stored(tmp_path, sam, exported):
    template = (
        "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>Where is {instruction}?<|im_end|>\n"
    )
    (tmp_path / "prompt.txt").write_text(template)
    out = tmp_path / "out"
    assert main(["convert", str(exported), "--sam", str(sam), "--out", str(out), "--prompt", str(tmp_path / "prompt.txt")]) == 0  # fmt: skip
    assert load(str(out), device="cpu").model.config.prompt_template == template


def edit_heads(folder, edit):
    heads = torch.load(folder / "refseg_modules.pt", weights_only=True)
    edit(heads)
    torch.save(heads, folder / "refseg_modules.pt")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/coprs-was-here",)


def forget_the_focus_token(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / "llm_hf" / name
        path.write_text(path.read_text().replace("<REF_POS>", "<OTHER>"))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BREAKS = {
    "missing shard": ("sharded", lambda f: (f / "model_world_size_2_rank_1.pt").unlink(), "lacks model_world_size_2_rank_1.pt"),
    "cut shard": ("sharded", lambda f: cut(f / "model_world_size_2_rank_1.pt"), "rank_1.pt is"),
    "mixed shards": ("sharded", lambda f: shutil.copy(f / "model_world_size_2_rank_0.pt", f / "model_world_size_3_rank_0.pt"), "mixes shards"),
    "missing tensor": ("exported", lambda f: edit_heads(f, lambda h: h.pop("mask_decoder.iou_token.weight")), "lacks mask_decoder.iou_token.weight"),
    "extra tensor": ("exported", lambda f: edit_heads(f, lambda h: h.update({"mask_decoder.extra": torch.zeros(1)})), "has unexpected tensors: mask_decoder.extra"),
    "no query head": ("exported", lambda f: edit_heads(f, lambda h: h.pop("heatmap_head.q_proj.weight")), "lack heatmap_head.q_proj.weight"),
    "wrong width": ("exported", lambda f: edit_heads(f, lambda h: h.update({"heatmap_head.q_proj.weight": torch.zeros(32, 48)})), "width 48 and llm_hf/ has 64"),
    "another SAM": ("exported", lambda f: edit_heads(f, lambda h: h["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].add_(1)), "not the SAM"),
    "no focus token": ("exported", forget_the_focus_token, "does not know the focus token <REF_POS>"),
    "text named .pt": ("exported", lambda f: (f / "refseg_modules.pt").write_text("hello"), "not a torch file"),
    "malicious pickle": ("exported", lambda f: torch.save({"x": Malicious()}, f / "refseg_modules.pt"), "holds code, which is never run"),
    "cut heads": ("exported", lambda f: cut(f / "refseg_modules.pt"), "broken or cut short"),
    "cut export": ("exported", lambda f: cut(f / "llm_hf" / "model.safetensors"), "broken or cut short"),
    "no heads at all": ("exported", lambda f: (f / "refseg_modules.pt").unlink(), "lacks refseg_modules.pt"),
    "no weights at all": ("exported", lambda f: (f / "llm_hf" / "model.safetensors").unlink(), "neither weights in llm_hf/ nor FSDP shards"),
    "no llm_hf": ("exported", lambda f: shutil.rmtree(f / "llm_hf"), "no folder llm_hf/"),
    "a list": ("exported", lambda f: torch.save([1, 2], f / "refseg_modules.pt"), "no table of tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_every_break_has_its_own_sentence_and_leaves_nothing(request, tmp_path, sam, capsys, name):
    fixture, damage, words = BREAKS[name]
    folder = request.getfixturevalue(fixture)
    damage(folder)
    before = set(tmp_path.iterdir())
    capsys.readouterr()
    assert main(["convert", str(folder), "--sam", str(sam), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "Traceback" not in said
    assert set(tmp_path.iterdir()) == before
    assert not Path("/tmp/coprs-was-here").exists()


def test_broken_sam_files_have_their_sentences(tmp_path, exported, sam):
    state = torch.load(sam, weights_only=True)
    other = tmp_path / "other.pth"
    for change, words in (
        (lambda s: s.pop("image_encoder.pos_embed"), "is not a SAM"),
        (lambda s: s.pop("image_encoder.neck.1.bias"), "lacks neck.1.bias"),
    ):
        changed = dict(state)
        change(changed)
        torch.save(changed, other)
        with pytest.raises(CoPRSError, match=words):
            convert_checkpoint(exported, str(other), tmp_path / "out")
    shutil.copy(sam, other)
    cut(other)
    with pytest.raises(CoPRSError, match="other.pth is"):
        convert_checkpoint(exported, str(other), tmp_path / "out")
    with pytest.raises(CoPRSError, match="no SAM file"):
        convert_checkpoint(exported, str(tmp_path / "none.pth"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_never_overwritten(tmp_path, exported, sam):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(CoPRSError, match="exists already"):
        convert_checkpoint(exported, str(sam), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("make", [tiny.qwen, tiny.llava, tiny.internvl])
def test_prepare_adds_the_focus_token_and_takes_sams_own_parts(tmp_path, sam, make):
    mllm = make()
    base = tiny.save_mllm(tmp_path / "base", mllm)
    forget = base / "tokenizer.json"
    forget.write_text(forget.read_text().replace("<REF_POS>", "<OTHER>"))
    other = base / "tokenizer_config.json"
    other.write_text(other.read_text().replace("<REF_POS>", "<OTHER>"))
    template = "<|im_start|>user\n{% for c in messages[0]['content'] %}{% if c.type == 'image' %}<|image_pad|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
    (base / "chat_template.jinja").write_text(template)
    prepare_for_training(str(base), str(sam), tmp_path / "start", dtype="fp32")
    engine = load(str(tmp_path / "start"), device="cpu", dtype="fp32")
    rows = engine.model.mllm.get_input_embeddings().weight
    old = mllm.get_input_embeddings().weight
    assert rows.shape[0] == old.shape[0] + 1 and engine.focus.focus_id == old.shape[0]
    torch.testing.assert_close(rows[-1], old.mean(0), rtol=0, atol=1e-3)
    assert torch.equal(rows[:-1], old)
    state = torch.load(sam, weights_only=True)
    for name, value in engine.model.decoder.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(engine.model.image_encoder.pos_embed, state["image_encoder.pos_embed"])
    photo = open_photo(draw_scene(3).image)
    features = engine.read(photo)
    session = engine.focus.start_session("the largest thing", features)
    prior, _ = engine.focus.prior_and_mask(session.feed([engine.focus.focus_id])[-1:], features)
    assert prior.shape == photo.size and prior.mean() < 0.5  # the fusion starts at a bias of -1.8
    # InternVL's template names the picture alone, and its processor puts the marks around it
    image = "<|vision_start|>{image}<|vision_end|>" if make is tiny.internvl else "{image}"
    assert f"<|im_start|>user\n{image}" in engine.model.config.prompt_template


def test_the_pickles_of_the_tests_are_real_zip_files(shards):
    assert zipfile.is_zipfile(shards / "model_world_size_2_rank_0.pt")
