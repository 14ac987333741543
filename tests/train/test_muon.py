"""Muon moves matrices as torch's does, in products that the device has."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nearstep.train.muon import Muon, orthogonal

SHAPES = [(16, 16), (16, 16), (24, 16), (16, 40), (16, 40)]


def moved(kind: type, steps: int = 3, **options) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    matrices = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimizer = kind(matrices, lr=0.1, weight_decay=0.01, **options)
    for _ in range(steps):
        for p in matrices:
            p.grad = torch.randn(p.shape, generator=draw)
        optimizer.step()
    return [p.detach() for p in matrices]


@pytest.mark.parametrize("narrow", [True, False])
def test_it_moves_matrices_as_torch_does(narrow: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nearstep.train.muon.multiplies_bfloat16", lambda device: narrow)
    expected = moved(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    for mine, theirs in zip(moved(Muon), expected, strict=True):
        # torch's products are in bfloat16; their three updates are of .02 a number each.
        torch.testing.assert_close(mine, theirs, rtol=0, atol=5e-3)


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 24, 16), (2, 16, 40)])
def test_singular_values_come_near_one(shape: tuple[int, ...]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made = orthogonal(matrices)
    values = torch.linalg.svdvals(made)
    assert made.dtype == torch.float32 and values.max() < 1.3
    assert values[:, : shape[1] // 2].min() > 0.6
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(made.flatten(1), (u @ v).flatten(1))
    assert cosine.min() > 0.95
    torch.testing.assert_close(orthogonal(matrices[:1]), made[:1], rtol=1e-2, atol=1e-2)  # one by one, or together


def test_what_has_no_gradient_stays():
    still, moving = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8, 8))
    moving.grad = torch.eye(8)
    Muon([still, moving], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(8, 8)) and not torch.equal(moving, torch.ones(8, 8))


def test_no_gradient_at_all_gives_finite_weights():
    p = nn.Parameter(torch.ones(8, 8))
    p.grad = torch.zeros(8, 8)
    Muon([p], lr=0.1).step()
    assert torch.isfinite(p).all()
