"""What people with real models meet: sizes, memory, quantization, tables, the doctor. On models
that tests make."""

import json
import subprocess
import sys
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from transformers import Qwen2_5_VLForConditionalGeneration

from coprs_core import CoPRSError, load, random_weights
from coprs_core.__main__ import main
from coprs_core.answer.engine import Engine
from coprs_core.checkpoints import doctor, hugging_face, plan
from coprs_core.checkpoints.catalogue import CATALOGUE, find_in_catalogue
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.checkpoints.plan import Machine, choose_dtype
from coprs_core.checkpoints.sam_models import PUBLISHED_SAMS
from coprs_core.metrics import iou
from coprs_core.mini.world.questions import draw_examples
from coprs_core.mini.world.scenes import draw_scene
from tests import ROOT, record, tiny

# --- the table


@pytest.mark.parametrize("name, size", [("qwen2.5-vl-3b", "3b"), ("qwen2.5-vl-7b", "7b")])
def test_the_tables_weights_are_those_of_the_published_configs(name, size):
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(random_weights.qwen2_5_config(size))
    linear = sum(
        m.weight.numel()
        for m in model.model.language_model.modules()
        if isinstance(m, torch.nn.Linear)
    )
    row = find_in_catalogue(name)
    assert (row.size.linear, row.size.other) == (
        linear,
        sum(p.numel() for p in model.parameters()) - linear,
    )
    assert row.download == pytest.approx(2 * (row.size.linear + row.size.other), rel=0.001)


def test_the_tables_sam_sizes_are_segment_anythings():
    for name in ("vit_b", "vit_l", "vit_h"):
        known = PUBLISHED_SAMS[name]
        with torch.device("meta"):
            counted = sum(p.numel() for p in sam_model_registry[name]().parameters())
        assert counted == known.size.other
        assert known.download == pytest.approx(4 * known.size.other, rel=0.001)


def test_models_lists_every_name_and_reads_the_machine_live(capsys, monkeypatch):
    assert main(["models", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    names = [
        *("mini", "coprs", "qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b", "egm-4b"),
        *("qwen2.5-vl-3b", "qwen2.5-vl-7b", "seg-zero-7b", "visionreasoner-7b"),
    ]
    assert all(name in text for name in (*names, *PUBLISHED_SAMS))
    main(["models", "--json", "--device", "cpu"])
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)}
    assert list(rows) == names and rows["mini"]["fits"] and rows["mini"]["cached"]
    assert (
        rows["qwen2.5-vl-3b"]["memory_nf4"]
        < rows["qwen2.5-vl-3b"]["memory_bf16"]
        < rows["qwen2.5-vl-7b"]["memory_bf16"]
    )
    monkeypatch.setattr(plan, "free_disk", lambda folder: 5_000_000_000)
    main(["models", "--json", "--device", "cpu"])
    row = {r["name"]: r for r in json.loads(capsys.readouterr().out)}["seg-zero-7b"]
    assert not row["fits"] and "of disk, 5.0 GB free" in row["reason"]


def test_names_that_are_no_model_are_refused():
    with pytest.raises(CoPRSError, match="stands for a CoPRS checkpoint of yours"):
        load("coprs")
    with pytest.raises(CoPRSError, match="no checkpoint 'qwen9'.*qwen2.5-vl-3b"):
        load("qwen9")


def test_every_listed_model_with_a_prompt_of_its_own_is_a_coordinates_model():
    kinds = {m.name: m.to_source(Path("x")).prior_kind for m in CATALOGUE}
    assert kinds == {m.name: "attention" if m.prompt else "focus token" for m in CATALOGUE}
    assert kinds["mini"] == "focus token" and kinds["seg-zero-7b"] == "attention"


# --- loading


def test_auto_precision_follows_device_and_size():
    cpu, cuda = Machine("cpu", 0, 0), Machine("cuda", 0, 0)
    assert choose_dtype("auto", cpu, 10**8) == "float32"
    assert choose_dtype("auto", cpu, 8 * 10**9) == choose_dtype("auto", cuda, 10**8) == "bfloat16"


