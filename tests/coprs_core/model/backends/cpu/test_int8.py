"""Linear layers in 8 bits on a CPU that is slow in bfloat16."""

import pytest
import torch
from torch import nn

from coprs_core import load
from coprs_core.checkpoints import plan
from coprs_core.machine import parse_dtype
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends.cpu.int8 import (
    MIN_FLOAT32_ROWS,
    Int8Linear,
    quantize_linears,
    quantize_rows,
)
from tests import tiny


def test_rows_are_kept_within_a_step():
    torch.manual_seed(0)
    weight = torch.randn(300, 64).bfloat16()
    weight[7] = 0
    rows, scale, error = quantize_rows(weight)
    back = rows.float() * scale[:, None]
    assert rows.dtype == torch.int8 and (back[7] == 0).all()
    # the scale is rounded to bfloat16: the largest of a row may be cut by as much
    assert ((back - weight.float()).abs() <= scale[:, None] * 1.01).all()
    assert torch.allclose((back - weight.float()).norm(dim=1), error, atol=1e-5)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("count", [1, 5, MIN_FLOAT32_ROWS, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_few_rows_and_many_give_the_layers_own_output(has_bias, count, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(128, 96, bias=has_bias).to(dtype)
    x = torch.randn(2, count, 128).to(dtype)
    exact = nn.functional.linear(
        x.float(), layer.weight.float(), None if layer.bias is None else layer.bias.float()
    )
    output = Int8Linear(layer)(x)
    assert output.shape == exact.shape and output.dtype == dtype
    assert (output - exact).norm() < 0.015 * exact.norm()


def test_whole_weights_are_left_as_they_are():
    weight = torch.randn(3, 8)
    before = weight.clone()
    quantize_rows(weight)
    assert torch.equal(weight, before)


def test_packing_replaces_linear_layers_and_nothing_else():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
    quantize_linears(model.bfloat16())
    assert [type(m) for m in model[1]] == [nn.LayerNorm, Int8Linear]
    assert isinstance(model[0], Int8Linear) and not list(model[0].parameters())


@pytest.mark.parametrize("make", [tiny.qwen, tiny.qwen3, tiny.llava, tiny.qwen3_5])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_language_model_alone_is_packed_where_the_cpu_is_slow(
    tmp_path, monkeypatch, make, dtype
):
    monkeypatch.setattr(plan, "has_native_bfloat16", lambda device: False)
    mllm = make()
    (tmp_path / "checkpoint").mkdir()
    folder = tiny.save_checkpoint_by_hand(tmp_path / "checkpoint", tiny.coprs(mllm))
    engine = load(str(folder), device="cpu", dtype=dtype, quantization="int8")
    packed = {n for n, m in engine.model.named_modules() if isinstance(m, Int8Linear)}
    linear = {f"mllm.{n}" for n, m in mllm.named_modules()
              if isinstance(m, nn.Linear) and n.startswith("model.language_model.layers.")}  # fmt: skip
    assert packed == linear and len(linear) >= 14
    assert engine.model.dtype == parse_dtype(dtype)
    assert engine.segment(draw_scene(1).image, "it", 4).tokens <= 4


def test_the_miniature_in_8_bits_answers_as_it_does_in_16(monkeypatch):
    monkeypatch.setattr(plan, "has_native_bfloat16", lambda device: False)
    eight = load("mini", device="cpu", dtype="bf16", quantization="int8")
    sixteen = load("mini", device="cpu", dtype="bf16")
    assert any(isinstance(m, Int8Linear) for m in eight.model.modules())
    alike = 0
    for number in range(4):
        scene = draw_scene(number, "validation")
        instruction = f"the {scene.objects[0].colour} {scene.objects[0].kind}"
        a, b = (e.segment(scene.image, instruction).mask > 0 for e in (eight, sixteen))
        alike += (a & b).sum() > 0.9 * (a | b).sum()
    assert alike >= 3
