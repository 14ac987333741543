"""The device against the CPU in float32 (on a CPU: float64), and what narrower products change.

A call and its gradient, a decoding, a rollout, an update of the distillation; chunk by chunk against one masked call,
and fused commits against separate ones. Errors are relative, of the norms, each with what is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import update
from benchmarks.gpu.sizes import SIZES, Size, codec, network, placed
from benchmarks.gpu.task import NARROW, Record, Task, relative
from nearstep.flow.plan import make_plan
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.masks import teacher_forcing
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import tf32
from nearstep.rollout.rollout import generate

ALLOWED = {"float32": 1e-4, "TF32": 1e-2, "bfloat16": 0.1}
"""Of a call and a decoding; twice that of a gradient, and of a rollout, whose chunks build on each other."""
CACHED = 3e-5
"""Of calls that differ in the order of sums alone."""
UPDATE = {"float32": 2e-3, "TF32": 0.1, "bfloat16": 0.5}
"""Of an update's gradients: a rollout, two scores' difference and a backward pass build on each other."""


def run(task: Task) -> None:
    """Every check, the cheapest and most telling first."""
    size = SIZES[task.size]
    exact = torch.float64 if task.device.type == "cpu" else torch.float32
    checks = Checks(task.record, task.device, exact)
    # Weights that bfloat16 holds: narrower arithmetic is compared, not other numbers, and a net may go there and back.
    net = placed(network(size, task.device, NARROW), task.device, torch.float32)
    net.enable_gradient_checkpointing()  # 30 layers of float32 would be more than most CPUs hold
    given = Given.drawn(size, net)
    with task.record.trying("network"):
        _network(checks, net, given)
    with task.record.trying("rollout"):
        _rollout(checks, net, given)
    with task.record.trying("decoder"):
        _decoder(checks, codec(size, task.device, NARROW), given)
    del net
    if task.enough(25 if task.cuda else 0, "update"):
        with task.record.trying("update"):
            _update(checks, task)


@dataclass(frozen=True)
class Checks:
    """Compares, and writes down whether what was found is allowed."""

    record: Record
    device: torch.device
    exact: torch.dtype
    """What the CPU computes in."""

    def __call__(self, name: str, made: Tensor, expected: Tensor, allowed: float) -> None:
        """An error that is no number is not allowed."""
        error = relative(made, expected)
        self.record(name, error=error, allowed=allowed, passed=error <= allowed)

    def kinds(self, what: str, make: Callable[[torch.device, torch.dtype], Tensor], times: float = 1) -> Tensor:
        """``what`` in float32 against the CPU, in TF32 and bfloat16 against float32; the float32 one is returned."""
        expected = make(torch.device("cpu"), self.exact)
        whole = make(self.device, torch.float32)
        self(f"{what}, float32, against the CPU", whole, expected, times * ALLOWED["float32"])
        if self.device.type == "cuda":
            with tf32():
                made = make(self.device, torch.float32)
            self(f"{what}, TF32, against float32", made, whole, times * ALLOWED["TF32"])
        else:
            self.record(f"{what}, TF32", skipped="needs CUDA")
        self(f"{what}, bfloat16, against float32", make(self.device, NARROW), whole, times * ALLOWED["bfloat16"])
        return whole


@dataclass(frozen=True)
class Given:
    """Three chunks, small enough for a CPU."""

    lengths: tuple[int, ...]
    clean: Tensor
    x: Tensor
    t: Tensor
    text: Tensor
    shift: float = 5.0

    @classmethod
    def drawn(cls, size: Size, net: VideoTransformer) -> Given:
        """The same on every machine."""
        draw, lengths = torch.Generator().manual_seed(0), (size.chunk,) * 3
        shape = (1, sum(lengths), net.config["in_channels"], *size.small)
        clean, x = torch.randn(2, *shape, generator=draw)
        text = torch.randn(1, 16, net.config["text_dim"], generator=draw)
        return cls(lengths, clean, x, torch.rand(1, sum(lengths), generator=draw), text)

    def on(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """clean, x, text there; times stay in float32."""
        return tuple(part.to(device, dtype) for part in (self.clean, self.x, self.text))


def _network(checks: Checks, net: VideoTransformer, given: Given) -> None:
    """One masked call on [clean | noisy], as teacher forcing makes it, and a gradient through it."""
    gradients: dict[tuple[str, torch.dtype, bool], Tensor] = {}

    def velocity(device: torch.device, dtype: torch.dtype) -> Tensor:
        clean, noisy, text = given.on(device, dtype)
        both = torch.cat([clean, noisy.requires_grad_()], dim=1)
        times = torch.cat([torch.zeros_like(given.t), given.t], dim=1).to(device)
        made = placed(net, device, dtype)(both, times, text, visibility=teacher_forcing(given.lengths))
        made = made[:, noisy.shape[1] :]
        (gradient,) = torch.autograd.grad(made.double().square().mean(), noisy)
        gradients[device.type, dtype, torch.backends.cudnn.allow_tf32] = gradient
        return made.detach()

    whole = checks.kinds("call", velocity)
    checks.kinds("gradient", lambda device, dtype: gradients[device.type, dtype, torch.backends.cudnn.allow_tf32], 2)
    placed(net, checks.device, torch.float32)
    clean, x, text = given.on(checks.device, torch.float32)
    cached, fused = by_chunks(net, clean, x, given.t.to(checks.device), text, given.lengths)
    checks("chunk by chunk against one masked call, float32", cached, whole, CACHED)
    checks("fused commits against separate ones, float32", fused, cached, CACHED)


@torch.no_grad()
def by_chunks(
    net: VideoTransformer, clean: Tensor, x: Tensor, t: Tensor, text: Tensor, lengths: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Velocities of x through a cache of clean chunks: with commits of their own, and fused."""
    denoiser = TextDenoiser(net, text)
    made: dict[bool, list[Tensor]] = {False: [], True: []}
    for fused, parts in made.items():
        cache, before = denoiser.new_cache(1, sum(lengths), *x.shape[-2:]), None
        for chunk, times, done in zip(x.split(lengths, 1), t.split(lengths, 1), clean.split(lengths, 1), strict=True):
            start = cache.end + (0 if before is None else before.shape[1])
            if before is not None and fused:
                parts.append(denoiser.commit_then(before, chunk, times, cache=cache, start=start))
            else:
                if before is not None:
                    denoiser.commit(before, cache=cache, start=cache.end)
                parts.append(denoiser(chunk, times, cache=cache, start=start))
            before = done
    return torch.cat(made[False], dim=1), torch.cat(made[True], dim=1)


