"""Exponential moving average of a module's trained parameters."""

from __future__ import annotations

from typing import Generic

import torch
from torch import Tensor

from nearstep.train.frozen import Module, Trained, frozen_names, twin, view
from nearstep.train.parallel import resharded


class Ema(Generic[Module]):
    """A slow copy. The decay ramps up with the updates, so that an early copy is not stuck at the initial weights.

    What does not train is the module's own, not copied.

    Args:
        module: what is averaged.
        decay: share of the average that an update keeps.
        cut: both modules are about to be cut into slices of their own (Ranks.place), so that until then the numbers
            are there once.
    """

    def __init__(self, module: Module, decay: float, *, cut: bool = False) -> None:
        self.decay, self.updates = decay, 0
        self.names = [name for name, p in module.named_parameters() if p.requires_grad]
        self.module: Module = (view if cut else twin)(module).eval().requires_grad_(False)
        self.trained = Trained(self.module, frozen_names(module))

    @torch.no_grad()
    def update(self, module: Module) -> None:
        """Move towards ``module`` by one update."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        resharded(self.module, module)
        slow, fast = (dict(each.named_parameters()) for each in (self.module, module))
        torch._foreach_lerp_([slow[name] for name in self.names], [fast[name] for name in self.names], 1 - decay)
        self.updates += 1

    def state_dict(self) -> dict[str, object]:
        """Trained weights and the update count."""
        return {"module": self.trained.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """The inverse of ``state_dict``."""
        weights: dict[str, Tensor] = state["module"]  # pyright: ignore[reportAssignmentType]
        self.trained.load_state_dict(weights)
        self.updates = int(state["updates"])  # pyright: ignore[reportArgumentType]
