"""Names the motion of a tracked thing by fitting the world's own paths to its track.

Every path is linear in at most four numbers once its turning time, rate or phase is given, so each is tried on a grid of
those, by weighted least squares for all clips at once. A thing that hardly leaves its mean place rests; else the path with
the least error names the motion, unless even that one misses the track. Only the world's clip length counts: captions say
nothing of later frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.things.paths import AXES, DIRECTIONS, RATES, SPEEDS, SWING_ANGLE, TURNS

_RESTS = 1.0 / 64
"""Root mean square distance from its mean place up to which a thing rests, as a part of the frame's side."""
_MISSED = 3.0 / 64
"""Root mean square distance from the best path beyond which the motion is none of the world's."""
_EDGE = 6
"""Frames on either side of a turn that make it a bounce."""
_RANGE = (0.6, 1.6)
"""Rates to try, in the slow and the fast one."""
_RATES, _PHASES = 26, 24
_RIDGE = 1e-7


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The best path of each clip's thing."""

    kind: list[str | None]
    """[B] a name of MOTIONS; None where no path fits."""
    direction: list[str | None]
    speed: list[str | None]
    """[B] the nearest of SPEEDS; None at rest."""
    rate: Float[Tensor, "B"]
    """As in paths.RATES, positive; 0 at rest."""
    residual: Float[Tensor, "B"]
    """Root mean square distance of the track from the path, as a part of the frame's side."""


@dataclass(frozen=True)
class _Family:
    # Paths of one motion: what x and y are made of [G, 2, T, 4], and what each of them means.
    motion: str
    parts: Tensor
    direction: tuple[str | None, ...]
    rate: Tensor


@cache
def _families(frames: int) -> tuple[_Family, ...]:
    time = torch.arange(frames, dtype=torch.float64)
    return (_rest(time), _slide(time), _bounce(time), _orbit(time), _swing(time))


def _parts(x: list[Tensor | float], y: list[Tensor | float], grid: int, frames: int) -> Tensor:
    parts = torch.zeros(grid, 2, frames, 4, dtype=torch.float64)
    for axis, terms in enumerate((x, y)):
        for index, term in enumerate(terms):
            parts[:, axis, :, index] = term
    return parts


def _rest(time: Tensor) -> _Family:
    return _Family("rest", _parts([1.0, 0.0], [0.0, 1.0], 1, len(time)), (None,), torch.zeros(1, dtype=torch.float64))


def _slide(time: Tensor) -> _Family:
    parts = _parts([1.0, 0.0, time, 0.0], [0.0, 1.0, 0.0, time], 1, len(time))
    return _Family("slide", parts, (None,), torch.zeros(1, dtype=torch.float64))


def _bounce(time: Tensor) -> _Family:
    turns = torch.arange(_EDGE, len(time) - _EDGE, 0.5, dtype=torch.float64)
    tent = (time - turns[:, None]).abs()
    across = _parts([1.0, 0.0, tent], [0.0, 1.0, 0.0], len(turns), len(time))
    along = _parts([1.0, 0.0, 0.0], [0.0, 1.0, tent], len(turns), len(time))
    directions = tuple(name for name in AXES for _ in turns)
    return _Family("bounce", torch.cat([across, along]), directions, torch.zeros(2 * len(turns), dtype=torch.float64))


def _rates(motion: str) -> Tensor:
    low, high = RATES[motion]["slow"] * _RANGE[0], RATES[motion]["fast"] * _RANGE[1]
    return torch.logspace(math.log10(low), math.log10(high), _RATES, dtype=torch.float64)


def _orbit(time: Tensor) -> _Family:
    rates = torch.cat([sign * _rates("orbit") for sign in TURNS.values()])
    angle = 2 * math.pi * rates[:, None] * time
    parts = _parts([1.0, 0.0, angle.cos(), -angle.sin()], [0.0, 1.0, angle.sin(), angle.cos()], len(rates), len(time))
    return _Family("orbit", parts, tuple(name for name in TURNS for _ in range(_RATES)), rates.abs())


def _swing(time: Tensor) -> _Family:
    rates = _rates("swing").repeat_interleave(_PHASES)
    phases = (2 * math.pi * torch.arange(_PHASES, dtype=torch.float64) / _PHASES).repeat(_RATES)
    angle = SWING_ANGLE * torch.sin(phases[:, None] + 2 * math.pi * rates[:, None] * time)
    parts = _parts([1.0, 0.0, angle.sin()], [0.0, 1.0, angle.cos()], len(rates), len(time))
    return _Family("swing", parts, (None,) * len(rates), rates)


def fit_motion(track: Float[Tensor, "B T 2"], seen: Bool[Tensor, "B T"], frames: int) -> Motion:
    """Name the motion of each track, where it was seen.

    Args:
        track: places as parts of the frame's side.
        seen: which of them count.
        frames: the world's clip length.
    """
    track, weight = track[:, :frames].double(), seen[:, :frames].double()
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1.0)
    families = _families(track.shape[1])
    fits = [_fit_family(track, weight, family) for family in families]
    errors = torch.stack([error for error, _, _ in fits], dim=1)  # [B, families]
    rests = errors[:, 0].sqrt() < _RESTS
    best = torch.where(rests, 0, errors[:, 1:].argmin(dim=1) + 1)
    residual = errors.gather(1, best[:, None])[:, 0].sqrt()
    named = [_name(families[which], fits[which], row) for row, which in enumerate(best.tolist())]
    lost = (residual > _MISSED).tolist()
    return Motion(
        kind=[None if gone else kind for (kind, _, _), gone in zip(named, lost, strict=True)],
        direction=[None if gone else way for (_, way, _), gone in zip(named, lost, strict=True)],
        speed=[None if gone else _nearest_speed(kind, rate) for (kind, _, rate), gone in zip(named, lost, strict=True)],
        rate=torch.tensor([rate for _, _, rate in named]),
        residual=residual.float(),
    )


def _fit_family(track: Tensor, weight: Tensor, family: _Family) -> tuple[Tensor, Tensor, Tensor]:
    # Mean squared error of the family's best path [B], its four numbers [B, 4], and its place in the grid [B].
    parts = family.parts
    product = torch.einsum("bt,gatp,gatq->bgpq", weight, parts, parts)
    right = torch.einsum("bt,gatp,bta->bgp", weight, parts, track)
    numbers = torch.linalg.solve(product + _RIDGE * torch.eye(4, dtype=torch.float64), right[..., None])[..., 0]
    away = torch.einsum("gatp,bgp->bgta", parts, numbers) - track[:, None]
    errors = torch.einsum("bgta,bt->bg", away.square(), weight)
    error, index = errors.min(dim=1)
    return error, numbers[torch.arange(len(track)), index], index


def _name(family: _Family, found: tuple[Tensor, Tensor, Tensor], row: int) -> tuple[str, str | None, float]:
    _, numbers, index = found
    motion, grid = family.motion, int(index[row])
    if motion == "slide":
        velocity = numbers[row, 2:]
        units = torch.tensor(tuple(DIRECTIONS.values()), dtype=torch.float64)
        return motion, tuple(DIRECTIONS)[int((units @ velocity).argmax())], float(velocity.norm())
    if motion == "bounce":
        return motion, family.direction[grid], abs(float(numbers[row, 2]))
    return motion, family.direction[grid], float(family.rate[grid])


def _nearest_speed(motion: str, rate: float) -> str | None:
    if motion == "rest":
        return None
    return min(SPEEDS, key=lambda speed: abs(math.log(max(rate, 1e-9) / RATES[motion][speed])))
