"""The probability-flow ODE dx/dt = v, by Euler's method.

Samples are made by the one rollout loop, where the implied noise (rollout/chunk.py) is this Euler step. Here it stands
alone for training: consistency follows a single step of the teacher, trajectory regression needs the points between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nearstep.flow.path import per_frame
from nearstep.protocols import Denoiser


def euler_step(x_t: Tensor, v: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """x at ``t_next`` from x at ``t``: x + (t_next - t) v; times [B, F]."""
    return x_t + per_frame(t_next - t, x_t) * v


@torch.no_grad()
def ode_path(denoiser: Denoiser, noise: Tensor, times: Sequence[float]) -> Tensor:
    """The points of the ODE from ``noise`` [B, F, C, H, W] at ``times[0]`` = 1 through all times to 0, [S + 1, B, ...].

    One call for each of the S times, which fall strictly; the last point is clean.
    """
    points = [noise]
    for time, following in zip(times, [*times[1:], 0.0], strict=True):
        t = torch.full(noise.shape[:2], time, device=noise.device)
        v = denoiser(points[-1], t).to(noise.dtype)
        points.append(euler_step(points[-1], v, t, torch.full_like(t, following)))
    return torch.stack(points)
