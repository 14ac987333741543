"""The adversary of a distillation: what is compared with what, on which features, and both players' turns.

Psi noises both samples of a pair at one time with one noise, so that the discriminator sees nothing but the samples
differ (method.md section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from nearstep.errors import NearstepError
from nearstep.flow.path import noised
from nearstep.losses.asd import accuracy, adversarial_discriminator, adversarial_student, step_logit
from nearstep.losses.regularisers import exact_penalty, finite_difference_penalty
from nearstep.nets.discriminator import Discriminator, Pool
from nearstep.nets.transformer import VideoTransformer

_LEAST_GAMMA = 0.1

Penalty = Literal["exact", "finite difference"]


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """The adversarial part of a run."""

    reference: Literal["adjacent", "data", "both"] = "adjacent"
    """What an n-step sample is held against: the (n+1)-step sample [paper]; real clips (DMD2, One-Forcing); or the
    chain 1 -> 2 -> ... -> N -> data."""
    backbone: Literal["assistant", "teacher", "joint"] = "assistant"
    """Whose features the heads read: the live assistant's, out of the graph; the frozen teacher's; or the assistant's,
    which then learns from the discriminator's loss too (One-Forcing, DMD2)."""
    pool: Pool = "attention"
    """How a head makes one logit of a clip's tokens (nets/discriminator.py)."""
    weight: float = 0.25
    """With ``balance`` the adversarial gradient's norm at the sample as a share of the DMD gradient's, else alpha."""
    balance: bool = True
    """A fixed alpha weighs more and more, as gamma falls and the heads grow steeper."""
    gamma: float = 1.0
    """Of R1 and R2; falls to a tenth along a half cosine."""
    penalty: Penalty = "finite difference"
    penalty_every: int = 4
    """Updates of the discriminator per penalty, whose weight grows by as much: on average the same, and cheaper
    (StyleGAN2's lazy regularisation)."""
    shift: float = 1.0
    """Of Psi's times. 1 leaves more of the samples to see than the shift of distribution matching does."""
    joint_weight: float = 0.01
    """Of the discriminator's loss in a joint backbone's update."""

    def pairs(self, largest: int) -> int:
        """Logits: one per adjacent pair below ``largest`` steps, one for data."""
        return {"adjacent": largest - 1, "data": 1, "both": largest}[self.reference]

    def logit(self, steps: int, largest: int) -> int | None:
        """Which D_n judges samples of ``steps`` steps; None where they have no reference."""
        if self.reference == "data":
            return 1
        return steps if steps < largest or self.reference == "both" else None

    def against_data(self, steps: int, largest: int) -> bool:
        """Whether the reference of ``steps`` steps is a real clip."""
        return self.reference == "data" or (self.reference == "both" and steps == largest)

    def gamma_at(self, progress: float) -> float:
        """gamma when ``progress`` in [0, 1] of the run is done."""
        return self.gamma * (_LEAST_GAMMA + (1 - _LEAST_GAMMA) * 0.5 * (1 + math.cos(math.pi * progress)))

    def __post_init__(self) -> None:
        if self.weight < 0 or self.gamma < 0:
            raise NearstepError(f"weight={self.weight}, gamma={self.gamma}; neither can be negative")
        if self.penalty_every < 1:
            raise NearstepError(f"penalty_every={self.penalty_every}; give 1 for every update, or more")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A batch of samples, what they are held against, and the noise that both get."""

    fewer: Tensor
    """[B, F, C, H, W] the n-step samples."""
    more: Tensor
    """Like it: the (n+1)-step samples, or real clips."""
    eps: Tensor
    t: Tensor
    """[B], the same for all frames of a pair."""
    direction: Tensor
    """Standard normal like the samples, for the finite difference."""

    def noised(self, x: Tensor) -> Tensor:
        """Psi."""
        return noised(x, self.eps, self.t[:, None].expand(-1, x.shape[1]))


def critic(
    backbone: VideoTransformer, discriminator: Discriminator, text: Tensor, t: Tensor, n: int
) -> Callable[[Tensor], Tensor]:
    """D_n of noised clips [B, F, C, H, W] at times ``t`` [B], as a function -> [B].

    The text [B, L, D] goes in as it is: its keys depend on whether the call is in float32 or under autocast.
    """

    def discriminate(x_t: Tensor) -> Tensor:
        _, features = backbone(x_t, t, text, features=discriminator.blocks)
        return step_logit(discriminator(features, t), torch.full_like(t, n, dtype=torch.long))

    return discriminate


def student_turn(discriminate: Callable[[Tensor], Tensor], pair: Pair) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of the summed adversarial loss at the n-step samples, and what to log."""
    x = pair.fewer.detach().requires_grad_()
    with torch.no_grad():
        more = discriminate(pair.noised(pair.more))
    with torch.enable_grad():
        loss = adversarial_student(discriminate(pair.noised(x)), more)
        (gradient,) = torch.autograd.grad(loss.sum(), x)
    return gradient.float(), {"asd": loss.mean()}


def discriminator_turn(
    discriminate: Callable[[Tensor], Tensor], pair: Pair, kind: Penalty, gamma: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's losses [B]; with ``gamma`` R1 (on the reference) and R2 (on the n-step samples) are in it."""
    x_fewer, x_more = pair.noised(pair.fewer.detach()), pair.noised(pair.more.detach())
    fewer, more = discriminate(x_fewer), discriminate(x_more)
    losses = adversarial_discriminator(fewer, more)
    seen = {"d_fewer": fewer.mean(), "d_more": more.mean(), "gap": (fewer - more).mean()}
    seen |= {"accuracy": accuracy(fewer, more), "discriminator": losses.mean()}
    if not gamma:
        return losses, seen
    penalty = exact_penalty
    if kind == "finite difference":
        penalty = partial(finite_difference_penalty, direction=pair.direction)
    # In float32: bfloat16 rounds away the differences that the penalty is made of.
    with torch.autocast(x_fewer.device.type, enabled=False):
        r1, r2 = (penalty(discriminate, x.float()) for x in (x_more, x_fewer))
    return losses + gamma * (r1 + r2), seen | {"r1": r1.mean(), "r2": r2.mean()}


@contextmanager
def out_of_graph(*modules: nn.Module) -> Iterator[None]:
    """What is computed inside keeps gradients of inputs and has none of these modules' parameters."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)
