"""Zero-centred gradient penalties of a discriminator: R1 on the reference samples, R2 on the student's (R3GAN).

Both are half the squared gradient of the logit, summed over all numbers of a sample, at the noised input. ``exact``
needs a double backward, which fused attention kernels lack; ``finite_difference`` needs two forward passes and is what
large networks use (method.md section 11).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Discriminate = Callable[[Tensor], Tensor]
"""Noised samples [B, F, C, H, W] -> logits [B]."""


def exact_penalty(discriminate: Discriminate, x: Tensor) -> Tensor:
    """0.5 |d logit / d x|^2, [B]; differentiable in the discriminator's parameters."""
    x = x.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(discriminate(x).sum(), x, create_graph=True)
    return 0.5 * slope.square().flatten(1).sum(1)


def finite_difference_penalty(discriminate: Discriminate, x: Tensor, direction: Tensor, size: float = 0.05) -> Tensor:
    """An unbiased estimate of ``exact_penalty`` as ``size`` goes to 0, [B].

    The slope along a standard normal direction has the squared gradient as its mean square. Differences are central.
    The narrower the products of ``discriminate``, the larger must ``size`` be (benchmarks/penalty.py): at .01 in
    bfloat16 the difference is rounding noise.

    Args:
        discriminate: the discriminator.
        x: noised samples [B, F, C, H, W].
        direction: standard normal like ``x``.
        size: of the step along it.
    """
    x, step = x.detach().float(), size * direction.float()
    slope = (discriminate(x + step).float() - discriminate(x - step).float()) / (2 * size)
    return 0.5 * slope.square()
