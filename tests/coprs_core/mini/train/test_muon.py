"""Muon: the library's, matrices of one shape at once."""

import torch
from torch import nn

from coprs_core.mini.train import muon


def test_singular_values_come_near_one_and_directions_stay():
    torch.manual_seed(0)
    for shape in ((3, 40, 16), (2, 16, 40)):
        given = torch.randn(shape)
        made = muon.orthogonal(given).float()
        assert made.shape == given.shape
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.5 and values.max() < 1.3
        left, _, right = torch.linalg.svd(given, full_matrices=False)
        turned = left.mT @ made @ right.mT
        off = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
        assert off.abs().max() < 0.05
    assert torch.equal(muon.orthogonal(torch.zeros(1, 4, 4)).float(), torch.zeros(1, 4, 4))


def test_steps_are_those_of_the_library(monkeypatch):
    options = {"weight_decay": 0.03, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    shapes = [(32, 16), (16, 32), (32, 16), (24, 24)]
    for is_half in (True, False):
        monkeypatch.setattr(muon, "has_native_bfloat16", lambda _, is_half=is_half: is_half)
        ends = []
        for kind in (torch.optim.Muon, muon.Muon):
            torch.manual_seed(1)
            matrices = [nn.Parameter(torch.randn(s)) for s in shapes]
            optimizer = kind(matrices, lr=0.1, **options)
            for _ in range(4):
                for matrix in matrices[:3]:
                    matrix.grad = torch.randn(matrix.shape)
                optimizer.step()
            ends.append((matrices, optimizer.state_dict()["state"]))
        (theirs, state), (ours, kept) = ends
        for a, b in zip(theirs, ours, strict=True):
            assert (a - b).abs().max() < 5e-3  # products in bfloat16 differ from CPU to CPU
        assert list(state) == list(kept) == [0, 1, 2]  # no gradient: nothing moves
        assert torch.equal(state[0]["momentum_buffer"], kept[0]["momentum_buffer"])
