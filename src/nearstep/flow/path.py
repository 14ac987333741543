"""The straight path between data and noise, and the ways between its parameterisations.

One convention, stated here and nowhere else (Wan2.1; Self-Forcing ``utils/scheduler.py:159-180``):

    t in [0, 1], t = 1 is noise
    x_t = (1 - t) x0 + t eps
    v   = dx_t/dt = eps - x0

so that x0 = x_t - t v and eps = x_t + (1 - t) v. Every function takes ``t`` per frame, [B, F], beside latents
[B, F, C, H, W]; t is continuous (a look-up table is up to a fifth off at small t).
"""

from __future__ import annotations

from torch import Tensor


def per_frame(t: Tensor, like: Tensor) -> Tensor:
    """Times [B, F] shaped to broadcast over latents [B, F, C, H, W], in their dtype."""
    return t.to(like.dtype)[..., None, None, None]


def noised(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps: the forward process, and the re-noising between steps."""
    t = per_frame(t, x0)
    return (1 - t) * x0 + t * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x0: what the networks predict."""
    return eps - x0


def x0_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x0 = x_t - t v."""
    return x_t - per_frame(t, x_t) * v


def eps_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """eps = x_t + (1 - t) v: the noise that x_t implies."""
    return x_t + (1 - per_frame(t, x_t)) * v
