"""Attention in groups: what a mask gives, and gradients that cost no more than what the groups read."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from nearstep.nets.attention import Attention
from nearstep.nets.masks import Visibility, block_causal, teacher_forcing, token_groups
from nearstep.reach import Reach

TOKENS = 5


class Calls(TorchDispatchMode):
    """Counts what is called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "visibility",
    [
        teacher_forcing((1,) * 6, Reach()),
        teacher_forcing((1, 3, 3), Reach(window=4, sink=1)),
        block_causal((2, 2, 2), Reach(window=3)),
    ],
)
def test_gradients_of_groups_are_those_of_a_mask(visibility: Visibility) -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, 1e-6).double()
    groups = token_groups(visibility, (), TOKENS)
    count = len(visibility.positions) * TOKENS
    q, k, v = (torch.randn(2, count, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.zeros(count, count, dtype=torch.bool)
    for group in groups:
        for first, end in group.keys:
            mask[group.first : group.end, first:end] = True
    assert not mask.all()
    with torch.no_grad():
        attended = attention.attend(q, k, v, groups)
    with Calls() as calls:
        grouped = attention.attend(q, k, v, groups)
        torch.testing.assert_close(grouped, attended, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(grouped.square().sum(), (q, k, v))
    assert not calls.names["slice_backward"] and not calls.names["zeros"] and not calls.names["new_zeros"]
    masked = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)
    expected = torch.autograd.grad(attention.to_out[0](masked.flatten(2)).square().sum(), (q, k, v))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
