"""Flow matching: the loss of the teacher, of the causal network under teacher forcing, and of the assistant.

L = mean over F, C, H, W of (v_theta(x_t, t) - (eps - x0))^2 (method.md section 6; Lipman et al. 2022, equation 23).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearstep.flow.path import noised, velocity
from nearstep.protocols import Denoiser


def flow_matching(denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Velocity error per sample, [B].

    Args:
        denoiser: predicts v.
        x0: clean latents [B, F, C, H, W].
        eps: noise like ``x0``.
        t: times [B, F]; a frame at t = 0 is given and has no loss, as its noise is nowhere to be seen.
    """
    v = denoiser(noised(x0, eps, t), t)
    errors = (v.float() - velocity(x0, eps)).square().flatten(2).mean(2)
    made = (t > 0).to(errors)
    return (errors * made).sum(1) / made.sum(1).clamp(min=1)


def teacher_forced(denoiser: Denoiser, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """``flow_matching`` of every chunk given the clean chunks before it, [B].

    ``denoiser`` sees the sequence [clean | noised] of 2F frames under the teacher-forcing visibility; the clean half
    has t = 0 and no loss (Causal-Forcing; method.md section 6).
    """
    v = denoise_given_clean(denoiser, x0, noised(x0, eps, t), t)
    return (v.float() - velocity(x0, eps)).square().flatten(1).mean(1)


def denoise_given_clean(denoiser: Denoiser, clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Velocity [B, F, ...] of ``x_t``, each chunk seeing the clean chunks before it."""
    both = denoiser(torch.cat([clean, x_t], dim=1), torch.cat([torch.zeros_like(t), t], dim=1))
    return both[:, clean.shape[1] :]
