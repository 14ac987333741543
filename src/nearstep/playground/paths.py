"""The motions: how a thing rests, slides, bounces, orbits and swings, as exact paths.

Positions are parts of the frame's side; times are pixel frames. A slide or bounce that reaches a wall turns back; one
slides along, or is seen to turn, within the world's clip length, and goes on for as long as anyone looks.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

_D = math.sqrt(0.5)
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up left": (-_D, -_D),
    "up right": (_D, -_D),
    "down left": (-_D, _D),
    "down right": (_D, _D),
}
"""Direction of a slide -> unit vector."""

AXES: dict[str, tuple[float, float]] = {"horizontal": (1.0, 0.0), "vertical": (0.0, 1.0)}
"""Axis of a bounce -> unit vector."""

TURNS: dict[str, float] = {"clockwise": 1.0, "anticlockwise": -1.0}
"""Sense of an orbit -> sign of its angle's growth, y pointing down."""

WAYS: dict[str, tuple[str, ...]] = {
    "rest": (),
    "slide": tuple(DIRECTIONS),
    "bounce": tuple(AXES),
    "orbit": tuple(TURNS),
    "swing": (),
}
"""Motion -> the directions it can have."""

MOTIONS: tuple[str, ...] = tuple(WAYS)

RATES: dict[str, dict[str, float]] = {
    "slide": {"slow": 0.0075, "fast": 0.0150},
    "bounce": {"slow": 0.0085, "fast": 0.0170},
    "orbit": {"slow": 1 / 60, "fast": 1 / 30},
    "swing": {"slow": 1 / 48, "fast": 1 / 24},
}
"""Motion -> speed -> rate: parts of the side a frame for slides and bounces, turns or periods a frame for others."""

SPEEDS: tuple[str, ...] = ("slow", "fast")
RATE_SPREAD = 0.08
ORBIT_RADII = (0.12, 0.17)
ROPES = (0.20, 0.26)
"""Length of the rope on which a thing swings."""
SWING_ANGLE = 0.9
"""Largest angle of a swing's rope from the vertical, radians."""
_MARGIN = 0.01
_TURNS = (0.25, 0.7)
"""Part of the frames that a bounce may show before it first turns."""
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Track:
    """The exact numbers of a motion."""

    motion: str
    anchor: tuple[float, float]
    """Where it starts (rest, slide, bounce), the middle of an orbit, or where a swing's rope hangs."""
    heading: tuple[float, float]
    """Unit vector of a slide or a bounce at frame 0; otherwise (0, 0)."""
    rate: float
    """As in RATES, negative for an anticlockwise orbit; 0 at rest."""
    reach: float
    """Radius of an orbit, length of a swing's rope; otherwise 0."""
    phase: float
    """Angle of an orbit or of a swing's oscillation at frame 0, radians."""
    half: float
    """Half of the thing's extent, which keeps it off the walls."""


def draw_track(
    draw: random.Random, *, motion: str, direction: str | None, speed: str | None, side: float, frames: int
) -> Track:
    """A track with the named motion; ``draw`` chooses the exact numbers within it.

    Args:
        draw: of random numbers.
        motion: one of MOTIONS.
        direction: one of WAYS[motion], None if there are none.
        speed: one of SPEEDS; None at rest.
        side: the thing's extent.
        frames: the clip's length, within which a slide does not reach a wall and a bounce does.
    """
    rate = RATES[motion][speed] * draw.uniform(1 - RATE_SPREAD, 1 + RATE_SPREAD) if speed else 0.0
    low, high = side / 2 + _MARGIN, 1 - side / 2 - _MARGIN
    heading, reach, phase = (0.0, 0.0), 0.0, 0.0
    if motion in ("slide", "bounce"):
        heading = DIRECTIONS[direction or ""] if motion == "slide" else _either_way(draw, AXES[direction or ""])
        start = _start_bouncing if motion == "bounce" else _start_sliding
        anchor = tuple(start(draw, rate * part, low, high, frames) for part in heading)
    elif motion == "orbit":
        reach, phase, rate = draw.uniform(*ORBIT_RADII), draw.uniform(0, 2 * math.pi), rate * TURNS[direction or ""]
        anchor = (draw.uniform(low + reach, high - reach), draw.uniform(low + reach, high - reach))
    elif motion == "swing":
        reach, phase = draw.uniform(*ROPES), draw.uniform(0, 2 * math.pi)
        wide = reach * math.sin(SWING_ANGLE)
        top = low - reach * math.cos(SWING_ANGLE)
        anchor = (draw.uniform(low + wide, high - wide), draw.uniform(top, high - reach))
    else:
        anchor = (draw.uniform(low, high), draw.uniform(low, high))
    return Track(
        motion=motion,
        anchor=(anchor[0], anchor[1]),
        heading=heading,
        rate=rate,
        reach=reach,
        phase=phase,
        half=side / 2,
    )


def _either_way(draw: random.Random, axis: tuple[float, float]) -> tuple[float, float]:
    sign = draw.choice((-1.0, 1.0))
    return sign * axis[0], sign * axis[1]


def _start_sliding(draw: random.Random, velocity: float, low: float, high: float, frames: int) -> float:
    # The whole path stays between the walls: shrink the interval by the way the thing will go.
    way = velocity * (frames - 1)
    return draw.uniform(low - min(way, 0.0), high - max(way, 0.0))


