"""Names the place of a clip, and estimates its backdrop behind what moves or rests in front of it.

The median over time shows the backdrop wherever nothing stays for half of the clip. What remains in it is told by
colour: of every place it is known how often its textures differ from the graded ground by how much.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep import rng
from nearstep.playground.places import PLACES, backdrop, ground

_BIN = 0.04
"""Width of a bin of colour differences, per channel."""
_BINS = 40
_SAMPLES = 48
"""Textures of each place to learn the colours from."""
_SOFT = (0.25, 0.5, 0.25)
"""Smoothing over neighbouring bins: blur and noise move colours a little."""
_FLOOR = 1e-6
"""Likelihood of a colour that no texture has."""
_FOREIGN = 2e-5
"""Likelihood below which a pixel is none of its place."""
_LEAST_PLAIN = 0.5
"""Part of the picture that must look like a place for there to be one."""
_SIDE = 64
"""Pixels of the textures that colours are learnt from."""


@dataclass(frozen=True, kw_only=True)
class Scenery:
    """What is behind the things."""

    place: list[str | None]
    """[B] a name of PLACES; None where the picture looks like none of them."""
    likely: list[str]
    """[B] the name that fits best, in any case."""
    backdrop: Float[Tensor, "B 3 H W"]


@cache
def _colours() -> Tensor:
    # log likelihood of the difference from the graded ground, [places, BINS^3].
    tables = []
    for place in PLACES:
        counts = torch.zeros(_BINS**3)
        for sample in range(_SAMPLES):
            picture = backdrop(place, rng.key("colours of a place", sample), _SIDE)
            counts += torch.bincount(_bins(picture[None] - ground(place, _SIDE))[0].flatten(), minlength=_BINS**3)
        grid = (counts / counts.sum()).view(1, 1, _BINS, _BINS, _BINS)
        for axis in range(3):
            shape = [1, 1, 1, 1, 1]
            shape[2 + axis] = 3
            padding = [0, 0, 0]
            padding[axis] = 1
            grid = F.conv3d(grid, torch.tensor(_SOFT).view(shape), padding=padding)
        tables.append((grid.flatten() + _FLOOR).log())
    return torch.stack(tables)


def _bins(difference: Tensor) -> Tensor:
    # [B, 3, H, W] -> number of the bin, [B, H, W].
    steps = (difference / _BIN + _BINS / 2).floor().long().clamp(0, _BINS - 1)
    return (steps[:, 0] * _BINS + steps[:, 1]) * _BINS + steps[:, 2]


def find_scenery(video: Float[Tensor, "B T 3 H W"]) -> Scenery:
    """Place and backdrop of each clip."""
    still = video.median(dim=1).values
    size = still.shape[-1]
    tables = _colours()
    fits = torch.stack(
        [tables[index][_bins(still - ground(place, size))] for index, place in enumerate(PLACES)], dim=1
    )  # [B, places, H, W]
    best = fits.mean(dim=(2, 3)).argmax(dim=1)
    plausible = fits[torch.arange(len(video)), best] >= math.log(_FOREIGN)
    plain = plausible.float().mean(dim=(1, 2)) >= _LEAST_PLAIN
    likely = [PLACES[index] for index in best.tolist()]
    known = ~_closed(~plausible)
    return Scenery(
        place=[name if is_plain else None for name, is_plain in zip(likely, plain.tolist(), strict=True)],
        likely=likely,
        backdrop=fill(still, known, likely),
    )


def foreign_patch(scenery: Scenery, patch: int, counts: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
    """The largest part of any patch of so many pixels a side that ``counts`` and has colours that its place has not."""
    backdrop, size = scenery.backdrop, scenery.backdrop.shape[-1]
    base = torch.stack([ground(place, size) for place in scenery.likely])
    tables = _colours()[[PLACES.index(place) for place in scenery.likely]]
    bins = _bins(backdrop - base).flatten(1)
    foreign = (tables.gather(1, bins) < math.log(_FOREIGN)).float().view(len(backdrop), 1, size, size)
    return F.avg_pool2d(foreign * counts, patch, stride=1).amax(dim=(1, 2, 3))


def _closed(foreign: Bool[Tensor, "B H W"]) -> Tensor:
    # Without single pixels, with its holes and bays, and a pixel wider.
    mask = foreign.float()[:, None]
    width = max(1, round(foreign.shape[-1] / 64))
    dense = (F.avg_pool2d(mask, 2 * width + 1, stride=1, padding=width) > 0.45).float()
    reach = 4 * width
    wide = F.max_pool2d(dense, 2 * reach + 1, stride=1, padding=reach)
    back = -F.max_pool2d(-wide, 2 * reach - 2 * width + 1, stride=1, padding=reach - width)
    return back[:, 0] > 0


def fill(picture: Float[Tensor, "B 3 H W"], known: Tensor, places: list[str]) -> Float[Tensor, "B 3 H W"]:
    """The picture where it is known (weight [B, H, W]), elsewhere the ground and what is known around.

    Args:
        picture: in [0, 1].
        known: in [0, 1].
        places: whose ground to fall back on.
    """
    size = picture.shape[-1]
    base = torch.stack([ground(place, size) for place in places])
    weight = known.float()[:, None]
    detail = (picture - base) * weight
    spread, mass = detail, weight
    result, missing = detail, 1 - weight
    for width in (size // 12, size // 6):
        spread, mass = _blur(detail, width), _blur(weight, width)
        near = spread / mass.clamp(min=1e-3)
        share = missing * (mass / 0.05).clamp(max=1.0)
        result, missing = result + share * near, missing - share
    return base + result


def _blur(picture: Tensor, width: int) -> Tensor:
    kernel = 2 * width + 1
    for _ in range(2):
        picture = F.avg_pool2d(picture, kernel, stride=1, padding=width, count_include_pad=True)
    return picture
