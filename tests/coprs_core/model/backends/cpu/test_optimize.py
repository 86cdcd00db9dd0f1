"""What makes a model quick on a CPU is put on and taken off again, and nothing is left of it."""

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from coprs_core import load, machine
from coprs_core.mini.world.scenes import draw_scene
from coprs_core.model.backends.cpu import optimize, output_layer
from coprs_core.model.backends.cpu.float32 import Float32Conv2d, Float32Linear
from coprs_core.model.backends.cpu.fused_attention import FusedAttention
from coprs_core.model.backends.cpu.int8 import Int8Linear
from coprs_core.model.backends.cpu.output_layer import ShortlistedOutput
from tests import tiny

OPTIMIZED = {Float32Linear, Float32Conv2d, FusedAttention, ShortlistedOutput}


@pytest.fixture(autouse=True)
def slow_cpu(monkeypatch):
    monkeypatch.setattr(machine, "_cpu_has_bfloat16", lambda: False)
    monkeypatch.setattr(output_layer, "MIN_SHORTLISTED_WEIGHTS", 1)


def kinds(model: nn.Module) -> dict[str, tuple[nn.Module, type]]:
    return {name: (module, type(module)) for name, module in model.named_modules()}


def outputs(model) -> list[torch.Tensor]:
    """What image encoder and language model make of something, bit for bit."""
    torch.manual_seed(0)
    side, ids = model.config.vision.side, torch.arange(40)[None]
    with torch.no_grad():
        seen = model.image_encoder(torch.randn(1, 3, side, side).bfloat16())
        hidden = model.mllm.model.language_model(input_ids=ids).last_hidden_state
        return [seen, hidden, model.mllm.lm_head(hidden)]


@pytest.mark.parametrize("make", [tiny.qwen, tiny.qwen3, tiny.llava])
def test_undo_gives_back_exactly_what_was_there(make):
    model = tiny.coprs(make()).bfloat16()
    before, bits, state = kinds(model), outputs(model), model.state_dict()
    for _ in range(2):  # twice is as good as once
        optimize.apply(model, shortlist=True)
    optimized = {kind for _, kind in kinds(model).values()}
    assert optimized >= OPTIMIZED and not optimized & {nn.Linear, nn.Conv2d, Attention}
    assert not all(torch.equal(*pair) for pair in zip(bits, outputs(model), strict=True))
    optimize.undo(model)
    assert kinds(model) == before  # the same modules, each of its own class
    again = model.state_dict()
    assert again.keys() == state.keys()
    assert all(again[name].data_ptr() == value.data_ptr() for name, value in state.items())
    assert all(torch.equal(*pair) for pair in zip(bits, outputs(model), strict=True))
    optimize.undo(model)  # nothing to undo is left alone
    assert kinds(model) == before


def test_without_a_shortlist_the_output_layer_stays_whole_and_a_part_is_optimized_alone():
    model = tiny.coprs(tiny.qwen()).bfloat16()
    optimize.apply(model.mllm)
    assert type(model.mllm.lm_head) is Float32Linear
    assert {type(block.attn) for block in model.image_encoder.blocks} == {Attention}


def test_what_is_in_8_bits_stays_so():
    model = tiny.coprs(tiny.qwen()).bfloat16()
    language = model.mllm.model.language_model
    optimize.apply(language, int8=True)
    optimize.apply(model, shortlist=True)
    optimize.undo(model)
    linears = [m for m in language.modules() if isinstance(m, nn.Linear | Int8Linear)]
    assert {type(m) for m in linears} == {Int8Linear} and type(model.mllm.lm_head) is nn.Linear


def test_undone_and_put_on_again_the_miniature_answers_as_before():
    engine, scene = load("mini", device="cpu", dtype="bf16", quantization="int8"), draw_scene(3)
    instruction = f"the {scene.objects[0].colour} {scene.objects[0].kind}"
    first = engine.segment(scene.image, instruction)
    optimize.undo(engine.model)
    optimize.apply(engine.model, shortlist=True)
    engine._features.clear()
    second = engine.segment(scene.image, instruction)
    assert second.reply == first.reply and (second.mask == first.mask).all()
    assert (second.prior == first.prior).all()
