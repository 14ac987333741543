"""Classifier-free guidance, as a denoiser made from a denoiser.

v = u + w (c - u): w = 1 is the conditional prediction alone. Self-Forcing writes c + g (c - u), so its g = 3 is w = 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Generic

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.protocols import Cache, CausalDenoiser, Denoiser
from nearstep.reach import Reach


def guided(both: Denoiser, weight: float) -> Denoiser:
    """The guided denoiser of batch B over one of batch 2B: rows 0 .. B-1 conditional, rows B .. 2B-1 unconditional."""

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = both(_twice(x), _twice(t)).chunk(2)
        return torch.lerp(unconditional, conditional, weight)

    return denoiser


def check_negative(negative: Sequence[str], guidance: float) -> None:
    """Refuse a negative prompt that nothing would come of.

    Raises:
        NearstepError: if there is one, and no guidance that leads away from it.
    """
    if guidance == 1 and (told := [text for text in negative if text]):
        raise NearstepError(
            f"the negative prompt {told[0][:60]!r} acts through guidance, and there is none (1); give a guidance above "
            f"1, or leave it out"
        )


class Guided(Generic[Cache]):
    """``guided`` for a causal denoiser. The cache holds both halves: a frame's keys and values depend on the text."""

    def __init__(self, both: CausalDenoiser[Cache], weight: float) -> None:
        self.both = both
        self.weight = weight

    def __call__(self, x: Tensor, t: Tensor, *, cache: Cache | None = None, start: int = 0) -> Tensor:
        """Guided velocity of ``x`` [B, F, C, H, W] at ``t`` [B, F]."""
        return guided(partial(self.both, cache=cache, start=start), self.weight)(x, t)

    def commit(self, x: Tensor, *, cache: Cache, start: int) -> None:
        """Write the clean frames ``x`` under both texts."""
        self.both.commit(_twice(x), cache=cache, start=start)

    def commit_then(self, clean: Tensor, x: Tensor, t: Tensor, *, cache: Cache, start: int) -> Tensor:
        """Write ``clean`` under both texts; guided velocity of ``x``."""

        def both(x: Tensor, t: Tensor) -> Tensor:
            return self.both.commit_then(_twice(clean), x, t, cache=cache, start=start)

        return guided(both, self.weight)(x, t)

    def new_cache(
        self, batch: int, frames: int | None, height: int, width: int, *, reach: Reach | None = None
    ) -> Cache:
        """An empty cache with room for both halves."""
        return self.both.new_cache(2 * batch, frames, height, width, reach=reach)


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])
