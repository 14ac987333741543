"""Finds things by matched filters: for every thing, size and place, how much of the picture's error it explains.

With a picture I, what lies behind (B) and in front (a factor w that lets things through), a thing with premultiplied
colours P and coverage a changes the model by w (P - a B). It lowers the squared error from D = I - w B by

    G = sum 2 w D . (P - a B) - w^2 |P - a B|^2,

nine correlations, done at once for all places by FFT on a picture of GRID pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.playground.sprites import place_things
from nearstep.playground.world import SIZES, WorldConfig

GRID = 32
"""Pixels of the picture in which things are looked for."""
_WINDOW = 16
_PAD = 8
_CANVAS = 48


@dataclass(frozen=True, kw_only=True)
class View:
    """Frames with what is known of them: I - w (thing over B) is to be made small."""

    picture: Float[Tensor, "B T 3 H W"]
    """I without what lies in front."""
    behind: Float[Tensor, "B T 3 H W"]
    """B."""
    through: Float[Tensor, "B T 1 H W"]
    """w."""

    def frames(self, every: int) -> View:
        """Every so manieth frame."""
        return View(picture=self.picture[:, ::every], behind=self.behind[:, ::every], through=self.through[:, ::every])


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Filters for every thing and size."""

    spectra: Tensor
    """[N, 9, CANVAS, CANVAS / 2 + 1] conjugate."""
    thing: Int[Tensor, " N"]
    side: Float[Tensor, " N"]


@cache
def make_bank(config: WorldConfig) -> Bank:
    """Every thing of the world at every size."""
    sides = torch.tensor([config.scale * side for side in SIZES.values()])
    thing = torch.arange(config.things).repeat_interleave(len(sides))
    side = sides.repeat(config.things)
    middle = torch.full((len(thing), 1, 2), 0.5)
    layer = place_things(thing, middle, (side * GRID / _WINDOW)[:, None], _WINDOW)
    drawn = torch.zeros(len(thing), 4, _WINDOW, _WINDOW)
    (x, y), window = layer.origin[0, 0].tolist(), layer.pixels.shape[-1]
    drawn[:, :, y : y + window, x : x + window] = layer.pixels[:, 0]
    colour, alpha = drawn[:, :3], drawn[:, 3:]
    kernels = [2 * colour, -2 * alpha, -colour.square().sum(1, keepdim=True), 2 * alpha * colour, -alpha.square()]
    return Bank(
        spectra=torch.fft.rfft2(torch.cat(kernels, dim=1), s=(_CANVAS, _CANVAS)).conj().resolve_conj(),
        thing=thing,
        side=side,
    )


def _channels(view: View) -> Tensor:
    # The pictures that the nine filters look at, [B T, 9, CANVAS, CANVAS], of mean pixels.
    size = view.picture.shape[-1]
    w, behind = view.through, view.behind
    error = (view.picture - w * behind) * w
    square = w.square()
    parts = [
        error,
        (error * behind).sum(2, keepdim=True),
        square,
        square * behind,
        square * behind.square().sum(2, keepdim=True),
    ]
    pictures = torch.cat(parts, dim=2).flatten(0, 1)
    small = F.interpolate(pictures, (GRID, GRID), mode="area") if size != GRID else pictures
    left = _CANVAS - GRID - _PAD
    return F.pad(small, (_PAD, left, _PAD, left))


def gains(view: View, bank: Bank, chosen: Int[Tensor, " B"] | None = None) -> Float[Tensor, "B T N y x"]:
    """G of every filter at every place and frame, in mean pixels of the grid.

    Args:
        view: the frames.
        bank: the filters.
        chosen: one filter for each clip; None for all of them.

    Returns:
        Rows and columns stand for centres: see :func:`peak`.
    """
    batch, frames = view.picture.shape[:2]
    spectrum = torch.fft.rfft2(_channels(view))
    if chosen is None:
        mixed = torch.einsum("nchw,kchw->nkhw", spectrum, bank.spectra)
    else:
        kernel = bank.spectra[chosen].repeat_interleave(frames, dim=0)
        mixed = (spectrum * kernel).sum(dim=1, keepdim=True)
    found = torch.fft.irfft2(mixed, s=(_CANVAS, _CANVAS))
    return found[..., : GRID + 1, : GRID + 1].unflatten(0, (batch, frames))


def peak(gain: Float[Tensor, "B T y x"]) -> Float[Tensor, "B T 2"]:
    """Centre (x, y) of the largest gain, as parts of the side; between places by a parabola through its neighbours."""
    side = gain.shape[-1]
    index = gain.flatten(2).argmax(dim=2)
    padded = F.pad(gain, (1, 1, 1, 1), mode="replicate").flatten(2)
    middle = (index // side + 1) * (side + 2) + index % side + 1
    top = padded.gather(2, middle[..., None])[..., 0]
    offsets = []
    for step in (1, side + 2):
        low, high = (padded.gather(2, (middle + sign * step)[..., None])[..., 0] for sign in (-1, 1))
        curve = (2 * top - low - high).clamp(min=1e-9)
        offsets.append((0.5 * (high - low) / curve).clamp(-0.5, 0.5))
    place = torch.stack([index % side + offsets[0], index // side + offsets[1]], dim=-1)
    return (place + _WINDOW / 2 - _PAD) / GRID
