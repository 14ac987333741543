"""Trajectory regression, CausVid's causal initialisation: on the bidirectional teacher's ODE paths, made as it goes.

Here to be compared with (method.md section 7; losses/trajectory.py says what is wrong with it).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from nearstep.flow.guidance import guided
from nearstep.flow.ode import ode_path
from nearstep.flow.plan import GRID, respaced
from nearstep.losses.trajectory import trajectory_regression
from nearstep.nets.masks import block_causal, full
from nearstep.protocols import Caption
from nearstep.reach import Reach
from nearstep.train.objectives.objective import Calls, CausalUpdate, Objective, cell_of, denoiser


def loss(update: CausalUpdate, x0: Tensor, eps: Tensor, captions: Sequence[Caption], u: Tensor) -> Tensor:
    """Error of x0 against the clean end of the guided teacher's path, from a point on it, [B]."""
    text = update.encoded(captions)
    teacher = guided(partial(update.many_step, text=update.both(text)), update.guidance)
    grid = respaced(update.ode_steps, shift=update.shift).times
    points = ode_path(teacher, eps, grid)  # [ode_steps + 1, B, F, C, H, W]
    # Each chunk at one of the times that the few-step student will be called at.
    cell = update.per_frame(cell_of(u, GRID) * (update.ode_steps // GRID))
    rows, frames = torch.meshgrid(torch.arange(x0.shape[0]), torch.arange(x0.shape[1]), indexing="ij")
    student = denoiser(update.network, text, block_causal(update.lengths, update.network.reach))
    return trajectory_regression(
        student, points[cell, rows, frames], torch.tensor(grid, device=x0.device)[cell], points[-1]
    )


def calls(lengths: Sequence[int], reach: Reach, ode_steps: int) -> list[Calls]:
    """The student once, and the guided teacher at every step of its path, which sees all frames."""
    return [
        Calls("network", block_causal(lengths, reach), learns=True),
        Calls("teacher's paths", full(sum(lengths)), times=2 * ode_steps),
    ]


TRAJECTORY = Objective(loss=loss, calls=calls, follows=True)
