"""One step along the probability-flow ODE dx/dt = v.

The many-step teacher is sampled by the one rollout loop with the implied noise (rollout/chunk.py), which is this Euler
step; here it stands alone for consistency training, where the teacher makes a single step.
"""

from __future__ import annotations

from torch import Tensor

from nearstep.flow.path import per_frame


def euler_step(x_t: Tensor, v: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """x at ``t_next`` from x at ``t``: x + (t_next - t) v; times [B, F]."""
    return x_t + per_frame(t_next - t, x_t) * v
