"""The output layer read in part: the same token as from the whole of it, whatever the weights."""

import pytest
import torch
from torch import nn

from coprs_core.model.backends.cpu import output_layer as output
from coprs_core.model.backends.cpu.output_layer import (
    ShortlistedOutput,
    argmax_tokens,
    install_shortlist,
    remove_shortlist,
)

WIDTH, COUNT = 96, 3000


def layer(seed: int, spread: float = 0.02) -> nn.Linear:
    torch.manual_seed(seed)
    made = nn.Linear(WIDTH, COUNT, bias=False).bfloat16()
    nn.init.normal_(made.weight, std=spread)
    return made


class Model(nn.Module):
    def __init__(self, lm_head):
        super().__init__()
        self.lm_head = lm_head


def test_it_is_taken_off_again(monkeypatch):
    monkeypatch.setattr(output, "MIN_SHORTLISTED_WEIGHTS", 1)
    plain = layer(0)
    model = Model(plain)
    remove_shortlist(model)
    assert model.lm_head is plain
    install_shortlist(model)
    assert isinstance(model.lm_head, ShortlistedOutput)
    remove_shortlist(model)
    assert model.lm_head is plain


@pytest.mark.parametrize("seed", range(20))
@torch.no_grad()
def test_the_token_is_that_of_the_whole_layer(seed):
    whole = layer(seed, spread=10.0 ** (seed % 5 - 3))
    weight = whole.weight
    weight[5] = weight[7] = weight[2999] = weight[11]  # the first of equals is taken
    weight[:, 3] *= 40  # one large entry a row: 8 bits are coarse
    weight[17], weight[18] = 0, 1e-20
    short = ShortlistedOutput(whole)
    hidden = torch.cat(
        [torch.randn(200, WIDTH) * 4, weight[::50].float() * 9, torch.zeros(1, WIDTH)]
    )
    for state in hidden.bfloat16()[:, None]:
        assert short.argmax(state) == int(whole(state).argmax(-1))


@torch.no_grad()
def test_few_rows_are_read_in_full(monkeypatch):
    short, read = ShortlistedOutput(layer(1)), []
    linear = nn.functional.linear
    monkeypatch.setattr(
        output.nn.functional, "linear", lambda h, w: read.append(len(w)) or linear(h, w)
    )
    for state in torch.randn(50, 1, WIDTH).bfloat16():
        short.argmax(state)
    assert max(read) < COUNT / 20


@torch.no_grad()
def test_called_it_is_the_layer_and_no_numbers_do_not_stop_it():
    whole = layer(2)
    short, state = ShortlistedOutput(whole), torch.randn(3, WIDTH).bfloat16()
    assert torch.equal(short(state), whole(state)) and short.weight is whole.weight
    assert set(short.state_dict()) == {"layer.weight"}
    nothing = torch.full((1, WIDTH), float("nan")).bfloat16()
    assert short.argmax(nothing) == int(whole(nothing).argmax(-1))


@torch.no_grad()
def test_only_a_large_layer_in_bfloat16_on_a_cpu_is_read_in_part(monkeypatch):
    small = Model(layer(3))
    install_shortlist(small)
    assert type(small.lm_head) is nn.Linear
    monkeypatch.setattr(output, "MIN_SHORTLISTED_WEIGHTS", WIDTH * COUNT)
    exact = Model(layer(3).float())
    install_shortlist(exact)
    assert type(exact.lm_head) is nn.Linear
    state = torch.randn(1, WIDTH).bfloat16()
    before = argmax_tokens(small, state)
    install_shortlist(small)
    assert type(small.lm_head) is ShortlistedOutput and argmax_tokens(small, state) == before
