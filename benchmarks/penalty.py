"""What narrower products change about the discriminator's penalty: its size, and the direction that it teaches.

    OMP_NUM_THREADS=1 python benchmarks/penalty.py --warm 24 --batches 6

A few updates of the playground's distillation give heads that have learnt; then the same pairs, times, noises and
directions are penalised in float32, as TensorFloat-32 multiplies (emulated: what goes into a product is rounded to 10
bits of mantissa, the sums stay in float32), and in bfloat16. Gradients are those of the heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from nearstep.evaluate.tables import markdown
from nearstep.losses.regularisers import exact_penalty, finite_difference_penalty
from nearstep.recipes import playground
from nearstep.train.distill.adversary import Adversary, Pair
from nearstep.train.distill.stage import DistillStage
from nearstep.train.distill.steps import StepPlan

aten = torch.ops.aten
_PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution}
_LOST = 13
"""Bits of mantissa that TensorFloat-32 does not have: 10 of 23 stay."""


@dataclass(frozen=True)
class Options:
    """How to measure."""

    warm: int = 40
    """Updates that the heads learn from first."""
    batches: int = 12
    """Batches whose gradients are compared, each by itself and summed."""
    sizes: tuple[float, ...] = (0.05, 0.2)
    """Steps of the finite difference."""
    latents: Path = Path("runs/latents")
    """Encoded here first, if they are not there."""
    clips: int = 512


class TF32(TorchDispatchMode):
    """Inside, what goes into products and convolutions is rounded as TensorFloat-32 is."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in _PRODUCTS:
            args = tree_map(lambda each: rounded(each) if isinstance(each, Tensor) else each, args)
        return func(*args, **(kwargs or {}))


def rounded(x: Tensor) -> Tensor:
    """float32 numbers to the nearest that have 10 bits of mantissa."""
    half = 1 << (_LOST - 1)
    return ((x.contiguous().view(torch.int32) + half) & -(1 << _LOST)).view(torch.float32)


@contextmanager
def tf32() -> Iterator[None]:
    """TensorFloat-32 everywhere, attention written out so that its products are seen."""
    with sdpa_kernel(SDPBackend.MATH), TF32():
        yield


WAYS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float32": nullcontext,
    "TF32": tf32,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
}


def pairs(stage: DistillStage, count: int) -> list[Pair]:
    """Pairs of 1- and 2-step, 2- and 3-step samples and so on, of steps that were not trained on."""
    update, found = stage.update, []
    adversary = learnt(stage)
    for index in range(count):
        plan = StepPlan(steps=1 + index % 3, discriminator_learns=True, student_listens=True)
        with torch.no_grad():
            batch = update.sample(plan, 1000 + index, update.rows)
        assert batch.x_next is not None
        noise = update.noise("penalty", index)
        found.append(adversary.pair(plan.steps, batch.x_n, batch.x_next, batch.text, noise))
    return found


def learnt(stage: DistillStage) -> Adversary:
    """The stage's adversary."""
    adversary = stage.update.networks.adversary
    assert adversary is not None
    return adversary


def penalised(
    adversary: Adversary, pair: Pair, size: float | None, way: Callable[[], AbstractContextManager[Any]]
) -> tuple[float, Tensor]:
    """R1 + R2 of a batch, and its gradient at the heads; the exact one without a size."""
    penalty = exact_penalty
    if size is not None:
        penalty = partial(finite_difference_penalty, direction=pair.noise.eps("direction"), size=size)
    parameters = [p for p in adversary.heads.parameters() if p.requires_grad]
    sides = (pair.more, pair.less)
    with way():
        found = sum(penalty(adversary.discriminate(pair.text, side.t, pair.n), side.psi()).mean() for side in sides)
    assert isinstance(found, Tensor)
    gradients = torch.autograd.grad(found, parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return found.item(), torch.cat([g.flatten() for g in flat])


def main(options: Options) -> None:
    """Print the table."""
    recipe = replace(playground.distill(), lessons=())
    latents = replace(recipe.latents, folder=options.latents, clips=options.clips)
    stage = DistillStage(replace(recipe, latents=latents, warmup=0, adversary_delay=0))
    for index in range(options.warm):
        stage.step(index)
    adversary, given = learnt(stage), pairs(stage, options.batches)
    adversary.backbone.requires_grad_(False)
    rows = []
    for size in options.sizes:
        usual = [penalised(adversary, pair, size, nullcontext) for pair in given]
        for name, way in WAYS.items():
            made = [penalised(adversary, pair, size, way) for pair in given]
            cosines = [cosine(a, b) for (_, a), (_, b) in zip(made, usual, strict=True)]
            summed = cosine(sum(g for _, g in made), sum(g for _, g in usual))
            share = sum(value for value, _ in made) / sum(value for value, _ in usual)
            rows.append([f"{size:g}", name, f"{share:.4f}", f"{min(cosines):.4f}", f"{summed:.5f}"])
    print(markdown(["step", "products in", "penalty, of float32's", "cosine, worst batch", "cosine, summed"], rows))
    exact = [penalised(adversary, pair, None, nullcontext) for pair in given]
    usual = [penalised(adversary, pair, options.sizes[0], nullcontext) for pair in given]
    angle = cosine(sum(g for _, g in exact), sum(g for _, g in usual))
    share = sum(value for value, _ in usual) / sum(value for value, _ in exact)
    print(f"\nthe finite difference in float32 is {share:.3f} of the exact penalty, cosine {angle:.3f}, summed")


def cosine(a: Any, b: Any) -> float:
    """Of two gradients."""
    return torch.cosine_similarity(a.double(), b.double(), dim=0).item()


if __name__ == "__main__":
    main(tyro.cli(Options))
