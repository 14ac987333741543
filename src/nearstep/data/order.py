"""The order in which training sees rows: a function of the seed and of how many were seen before."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from nearstep import rng


def rows_after(first: int, size: int, *, count: int, seed: int) -> list[tuple[int, int]]:
    """The next ``size`` of ``count`` rows after ``first`` were seen, as (epoch, row).

    Every epoch holds each row once, shuffled anew. Nothing is kept between calls: a resumed run, or one rank of many,
    asks for its own places.
    """
    places = (divmod(place, count) for place in range(first, first + size))
    return [(epoch, int(_shuffled(count, seed, epoch)[place])) for epoch, place in places]


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=rng.generator("epoch", seed, epoch))
