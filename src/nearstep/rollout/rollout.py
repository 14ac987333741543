"""Chunks in order: denoise, yield, commit. There is no other denoising loop.

A chunk begins as noise and comes down its schedule, a network call a step; every call reads the finished chunks from
the cache. A commit writes a finished chunk there, with a call of its own or along with the next chunk's first step::

    t = 1 |  o           o           o            o   step: x_t -> x0, and noise anew at the next time of the schedule
          |    o           o           o          C   commit: x0 at t = 0, its keys and values to the cache
    t = 0 |      x0, C       x0, C       x0       x0  is yielded before it is committed
             chunk 0     chunk 1     chunk 2

    apart    o o    C    o o    C    o o          n + 1 calls a chunk; the last chunk is seen by none: no commit
    fused    o o       (C+o) o     (C+o) o        n calls a chunk: [x0 at t = 0 | noise at t = 1] in one

Training concatenates what it yields, the pipeline decodes it, the stream sends it. A bidirectional teacher is the
plan with one chunk of all frames and the implied noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from nearstep import rng
from nearstep.flow.live_plan import StopRule
from nearstep.flow.plan import ChunkPlan, Schedule
from nearstep.protocols import Cache, CausalDenoiser
from nearstep.rollout.chunk import Renoise, denoise_chunk, needed


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A finished chunk."""

    index: int
    start: int
    """Absolute index of its first latent frame."""
    latents: Tensor
    """[B, f, C, H, W], clean."""
    steps: int
    """Denoising calls it took."""


class PlannedChunk(NamedTuple):
    """What the next chunk is to be."""

    frames: int
    schedule: Schedule
    stop: StopRule | None = None
    """Ends it before the schedule does (flow/live_plan.py)."""


Draw = Callable[[int, int, int], Tensor]
"""(chunk, frames, step) -> its noise [B, frames, C, H, W]."""
AfterEachStep = Callable[[int, int, Tensor], Tensor]
"""(chunk, step, what it leaves) -> what to go on with (chunk.AfterStep)."""


def rollout(
    denoiser: CausalDenoiser[Cache],
    plan: ChunkPlan,
    *,
    shape: Sequence[int],
    seed: int,
    samples: Sequence[int],
    cache: Cache | None = None,
    device: torch.device | str | None = None,
    renoise: Renoise = "fresh",
    graph: bool = False,
    fused: bool = False,
    given: Tensor | None = None,
) -> Iterator[Chunk]:
    """Generate a clip chunk by chunk.

    Args:
        denoiser: the network with its text bound; batch ``len(samples)``.
        plan: chunk lengths and schedules.
        shape: ``(C, H, W)`` of a latent frame.
        seed: names the noise, together with each of ``samples``, the chunk and the step (rng.noise).
        samples: which samples of the seed's stream; a sample does not depend on the others beside it.
        cache: an empty cache to use; by default a new one that just fits the plan (none for a single chunk).
        device: where the noise is put.
        renoise: as for :func:`unroll`, and so are the others.
        graph: keep each chunk's last step differentiable.
        fused: commit a chunk and call for the next in one network call.
        given: the first chunk's clean latents [B, f, C, H, W], such as a picture's; it is then not generated.

    Yields:
        As :func:`unroll`; not the chunk that is given.
    """
    if cache is None and len(plan.lengths) > 1:
        cache = denoiser.new_cache(len(samples), plan.frames, shape[1], shape[2])

    def draw(chunk: int, frames: int, step: int) -> Tensor:
        return rng.noise((frames, *shape), seed=seed, samples=samples, chunk=chunk, step=step, device=device)

    first, start = (0, 0) if given is None else (1, given.shape[1])
    chunks = [PlannedChunk(*chunk) for chunk in zip(plan.lengths, plan.schedules, strict=True)][first:]
    yield from unroll(
        denoiser,
        chunks,
        draw,
        cache=cache,
        first=first,
        start=start,
        before=given,
        renoise=renoise,
        graph=graph,
        fused=fused,
    )


def unroll(
    denoiser: CausalDenoiser[Cache],
    chunks: Iterable[PlannedChunk],
    draw: Draw,
    *,
    cache: Cache | None,
    first: int = 0,
    start: int = 0,
    before: Tensor | None = None,
    renoise: Renoise = "fresh",
    graph: bool = False,
    fused: bool = False,
    after: AfterEachStep | None = None,
) -> Iterator[Chunk]:
    """The loop itself: ``chunks`` may be without end, and each is asked for only when its turn comes.

    Args:
        denoiser: the network with its text bound.
        chunks: what each chunk is to be.
        draw: noise by name.
        cache: what it reads and commits to.
        first: index of the first chunk.
        start: absolute index of its first latent frame.
        before: clean frames [B, f, C, H, W] just before ``start`` that are not in the cache yet.
        renoise: see chunk.Renoise.
        graph: keep each chunk's last step differentiable. What is committed is detached, so a chunk's loss never
            reaches earlier chunks (in-place cache writes under grad leak; method.md section 4).
        fused: commit a chunk and call for the next in one network call, where no graph is asked for.
        after: sees every step of every chunk, and may change what it leaves.

    Yields:
        Each chunk as soon as it is finished; its commit happens when the next one is asked for, and the last is never
        committed.
    """
    for index, (frames, schedule, stop) in enumerate(chunks, first):
        if before is not None and (graph or not fused):
            with torch.no_grad():
                denoiser.commit(before, cache=needed(cache), start=start - before.shape[1])
            before = None
        latents, steps = denoise_chunk(
            denoiser,
            schedule,
            partial(draw, index, frames),
            cache=cache,
            start=start,
            before=before,
            stop=stop,
            renoise=renoise,
            graph=graph,
            after=None if after is None else partial(after, index),
        )
        yield Chunk(index=index, start=start, latents=latents, steps=steps)
        before, start = latents.detach(), start + frames


def generate(
    denoiser: CausalDenoiser[Cache],
    plan: ChunkPlan,
    *,
    shape: Sequence[int],
    seed: int,
    samples: Sequence[int],
    cache: Cache | None = None,
    device: torch.device | str | None = None,
    renoise: Renoise = "fresh",
    graph: bool = False,
    fused: bool = False,
    given: Tensor | None = None,
) -> Tensor:
    """All chunks of a :func:`rollout` with the same arguments, what is given included, [B, F, C, H, W]."""
    chunks = rollout(
        denoiser,
        plan,
        shape=shape,
        seed=seed,
        samples=samples,
        cache=cache,
        device=device,
        renoise=renoise,
        graph=graph,
        fused=fused,
        given=given,
    )
    return torch.cat([*([] if given is None else [given]), *(chunk.latents for chunk in chunks)], dim=1)
