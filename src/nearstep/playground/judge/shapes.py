"""Names the object by fitting the renderer's own shapes to what is seen, and draws what was fitted.

Each frame's matte is moved so that its centroid is in the middle of a small portrait, and compared with the masks of
all shapes at all radii. The score of a mask m for portraits a is their Dice overlap

    2 sum(a m) / (sum(a a) + sum(m m)) = 1 - sum((a - m)^2) / (sum(a a) + sum(m m)),

which is 1 for equal pictures and needs one matrix product for all frames and masks. Every mask is tried sharp and soft,
so that a blurred star is still a star (how sharp it is, is another question: quality.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from nearstep.playground.judge.segment import WINDOW, Sight
from nearstep.playground.world import REACH, SHAPES, SIZES, shape_mask

PORTRAIT = 33
"""Side of a portrait in pixels: the largest object from corner to corner."""

NAMES = tuple(SHAPES)
_STEP = 0.04
"""Distance of neighbouring radii, relative; a parabola through the best three finds the radius in between."""
_BEYOND = 1.35
"""How far the radii go below the smallest size and above the largest."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The best shape and radius of each clip, over all its frames and within each of its chunks."""

    shape: Tensor
    """[B] index into NAMES."""
    radius: Tensor
    """[B] pixels."""
    overlap: Tensor
    """[B] Dice overlap of the best mask; 0 where nothing is found."""
    centre: Tensor
    """[B, T, 2] the centre (x, y) of each chunk's shape, pixels."""
    chunk_shape: Tensor
    """[B, K] index into NAMES of the best shape in each chunk."""
    chunk_radius: Tensor
    """[B, K] radius of that shape."""
    chunk_overlap: Tensor
    """[B, K] overlap of the chunk's best mask; 0 where the chunk shows nothing."""


@dataclass(frozen=True)
class Bank:
    """Masks of every shape at every radius, centred at their centroid."""

    radii: Tensor
    """[R] pixels, in geometric steps."""
    masks: Tensor
    """[S, 2, R, PORTRAIT * PORTRAIT], sharp and soft."""
    power: Tensor
    """[S, 2, R] sum of squares of each mask."""
    offset: Tensor
    """[S, 2] centroid minus centre, in radii."""


@cache
def bank() -> Bank:
    """The masks, drawn by the renderer once."""
    low, high = min(SIZES.values()) / _BEYOND, max(SIZES.values()) * _BEYOND
    count = math.ceil(math.log(high / low) / _STEP)
    radii = torch.logspace(math.log10(low), math.log10(high), count)
    offset = torch.stack([_centroid_offset(name) for name in NAMES])
    middle = (PORTRAIT - 1) / 2
    centres = middle - offset[:, None] * radii[:, None]  # [S, R, 2]
    sharp = torch.stack([shape_mask(name, radii, at, size=PORTRAIT) for name, at in zip(NAMES, centres, strict=True)])
    masks = torch.stack([sharp, _soften(_soften(sharp))], dim=1).flatten(3)
    return Bank(radii, masks, masks.square().sum(dim=-1), offset)


def _soften(masks: Tensor) -> Tensor:
    # The 1 2 1 filter over rows and columns, [S, R, H, W]; twice is a Gaussian of one pixel.
    taps = torch.tensor([0.25, 0.5, 0.25])
    return F.conv2d(masks.flatten(0, 1)[:, None], torch.outer(taps, taps)[None, None], padding=1).view_as(masks)


def _centroid_offset(name: str) -> Tensor:
    # (x, y) of the shape's centroid relative to its centre, in radii; measured on a large drawing.
    radius, size = 100.0, 2 * math.ceil(100 * REACH) + 3
    middle = (size - 1) / 2
    mask = shape_mask(name, radius, torch.full((2,), middle), size=size)
    steps = torch.arange(size, dtype=mask.dtype) - middle
    return torch.stack([mask.sum(dim=0) @ steps, mask.sum(dim=1) @ steps]) / mask.sum() / radius


