"""The playground world: what a clip shows, exactly, and how it is drawn.

One object on a graded background, seen for 33 frames. Every clip is a pure function of ``(seed, index)``; positions,
sizes and speeds are exact numbers, so a judge needs no learned net (playground/judge/judge.py). What makes it hard for
few steps: sharp edges, shapes that differ in detail, continuous start positions and speeds, and motion that later
chunks must continue. Captions live in playground/captions.py.

Coordinates are pixels, x to the right, y down, and (0, 0) is the centre of the top left pixel. Times are pixel frames.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep import rng

SIZE = 48
FRAMES = 33
FPS = 12

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.16, 0.18),
    "orange": (1.00, 0.55, 0.10),
    "yellow": (0.98, 0.87, 0.20),
    "green": (0.24, 0.74, 0.30),
    "cyan": (0.20, 0.84, 0.90),
    "blue": (0.12, 0.27, 0.88),
    "purple": (0.60, 0.28, 0.86),
    "pink": (1.00, 0.50, 0.74),
}
"""Colour name -> rgb in [0, 1] at the object's centre (a soft shading varies it by a tenth)."""

BACKGROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "night": ((0.03, 0.04, 0.12), (0.12, 0.13, 0.28)),
    "slate": ((0.30, 0.33, 0.37), (0.44, 0.47, 0.51)),
    "forest": ((0.05, 0.16, 0.12), (0.13, 0.31, 0.21)),
    "sand": ((0.84, 0.77, 0.62), (0.68, 0.59, 0.45)),
    "dusk": ((0.26, 0.15, 0.35), (0.56, 0.31, 0.38)),
    "snow": ((0.90, 0.93, 0.97), (0.77, 0.83, 0.91)),
}
"""Background name -> rgb of the top and the bottom row; rows in between are graded linearly."""

SIZES: dict[str, float] = {"small": 7.0, "medium": 9.2, "large": 12.0}
"""Size name -> radius in pixels (of the disc with about the shape's reach)."""

SPEEDS: dict[str, float] = {"slow": 0.26, "fast": 0.52}
"""Speed name -> pixels per frame."""

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

MOTIONS = ("still", "slide", "bounce")
_MOTION_ODDS = (0.1, 0.65, 0.25)
_RADIUS_JITTER = 0.04
_SPEED_JITTER = 0.08
_MARGIN = 0.5


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip's content: names a caption can state, and the exact numbers behind them."""

    shape: str
    colour: str
    size: str
    motion: str
    direction: str | None
    """A key of DIRECTIONS (slide) or AXES (bounce); None when still."""
    speed: str | None
    background: str
    radius: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    """Pixels per frame at frame 0."""

    @property
    def attributes(self) -> dict[str, str | None]:
        """What a caption can state and the judge checks."""
        names = ("shape", "colour", "size", "motion", "direction", "speed", "background")
        return {name: getattr(self, name) for name in names}


# --- shapes: signed distance to the edge, in units of the radius, negative inside ---------------------------------


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1.0


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.87


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    # Upright, equilateral: its three edges have outward normals down, up-left, up-right.
    slope, rise = math.cos(math.pi / 6), math.sin(math.pi / 6)
    y = y - 0.17
    return torch.maximum(y, x.abs() * slope - y * rise) - 0.61


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Five points: fold the plane into one tenth, then the distance to the edge between a tip and a notch.
    angle = torch.atan2(x, -y)
    fifth = 2 * math.pi / 5
    folded = (torch.remainder(angle + fifth / 2, fifth) - fifth / 2).abs()
    r = torch.hypot(x, y)
    px, py = r * torch.sin(folded), r * torch.cos(folded)
    tip, notch = (0.0, 1.12), (0.50 * math.sin(fifth / 2), 0.50 * math.cos(fifth / 2))
    ex, ey = notch[0] - tip[0], notch[1] - tip[1]
    length = math.hypot(ex, ey)
    return (ex * (py - tip[1]) - ey * (px - tip[0])) / length


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.78).abs() - 0.26


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    arm, half = 1.02, 0.33
    return torch.minimum(torch.maximum(x - arm, y - half), torch.maximum(x - half, y - arm))


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}
"""Shape name -> signed distance function of coordinates in units of the radius."""

REACH = 1.12
"""How far any shape extends from its centre, in radii."""


# --- sampling ------------------------------------------------------------------------------------------------------


def sample_scenes(seed: int, indices: Iterable[int]) -> list[Scene]:
    """The scenes of ``indices`` in the endless stream named by ``seed``."""
    return [_sample(random.Random(rng.key("scene", seed, index))) for index in indices]


def make_scene(
    draw: random.Random,
    *,
    shape: str,
    colour: str,
    size: str,
    motion: str,
    direction: str | None,
    speed: str | None,
    background: str,
) -> Scene:
    """A scene with the named attributes; ``draw`` chooses the exact numbers within them."""
    radius = SIZES[size] * draw.uniform(1 - _RADIUS_JITTER, 1 + _RADIUS_JITTER)
    pace = SPEEDS[speed] * draw.uniform(1 - _SPEED_JITTER, 1 + _SPEED_JITTER) if speed else 0.0
    heading = _heading(draw, motion, direction)
    velocity = (pace * heading[0], pace * heading[1])
    low, high = bounds(radius)
    if motion == "bounce":
        start = tuple(_bounce_start(draw, v, low, high) for v in velocity)
    else:
        start = tuple(_slide_start(draw, v, low, high) for v in velocity)
    return Scene(
        shape=shape,
        colour=colour,
        size=size,
        motion=motion,
        direction=direction,
        speed=speed,
        background=background,
        radius=radius,
        start=(start[0], start[1]),
        velocity=velocity,
    )


