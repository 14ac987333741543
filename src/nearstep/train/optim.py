"""Optimizers, learning-rate law, clipping and the finite check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite; raised before any weight has moved."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One network's optimizer."""

    lr: float
    warmup: int = 100
    """Steps of linear rise."""
    decay: float = 0.3
    """Last part of the run over which the rate falls linearly to zero; 0 keeps it constant."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest gradient norm."""
    muon: bool = False
    """Muon for the matrices of the transformer blocks, AdamW for all else; both at the same rate."""

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` of a run of ``steps``: warm-up, constant, decay."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (steps - step) / (self.decay * steps)) if self.decay else 1.0
        return self.lr * rise * fall


class Optimizer:
    """AdamW, or Muon and AdamW together, over some modules: one object to step and to save."""

    def __init__(self, modules: Iterable[nn.Module], config: OptimConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        named = list(chain.from_iterable(module.named_parameters() for module in modules))
        self.parameters = [p for _, p in named if p.requires_grad]
        matrices = [p for name, p in named if p.requires_grad and config.muon and _is_block_matrix(name, p)]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.parameters if id(p) not in chosen]
        common = {"lr": config.lr, "weight_decay": config.weight_decay}
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            self.parts.append(torch.optim.AdamW(rest, betas=config.betas, **common))
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **common))

    def step(self, loss: Tensor, index: int) -> dict[str, Tensor]:
        """Backward, check, clip and move; returns what to log.

        Raises:
            NonFiniteError: if the loss or the gradient norm is not finite.
        """
        loss.backward()
        return self.apply(loss.detach(), index)

    def apply(self, loss: Tensor, index: int) -> dict[str, Tensor]:
        """``step`` for gradients that are already there."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        if not (torch.isfinite(loss) & torch.isfinite(norm)):
            raise NonFiniteError(
                f"step {index}: loss {loss.item()}, gradient norm {norm.item()}; no weight was moved. Resume from the "
                "last checkpoint with a lower learning rate"
            )
        rate = self.config.rate(index, self.steps)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        return {"grad_norm": norm, "lr": torch.tensor(rate)}

    def state_dict(self) -> dict[str, object]:
        """State of every part."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        """The inverse of ``state_dict``."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(state[str(i)])


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return "blocks." in name and parameter.ndim == 2
