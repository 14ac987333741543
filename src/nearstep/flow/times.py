"""Which times: the shift of a schedule, and the laws that training draws from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", float, Tensor)


def shifted(t: T, k: float) -> T:
    """t' = k t / (1 + (k - 1) t): spends more of [0, 1] near noise for k > 1 (Wan 480p: k = 5)."""
    return k * t / (1 + (k - 1) * t)


def unshifted(t: T, k: float) -> T:
    """The inverse of ``shifted`` with the same k."""
    return t / (k - (k - 1) * t)


def training_times(u: Tensor, *, shift: float, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform draws ``u`` in [0, 1] -> training times: shifted, then clamped to [low, high].

    The distribution-matching losses clamp to [.02, .98] (method.md section 11).
    """
    return shifted(u, shift).clamp(low, high)


def of_frames(per_chunk: Tensor, lengths: Sequence[int]) -> Tensor:
    """Numbers of chunks [B, chunks] as those of their frames [B, F]; ``lengths`` are the frames of each chunk."""
    repeats = torch.tensor(lengths, device=per_chunk.device)
    return per_chunk.repeat_interleave(repeats, dim=1, output_size=sum(lengths))
