"""Names the motion of a tracked thing by fitting the world's own paths to its track.

Every path is linear in at most four numbers once its turning time, rate or phase is given, so each is tried on a grid
of those, by weighted least squares for all clips at once. A thing that hardly leaves its mean place rests; else the
path with the least error names the motion, unless even that one misses the track. Only the world's clip length counts:
captions say nothing of later frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.playground.paths import DIRECTIONS, RATES, SPEEDS, SWING_ANGLE, TURNS

_RESTS = 1.0 / 64
"""Root mean square distance from its mean place up to which a thing rests, as a part of the frame's side."""
_MISSED = 3.0 / 64
"""Root mean square distance from the best path beyond which the motion is none of the world's."""
_EDGE = 6
"""Frames on either side of a turn that make it a bounce."""
_RANGE = (0.6, 1.6)
"""Rates to try, in the slow and the fast one."""
_RATES, _PHASES = 26, 24
_ROUNDS = 4
_RIDGE = 1e-7


@dataclass(frozen=True, kw_only=True)
class Motion:
    """The best path of each clip's thing."""

    kind: list[str | None]
    """[B] a name of MOTIONS; None where no path fits."""
    direction: list[str | None]
    speed: list[str | None]
    """[B] the nearest of SPEEDS; None at rest."""
    rate: Float[Tensor, " B"]
    """As in paths.RATES, positive; 0 at rest."""
    residual: Float[Tensor, " B"]
    """Root mean square distance of the track from the path, as a part of the frame's side."""


@dataclass(frozen=True)
class _Family:
    # Paths of one motion. ``grid`` [G, 2] holds the numbers that x and y are not linear in, ``step`` how far apart they
    # are (the first one in parts of itself), ``parts`` makes of such numbers [..., 2] and the times what x and y are
    # made of [..., 2, T, 4].
    motion: str
    grid: Tensor
    step: tuple[float, float]
    parts: Callable[[Tensor, Tensor], Tensor]


def _stack(x: Sequence[Tensor | float], y: Sequence[Tensor | float], like: Tensor) -> Tensor:
    # The terms of x and y as [..., 2, T, 4]; ``like`` [..., T] gives the shape.
    rows = [torch.stack([torch.zeros_like(like) + term for term in terms], dim=-1) for terms in (x, y)]
    return torch.stack(rows, dim=-3)


def _rest(numbers: Tensor, time: Tensor) -> Tensor:
    return _stack([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], numbers[..., :1] * time)


def _slide(numbers: Tensor, time: Tensor) -> Tensor:
    return _stack([1.0, 0.0, time, 0.0], [0.0, 1.0, 0.0, time], numbers[..., :1] * time)


def _across(numbers: Tensor, time: Tensor) -> Tensor:
    tent = (time - numbers[..., :1]).abs()
    return _stack([1.0, 0.0, tent, 0.0], [0.0, 1.0, 0.0, 0.0], tent)


def _along(numbers: Tensor, time: Tensor) -> Tensor:
    tent = (time - numbers[..., :1]).abs()
    return _stack([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, tent, 0.0], tent)


def _orbit(numbers: Tensor, time: Tensor) -> Tensor:
    angle = 2 * math.pi * numbers[..., :1] * time
    return _stack([1.0, 0.0, angle.cos(), -angle.sin()], [0.0, 1.0, angle.sin(), angle.cos()], angle)


def _swing(numbers: Tensor, time: Tensor) -> Tensor:
    angle = SWING_ANGLE * torch.sin(numbers[..., 1:] + 2 * math.pi * numbers[..., :1] * time)
    return _stack([1.0, 0.0, angle.sin(), 0.0], [0.0, 1.0, angle.cos(), 0.0], angle)


def _rates(motion: str) -> tuple[Tensor, float]:
    low, high = RATES[motion]["slow"] * _RANGE[0], RATES[motion]["fast"] * _RANGE[1]
    rates = torch.logspace(math.log10(low), math.log10(high), _RATES, dtype=torch.float64)
    return rates, float(rates[1] / rates[0] - 1)


