"""Distribution matching: the student's samples move from where they are dense to where the teacher's are.

The gradient of KL(student || teacher) at a sample is the difference of two scores, and with both as x0 predictions of
the same noised sample it is (fake - real), scaled so that its size does not depend on t (Yin et al. 2023, equation 7
and 8; Self-Forcing ``model/dmd.py:55-121``; method.md section 11).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nearstep.flow.path import noised, x0_from_velocity
from nearstep.flow.times import of_frames
from nearstep.protocols import Denoiser

_SMALLEST_SCALE = 1e-6


@torch.no_grad()
def dmd_gradient(
    x: Tensor, teacher: Denoiser, assistant: Denoiser, eps: Tensor, t: Tensor, lengths: Sequence[int] | None = None
) -> Tensor:
    """(fake - real) / mean |x - real|, per chunk, like ``x`` in float32; nothing is detached for it, nothing trained.

    Args:
        x: the student's samples [B, F, C, H, W].
        teacher: the real score, its guidance included.
        assistant: the fake score, conditional alone.
        eps: noise like ``x``.
        t: times [B, F], the same for all frames of a chunk.
        lengths: frames of each chunk; None: a sample is one.
    """
    x = x.float()
    x_t = noised(x, eps, t)
    real = x0_from_velocity(x_t, teacher(x_t, t).float(), t)
    fake = x0_from_velocity(x_t, assistant(x_t, t).float(), t)
    lengths = lengths or (x.shape[1],)
    errors = torch.split((x - real).abs(), list(lengths), dim=1)
    scale = torch.stack([error.flatten(1).mean(1) for error in errors], 1) + _SMALLEST_SCALE  # [B, chunks]
    return (fake - real) / of_frames(scale, lengths)[..., None, None, None]


def distribution_matching(x: Tensor, gradient: Tensor) -> Tensor:
    """The loss whose gradient at ``x`` is ``gradient`` over the numbers of a sample, [B].

    0.5 mean((x - stopgrad(x - gradient))^2): its value is half the mean square of the gradient.
    """
    target = (x - gradient).detach()
    return 0.5 * (x - target).square().flatten(1).mean(1)
