"""Adversarial self-distillation: the student's n-step samples against its own (n+1)-step samples.

The relativistic pairing loss (RpGAN; Jolicoeur-Martineau 2018, R3GAN) on d = D_n(x_n) - D_n(x_{n+1}), where a **large
D_n says "looks like n + 1 steps"**. The student minimises softplus(-d), which raises D_n of its n-step sample; the
discriminator minimises softplus(d), which lowers d. Both are log 2 at d = 0.

The paper prints f(d) = -log(1 + exp(-d)) for both sides (its equation 7); taken literally the discriminator's is
unbounded below. With the logit's orientation as here it is exactly softplus(d) (method.md section 11).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def step_logit(logits: Tensor, n: Tensor) -> Tensor:
    """D_n of each sample: column n - 1 of ``logits`` [B, N] for ``n`` [B] in 1 .. N, [B]."""
    return logits.gather(1, n[:, None] - 1)[:, 0]


def adversarial_student(d_n: Tensor, d_next: Tensor) -> Tensor:
    """softplus(-(d_n - d_next)), [B]: what the student minimises.

    Args:
        d_n: D_n of the n-step samples [B].
        d_next: D_n of the (n+1)-step samples [B], without a graph.
    """
    return softplus(d_next - d_n)


def adversarial_discriminator(d_n: Tensor, d_next: Tensor) -> Tensor:
    """softplus(d_n - d_next), [B]: what the discriminator minimises."""
    return softplus(d_n - d_next)


def accuracy(d_n: Tensor, d_next: Tensor) -> Tensor:
    """Share of pairs that the discriminator tells apart: it should stay between .55 and .8 (train/health.py)."""
    return (d_next > d_n).float().mean()
