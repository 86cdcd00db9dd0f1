"""Adapters by folder: loaded over the model that they name, merged where it is not quantized, strictly."""

import json
import shutil
import sys
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from coprs_core import load
from coprs_core.__main__ import main
from coprs_core.checkpoints import adapters, plan
from coprs_core.checkpoints import load as loading
from coprs_core.checkpoints.adapters import save_adapters
from coprs_core.checkpoints.doctor import run_checks
from coprs_core.checkpoints.load import MINIATURE_FOLDER
from coprs_core.checkpoints.save import save_checkpoint
from coprs_core.errors import CoPRSError
from coprs_core.model.backends.cpu.int8 import Int8Linear
from tests import tiny

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))


def adapted(base: torch.nn.Module):
    """Adapters of random weights over a language model, all of whose answers they change."""
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*_proj")
    )
    torch.manual_seed(5)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(base, adapters with heads of their own, merged): folders side by side."""
    folder = tmp_path_factory.mktemp("adapters")
    processor = AutoProcessor.from_pretrained(MINIATURE_FOLDER / "mllm", trust_remote_code=False)
    save_checkpoint(folder / "base", tiny.coprs(tiny.qwen()), processor)
    model = tiny.coprs(tiny.qwen())
    tiny.spread(model.prior, 7), tiny.spread(model.decoder, 8)
    over = adapted(model.mllm)
    save_adapters(folder / "own", over, "../base", {"prior": model.prior, "decoder": model.decoder})
    over.merge_and_unload()
    save_checkpoint(folder / "merged", model, processor)
    return folder


@pytest.fixture
def own(made, tmp_path):
    """A copy of adapters and base, to be damaged."""
    shutil.copytree(made / "own", tmp_path / "own")
    shutil.copytree(made / "base", tmp_path / "base")
    return tmp_path / "own"


def change(folder, **values):
    written = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(written | values))


def test_merged_adapters_are_the_merged_model(made):
    ours, merged = load(str(made / "own"), device="cpu"), load(str(made / "merged"), device="cpu")
    found, expected = ours.model.state_dict(), merged.model.state_dict()
    assert found.keys() == expected.keys()  # nothing of the adapters is left beside
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
    base = load(str(made / "base"), device="cpu").model.state_dict()
    assert not torch.equal(base["prior.q_proj.weight"], found["prior.q_proj.weight"])
    assert (
        ours.checkpoint.name == str(made / "own")
        and ours.checkpoint.language_folder == made / "base/mllm"
    )


@pytest.mark.parametrize("asked, size", [("int8", 10**9), ("auto", 1), ("auto", 10**9)])
def test_where_the_cpu_is_slow_in_bfloat16_they_are_merged_and_kept_in_8_bits(
    made, monkeypatch, asked, size
):
    monkeypatch.setattr(plan, "has_native_bfloat16", lambda device: False)
    monkeypatch.setattr(plan, "GB", size)  # from so many bytes on "auto" quantizes
    ours = load(str(made / "own"), device="cpu", dtype="bf16", quantization=asked)
    packed = sum(isinstance(layer, Int8Linear) for layer in ours.model.modules())
    is_meant = asked == "int8" or size == 1
    assert (packed > 0) == is_meant
    assert ours.checkpoint.quantization == ("int8" if is_meant else "none")
    assert not [name for name, _ in ours.model.named_modules() if "lora" in name]
    merged = load(str(made / "merged"), device="cpu", dtype="bf16", quantization="none")
    layer = "mllm.model.language_model.layers.0.self_attn.q_proj"
    seen = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = merged.model.get_submodule(layer)(seen)
    assert (ours.model.get_submodule(layer)(seen) - exact).norm() < 0.02 * exact.norm()
    assert ours.segment(PHOTO, "the cat", max_new_tokens=8).tokens == 8


def test_over_four_bits_they_stay_beside_the_layers(made):
    ours = load(str(made / "own"), device="cpu", quantization="nf4")
    base = load(str(made / "base"), device="cpu", quantization="nf4")
    layer = "language_model.layers.0.self_attn.q_proj"
    beside, alone = (
        ours.model.mllm.model.get_submodule(layer),
        base.model.mllm.model.get_submodule(layer),
    )
    seen = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(1)).to(
        ours.model.dtype
    )
    weights = load_file(made / "own" / WEIGHTS)
    a, b = (weights[f"base_model.model.model.{layer}.lora_{which}.weight"] for which in "AB")
    expected = alone(seen) + 2 * (seen.float() @ a.T @ b.T).to(seen.dtype)
    torch.testing.assert_close(beside(seen), expected, rtol=2e-2, atol=2e-2)
    assert not any(p.requires_grad for p in ours.model.parameters())
    assert ours.segment(PHOTO, "the cat", max_new_tokens=8).tokens == 8


def test_the_command_line_and_doctor_take_them(made, tmp_path, capsys):
    Image.fromarray(np.asarray(PHOTO)).save(tmp_path / "photo.png")
    asked = [
        "segment",
        str(tmp_path / "photo.png"),
        "the cat",
        "--model",
        str(made / "own"),
        "--device",
        "cpu",
    ]
    assert main([*asked, "--max-new-tokens", "8", "--out", str(tmp_path / "out")]) in (0, 3, 4)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["model"] == str(made / "own")
    measured = ["evaluate", "--model", str(made / "own"), "--device", "cpu", "--limit", "2"]
    assert main(measured) == 0
    named = [check.found for check in run_checks(str(made / "own")) if check.name == "file"]
    assert any(WEIGHTS in text for text in named) and any("image_encoder" in text for text in named)
    capsys.readouterr()


def test_convert_makes_a_full_checkpoint_of_them(made, tmp_path):
    out = tmp_path / "full"
    assert main(["convert", str(made / "own"), "--out", str(out), "--dtype", "fp32"]) == 0
    ours, merged = load(str(out), device="cpu"), load(str(made / "merged"), device="cpu")
    for name, value in merged.model.state_dict().items():
        torch.testing.assert_close(
            ours.model.state_dict()[name], value, rtol=0, atol=1e-6, msg=name
        )


def test_adapters_to_a_model_that_writes_coordinates(tmp_path):
    base = tiny.save_mllm(tmp_path / "qwen", tiny.qwen())
    (base / "chat_template.jinja").write_text(tiny.CHAT)
    save_adapters(tmp_path / "own", adapted(tiny.qwen()), str(base), {})
    sam = tiny.save_sam(tmp_path / "sam.pth", tiny.coprs(tiny.qwen()))
    loaded = load(str(tmp_path / "own"), device="cpu", sam=str(sam))
    layer = "model.language_model.layers.0.self_attn.q_proj.weight"
    before = tiny.qwen().state_dict()[layer]
    assert not torch.equal(loaded.model.mllm.state_dict()[layer], before)
    with pytest.raises(CoPRSError, match="no adapters to a CoPRS checkpoint"):
        from coprs_core.checkpoints.convert import merge_adapters

        merge_adapters(str(tmp_path / "own"), tmp_path / "full")
    # heads belong to a CoPRS checkpoint alone
    save_file({"x": torch.zeros(1)}, tmp_path / "own" / "prior.safetensors")
    with pytest.raises(CoPRSError, match="belongs to a CoPRS checkpoint and .* is none"):
        load(str(tmp_path / "own"), device="cpu", sam=str(sam))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"peft_type": "IA3"}, "does not describe LoRA adapters"),
        ({"base_model_name_or_path": None}, "names no base"),
        (
            {"base_model_name_or_path": "../nowhere/at/all"},
            "There is no checkpoint '../nowhere/at/all'",
        ),
        ({"base_model_name_or_path": "../own"}, "names itself as the base"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "asks for Megatron"),
        ({"r": 8}, "does not fit its base"),
        ({"target_modules": "nothing"}, "does not fit its base"),
        ({"target_modules": "("}, "does not fit its base"),
    ],
)
def test_a_config_that_is_wrong_is_one_sentence(own, values, said):
    change(own, **values)
    with pytest.raises(CoPRSError, match=said) as raised:
        load(str(own), device="cpu")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"base_model_name_or_path": "Qwen/no-such-model"}, ["Qwen/no-such-model", "cannot be reached"]),
        ({"base_model_name_or_path": "../nowhere"}, ["There is no checkpoint '../nowhere'"]),
        ({"base_model_name_or_path": "openai:x@http://127.0.0.1:9/v1"}, ["There is no checkpoint"]),
    ],
)  # fmt: skip
def test_a_base_that_is_not_there_is_said_to_be_the_adapters_own(own, values, words):
    change(own, **values)
    with pytest.raises(CoPRSError) as raised:
        load(str(own), device="cpu")
    said = str(raised.value)
    assert "names as base_model_name_or_path" in said and "copy it again" not in said
    assert all(word in said for word in words), said


def test_a_base_of_another_size_is_said_so(own):
    weights = load_file(own / WEIGHTS)
    save_file(
        {k: torch.zeros(*(2 * n for n in v.shape)) for k, v in weights.items()}, own / WEIGHTS
    )
    with pytest.raises(CoPRSError, match="name the model that they were trained on") as raised:
        load(str(own), device="cpu")
    assert "copy it again" not in str(raised.value)


SLOW = r"(\w|\w\w|\w\.|\.)*[^\w]$"
"""Takes longer than anybody waits, with any name of a module."""


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": SLOW},
        {"exclude_modules": SLOW},
        {"rank_pattern": {SLOW: 4}},
        {"alpha_pattern": {SLOW: 8}},
        {"target_modules": "(x|" * 20_000 + "y" + ")" * 20_000},
        {"target_modules": r"(?:(?:x{0,999}){0,999}){0,999}y"},
        {"modules_to_save": [SLOW]},
        {"layers_pattern": SLOW, "layers_to_transform": [0], "target_modules": ["q_proj"]},
        {"layers_pattern": [SLOW], "layers_to_transform": [0], "target_modules": ["q_proj"]},
        {"r": 10**9},
        {"r": 10**5},
        {"rank_pattern": {"q_proj": 10**6}},
        {"layer_replication": [[0, 2]] * 10**4},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_takes_for_ever_is_refused(own, values, monkeypatch):
    monkeypatch.setattr(adapters, "_MAX_MATCHING_SECONDS", 0.5)
    change(own, **values)
    began = time.process_time()
    with pytest.raises(CoPRSError) as raised:
        load(str(own), device="cpu")
    assert "\n" not in str(raised.value) and "copy it" not in str(raised.value)
    assert time.process_time() - began < 60


PUBLISHED = [
    r".*language_model.*_proj",
    r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
    r"^(model\.language_model(?=\.).*\.(o_proj|q_proj|k_proj|v_proj|gate_proj|up_proj|down_proj))$",
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj)))",
]
"""As this repository, LLaMA-Factory, ms-swift and Unsloth write them."""


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_a_pattern_as_it_is_published_means_the_same_modules(made, own, pattern):
    change(own, target_modules=pattern, rank_pattern={r"layers\.\d+\.mlp\..*": 4}, alpha_pattern={".*up_proj": 8})  # fmt: skip
    ours, merged = load(str(own), device="cpu"), load(str(made / "merged"), device="cpu")
    found, expected = ours.model.state_dict(), merged.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


def test_the_first_of_several_patterns_counts(own):
    config = LoraConfig.from_pretrained(str(own))
    config.rank_pattern = {"a.q": 3, r".*q": 4, "k": 5, "nothing": 6}
    config.alpha_pattern = {r"b\.[qk]": 7}
    config.exclude_modules, config.target_modules = r"b\..*", r".*\.(q|k)"
    names = ["", "a", "a.q", "a.k", "b", "b.q", "b.k"]
    adapters.resolve_patterns(config, names, own / CONFIG)
    assert config.target_modules == {"a.q", "a.k", "b.q", "b.k"}
    assert config.exclude_modules == {"b.q", "b.k"}
    assert config.rank_pattern == {r"a\.q": 3, r"b\.q": 4, r"a\.k|b\.k": 5}
    assert config.alpha_pattern == {r"b\.k|b\.q": 7}


def test_files_that_are_missing_or_of_another_model(own, tmp_path):
    weights = load_file(own / WEIGHTS)
    first = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != first}, own / WEIGHTS)
    with pytest.raises(CoPRSError, match=r"adapter_model.safetensors lacks .*lora_A"):
        load(str(own), device="cpu")
    save_file(
        weights | {"base_model.model.other.lora_A.weight": weights[first].clone()}, own / WEIGHTS
    )
    with pytest.raises(CoPRSError, match="has unexpected tensors: base_model.model.other"):
        load(str(own), device="cpu")
    (own / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(CoPRSError, match="does not fit its base"):
        load(str(own), device="cpu")
    (own / WEIGHTS).unlink()
    with pytest.raises(CoPRSError, match="The adapters lack .*adapter_model.safetensors"):
        load(str(own), device="cpu")
    (own / CONFIG).write_text("{")
    with pytest.raises(CoPRSError, match="adapter_config.json cannot be read"):
        load(str(own), device="cpu")


def test_adapters_over_adapters_are_merged_first(own, tmp_path):
    shutil.copytree(own, tmp_path / "second")
    change(tmp_path / "second", base_model_name_or_path="../own")
    with pytest.raises(
        CoPRSError,
        match="holds adapters too: merge those first with `coprs convert",
    ):
        load(str(tmp_path / "second"), device="cpu")


def test_adapters_that_name_each_other_end_in_a_sentence(own, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(own, other)
    change(own, base_model_name_or_path="some/other")
    change(other, base_model_name_or_path="some/own")
    places = {"some/own": own, "some/other": other}
    monkeypatch.setattr(loading, "download_snapshot", lambda repo, report=None: places[repo])
    with pytest.raises(CoPRSError, match="some/other .*holds adapters too"):
        load("some/own", device="cpu")


def test_what_is_downloaded_does_not_choose_a_folder_of_this_machine(own, monkeypatch):
    monkeypatch.setattr(loading, "download_snapshot", lambda repo, report=None: own)
    monkeypatch.chdir(own.parent.parent)
    for base in ("../base", str(own.parent / "base"), "~/x", f"{own.parent.name}/base"):
        change(own, base_model_name_or_path=base)
        with pytest.raises(CoPRSError, match="a folder of the machine that they were trained on"):
            load("somebody/adapters", device="cpu")
    change(own, base_model_name_or_path="openai:x@http://127.0.0.1:9/v1")
    with pytest.raises(CoPRSError, match="There is no checkpoint"):
        load("somebody/adapters", device="cpu")


def test_they_are_not_trained_themselves(own, tmp_path):
    from coprs_core.training import run_joint
    from coprs_core.training.recipe import read_recipe

    for more in ([], ["lora=4"]):
        recipe = read_recipe("mini-joint", [f"model={own}", "steps=1", *more])
        with pytest.raises(CoPRSError, match="are adapters: train from a full checkpoint"):
            run_joint.train_joint(recipe, tmp_path / "out", "cpu")


def test_without_the_library_it_is_named(own, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CoPRSError, match="pip install peft"):
        load(str(own), device="cpu")
