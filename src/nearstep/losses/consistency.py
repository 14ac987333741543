"""Causal consistency: the few-step initialisation of the student.

The student's x0 at t should equal its slow copy's x0 one step of the teacher's ODE further down, every chunk given the
clean chunks before it (Causal-Forcing++ ``model/naive_consistency.py:93-139``; method.md section 7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearstep.flow.ode import euler_step
from nearstep.flow.path import noised, x0_from_velocity
from nearstep.losses.denoising import denoise_given_clean
from nearstep.protocols import Denoiser


def causal_consistency(
    student: Denoiser, slow: Denoiser, teacher: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, t_next: Tensor
) -> Tensor:
    """Squared difference of the two x0, mean over F, C, H, W, [B].

    Args:
        student: trained; the only one that keeps a graph.
        slow: the student's exponential moving average.
        teacher: the causal many-step network, guidance included.
        x0: clean latents [B, F, C, H, W], also every chunk's context.
        eps: noise like ``x0``.
        t: times [B, F].
        t_next: later times of the teacher's grid, below ``t``; where 0 the target is the ODE's own end.
    """
    x_t = noised(x0, eps, t)
    with torch.no_grad():
        x_next = euler_step(x_t, denoise_given_clean(teacher, x0, x_t, t).float(), t, t_next)
        target = x0_from_velocity(x_next, denoise_given_clean(slow, x0, x_next, t_next).float(), t_next)
    prediction = x0_from_velocity(x_t, denoise_given_clean(student, x0, x_t, t).float(), t)
    return (prediction - target).square().flatten(1).mean(1)
