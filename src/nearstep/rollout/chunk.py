"""One chunk along its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.flow.live_plan import StopRule
from nearstep.flow.path import eps_from_velocity, noised, x0_from_velocity
from nearstep.flow.plan import Schedule
from nearstep.protocols import Cache, CausalDenoiser

Renoise = Literal["fresh", "implied"]
"""``fresh``: new noise between steps, the few-step student's way (Self-Forcing). ``implied``: the noise that the
prediction implies, which makes each step an Euler step of the ODE, the many-step teacher's way."""

AfterStep = Callable[[int, Tensor], Tensor]
"""(step, what the next one begins with: noise at its time, or x0 after the last) -> what to go on with."""


def denoise_chunk(
    denoiser: CausalDenoiser[Cache],
    schedule: Schedule,
    draw: Callable[[int], Tensor],
    *,
    cache: Cache | None,
    start: int,
    before: Tensor | None = None,
    stop: StopRule | None = None,
    renoise: Renoise = "fresh",
    graph: bool = False,
    after: AfterStep | None = None,
) -> tuple[Tensor, int]:
    """x0 of the frames that begin at ``start``, after one call per time of ``schedule``; and how many calls it took.

    Args:
        denoiser: the network, its text bound.
        schedule: times of the steps.
        draw: step -> noise [B, F, C, H, W]; step 0 is what the chunk starts from.
        cache: what the finished chunks left; read, never written.
        start: absolute index of the chunk's first latent frame.
        before: the clean chunk before, where the first call has to commit it as well (a fused commit).
        stop: stops the chunk before its schedule ends.
        renoise: where the noise between steps comes from.
        graph: keep the last step's graph for training; the steps before it never have one.
        after: sees every step, and may change what it leaves.
    """
    x, x0 = draw(0), None
    for step, time in enumerate(schedule.times):
        last, earlier = step + 1 == len(schedule), x0
        t = torch.full(x.shape[:2], time, device=x.device)
        with torch.set_grad_enabled(graph and last):
            if step == 0 and before is not None:
                v = denoiser.commit_then(before, x, t, cache=needed(cache), start=start)
            else:
                v = denoiser(x, t, cache=cache, start=start)
            x0 = x0_from_velocity(x, v, t)
        if last or (stop is not None and stop(step + 1, earlier, x0)):
            return (x0 if after is None else after(step, x0)), step + 1
        eps = draw(step + 1) if renoise == "fresh" else eps_from_velocity(x, v, t)
        x = noised(x0, eps, torch.full_like(t, schedule.times[step + 1]))
        x = x if after is None else after(step, x)
    raise AssertionError("a schedule has at least one step")


def needed(cache: Cache | None) -> Cache:
    """The cache that a commit writes to.

    Raises:
        NearstepError: if there is none.
    """
    if cache is None:
        raise NearstepError("a chunk sees those before it through a cache; give one (denoiser.new_cache)")
    return cache
