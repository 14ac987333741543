"""Names the motion of a tracked object by fitting the world's own paths to its track.

Three paths by weighted least squares, in closed form and for all clips at once: rest (a constant), slide (a line), and
bounce (one axis constant, the other a tent: a line that turns back at a wall, tried for every turning time on a half-
frame grid). Slide and bounce have four numbers each, so the smaller residual decides between them; an object slower
than half of the slowest speed rests. Only the first 33 frames count: captions say nothing about later ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep.playground.world import AXES, DIRECTIONS, FRAMES, SPEEDS

STILL_BELOW = min(SPEEDS.values()) / 2
"""Pixels per frame below which the nearest speed is rest."""

_EDGE = 6
"""Frames on either side of a turn that make it a bounce."""


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The best path of each clip."""

    kind: list[str]
    """[B] a name of world.MOTIONS."""
    direction: list[str | None]
    """[B] a key of DIRECTIONS or AXES; None for an object at rest."""
    speed: Tensor
    """[B] pixels per frame along the path; for an object at rest, that of its line."""
    residual: Tensor
    """[B] root mean square distance of the track from the path, pixels."""


def fit_motion(track: Tensor, found: Tensor) -> Motion:
    """Fit the track [B, T, 2] in the frames where the object was found, [B, T] bool; at least two of them."""
    track, weight = track[:, :FRAMES].double(), found[:, :FRAMES].double()
    weight = weight / weight.sum(dim=1, keepdim=True)
    track = torch.where(found[:, :FRAMES, None], track, 0.0)
    time = torch.arange(track.shape[1], dtype=torch.float64)
    turns = torch.arange(_EDGE, track.shape[1] - _EDGE, 0.5, dtype=torch.float64)
    tents = -(time - turns[:, None]).abs()
    velocity, line_error = _regress(track, weight, time[None])
    slope, tent_error = _regress(track, weight, tents)
    _, rest_error = _regress(track, weight, torch.zeros_like(time)[None])
    velocity, line_error, rest_error = velocity[:, 0], line_error[:, 0].sum(dim=-1), rest_error[:, 0]

    tent_error, turn = tent_error.min(dim=1)  # [B, 2], one turn per axis
    slope = slope.gather(1, turn[:, None])[:, 0].abs()
    bounce_error, axis = (tent_error + rest_error.flip(-1)).min(dim=-1)
    bounces = bounce_error < line_error
    speed = torch.where(bounces, slope.gather(1, axis[:, None])[:, 0], velocity.norm(dim=-1))
    rests = speed < STILL_BELOW
    error = torch.where(rests, rest_error.sum(dim=-1), torch.where(bounces, bounce_error, line_error))
    units = torch.tensor(tuple(DIRECTIONS.values()), dtype=torch.float64)
    way = (velocity @ units.T).argmax(dim=-1)
    names = [
        ("still", None) if r else ("bounce", tuple(AXES)[a]) if b else ("slide", tuple(DIRECTIONS)[w])
        for r, b, a, w in zip(rests.tolist(), bounces.tolist(), axis.tolist(), way.tolist(), strict=True)
    ]
    return Motion(
        kind=[kind for kind, _ in names],
        direction=[direction for _, direction in names],
        speed=speed.to(torch.float32),
        residual=error.sqrt().to(torch.float32),
    )


def _regress(track: Tensor, weight: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Each axis of the track [B, T, 2] on each feature [K, T] and a constant.

    Returns:
        The feature's factor and the weighted mean square error, both [B, K, 2]; the factor of a constant feature is 0.
    """
    track = track - torch.einsum("bta,bt->ba", track, weight)[:, None]
    centred = features - (weight @ features.T)[..., None]  # [B, K, T]
    spread = torch.einsum("bkt,bt->bk", centred.square(), weight)[..., None]
    shared = torch.einsum("bkt,bta,bt->bka", centred, track, weight)
    factor = torch.where(spread > 0, shared / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0)
    power = torch.einsum("bta,bt->ba", track.square(), weight)[:, None]
    return factor, (power - factor * shared).clamp(min=0.0)
