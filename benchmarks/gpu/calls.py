"""One network call by what it looks back on: a step, a commit, both fused; eager, as a graph, in eight bits, compiled.

The cache is filled with clean frames and each call is repeated on it. Shares are of the floor: the time in which the
call's operations would be done at the rate of square products in bfloat16, measured first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.sizes import SIZES, TEXT, Size, network
from benchmarks.gpu.task import NARROW, Task, relative
from nearstep.cost.flops import call_flops
from nearstep.nets.cache import KVCache
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.fp8_layers import to_fp8
from nearstep.nets.transformer import VideoTransformer

SAME = 1e-3
"""Relative, of bfloat16 calls that should be the same kernels in the same order."""
COMPILED = 5e-2
"""Of compiled blocks, which round less often."""
IN_FP8 = 0.1
"""Of eight-bit linear layers: every factor is rounded to three bits of mantissa, and errors add up over layers."""


@torch.no_grad()
def run(task: Task) -> None:
    """Eager calls of every context, then graphs, then compiled ones of three contexts."""
    size = SIZES[task.size]
    bench = Calls(task, size, network(size, task.device, NARROW), task.floor().rate)
    starts = list(size.starts)
    known = {start: bench.eager(start) for start in starts}
    for start in starts:
        if not task.needs_cuda(f"graph, {start} frames before"):
            with task.record.trying(f"graph, {start} frames before"):
                bench.graph(start, known[start], "graph", SAME)
    for start in (starts[-1], starts[0]):
        with task.record.trying(f"fp8, {start} frames before"):
            bench.fp8(start, known[start])
    if "compile" in task.skip:
        return
    compile_blocks(bench.net)
    for start in dict.fromkeys((starts[-1], starts[len(starts) // 2], starts[0])):
        name = f"compiled, {start} frames before"
        if task.enough(20 if task.cuda else 0, name):
            with task.record.trying(name):
                bench.compiled(start, known[start])


class Calls:
    """A clip's calls, on a cache that can be wound back."""

    def __init__(self, task: Task, size: Size, net: VideoTransformer, rate: float) -> None:
        self.task, self.size, self.net, self.rate = task, size, net, rate
        draw = torch.Generator(task.device).manual_seed(3)
        frame = (net.config["in_channels"], *size.grid)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, device=task.device)

        self.denoiser = TextDenoiser(net, drawn(1, TEXT, net.config["text_dim"]).to(NARROW))
        self.clean, self.x = drawn(2, 1, size.chunk, *frame).to(NARROW)
        self.t = torch.full((1, size.chunk), 0.8, device=task.device)
        self.cache: KVCache = self.denoiser.new_cache(1, size.latents, *size.grid)

    def fill(self, frames: int) -> None:
        """Commit so many clean frames. A call writes its own keys behind them: what lay there is gone."""
        self.back_to(0)
        for start in range(0, frames, self.size.chunk):
            self.denoiser.commit(self.clean, cache=self.cache, start=start)

    def back_to(self, frames: int) -> None:
        """As if so many frames had been committed."""
        self.cache.positions, self.cache.end = tuple(range(frames)), frames

    def step(self, start: int) -> Tensor:
        """A chunk's step, ``start`` frames before it."""
        self.back_to(start)
        return self.denoiser(self.x, self.t, cache=self.cache, start=start)

    def commit(self, start: int) -> None:
        """The commit of the chunk that ends there."""
        self.back_to(start - self.size.chunk)
        self.denoiser.commit(self.clean, cache=self.cache, start=start - self.size.chunk)

    def fused(self, start: int) -> Tensor:
        """Both in one call."""
        self.back_to(start - self.size.chunk)
        return self.denoiser.commit_then(self.clean, self.x, self.t, cache=self.cache, start=start)

    def eager(self, start: int) -> Tensor:
        """Time the calls as they are; the step's result."""
        self.fill(start)
        kinds: dict[str, Callable[[int], Any]] = {"step": self.step}
        if start:
            kinds |= {"commit": self.commit, "commit + step": self.fused}
        for kind, call in kinds.items():
            self._timed(f"{kind}, {start} frames before", lambda call=call: call(start), self._flops(kind, start))
        return self.step(start).clone()

    def graph(self, start: int, expected: Tensor, kind: str, allowed: float) -> None:
        """A step as a CUDA graph."""
        self.fill(start)
        self.replayed(f"{kind}, {start} frames before", lambda: self.step(start), start, "step", expected, allowed)
        if start:
            both = self.fused(start).clone()
            name = f"{kind}, commit + step, {start} frames before"
            self.replayed(name, lambda: self.fused(start), start, "commit + step", both, allowed)

    def replayed(
        self, name: str, call: Callable[[], Tensor], start: int, kind: str, expected: Tensor, allowed: float
    ) -> None:
        """Capture a call, time it and hold what it makes against the eager call's."""
        replay, made = captured(call)
        replay()
        error = relative(made, expected)
        self._timed(name, replay, self._flops(kind, start), error=error, allowed=allowed, passed=error <= allowed)

    def compiled(self, start: int, expected: Tensor) -> None:
        """A step with blocks compiled, and that as a graph."""
        self.fill(start)
        error = relative(self.step(start), expected)
        self._timed(
            f"compiled, {start} frames before", lambda: self.step(start), self._flops("step", start),
            error=error, allowed=COMPILED, passed=error <= COMPILED,
        )  # fmt: skip
        if not self.task.needs_cuda(f"compiled graph, {start} frames before"):
            same = self.step(start).clone()
            name = f"compiled graph, {start} frames before"
            self.replayed(name, lambda: self.step(start), start, "step", same, SAME)

    def fp8(self, start: int, expected: Tensor) -> None:
        """A step whose linear layers multiply in eight bits, eager and as a graph."""
        other = Calls(self.task, self.size, to_fp8(copy.deepcopy(self.net), "products"), self.rate)
        other.fill(start)
        error, name = relative(other.step(start), expected), f"fp8, {start} frames before"
        other._timed(
            name, lambda: other.step(start), self._flops("step", start),
            error=error, allowed=IN_FP8, passed=error <= IN_FP8,
        )  # fmt: skip
        if not self.task.needs_cuda(f"fp8 graph, {start} frames before"):
            same = other.step(start).clone()
            other.replayed(f"fp8 graph, {start} frames before", lambda: other.step(start), start, "step", same, SAME)

    def _timed(self, name: str, call: Callable[[], Any], flops: int, **values: Any) -> None:
        seconds = self.task.seconds(call)
        self.task.record(name, seconds=seconds, flops=flops, share_of_floor=flops / self.rate / seconds, **values)

    def _flops(self, kind: str, start: int) -> int:
        chunk, (height, width) = self.size.chunk, self.size.grid
        lengths = {"step": (chunk,), "commit": (chunk,), "commit + step": (chunk, chunk)}[kind]
        first, commit = (start, 0) if kind == "step" else (start - chunk, chunk)
        return call_flops(
            self.net.config, lengths=lengths, start=first, commit=commit, height=height, width=width, text=TEXT
        ).total


def captured(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A CUDA graph of the call, and the tensor that each replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # tables and workspaces are made before, not in the graph
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = call()
    return graph.replay, made
