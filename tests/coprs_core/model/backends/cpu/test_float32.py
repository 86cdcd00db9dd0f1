"""bfloat16 on a CPU without instructions for it: float32 for many rows, as it was for few."""

import pytest
import torch
from torch import nn

from coprs_core.answer import engine
from coprs_core.machine import has_native_bfloat16
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends.cpu import float32 as wide


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def has_bfloat16(request, monkeypatch):
    monkeypatch.setattr(wide, "has_native_bfloat16", lambda device: request.param)
    return request.param


def test_a_gpu_has_bfloat16_and_a_cpu_tells():
    assert has_native_bfloat16(torch.device("cuda"))
    assert has_native_bfloat16(torch.device("cpu")) in (True, False)


def layers() -> list[tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        (nn.Linear(40, 30), torch.randn(2, 50, 40)),
        (nn.Linear(40, 30, bias=False), torch.randn(64, 40)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(1, 4, 9, 9)),
        (nn.Conv3d(3, 5, (2, 4, 4), stride=(2, 4, 4), bias=False), torch.randn(2, 3, 2, 4, 4)),
    ]


def test_many_rows_are_computed_in_float32(has_bfloat16):
    for layer, given in layers():
        layer.bfloat16()
        x = given.bfloat16()
        before = layer(x)
        wide.compute_in_float32(layer)
        after = layer(x)
        assert after.dtype == before.dtype and after.shape == before.shape
        assert (type(layer) in (nn.Linear, nn.Conv2d, nn.Conv3d)) == has_bfloat16
        exact = layer.float()(x.float())
        assert (after - exact).abs().max() <= exact.abs().max() * 2**-7
        if has_bfloat16:
            assert torch.equal(before, after)


def test_few_rows_float32_and_odd_layers_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(wide, "has_native_bfloat16", lambda device: False)
    layer, x = nn.Linear(40, 30).bfloat16(), torch.randn(31, 40).bfloat16()
    before = layer(x)
    wide.compute_in_float32(layer)
    assert torch.equal(layer(x), before)
    others = nn.Sequential(
        nn.Linear(4, 4), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect").bfloat16()
    )
    wide.compute_in_float32(others)
    assert [type(layer) for layer in others] == [nn.Linear, nn.Conv2d]


def test_the_miniature_answers_alike(monkeypatch):
    """In bfloat16, with and without: the same thing, its mask almost the same."""
    scene, masks = draw_scene(3, "validation"), []
    instruction = f"the {scene.objects[0].colour} {scene.objects[0].kind}"
    for has in (True, False):
        monkeypatch.setattr(wide, "has_native_bfloat16", lambda device, has=has: has)
        loaded = engine.load("mini", device="cpu", dtype="bf16")
        result = loaded.segment(scene.image, instruction)
        masks.append(result.mask)
    kinds = {type(m) for m in loaded.model.modules()}
    assert wide.Float32Linear in kinds and wide.Float32Conv2d in kinds
    both = [m > 0 for m in masks]
    assert (both[0] & both[1]).sum() > 0.9 * (both[0] | both[1]).sum() > 0
