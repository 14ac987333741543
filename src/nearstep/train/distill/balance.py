"""How much larger one gradient is than another, as a running figure that a resumed run takes up again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MOMENTUM = 0.9


class Balance:
    """Running norms of two gradients at the same samples; ``ratio`` scales the second to the size of the first.

    Norms are gathered over the micro-batches of an update and take effect with the next one, so that accumulation
    changes nothing. Before the first update the ratio is 1.
    """

    def __init__(self) -> None:
        self.norms = torch.zeros(2)
        self.pending = torch.zeros(2)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Gather the squared norms of a micro-batch's gradients [B, ...]."""
        self.pending += torch.stack([first.detach().square().sum(), second.detach().square().sum()]).float().cpu()

    def settle(self, total: Callable[[Tensor], Tensor] = lambda norms: norms) -> None:
        """End an update; ``total`` adds up what several processes have gathered."""
        norms, self.pending = total(self.pending).sqrt(), torch.zeros(2)
        if norms.all():
            self.norms = norms if not self.norms.all() else _MOMENTUM * self.norms + (1 - _MOMENTUM) * norms

    @property
    def ratio(self) -> float:
        """First norm over second."""
        first, second = self.norms.tolist()
        return first / second if second else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        """The running norms."""
        return {"norms": self.norms}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``."""
        self.norms = state["norms"]
