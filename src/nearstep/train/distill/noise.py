"""How an update of a distillation noises its samples, by name: each rank and micro-batch draws its own rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from nearstep import rng
from nearstep.flow.times import of_frames, training_times

Purpose = Literal["match", "assistant", "psi", "psi of the reference", "direction", "data"]
"""Distribution matching; the assistant's loss; Psi, and where it is not the same for both samples the reference's own;
the finite difference's direction; noised clips (CausVid)."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise and times of some samples of a batch; a row depends on ``names`` and its own number alone."""

    names: tuple[int | str, ...]
    rows: range
    shape: Sequence[int]
    """[F, C, H, W] of a sample."""
    t_min: float
    t_max: float
    """Bounds of the times."""
    device: torch.device | str | None = None

    def of(self, rows: range) -> Noise:
        """The noise of other rows under the same names."""
        return replace(self, rows=rows)

    def eps(self, purpose: Purpose) -> Tensor:
        """Standard normal [B, F, C, H, W]."""
        seed = rng.key("noise", *self.names)
        return rng.noise(self.shape, seed=seed, samples=self.rows, chunk=0, step=0, purpose=purpose, device=self.device)

    def t(self, purpose: Purpose, shift: float) -> Tensor:
        """Times [B] under the training law of method.md section 11."""
        return self._times(purpose, shift, 1)[:, 0]

    def chunk_t(self, purpose: Purpose, shift: float, lengths: Sequence[int]) -> Tensor:
        """Such times [B, F], one for each chunk of so many frames; of a single chunk it is that of ``t``."""
        return of_frames(self._times(purpose, shift, len(lengths)), lengths)

    def _times(self, purpose: Purpose, shift: float, count: int) -> Tensor:
        u = [torch.rand(count, generator=rng.generator("time", purpose, *self.names, row)) for row in self.rows]
        return training_times(torch.stack(u), shift=shift, low=self.t_min, high=self.t_max).to(self.device)
