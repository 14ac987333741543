"""Regression on the teacher's ODE: CausVid's causal initialisation (CausVid ``generate_ode_pairs.py``; method.md 8 a).

A bidirectional teacher's map from noise to clip is no function of (noise, past), so a causal network that regresses on
it learns a mean: blur and little motion. It is here to be compared with.
"""

from __future__ import annotations

from torch import Tensor

from nearstep.flow.path import x0_from_velocity
from nearstep.protocols import Denoiser


def trajectory_regression(denoiser: Denoiser, x_t: Tensor, t: Tensor, end: Tensor) -> Tensor:
    """Squared error of x0 against the clean end of the same ODE path, mean over F, C, H, W, [B].

    Args:
        denoiser: the causal network, under block-causal visibility.
        x_t: points of the teacher's paths [B, F, C, H, W], each chunk at its own time.
        t: those times [B, F].
        end: the paths' clean ends.
    """
    x0 = x0_from_velocity(x_t, denoiser(x_t, t).to(x_t.dtype), t)
    return (x0 - end).square().flatten(1).mean(1)
