"""Optimizers, learning-rate law, clipping and the finite check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nearstep.errors import NearstepError
from nearstep.ranges import check_count, check_number
from nearstep.train.muon import Muon
from nearstep.train.parallel import ranks

_SMALLEST = 8
"""Narrower matrices gain nothing from Muon."""


class NonFiniteError(NearstepError):
    """A loss, gradient or weight is not finite; raised before a checkpoint holds it."""


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
    """Muon for the matrices of transformer blocks and the kernels of convolutions, AdamW for all else; same rate."""

    def __post_init__(self) -> None:
        check_number("lr", self.lr, least=0, most=1)
        check_count("warmup", self.warmup, least=0)
        check_number("decay", self.decay, least=0, most=1)
        for beta in self.betas:
            check_number("betas", beta, least=0, below=1)
        check_number("weight_decay", self.weight_decay, least=0, most=1)
        check_number("clip", self.clip, above=0)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` of a run of ``steps``: warm-up, constant, decay."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        fall = min(1.0, (steps - step) / (self.decay * steps)) if self.decay else 1.0
        return self.lr * rise * fall


class Optimizer:
    """AdamW, or Muon and AdamW together, over some modules: one object to step and to save."""

    def __init__(self, modules: Iterable[nn.Module], config: OptimConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.matrices = [p for name, p in named if config.muon and is_hidden_matrix(name, p)]
        chosen = {id(p) for p in self.matrices}
        rest = [p for p in self.parameters if id(p) not in chosen]
        common: dict[str, Any] = {"lr": 0.0, "weight_decay": config.weight_decay}  # every step sets its rate
        self.parts: list[torch.optim.Optimizer] = []
        names = {id(p): name for name, p in named}
        self.names: list[dict[str, nn.Parameter]] = [{names[id(p)]: p for p in rest}] if rest else []
        if rest:
            self.parts.append(torch.optim.AdamW(rest, betas=config.betas, **common))
        # Muon takes matrices alone: each kernel as one of shape [outputs, inputs * taps], in the kernel's own memory.
        self.views = [nn.Parameter(p.detach().view(p.shape[0], -1)) for p in self.matrices]
        if self.views:
            self.parts.append(Muon(self.views, **common))
            self.names.append({names[id(p)]: view for p, view in zip(self.matrices, self.views, strict=True)})
        self._allocate()

    def step(self, loss: Tensor, index: int) -> dict[str, Tensor]:
        """Backward, check, clip and move; returns what to log.

        Raises:
            NonFiniteError: if the loss or the gradient norm is not finite.
        """
        loss.backward()
        return self.apply(loss.detach(), index)

    def apply(self, loss: Tensor, index: int) -> dict[str, Tensor]:
        """``step`` for gradients that are already there, of this process's rows or of everybody's."""
        ranks().average_gradients(self.parameters)
        norm: Any = nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # where each rank holds a slice
        if not (torch.isfinite(loss) & torch.isfinite(norm)):
            raise NonFiniteError(
                f"step {index}: loss {loss.item()}, gradient norm {norm.item()}; nothing of this step is "
                "kept and the last checkpoint is whole. The same command goes on from it; if this comes again, look at "
                "the clips and weights that the run reads, or start anew with a lower learning rate"
            )
        for view, p in zip(self.views, self.matrices, strict=True):
            view.grad = None if p.grad is None else p.grad.view_as(view)
        rate = self.config.rate(index, self.steps)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
        for p in self.parameters:
            p.grad = None
        return {"grad_norm": norm, "lr": torch.tensor(rate)}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> its state, whatever the number of ranks."""
        pairs = zip(self.parts, self.names, strict=True)
        return {name: dict(part.state[p]) for part, names in pairs for name, p in names.items()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of ``state_dict``."""
        for part, names in zip(self.parts, self.names, strict=True):
            for name, p in names.items():
                part.state[p] = dict(state[name])

    def _allocate(self) -> None:
        # What a first step would make, so that a checkpoint always finds the same tensors; no weight moves.
        for part, names in zip(self.parts, self.names, strict=True):
            for p in names.values():
                p.grad = torch.zeros_like(p)
            part.step()
            for p in names.values():
                p.grad = None
                if "step" in part.state[p]:
                    part.state[p]["step"].zero_()


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes a parameter."""
    if parameter.ndim < 2 or "patch_embedding" in name or min(parameter.shape[0], parameter[0].numel()) < _SMALLEST:
        return False
    return "blocks." in name or parameter.ndim >= 4