@torch.no_grad()
def _rollout(checks: Checks, net: VideoTransformer, given: Given) -> None:
    plan = make_plan("4,1x", frames=sum(given.lengths), chunk_frames=given.lengths[0], shift=given.shift)

    def rolled(device: torch.device, dtype: torch.dtype) -> Tensor:
        denoiser: Any = TextDenoiser(placed(net, device, dtype), given.on(device, dtype)[2])
        return generate(denoiser, plan, shape=given.x.shape[2:], seed=0, samples=[0], device=device, fused=True)

    checks.kinds("rollout of 4,1x", rolled, 2)
    placed(net, checks.device, torch.float32)


@torch.no_grad()
def _decoder(checks: Checks, made: VideoCodec, given: Given) -> None:
    def decoded(device: torch.device, dtype: torch.dtype) -> Tensor:
        # Unclamped, as random weights leave the picture's range.
        return made.to(device, dtype).stream().decode(given.x[:, :2].to(device, dtype), clamp=False)

    checks.kinds("decoding", decoded)


def _update(checks: Checks, task: Task) -> None:
    """The first gradients of the student, the assistant and the discriminator, of one update from the same samples."""
    wide = partial(update.gradients, SIZES[task.size], task.scratch)
    expected, whole = wide(torch.device("cpu")), wide(task.device)
    kinds = {"float32, against the CPU": (whole, expected, "float32")}
    if task.cuda:
        with tf32():
            kinds["TF32, against float32"] = (wide(task.device), whole, "TF32")
    kinds["bfloat16 by autocast, against float32"] = (wide(task.device, autocast=True), whole, "bfloat16")
    for kind, (made, truth, allowed) in kinds.items():
        for who, gradient in made.items():
            checks(f"update, {who}'s gradient, {kind}", gradient, truth[who], UPDATE[allowed])
