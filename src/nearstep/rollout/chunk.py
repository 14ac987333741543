"""One chunk along its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from nearstep.flow.path import eps_from_velocity, noised, x0_from_velocity
from nearstep.flow.plan import Schedule
from nearstep.protocols import CausalDenoiser

Renoise = Literal["fresh", "implied"]
"""``fresh``: new noise between steps, the few-step student's way (Self-Forcing). ``implied``: the noise that the
prediction implies, which makes each step an Euler step of the ODE, the many-step teacher's way."""


def denoise_chunk(
    denoiser: CausalDenoiser,
    schedule: Schedule,
    draw: Callable[[int], Tensor],
    *,
    cache: Any,
    start: int,
    renoise: Renoise = "fresh",
    graph: bool = False,
) -> Tensor:
    """x0 of the frames that begin at ``start``, after one call per time of ``schedule``.

    Args:
        denoiser: the network, its text bound.
        schedule: times of the steps.
        draw: step -> noise [B, F, C, H, W]; step 0 is what the chunk starts from.
        cache: what the finished chunks left; read, never written.
        start: absolute index of the chunk's first latent frame.
        renoise: where the noise between steps comes from.
        graph: keep the last step's graph for training; the steps before it never have one.
    """
    x = draw(0)
    for step, time in enumerate(schedule.times):
        last = step + 1 == len(schedule)
        t = torch.full(x.shape[:2], time, device=x.device)
        with torch.set_grad_enabled(graph and last):
            v = denoiser(x, t, cache=cache, start=start)
            x0 = x0_from_velocity(x, v, t)
        if last:
            return x0
        eps = draw(step + 1) if renoise == "fresh" else eps_from_velocity(x, v, t)
        x = noised(x0, eps, torch.full_like(t, schedule.times[step + 1]))
    raise AssertionError("a schedule has at least one step")
