"""Randomness as a function of names.

No library code touches torch's global state. A draw is named by what it is for, so a sample does not depend on the
batch it is made in, on the number of ranks, or on how often something else drew before it; and a resumed run repeats
the uninterrupted one. (The idea of one generator per sample is EDM2's, ``generate_images.py:123-137``.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def key(*names: int | str) -> int:
    """A 63-bit seed from names; equal names give equal seeds on every machine."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A fresh CPU generator for one purpose, named by ``names``."""
    return torch.Generator().manual_seed(key(*names))


def noise(
    shape: Sequence[int],
    *,
    seed: int,
    samples: Sequence[int],
    chunk: int,
    step: int,
    purpose: str = "rollout",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal ``[len(samples), *shape]``; row i depends on ``samples[i]`` and the other names alone.

    Drawn in float32 on the CPU and then moved, so that every device and dtype sees the same numbers.
    """
    rows = [torch.randn(tuple(shape), generator=generator(purpose, seed, sample, chunk, step)) for sample in samples]
    return torch.stack(rows).to(device=device, dtype=dtype)
