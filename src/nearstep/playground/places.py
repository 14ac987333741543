"""The places: grounds with a texture that differs from clip to clip and stays as it is within a clip.

A texture is a function of (place, number, size in pixels) and drawn in parts of the frame's side, so that a clip looks
alike at every resolution. Each has a ground colour graded over the rows, which tells the place, and around it detail of
its own: stars, blades and flowers, ripples, bricks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nearstep import rng

Texture = Callable[[Tensor, torch.Generator], Tensor]
"""(graded ground [3, H, W], draws) -> the textured one."""

GROUNDS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "night": ((0.05, 0.06, 0.17), (0.14, 0.13, 0.30)),
    "meadow": ((0.47, 0.70, 0.33), (0.34, 0.57, 0.24)),
    "sand": ((0.90, 0.80, 0.60), (0.82, 0.70, 0.48)),
    "water": ((0.16, 0.45, 0.66), (0.09, 0.33, 0.56)),
    "bricks": ((0.66, 0.37, 0.30), (0.60, 0.32, 0.26)),
    "snow": ((0.94, 0.96, 0.99), (0.84, 0.89, 0.96)),
    "wood": ((0.55, 0.39, 0.25), (0.48, 0.33, 0.20)),
    "sky": ((0.50, 0.73, 0.94), (0.72, 0.86, 0.97)),
}
"""Place -> rgb of the ground at the top and the bottom row; rows in between are graded linearly."""


@cache
def ground(place: str, size: int) -> Float[Tensor, "3 size size"]:
    """The place without its texture."""
    top, bottom = (torch.tensor(rgb) for rgb in GROUNDS[place])
    rows = torch.lerp(top[:, None], bottom[:, None], torch.linspace(0.0, 1.0, size))
    return rows[:, :, None].expand(-1, -1, size)


def backdrop(place: str, texture: int, size: int) -> Float[Tensor, "3 size size"]:
    """The place with the texture number ``texture``, in [0, 1]."""
    return _TEXTURES[place](ground(place, size), rng.generator("texture", texture)).clamp(0.0, 1.0)


# --- the parts of textures -----------------------------------------------------------------------------------------


def _noise(draw: torch.Generator, rows: int, columns: int, size: int) -> Tensor:
    # Smooth noise [H, W] in about [-1, 1] that varies on a grid of rows x columns.
    grid = torch.rand(1, 1, rows, columns, generator=draw) * 2 - 1
    return F.interpolate(grid, (size, size), mode="bicubic", align_corners=True)[0, 0]


def _dots(draw: torch.Generator, count: int, radius: float, size: int) -> Tensor:
    # ``count`` soft dots of strength .5 to 1, [H, W].
    spots = torch.rand(3, count, generator=draw)
    line = (torch.arange(size) + 0.5) / size
    across, along = (torch.exp(-0.5 * ((line - spot[:, None]) / radius).square()) for spot in spots[:2])
    return torch.einsum("n,nh,nw->hw", 0.5 + 0.5 * spots[2], along, across)


def _axes(size: int) -> tuple[Tensor, Tensor]:
    # x [1, W] and y [H, 1] of the pixels' middles.
    line = (torch.arange(size) + 0.5) / size
    return line[None, :], line[:, None]


def _seam(place: Tensor, period: float, width: float) -> Tensor:
    # 1 on the lines at multiples of ``period``, soft over ``width`` to 0.
    away = (torch.remainder(place / period + 0.5, 1.0) - 0.5).abs() * period
    return (1.5 - away / width).clamp(0.0, 1.0)


def _towards(picture: Tensor, colour: tuple[float, float, float], share: Tensor) -> Tensor:
    return torch.lerp(picture, torch.tensor(colour)[:, None, None], share.clamp(0.0, 1.0))


# --- the places ----------------------------------------------------------------------------------------------------


def _night(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    count = int(torch.randint(9, 16, (), generator=draw))
    glow = 0.02 * _noise(draw, 4, 4, size)
    return _towards(picture + glow, (0.95, 0.95, 0.85), 0.8 * _dots(draw, count, 0.011, size))


def _meadow(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    blades = 0.03 * _noise(draw, 5, 5, size) + 0.025 * _noise(draw, 7, 18, size)
    count = int(torch.randint(4, 9, (), generator=draw))
    return _towards(picture + blades, (0.98, 0.96, 0.75), 0.8 * _dots(draw, count, 0.013, size))


def _sand(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    _, y = _axes(size)
    bend = 0.35 * _noise(draw, 3, 4, size)
    start = torch.rand((), generator=draw)
    return picture + 0.03 * torch.sin(2 * math.pi * (y * 7 + bend + start)) + 0.015 * _noise(draw, 5, 5, size)


def _water(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    x, y = _axes(size)
    starts = torch.rand(2, generator=draw)
    bend = 0.08 * torch.sin(2 * math.pi * (3 * x + starts[0]))
    crests = torch.sin(2 * math.pi * (y * 6 + starts[1]) + 2 * math.pi * bend * 4)
    return picture + 0.045 * crests.clamp(min=-0.2) + 0.02 * _noise(draw, 4, 4, size)


def _bricks(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    x, y = _axes(size)
    high, wide = 0.14, 0.28
    starts = torch.rand(2, generator=draw)
    y = y + starts[0] * high
    row = (y / high).floor().long()
    x = x + starts[1] * wide + (row % 2) * wide / 2
    column = (x / wide).floor().long()
    tints = torch.rand(10, 7, generator=draw) - 0.5
    mortar = torch.maximum(_seam(y, high, 0.012).expand(-1, size), _seam(x, wide, 0.012))
    return _towards(picture + 0.08 * tints[row.clamp(max=9), column.clamp(max=6)], (0.76, 0.67, 0.60), 0.8 * mortar)


def _snow(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    drift = (_noise(draw, 4, 3, size) + 0.2).clamp(min=0.0)
    return _towards(picture, (0.74, 0.83, 0.95), 0.35 * drift)


def _wood(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    _, y = _axes(size)
    high = 0.19
    y = y + torch.rand((), generator=draw) * high
    tints = (torch.rand(8, generator=draw) - 0.5)[(y / high).floor().long().clamp(max=7)]
    grain = 0.02 * _noise(draw, 24, 3, size)
    return _towards(picture + 0.07 * tints + grain, (0.30, 0.19, 0.10), 0.7 * _seam(y, high, 0.011).expand(-1, size))


def _sky(picture: Tensor, draw: torch.Generator) -> Tensor:
    size = picture.shape[-1]
    clouds = ((_noise(draw, 5, 4, size) + 0.3 * _noise(draw, 8, 7, size) - 0.1) * 2.0).clamp(0.0, 1.0)
    return _towards(picture, (0.97, 0.98, 1.0), 0.75 * clouds)


_TEXTURES: dict[str, Texture] = {
    "night": _night,
    "meadow": _meadow,
    "sand": _sand,
    "water": _water,
    "bricks": _bricks,
    "snow": _snow,
    "wood": _wood,
    "sky": _sky,
}

PLACES: tuple[str, ...] = tuple(GROUNDS)
