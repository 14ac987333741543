"""Exponential moving average of a module's parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """A slow copy. The decay ramps up with the updates, so that an early copy is not stuck at the initial weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards ``module`` by one update."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), 1 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, object]:
        """Weights and the update count."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of ``state_dict``."""
        weights: dict[str, Tensor] = state["module"]  # pyright: ignore[reportAssignmentType]
        self.module.load_state_dict(weights)
        self.updates = int(state["updates"])  # pyright: ignore[reportArgumentType]
