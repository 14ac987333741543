"""Chunks in order: denoise, yield, commit. There is no other denoising loop.

Training concatenates what it yields, the pipeline decodes it, the stream sends it. A bidirectional teacher is the
plan with one chunk of all frames and the implied noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nearstep import rng
from nearstep.flow.plan import ChunkPlan
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


def rollout(
    denoiser: CausalDenoiser,
    plan: ChunkPlan,
    *,
    shape: Sequence[int],
    seed: int,
    samples: Sequence[int],
    cache: Any = None,
    renoise: Renoise = "fresh",
    graph: bool = False,
    device: torch.device | str | None = None,
) -> Iterator[Chunk]:
    """Generate a clip chunk by chunk.

    Args:
        denoiser: the network with its text bound; batch ``len(samples)``.
        plan: chunk lengths and schedules.
        shape: ``(C, H, W)`` of a latent frame.
        seed: names the noise, together with each of ``samples``, the chunk and the step (rng.noise).
        samples: which samples of the seed's stream; a sample does not depend on the others beside it.
        cache: an empty cache to use; by default a new one that just fits the plan (none for a single chunk).
        renoise: see chunk.Renoise.
        graph: keep each chunk's last step differentiable. What is committed is detached, so a chunk's loss never
            reaches earlier chunks (in-place cache writes under grad leak; method.md section 3).
        device: where the noise is put.

    Yields:
        Each chunk as soon as it is finished; its commit happens when the next one is asked for, and the last is never
        committed.
    """
    if cache is None and len(plan.lengths) > 1:
        cache = denoiser.new_cache(len(samples), plan.frames, shape[1], shape[2])
    start = 0
    for index, (length, schedule) in enumerate(zip(plan.lengths, plan.schedules, strict=True)):
        draw = partial(_noise, (length, *shape), seed, tuple(samples), index, device)
        latents = denoise_chunk(denoiser, schedule, draw, cache=cache, start=start, renoise=renoise, graph=graph)
        yield Chunk(index=index, start=start, latents=latents, steps=len(schedule))
        if index + 1 < len(plan.lengths):
            with torch.no_grad():
                denoiser.commit(latents.detach(), cache=cache, start=start)
        start += length


def generate(denoiser: CausalDenoiser, plan: ChunkPlan, **options: Any) -> Tensor:
    """All chunks of a ``rollout`` with the same options, [B, F, C, H, W]."""
    return torch.cat([chunk.latents for chunk in rollout(denoiser, plan, **options)], dim=1)


def _noise(shape: tuple[int, ...], seed: int, samples: tuple[int, ...], chunk: int, device: Any, step: int) -> Tensor:
    return rng.noise(shape, seed=seed, samples=samples, chunk=chunk, step=step, device=device)