def fit(sight: Sight, chunks: tuple[int, ...]) -> Fit:
    """Fit every shape and radius to the clips of ``sight``; ``chunks`` are lengths in pixel frames."""
    known = bank()
    portraits = take_portraits(sight)  # [B, T, P]
    seen = sight.found.to(portraits.dtype)
    dots = torch.einsum("btp,sqrp->btsqr", portraits, known.masks)
    power = portraits.square().sum(dim=-1)
    score = torch.stack(
        [
            _overlap(d.sum(dim=1), p.sum(dim=1), n.sum(dim=1), known.power)
            for d, p, n in zip(dots.split(chunks, 1), power.split(chunks, 1), seen.split(chunks, 1), strict=True)
        ],
        dim=1,
    )  # [B, K, S, R]
    whole = _overlap(dots.sum(dim=1), power.sum(dim=1), seen.sum(dim=1), known.power)  # [B, S, R]
    shape, overlap, radius = _best(whole, known.radii)
    chunk_shape, chunk_overlap, chunk_radius = _best(score, known.radii)
    offset = known.offset[chunk_shape] * chunk_radius[..., None]  # [B, K, 2]
    return Fit(
        shape=shape,
        radius=radius,
        overlap=overlap,
        centre=sight.centroid - spread(offset, chunks),
        chunk_shape=chunk_shape,
        chunk_radius=chunk_radius,
        chunk_overlap=chunk_overlap,
    )


def spread(values: Tensor, chunks: tuple[int, ...]) -> Tensor:
    """Repeat each chunk's value for its frames, [B, K, ...] -> [B, T, ...]."""
    return values.repeat_interleave(torch.tensor(chunks), dim=1)


def take_portraits(sight: Sight) -> Tensor:
    """Mattes with their centroid in the middle, [B, T, PORTRAIT * PORTRAIT], bilinear, zero outside the window."""
    matte = sight.matte.flatten(0, 1)
    middle = (sight.centroid - sight.origin).flatten(0, 1)
    steps = torch.arange(PORTRAIT, dtype=matte.dtype) - (PORTRAIT - 1) / 2
    spots = (middle[:, None] + steps[:, None]) * 2 / (WINDOW - 1) - 1  # [N, P, 2], grid_sample's [-1, 1]
    grid = torch.stack(
        [spots[:, None, :, 0].expand(-1, PORTRAIT, -1), spots[:, :, None, 1].expand(-1, -1, PORTRAIT)], dim=-1
    )
    portraits = F.grid_sample(matte[:, None], grid, align_corners=True)
    return portraits.flatten(1).unflatten(0, sight.matte.shape[:2])


def draw_masks(shape: Tensor, radius: Tensor, centre: Tensor) -> Tensor:
    """Masks [B, T, WINDOW, WINDOW] of shapes [B, T] and radii [B, T] at window coordinates [B, T, 2], as rendered."""
    masks = torch.empty(*centre.shape[:2], WINDOW, WINDOW)
    for index, name in enumerate(NAMES):
        chosen = shape == index
        masks[chosen] = shape_mask(name, radius[chosen], centre[chosen], size=WINDOW)
    return masks


def _overlap(dots: Tensor, power: Tensor, frames: Tensor, mask_power: Tensor) -> Tensor:
    # Dice overlap summed over frames, the better of sharp and soft, [B, S, R]; 0 without frames.
    # From dots [B, S, 2, R], the portraits' power and number [B], and the masks' power [S, 2, R].
    power, frames = power[:, None, None, None], frames.clamp(min=1)[:, None, None, None]
    return (2 * dots / (power + frames * mask_power)).amax(dim=2)


def _best(score: Tensor, radii: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # Shape, overlap and radius at the top of [..., S, R].
    overlap, shape = score.amax(dim=-1).max(dim=-1)
    along = score.take_along_dim(shape[..., None, None], dim=-2)[..., 0, :]
    return shape, overlap, _refine(along, radii)


def _refine(score: Tensor, radii: Tensor) -> Tensor:
    # Radius at the top of the parabola through the best of [..., R] and its two neighbours (in log radius).
    best = score.argmax(dim=-1).clamp(1, len(radii) - 2)
    left, middle, right = (score.gather(-1, (best + step)[..., None])[..., 0] for step in (-1, 0, 1))
    bend = (left - 2 * middle + right).clamp(max=-torch.finfo(score.dtype).eps)
    shift = (0.5 * (left - right) / bend).clamp(-1.0, 1.0)
    ratio = radii[1] / radii[0]
    return radii[best] * ratio**shift