@cache
def _families(frames: int) -> tuple[_Family, ...]:
    none = torch.zeros(1, 2, dtype=torch.float64)
    turns = torch.arange(_EDGE, frames - _EDGE, 0.5, dtype=torch.float64)
    turns = torch.stack([turns, torch.zeros_like(turns)], dim=1)
    rates, ratio = _rates("orbit")
    signed = torch.cat([sign * rates for sign in TURNS.values()])
    orbits = torch.stack([signed, torch.zeros_like(signed)], dim=1)
    rates, swing_ratio = _rates("swing")
    phases = 2 * math.pi * torch.arange(_PHASES, dtype=torch.float64) / _PHASES
    return (
        _Family("rest", none, (0.0, 0.0), _rest),
        _Family("slide", none, (0.0, 0.0), _slide),
        _Family("bounce", turns, (0.02, 0.0), _across),
        _Family("bounce", turns, (0.02, 0.0), _along),
        _Family("orbit", orbits, (ratio, 0.0), _orbit),
        _Family("swing", torch.cartesian_prod(rates, phases), (swing_ratio, float(phases[1])), _swing),
    )


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
    # Mean squared error of the family's best path [B], its linear numbers [B, 4], and those of its grid [B, 2].
    time = torch.arange(track.shape[1], dtype=torch.float64)
    grid = family.grid.expand(len(track), -1, -1)
    error, numbers, chosen = _best(track, weight, family.parts(family.grid, time)[None], grid)
    span = torch.tensor(family.step, dtype=torch.float64)
    for _ in range(_ROUNDS if bool(span.any()) else 0):  # closer and closer around the best one
        span = span / 2
        near = chosen[:, None] * (1 + _AROUND * span * _FIRST) + _AROUND * span * (1 - _FIRST)
        error, numbers, chosen = _best(track, weight, family.parts(near, time), near)
    return error, numbers, chosen


_FIRST = torch.tensor([1.0, 0.0], dtype=torch.float64)
_AROUND = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * 2)


def _best(track: Tensor, weight: Tensor, parts: Tensor, grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Of the paths with the parts [B or 1, G, 2, T, 4]: error, numbers and grid point of the best one.
    weighted = parts * weight[:, None, None, :, None]
    product = weighted.flatten(2, 3).mT @ parts.flatten(2, 3)
    right = torch.einsum("bgatp,bta->bgp", weighted, track)
    numbers = torch.linalg.solve(product + _RIDGE * torch.eye(4, dtype=torch.float64), right[..., None])
    away = (parts @ numbers[:, :, None])[..., 0] - track.mT[:, None]
    error, index = torch.einsum("bgat,bt->bg", away.square(), weight).min(dim=1)
    row = torch.arange(len(track))
    return error, numbers[row, index, :, 0], grid[row, index]


def _name(family: _Family, found: tuple[Tensor, Tensor, Tensor], row: int) -> tuple[str, str | None, float]:
    numbers, point = found[1][row], found[2][row]
    motion = family.motion
    if motion == "slide":
        units = torch.tensor(tuple(DIRECTIONS.values()), dtype=torch.float64)
        return motion, tuple(DIRECTIONS)[int((units @ numbers[2:]).argmax())], float(numbers[2:].norm())
    if motion == "bounce":
        return motion, "horizontal" if family.parts is _across else "vertical", abs(float(numbers[2]))
    if motion == "orbit":
        return motion, next(name for name, sign in TURNS.items() if sign * float(point[0]) > 0), abs(float(point[0]))
    return motion, None, float(point[0])


def _nearest_speed(motion: str, rate: float) -> str | None:
    if motion == "rest":
        return None
    return min(SPEEDS, key=lambda speed: abs(math.log(max(rate, 1e-9) / RATES[motion][speed])))