def test_sharded_weights_load_and_a_missing_shard_is_named(tmp_path):
    model = tiny.coprs(tiny.qwen(tied=False))
    folder = tmp_path / "sharded"
    folder.mkdir()
    tiny.save_checkpoint_by_hand(folder, model)
    (folder / "mllm" / "model.safetensors").unlink()
    model.mllm.save_pretrained(folder / "mllm", max_shard_size="100KB")
    shards = sorted((folder / "mllm").glob("model-*.safetensors"))
    assert len(shards) > 3
    loaded = load(str(folder), device="cpu").model.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in model.state_dict().items())
    index = folder / "mllm" / "model.safetensors.index.json"
    whole = index.read_text()
    for broken in (whole[: len(whole) // 2], "[]", "{}"):
        index.write_text(broken)
        with pytest.raises(CoPRSError, match="lacks .*model.safetensors.index.json"):
            load(str(folder), device="cpu")
        assert "index.json" in doctor.verdict(doctor.run_checks(str(folder), LoadOptions("cpu")))
    index.write_text(whole)
    shards[1].unlink()
    with pytest.raises(CoPRSError, match=shards[1].name):
        load(str(folder), device="cpu")


LOAD = """
import sys, psutil, torch
from coprs_core import load
from coprs_core.machine import peak_memory
load("mini", device="cpu")  # libraries are not weights
before = psutil.Process().memory_info().rss
model = load(sys.argv[1], device="cpu", dtype="bf16", quantization="none").model
touched = sum(float(p.sum()) for p in model.parameters())
weights = sum({p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}.values())
print(weights, peak_memory(torch.device('cpu')) - before)
"""


def test_loading_takes_little_more_memory_than_the_weights(tmp_path, monkeypatch):
    """Every weight is read, since untouched pages of a file take no memory at all."""
    small = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=8,
                 num_key_value_heads=4, vocab_size=30000, tie_word_embeddings=True)  # fmt: skip
    monkeypatch.setitem(random_weights.QWEN2_5_SIZES, "3b", small)
    random_weights.write_random_checkpoint(tmp_path / "big", "3b", "vit_b")
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "big")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    weights, peak = map(int, run.stdout.split())
    assert weights > 1e9 and peak <= 1.15 * weights, f"{peak / weights:.2f} times the weights"


# --- out of memory


def test_what_cannot_fit_is_refused_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr(plan, "free_memory", lambda device: 20_000_000)
    with pytest.raises(CoPRSError) as error:
        load("mini", device="cpu")
    assert "mini in float32 needs about" in str(error.value) and "has 20 MB free" in str(
        error.value
    )
    monkeypatch.setattr(plan, "free_memory", lambda device: 18_000_000)
    with pytest.raises(CoPRSError, match="--dtype bf16 needs|--quantize nf4 --dtype bf16 needs"):
        load("mini", device="cpu")


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_out_of_memory_while_answering_is_said_and_the_next_question_works(
    mini, found, monkeypatch, problem
):
    engine = Engine(mini.checkpoint)
    engine.segment(found[0].image, found[1].instruction)
    assert engine._features

    def fail(*_):
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(engine.segmenter, "predict_mask", fail)
        with pytest.raises(CoPRSError) as error:
            engine.segment(found[0].image, found[1].instruction)
    assert "needs more memory than there is and cpu has" in str(
        error.value
    ) and "smaller photo" in str(error.value)
    assert not engine._features
    assert engine.segment(found[0].image, found[1].instruction).reply == found[2].reply


