"""The things: pictures with an alpha channel, and how one is put into a frame at an exact place and size.

Pictures come from one atlas (``sprites/things.png``, made by tools/sprites.py). A frame's pixel is the mean of the
picture over the pixel's square, in premultiplied alpha: exact for every position and size, smooth in both, and alike at
every resolution. Positions and sizes are parts of the picture's side, x to the right, y down, (0, 0) the top left
corner.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What captions can name."""

    name: str
    category: str
    colour: str | None
    """The colour that a caption may give it; None where it has no one colour."""


def _listing() -> dict:
    text = resources.files("nearstep.playground").joinpath("sprites", "things.json").read_text(encoding="utf-8")
    return json.loads(text)


_LISTING = _listing()
CELL: int = _LISTING["cell"]
"""Texels of a side of a picture."""
_INNER = CELL - 2 * _LISTING["margin"]
"""Texels of a thing's longer extent."""

THINGS: dict[str, Thing] = {
    entry["name"]: Thing(name=entry["name"], category=entry["category"], colour=entry["colour"])
    for entry in sorted(_LISTING["things"], key=lambda entry: (entry["column"], entry["row"]))
}
"""Name -> thing: the first of every category, then the second of every one, so that any first n are mixed."""

CATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(thing.category for thing in THINGS.values()))

COLOURS: tuple[str, ...] = tuple(sorted({thing.colour for thing in THINGS.values() if thing.colour}))


@cache
def pictures() -> Float[Tensor, "K 4 cell cell"]:
    """Every thing of THINGS in premultiplied RGBA."""
    with resources.files("nearstep.playground").joinpath("sprites", "things.png").open("rb") as file:
        atlas = torch.from_numpy(np.asarray(Image.open(file).convert("RGBA"), np.float32) / 255)
    cells = {
        entry["name"]: atlas[entry["row"] * CELL :, entry["column"] * CELL :][:CELL, :CELL]
        for entry in _LISTING["things"]
    }
    straight = torch.stack([cells[name] for name in THINGS]).permute(0, 3, 1, 2)
    return torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], dim=1).contiguous()


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Things alone, each in a window of its frame that holds it."""

    pixels: Float[Tensor, "B T 4 window window"]
    """Premultiplied RGBA."""
    origin: Int[Tensor, "B T 2"]
    """Top left corner (x, y) of the window in its frame."""

    def draw_over(self, video: Float[Tensor, "B T 3 size size"]) -> None:
        """Put the things in front of what ``video`` shows, in place."""
        where = self.places(video.shape[-1])
        flat, layer = video.view(*video.shape[:3], -1), self.pixels.flatten(3)
        flat.scatter_(3, where, flat.gather(3, where) * (1 - layer[:, :, 3:]) + layer[:, :, :3])

    def spread(self, size: int) -> Float[Tensor, "B T 4 size size"]:
        """The layer in whole frames."""
        batch, frames = self.origin.shape[:2]
        whole = torch.zeros(batch, frames, 4, size * size)
        where = self.places(size)[:, :, :1].expand(-1, -1, 4, -1)
        return whole.scatter_(3, where, self.pixels.flatten(3)).view(batch, frames, 4, size, size)

    def cut(self, video: Float[Tensor, "B T C size size"]) -> Float[Tensor, "B T C window window"]:
        """What ``video`` shows in the windows."""
        channels, side = video.shape[2], self.pixels.shape[-1]
        where = self.places(video.shape[-1])[:, :, :1].expand(-1, -1, channels, -1)
        return video.flatten(3).gather(3, where).unflatten(3, (side, side))

    def places(self, size: int) -> Int[Tensor, "B T 3 pixels"]:
        """Where the window's pixels lie in a flattened frame of three channels."""
        window = torch.arange(self.pixels.shape[-1])
        rows, columns = self.origin[..., 1, None] + window, self.origin[..., 0, None] + window
        return (rows[..., :, None] * size + columns[..., None, :]).flatten(2)[:, :, None].expand(-1, -1, 3, -1)


def coverage(
    centre: Float[Tensor, "*B"], side: Float[Tensor, "*B"], pixels: Int[Tensor, "*B window"], size: int
) -> Float[Tensor, "*B window cell"]:
    """Which part of each of the ``pixels`` of a line each texel covers.

    Args:
        centre: of the thing along the line.
        side: of the thing's longer extent.
        pixels: numbers of the pixels.
        size: pixels of the whole line.
    """
    texels = torch.arange(CELL + 1, dtype=centre.dtype, device=centre.device) - CELL / 2
    edges = (centre[..., None] + texels * (side[..., None] / _INNER)) * size
    return (edges[..., None, :] - pixels[..., :, None]).clamp(0.0, 1.0).diff(dim=-1)


def windows(centre: Float[Tensor, "B T 2"], side: Float[Tensor, "B T"], size: int) -> tuple[Int[Tensor, "B T 2"], int]:
    """Top left corners and side of windows that hold things at these places, in pixels, inside the frame."""
    window = min(size, math.ceil(float(side.max()) * size * CELL / _INNER) + 2)
    return (centre * size - window / 2).round().long().clamp(0, size - window), window


def place_things(
    things: Int[Tensor, " B"],
    centre: Float[Tensor, "B T 2"],
    side: Float[Tensor, "B T"],
    size: int,
    where: tuple[Int[Tensor, "B T 2"], int] | None = None,
) -> Layer:
    """Each thing alone in its frames; what lies outside its window is cut.

    Args:
        things: indices into THINGS.
        centre: of the thing, (x, y) as parts of the frame's side.
        side: of the thing's longer extent, a part of the frame's side.
        size: height and width of the frame in pixels.
        where: corners and side of the windows, in place of :func:`windows`.
    """
    origin, window = where or windows(centre, side, size)
    pixels = origin[..., None] + torch.arange(window)  # [B, T, 2, window]
    tall = coverage(centre[..., 1], side, pixels[:, :, 1], size)
    wide = coverage(centre[..., 0], side, pixels[:, :, 0], size)
    texels = pictures()[things].permute(0, 2, 1, 3).flatten(2)  # [B, cell, 4 cell]
    rows = (tall.flatten(1, 2) @ texels).view(*side.shape, window * 4, CELL)
    drawn = (rows @ wide.mT).view(*side.shape, window, 4, window).transpose(2, 3)
    return Layer(pixels=drawn, origin=origin)