def _start_bouncing(draw: random.Random, velocity: float, low: float, high: float, frames: int) -> float:
    # Meets its first wall between three and six tenths of the clip, so that both legs are seen.
    if velocity == 0.0:
        return draw.uniform(low, high)
    way = abs(velocity) * (frames - 1) * draw.uniform(0.3, 0.62)
    return high - way if velocity > 0 else low + way


def draw_onward(
    draw: random.Random, track: Track, *, motion: str, direction: str | None, speed: str | None, frames: int
) -> Track | None:
    """A track with the named motion that starts where ``track`` does; None where what was drawn leaves the frame.

    Args:
        draw: of random numbers.
        track: of the same thing.
        motion: one of MOTIONS.
        direction: one of WAYS[motion], None if there are none.
        speed: one of SPEEDS; None at rest.
        frames: how long the motion is to be seen.
    """
    here = tuple(positions(track, 1)[0].tolist())
    drawn = draw_track(draw, motion=motion, direction=direction, speed=speed, side=2 * track.half, frames=frames)
    away = positions(drawn, 1)[0].tolist()
    anchor = (drawn.anchor[0] + here[0] - away[0], drawn.anchor[1] + here[1] - away[1])
    moved = replace(drawn, anchor=anchor)
    return moved if shows_motion(moved, frames) else None


def advanced(track: Track, frames: int) -> Track:
    """The same path, its frame 0 where frame ``frames`` was."""
    if track.motion in ("orbit", "swing"):
        return replace(track, phase=track.phase + 2 * math.pi * track.rate * frames)
    if track.motion == "rest":
        return track
    free = _free(track, torch.tensor([[float(frames)]], dtype=torch.float64))
    low, span = _walls(track.half)
    back = torch.remainder(free[0] - low, 2 * span) > span  # on the way back from the far wall
    x, y = (-part if turned else part for part, turned in zip(track.heading, back.tolist(), strict=True))
    place = _between_walls(free, track.half)[0].tolist()
    return replace(track, anchor=(place[0], place[1]), heading=(x, y))


def shows_motion(track: Track, frames: int) -> bool:
    """Whether ``frames`` frames show what the motion is: a slide that meets no wall, a bounce that turns."""
    time = torch.arange(frames, dtype=torch.float64)[:, None]
    low, span = _walls(track.half)
    if track.motion in ("orbit", "swing"):
        if track.motion == "orbit":
            around = torch.tensor([[-track.reach, -track.reach], [track.reach, track.reach]])
        else:
            wide, high = track.reach * math.sin(SWING_ANGLE), track.reach * math.cos(SWING_ANGLE)
            around = torch.tensor([[-wide, high], [wide, track.reach]])
        path = torch.tensor(track.anchor) + around
    else:
        path = _free(track, time)
    if track.motion != "bounce":
        return bool(((path >= low - _ROUNDING) & (path <= low + span + _ROUNDING)).all())
    inside = ((path >= low) & (path <= low + span)).all(dim=1)
    met = float(inside.sum()) / frames  # before the first wall
    return bool(inside[0]) and _TURNS[0] <= met <= _TURNS[1]


def positions(track: Track, frames: int, first: int = 0) -> Float[Tensor, "frames 2"]:
    """Centre of the thing at frames ``first .. first + frames - 1``, as (x, y)."""
    time = torch.arange(first, first + frames, dtype=torch.float64)[:, None]
    anchor = torch.tensor(track.anchor, dtype=torch.float64)
    if track.motion == "orbit":
        angle = track.phase + 2 * math.pi * track.rate * time
        place = anchor + track.reach * torch.cat([angle.cos(), angle.sin()], dim=1)
    elif track.motion == "swing":
        angle = SWING_ANGLE * torch.sin(track.phase + 2 * math.pi * track.rate * time)
        place = anchor + track.reach * torch.cat([angle.sin(), angle.cos()], dim=1)
    else:
        place = _between_walls(_free(track, time), track.half)
    return place.to(torch.float32)


def start_of(track: Track) -> tuple[float, float]:
    """Centre of the thing at frame 0, to within rounding, without a tensor."""
    (x, y), angle = track.anchor, track.phase
    if track.motion == "orbit":
        return x + track.reach * math.cos(angle), y + track.reach * math.sin(angle)
    if track.motion == "swing":
        angle = SWING_ANGLE * math.sin(angle)
        return x + track.reach * math.sin(angle), y + track.reach * math.cos(angle)
    return x, y


def _free(track: Track, time: Tensor) -> Tensor:
    """[T, 2] centres at times [T, 1] if there were no walls."""
    heading = torch.tensor(track.heading, dtype=torch.float64)
    return torch.tensor(track.anchor, dtype=torch.float64) + track.rate * time * heading


def _walls(half: float) -> tuple[float, float]:
    """The least coordinate of a centre, and how far the greatest lies from it."""
    return half + _MARGIN, 1 - 2 * (half + _MARGIN)


def _between_walls(free: Tensor, half: float) -> Tensor:
    low, span = _walls(half)
    folded = torch.remainder(free - low, 2 * span)
    return low + span - (folded - span).abs()
