"""Rotary positions in three dimensions (frame, row, column), as Wan2.1 splits a head (method.md section 3).

A head of width d is cut into pairs of channels; the pairs are shared out between the frame (the largest share), the
row and the column. Pair i of an axis of width w turns by position * theta^(-2i/w). Tables are made in float64, depend
on positions alone and are remembered, so that a network call only looks them up.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from nearstep.errors import NearstepError

THETA = 10000.0

RopeTable = tuple[Tensor, Tensor]  # cosine and sine, each [tokens, 1, head_dim / 2]


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels given to frame, row and column; for 128: 44, 42, 42 (Wan2.1)."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def angles(positions: Tensor, width: int) -> Tensor:
    """Angle of every channel pair of one axis. positions [n] float64 -> [n, width / 2]."""
    pairs = torch.arange(width // 2, dtype=torch.float64)
    return positions[:, None] * THETA ** (-2.0 * pairs / width)


@lru_cache(maxsize=256)
def rope_table(
    frames: tuple[int, ...],
    height: int,
    width: int,
    *,
    head_dim: int,
    limit: int,
    dtype: torch.dtype,
    device: torch.device,
) -> RopeTable:
    """Cosine and sine of every token, frame by frame: [frames * height * width, 1, head_dim / 2] each.

    `frames` are absolute positions, height and width are in tokens. A position at or past `limit` raises NearstepError:
    a clamped one would silently give two frames the same place.
    """
    furthest = max(max(frames), height - 1, width - 1)
    if furthest >= limit:
        raise NearstepError(
            f"rotary position {furthest} is out of range: this network knows positions 0 to {limit - 1}; "
            "generate fewer frames, a smaller picture, or raise rope_max_seq_len"
        )
    shape = (len(frames), height, width)
    by_axis = []
    for axis, (positions, channels) in enumerate(
        zip((frames, range(height), range(width)), axis_widths(head_dim), strict=True)
    ):
        turn = angles(torch.tensor(positions, dtype=torch.float64), channels)
        view = [1, 1, 1, turn.shape[1]]
        view[axis] = turn.shape[0]
        by_axis.append(turn.view(view).expand(*shape, -1))
    turns = torch.cat(by_axis, dim=-1).reshape(-1, 1, head_dim // 2)
    return turns.cos().to(device, dtype), turns.sin().to(device, dtype)


def rotate(x: Tensor, table: RopeTable) -> Tensor:
    """Turn neighbouring channel pairs of x [B, tokens, heads, head_dim] by the table's angles."""
    cos, sin = table
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)
