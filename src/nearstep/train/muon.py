"""Muon: momentum whose matrices are made orthogonal before they move the weights (Jordan et al. 2024).

torch.optim.Muon's rule and its state, with three differences: the products are in bfloat16 only where the device has
such products (a processor without them takes many times as long), matrices of one shape are made orthogonal together (a
small network has dozens, each of some thirty kernels), and processes that hold the same matrices divide them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearstep.precision import multiplies_bfloat16
from nearstep.train.parallel import ranks

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the polynomial a x + b x^3 + c x^5, which moves all singular values into about [.7, 1.2] in five steps."""
_STEPS = 5
_LEAST = 1e-7
_UPDATE = 0.2
"""Root mean square of an update at a rate of 1: AdamW's, so that one rate serves both (Liu et al. 2025)."""


class Muon(torch.optim.Optimizer):
    """Moves matrices alone.

    Args:
        matrices: what it moves, all of two dimensions.
        lr: learning rate, as AdamW's.
        weight_decay: decoupled.
        momentum: share of the momentum that a step keeps; Nesterov's kind.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for shape, matrices in alike.items():
                momenta = torch.stack([self._momentum(p, group["momentum"]) for p in matrices])
                updates = ranks().divided(orthogonal, momenta)
                for p, update in zip(matrices, updates.unbind(), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * _UPDATE * max(shape) ** 0.5)

    def _momentum(self, p: nn.Parameter, kept: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        momentum = state["momentum_buffer"].lerp_(p.grad, 1 - kept)
        return p.grad.lerp(momentum, kept)


def orthogonal(matrices: Float[Tensor, "N rows columns"]) -> Float[Tensor, "N rows columns"]:
    """U V^T of each matrix U S V^T, roughly: singular values end between .7 and 1.2, small ones lower."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if multiplies_bfloat16(x.device.type) else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_LEAST)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return (x.mT if tall else x).to(matrices.dtype)
