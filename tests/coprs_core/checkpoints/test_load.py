"""Checkpoint folders: saved and loaded strictly, every break in its own sentence."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from coprs_core import CoPRSError, load
from coprs_core.checkpoints.load import MINIATURE_FOLDER, load_checkpoint
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.save import save_checkpoint
from coprs_core.machine import choose_device
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.coprs import CoPRSConfig
from coprs_core.model.decoder import FLOAT32_BUFFER


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MINIATURE_FOLDER, tmp_path / "copy")


def change(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_saving_and_loading_is_exact(mini, tmp_path):
    save_checkpoint(
        tmp_path / "again",
        mini.model,
        AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm"),
        torch.float32,
    )
    again = load(str(tmp_path / "again"), device="cpu")
    old, new = mini.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) for k in old)
    assert again.model.config == mini.model.config
    modes = {f.stat().st_mode & 0o777 for f in (tmp_path / "again").rglob("*.*")}
    assert modes == {(tmp_path / "again").stat().st_mode & 0o666}  # as open as the folder


def test_saving_in_half_precision_leaves_the_model_as_it_is(tmp_path):
    engine, other = load("mini", device="cpu"), load("mini", device="cpu")
    with torch.no_grad():
        engine.model.mllm.lm_head.weight.add_(1e-4)
        other.model.mllm.lm_head.weight.add_(1e-4)
    processor = AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm")
    save_checkpoint(tmp_path / "half", engine.model, processor, torch.bfloat16)
    before, after = other.model.state_dict(), engine.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    saved = load_file(tmp_path / "half" / "mllm" / "model.safetensors")
    assert {v.dtype for v in saved.values()} == {torch.bfloat16}
    again = load(str(tmp_path / "half"), device="cpu").model.state_dict()
    kept = "positional_encoding_gaussian_matrix"  # in float32: see the next test
    halved = {k: v if kept in k else v.bfloat16().float() for k, v in before.items()}
    assert all(torch.equal(again[k], halved[k]) for k in before)


def test_sams_positional_matrix_keeps_its_precision(tmp_path, mini):
    """Places are told apart by it: training and answers have to use the same."""
    model = copy.deepcopy(mini.model)
    for matrix in (b for n, b in model.named_buffers() if n.endswith(FLOAT32_BUFFER)):
        matrix.add_(1e-4)
    processor = AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm", trust_remote_code=False)
    save_checkpoint(tmp_path, model, processor, torch.bfloat16)
    again = load_checkpoint(str(tmp_path), LoadOptions("cpu")).segmenter.model
    mine, theirs = model.state_dict(), again.state_dict()
    names = [name for name in mine if name.endswith(FLOAT32_BUFFER)]
    assert names and all(torch.equal(mine[n], theirs[n]) for n in names)
    assert all(theirs[n].dtype == torch.float32 for n in names)


def test_every_loaded_tensor_equals_the_file(mini):
    for part in ("image_encoder", "prior", "decoder"):
        state = getattr(mini.model, part).state_dict()
        file = load_file(MINIATURE_FOLDER / f"{part}.safetensors")
        assert file.keys() == state.keys() and all(
            torch.equal(file[k].float(), state[k]) for k in file
        )
    file = load_file(MINIATURE_FOLDER / "mllm" / "model.safetensors")
    loaded = mini.model.mllm.state_dict()
    renamed = {
        k.replace("visual.", "model.visual.") if k.startswith("visual.") else k: v
        for k, v in file.items()
    }
    matched = [
        k
        for k, v in renamed.items()
        if any(
            torch.equal(v.float(), loaded[n])
            for n in loaded
            if n.endswith(k.removeprefix("model."))
        )
    ]
    assert len(matched) == len(file)


def test_the_miniature_is_small():
    assert sum(f.stat().st_size for f in MINIATURE_FOLDER.rglob("*") if f.is_file()) < 25e6


def test_config_survives_a_round_trip(mini):
    assert (
        CoPRSConfig.from_dict(json.loads(json.dumps(mini.model.config.to_dict())))
        == mini.model.config
    )


@pytest.mark.parametrize("file", ["coprs.json", "prior.safetensors", "decoder.safetensors", "image_encoder.safetensors", "mllm/config.json", "mllm/model.safetensors", "mllm/tokenizer.json"])  # fmt: skip
@pytest.mark.parametrize("how", ["missing", "cut short"])
def test_a_missing_or_broken_file_is_named(folder, file, how):
    path = folder / file
    content = path.read_bytes()
    path.unlink() if how == "missing" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CoPRSError) as error:
        load_checkpoint(str(folder))
    assert "\n" not in str(error.value) and (
        "coprs.json" if file == "coprs.json" else str(folder)
    ) in str(error.value)


def test_missing_unexpected_and_misshapen_tensors_are_named(folder):
    path = folder / "prior.safetensors"
    state = load_file(path)
    for edit, words in (
        (lambda s: s.pop("q_proj.weight"), "lacks q_proj.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "has unexpected tensors: extra"),
        (
            lambda s: s.update({"q_proj.weight": torch.zeros(3, 3)}),
            r"wrong size: q_proj.weight is \[3, 3\]",
        ),
    ):
        changed = dict(state)
        edit(changed)
        save_file(changed, path)
        with pytest.raises(CoPRSError, match=words):
            load_checkpoint(str(folder))


def test_missing_tensor_of_the_language_model_is_named(folder):
    path = folder / "mllm" / "model.safetensors"
    state = load_file(path)
    name = next(k for k in state if k.endswith("layers.0.mlp.up_proj.weight"))
    state.pop(name)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CoPRSError, match="layers.0.mlp.up_proj.weight"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda c: c.update(format_version=99), "format version 99"),
        (lambda c: c.update(llm_width=77), "llm_width 77"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.pop("vision"), "vision"),
        (lambda c: c.update(prompt_template="no slots"), "{image}"),
        (lambda c: c.update(focus_token="<NOT_THERE>"), "<NOT_THERE>"),
        (lambda c: c.update(max_new_tokens=5000), "max_new_tokens is '5000'"),
        (lambda c: c.update(llm_width="wide"), "llm_width is 'wide'"),
        (lambda c: c.update(prior_heads=True), "prior_heads is 'True'"),
        (lambda c: c.update(prior_heads=0), "prior_heads is '0'"),
        (lambda c: c.update(mllm_pixels=[4]), "two numbers"),
        (lambda c: c.update(note=["x"]), "note is"),
        (lambda c: c.update(vision=7), "vision is '7'"),
        (lambda c: c["vision"].update(side=10**6), "vision.side is '1000000'"),
        (lambda c: c["vision"].update(global_layers=["x"]), "vision.global_layers"),
        (lambda c: c["decoder"].update(depth=-1), "decoder.depth is '-1'"),
    ],
)
def test_a_wrong_config_gets_its_own_sentence(folder, edit, words):
    change(folder / "coprs.json", edit)
    with pytest.raises(CoPRSError) as error:
        load_checkpoint(str(folder))
    assert words in str(error.value)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(name="no/such/folder"), "no checkpoint"),
        (dict(device="abacus"), "not known"),
        (dict(device="cuda:99"), "no device"),
        (dict(dtype="fp3"), "not known"),
        (dict(quantization="nf5"), "not known"),
    ],
)
def test_wrong_options_get_a_sentence(options, words):
    with pytest.raises(CoPRSError, match=words):
        name = options.pop("name", "mini")
        load_checkpoint(name, LoadOptions(**options))


def test_a_folder_without_a_checkpoint_is_said_and_not_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CoPRSError, match="There is no checkpoint .*that holds coprs.json") as error:
        load_checkpoint(str(tmp_path))
    assert "notes.txt" not in str(error.value)


def test_auto_chooses_a_device_that_is_there():
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_half_precision_answers(mini):
    result = load("mini", device="cpu", dtype="bf16").segment(
        draw_scene(1).image, "the largest thing"
    )
    assert result.settings["dtype"] == "bfloat16" and result.outcome in ("found", "nothing found")


def test_nf4_quantizes_the_language_models_layers_and_nothing_else():
    engine = load("mini", device="cpu", quantization="nf4")
    import bitsandbytes as bnb

    quantized = [n for n, m in engine.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(quantized) == 7 * 6 and all(
        n.startswith("mllm.model.language_model.layers.") for n in quantized
    )
    assert engine.segment(draw_scene(1).image, "the largest thing").reply.startswith("<think>")
