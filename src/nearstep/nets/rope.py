"""Rotary positions in three dimensions (frame, row, column), as Wan2.1 splits a head (method.md section 5).

A head of width d is cut into pairs of channels; the pairs are shared out between the frame (the largest share), the
row and the column. Pair i of an axis of width w turns by position * theta^(-2i/w). Tables are made in float64, depend
on positions alone; what frames share (rows and columns) is remembered, and so are the newest whole tables.

Turning by positions makes products of queries and keys depend on distances alone. So how far a network can go is a
matter of distance, not of the frame number: a stream may go on for ever where a window bounds what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def check_distances(frames: Sequence[int], oldest: int, height: int, width: int, limit: int) -> None:
    """Refuse what is further apart than `limit` positions: clamped, two places would silently be one.

    frames: absolute positions. oldest: of the frames that they see. height and width: of a frame, in tokens.
    """
    furthest = max(max(frames) - oldest, height - 1, width - 1)
    if furthest >= limit:
        raise NearstepError(
            f"rotary distance {furthest} is out of range: this network knows distances 0 to {limit - 1}; "
            "generate fewer frames, a smaller picture, set a window, or raise rope_max_seq_len"
        )


@lru_cache(maxsize=16)  # the steps of a chunk share one; a stream never comes back to an older one
def rope_table(
    frames: tuple[int, ...], height: int, width: int, *, head_dim: int, dtype: torch.dtype, device: torch.device
) -> RopeTable:
    """Cosine and sine of every token, frame by frame: [frames * height * width, 1, head_dim / 2] each.

    `frames` are absolute positions, height and width are in tokens.
    """
    angle = angles(torch.tensor(frames, dtype=torch.float64), axis_widths(head_dim)[0])
    moving = (part.to(device, dtype)[:, None].expand(-1, height * width, -1) for part in (angle.cos(), angle.sin()))
    still = (part.expand(len(frames), -1, -1) for part in _picture(height, width, head_dim, dtype, device))
    cos, sin = (torch.cat(parts, dim=2).flatten(0, 1)[:, None] for parts in zip(moving, still, strict=True))
    return cos, sin


@lru_cache(maxsize=64)
def _picture(height: int, width: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> RopeTable:
    """Cosine and sine of the rows and columns of one frame, [height * width, pairs] each."""
    sides = (torch.arange(side, dtype=torch.float64) for side in (height, width))
    rows, columns = (angles(*side) for side in zip(sides, axis_widths(head_dim)[1:], strict=True))
    grid = torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=1)
    return grid.cos().to(device, dtype), grid.sin().to(device, dtype)


def forget_tables() -> None:
    """Make all tables anew: for those who make some without numbers (cost/fake_step.py)."""
    for remembered in (rope_table, _picture, _shift):
        remembered.cache_clear()


def advance(keys: Tensor, frames: int) -> Tensor:
    """Rotated keys [B, tokens, heads, head_dim] as if their frames lay `frames` later: only frame channels rotate."""
    width = axis_widths(keys.shape[-1])[0]
    table = _shift(frames, width, torch.promote_types(keys.dtype, torch.float32), keys.device)
    moving, still = keys.split([width, keys.shape[-1] - width], dim=-1)
    return torch.cat([rotate(moving, table).to(keys.dtype), still], dim=-1)


@lru_cache(maxsize=16)
def _shift(frames: int, width: int, dtype: torch.dtype, device: torch.device) -> RopeTable:
    angle = angles(torch.tensor([frames], dtype=torch.float64), width)[None]
    return angle.cos().to(device, dtype), angle.sin().to(device, dtype)


def rotate(x: Tensor, table: RopeTable) -> Tensor:
    """Turn neighbouring channel pairs of x [B, tokens, heads, head_dim] by the table's angles."""
    cos, sin = table
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)