def bounds(radius: float) -> tuple[float, float]:
    """Lowest and highest centre coordinate at which an object of this radius is wholly visible."""
    reach = radius * REACH
    return reach + _MARGIN, SIZE - 1 - reach - _MARGIN


def _sample(draw: random.Random) -> Scene:
    motion = draw.choices(MOTIONS, _MOTION_ODDS)[0]
    ways = {"still": (None,), "slide": tuple(DIRECTIONS), "bounce": tuple(AXES)}[motion]
    return make_scene(
        draw,
        shape=draw.choice(tuple(SHAPES)),
        colour=draw.choice(tuple(COLOURS)),
        size=draw.choice(tuple(SIZES)),
        motion=motion,
        direction=draw.choice(ways),
        speed=None if motion == "still" else draw.choice(tuple(SPEEDS)),
        background=draw.choice(tuple(BACKGROUNDS)),
    )


def _heading(draw: random.Random, motion: str, direction: str | None) -> tuple[float, float]:
    if motion == "slide":
        return DIRECTIONS[direction or ""]
    if motion == "bounce":
        sign = draw.choice((-1.0, 1.0))
        x, y = AXES[direction or ""]
        return sign * x, sign * y
    return 0.0, 0.0


def _slide_start(draw: random.Random, velocity: float, low: float, high: float) -> float:
    # The whole path stays between the walls: shrink the interval by the way the object will go.
    way = velocity * (FRAMES - 1)
    return draw.uniform(low - min(way, 0.0), high - max(way, 0.0))


def _bounce_start(draw: random.Random, velocity: float, low: float, high: float) -> float:
    # Meets its first wall between three and six tenths of the clip, so that both legs are seen.
    if velocity == 0.0:
        return draw.uniform(low, high)
    way = abs(velocity) * (FRAMES - 1) * draw.uniform(0.3, 0.62)
    return high - way if velocity > 0 else low + way


# --- motion and drawing --------------------------------------------------------------------------------------------


def positions(scene: Scene, frames: int = FRAMES, first: int = 0) -> Tensor:
    """Centre of the object at frames ``first .. first + frames - 1``, [T, 2] as (x, y), reflecting at the walls."""
    low, high = bounds(scene.radius)
    time = torch.arange(first, first + frames, dtype=torch.float64)[:, None]
    free = torch.tensor(scene.start, dtype=torch.float64) + time * torch.tensor(scene.velocity, dtype=torch.float64)
    span = high - low
    folded = torch.remainder(free - low, 2 * span)
    return (low + span - (folded - span).abs()).to(torch.float32)


def shape_mask(shape: str, radius: Tensor | float, centre: Tensor, size: int = SIZE) -> Tensor:
    """Soft coverage in [0, 1], [..., H, W]: one pixel of anti-aliasing around the exact edge.

    Args:
        shape: a key of SHAPES.
        radius: pixels, broadcastable to ``centre``'s leading axes.
        centre: [..., 2] as (x, y) in pixels.
        size: height and width of the picture.
    """
    grid = torch.arange(size, dtype=centre.dtype, device=centre.device)
    scale = torch.as_tensor(radius, dtype=centre.dtype, device=centre.device)[..., None, None]
    x = (grid[None, :] - centre[..., 0, None, None]) / scale
    y = (grid[:, None] - centre[..., 1, None, None]) / scale
    return (0.5 - SHAPES[shape](*torch.broadcast_tensors(x, y)) * scale).clamp(0.0, 1.0)


def background(name: str, size: int = SIZE) -> Tensor:
    """The background alone, [3, H, 1] (rows graded from top to bottom)."""
    top, bottom = (torch.tensor(rgb) for rgb in BACKGROUNDS[name])
    mix = torch.linspace(0.0, 1.0, size)
    return torch.lerp(top[:, None], bottom[:, None], mix)[:, :, None]


@torch.autocast("cpu", enabled=False)  # a pure function, whatever the caller computes in
def render(scenes: Sequence[Scene], frames: int = FRAMES, first: int = 0) -> Tensor:
    """Draw frames ``first .. first + frames - 1`` of the scenes, [B, T, 3, SIZE, SIZE] in [0, 1], float32."""
    video = torch.stack([background(scene.background) for scene in scenes])[:, None]
    video = video.expand(-1, frames, -1, -1, SIZE).clone()
    centres = torch.stack([positions(scene, frames, first) for scene in scenes])
    radii = torch.tensor([[scene.radius] for scene in scenes])
    colours = torch.tensor([COLOURS[scene.colour] for scene in scenes])
    for shape in SHAPES:
        rows = [i for i, scene in enumerate(scenes) if scene.shape == shape]
        if rows:
            mask = shape_mask(shape, radii[rows], centres[rows])[:, :, None]
            paint = colours[rows][:, None, :, None, None] * shading(radii[rows], centres[rows])[:, :, None]
            video[rows] = torch.lerp(video[rows], paint.clamp(max=1.0), mask)
    return video


def shading(radius: Tensor, centre: Tensor, size: int = SIZE) -> Tensor:
    """Light from the upper left, a factor [..., H, W]: a tenth brighter there, a tenth darker at the lower right.

    Args:
        radius: pixels, broadcastable to ``centre``'s leading axes.
        centre: [..., 2] as (x, y) in pixels.
        size: height and width of the picture.
    """
    grid = torch.arange(size, dtype=centre.dtype, device=centre.device)
    x = grid[None, :] - centre[..., 0, None, None]
    y = grid[:, None] - centre[..., 1, None, None]
    return 1.0 - 0.1 * ((x + y) / (2 * radius[..., None, None])).clamp(-1.0, 1.0)