def test_out_of_memory_while_loading_is_said(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(hugging_face.AutoModelForImageTextToText, "from_pretrained", fail)
    with pytest.raises(
        CoPRSError,
        match="mini needs more memory than there is and cpu has .* free: try --quantize nf4",
    ):
        load("mini", device="cpu")


# --- quantization


@pytest.mark.parametrize("kind, layer", [("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt)])
@pytest.mark.parametrize("make", [tiny.qwen, tiny.qwen3, tiny.llava, tiny.qwen3_5])
def test_the_language_models_linear_layers_are_quantized_and_nothing_else(
    tmp_path, monkeypatch, kind, layer, make
):
    # on a CPU without these instructions int8 is our own (test_int8)
    monkeypatch.setattr(plan, "has_native_bfloat16", lambda device: True)
    mllm = make()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    engine = load(
        str(tiny.save_checkpoint_by_hand(folder, tiny.coprs(mllm))), device="cpu", quantization=kind
    )
    quantized = {n for n, m in engine.model.named_modules() if isinstance(m, layer)}
    linear = {f"mllm.{n}" for n, m in mllm.named_modules()
              if isinstance(m, torch.nn.Linear) and n.startswith("model.language_model.layers.")
              and m.out_features % 32 == 0}  # fmt: skip
    assert quantized == linear and len(linear) >= 14
    other = {
        str(p.dtype)
        for n, p in engine.model.named_parameters()
        if not n.startswith(tuple(quantized))
    }
    assert other == {"torch.float32"}
    assert engine.segment(draw_scene(1).image, "it", 4).tokens <= 4


def test_quantized_the_miniature_draws_the_masks_that_were_recorded():
    """Scene by scene; the kernels of another CPU may decide two of the 60 differently."""
    recorded = record.recorded()
    measured = np.array(record.mask_ious(load("mini", device="cpu", quantization="nf4")))
    differs = np.abs(measured - recorded["nf4"]) > 0.02
    assert differs.sum() <= 2, np.flatnonzero(differs)
    assert measured.mean() >= np.mean(recorded["full"]) - 0.04


@pytest.mark.xfail(reason="2 of the 60 find another thing: 0.032; see the card", strict=True)
def test_quantized_the_miniature_loses_less_than_a_hundredth():
    recorded = record.recorded()
    assert np.mean(recorded["nf4"]) >= np.mean(recorded["full"]) - 0.01


@pytest.mark.slow
def test_quantized_the_miniature_loses_little(mini):
    """NF4; int8 lost nothing on the same scenes but is four times as slow on a CPU."""
    quantized, scores = load("mini", device="cpu", quantization="nf4"), []
    for scene, question in draw_examples("test", 0, 200):
        truth = scene.mask(*question.targets)
        scores.append(
            [
                iou(e.segment(scene.image, question.instruction).mask, truth)
                for e in (mini, quantized)
            ]
        )
    full, small = np.mean(scores, axis=0)
    assert small >= full - 0.03, f"{full:.3f} → {small:.3f}"


def test_quantization_where_it_cannot_work_is_said(monkeypatch):
    with pytest.raises(
        CoPRSError, match="works on CUDA and on the CPU, not on mps: choose --quantize none"
    ):
        plan.check_quantization("nf4", torch.device("mps"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(CoPRSError, match="bitsandbytes, which quantizes, does not work here"):
        load("mini", device="cpu", quantization="nf4")


# --- doctor and benchmark


def test_the_doctor_says_ready(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "coprs_core", "doctor"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "ready" and not run.stderr
    for words in ("torch 2", "cpu", "cache", "nf4 and int8", "<REF_POS> 10", "model.safetensors"):
        assert words in run.stdout


def broken(folder, name):
    (folder / name).unlink()
    return str(folder)


@pytest.mark.parametrize(
    "what",
    ["prior.safetensors", "mllm/config.json", "mllm/tokenizer.json", "mllm/model.safetensors"],
)
def test_the_doctor_names_the_first_thing_to_do(tmp_path, capsys, what):
    folder = tmp_path / "c"
    folder.mkdir()
    tiny.save_checkpoint_by_hand(folder, tiny.coprs(tiny.qwen()))
    assert main(["doctor", "--model", str(folder)]) == 0
    capsys.readouterr()
    (folder / what).unlink()
    assert main(["doctor", "--model", str(folder)]) == 1
    said = capsys.readouterr().out
    *checks, _, todo = said.splitlines()
    path = str(folder / what)
    failed = [line for line in checks if line.startswith("✗")]
    # config.json and tokenizer.json are asked for by name, weights by their missing shards
    named = path if what != "mllm/model.safetensors" else str(folder / "mllm" / "*.safetensors")
    assert len(failed) == 1 and f"{named} is missing or broken" in failed[0]
    assert todo == f"first: copy {named} again from where {folder} came from"


@pytest.mark.parametrize(
    "options, name",
    [
        (LoadOptions("cpu", quantization="foo"), "quantization"),
        (LoadOptions("cpu", dtype="fp3"), "dtype"),
    ],
)
def test_the_doctor_refuses_what_loading_would_refuse(options, name):
    [wrong] = [c for c in doctor.run_checks("mini", options) if c.problem]
    assert wrong.name == name and "not known" in doctor.verdict([wrong])


def test_the_doctor_asks_no_network_and_says_what_a_download_would_be():
    checks = doctor.run_checks("qwen2.5-vl-3b", LoadOptions("cpu"))
    assert doctor.verdict(checks).startswith(
        "first: start the app once with the network on; it downloads Qwen/"
    )
    assert "choose auto or cpu" in doctor.verdict(doctor.run_checks("mini", LoadOptions("cuda:9")))


def test_the_benchmark_measures_the_miniature(capsys):
    assert main(["benchmark", "--model", "mini", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tokens_per_second"] > 1 and told["weights"] == pytest.approx(4 * 5.78e6, rel=0.02)
    assert told["peak_while_answering"] >= told["peak_while_loading"] >= 0
