"""Chunks in order: denoise, yield, commit. There is no other denoising loop.

Training concatenates what it yields, the pipeline decodes it, the stream sends it. A bidirectional teacher is the
plan with one chunk of all frames and the implied noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearstep import rng
from nearstep.flow.live_plan import Enough
from nearstep.flow.plan import ChunkPlan, Schedule
from nearstep.protocols import CausalDenoiser
from nearstep.rollout.chunk import Renoise, denoise_chunk


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


class Planned(NamedTuple):
    """What the next chunk is to be."""

    frames: int
    schedule: Schedule
    enough: Enough | None = None
    """Stops it before the schedule ends (flow/live_plan.py)."""


Draw = Callable[[int, int, int], Tensor]
"""(chunk, frames, step) -> its noise [B, frames, C, H, W]."""


def rollout(
    denoiser: CausalDenoiser,
    plan: ChunkPlan,
    *,
    shape: Sequence[int],
    seed: int,
    samples: Sequence[int],
    cache: Any = None,
    device: torch.device | str | None = None,
    **options: Any,
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
        options: as for :func:`unroll`.

    Yields:
        As :func:`unroll`.
    """
    if cache is None and len(plan.lengths) > 1:
        cache = denoiser.new_cache(len(samples), plan.frames, shape[1], shape[2])

    def draw(chunk: int, frames: int, step: int) -> Tensor:
        return rng.noise((frames, *shape), seed=seed, samples=samples, chunk=chunk, step=step, device=device)

    chunks = (Planned(*chunk) for chunk in zip(plan.lengths, plan.schedules, strict=True))
    yield from unroll(denoiser, chunks, draw, cache=cache, **options)


def unroll(
    denoiser: CausalDenoiser,
    chunks: Iterable[Planned],
    draw: Draw,
    *,
    cache: Any,
    first: int = 0,
    start: int = 0,
    before: Tensor | None = None,
    renoise: Renoise = "fresh",
    graph: bool = False,
    fused: bool = False,
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
            reaches earlier chunks (in-place cache writes under grad leak; method.md section 3).
        fused: commit a chunk and call for the next in one network call, where no graph is asked for.

    Yields:
        Each chunk as soon as it is finished; its commit happens when the next one is asked for, and the last is never
        committed.
    """
    for index, (frames, schedule, enough) in enumerate(chunks, first):
        if before is not None and (graph or not fused):
            with torch.no_grad():
                denoiser.commit(before, cache=cache, start=start - before.shape[1])
            before = None
        latents, steps = denoise_chunk(
            denoiser,
            schedule,
            partial(draw, index, frames),
            cache=cache,
            start=start,
            before=before,
            enough=enough,
            renoise=renoise,
            graph=graph,
        )
        yield Chunk(index=index, start=start, latents=latents, steps=steps)
        before, start = latents.detach(), start + frames


def generate(denoiser: CausalDenoiser, plan: ChunkPlan, **options: Any) -> Tensor:
    """All chunks of a ``rollout`` with the same options, [B, F, C, H, W]."""
    return torch.cat([chunk.latents for chunk in rollout(denoiser, plan, **options)], dim=1)
