"""Overlapping tiles of a picture, so that a codec works on one at a time and not on the whole.

Along each axis tiles are equally long and evenly spaced. A tile's weight rises linearly over what it shares with the
tile before and falls over what it shares with the tile after, and the weights at every pixel add up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from nearstep.errors import NearstepError


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Height and width of tiles and of what neighbours share, in pixels."""

    size: tuple[int, int] = (256, 256)
    overlap: tuple[int, int] = (64, 64)

    def check(self, stride: int) -> None:
        """Refuse tiles that a codec with this spatial stride cannot cut.

        Raises:
            NearstepError: unless all are multiples of the stride, and an overlap is at most half a tile.
        """
        for axis, size, overlap in zip(("height", "width"), self.size, self.overlap, strict=True):
            if size < stride or size % stride or overlap % stride:
                raise NearstepError(
                    f"tiles of {axis} {size} with overlap {overlap}: both must be multiples of {stride}, the codec's "
                    "spatial stride"
                )
            if not 0 < overlap <= size // 2:
                raise NearstepError(f"tiles of {axis} {size} may share {stride} to {size // 2} pixels, not {overlap}")


Span = tuple[int, int]
"""First place of an axis and the one after the last."""


@dataclass(frozen=True)
class Tile:
    """Where a tile lies."""

    rows: Span
    columns: Span

    def times(self, factor: int) -> Tile:
        """The same tile where every unit is ``factor`` units."""
        (top, bottom), (left, right) = self.rows, self.columns
        return Tile((top * factor, bottom * factor), (left * factor, right * factor))

    def of(self, x: Tensor) -> Tensor:
        """The view of ``x`` [..., H, W] there."""
        return x[..., slice(*self.rows), slice(*self.columns)]


def cut(height: int, width: int, tiling: Tiling | None, stride: int) -> list[Tile]:
    """The tiles of ``height x width`` latents, row by row; a single one where there is no tiling or all fits into it.

    Args:
        height: latent rows.
        width: latent columns.
        tiling: in pixels.
        stride: pixels of a latent along each axis.
    """
    if tiling is None:
        return [Tile((0, height), (0, width))]
    axes = zip((height, width), tiling.size, tiling.overlap, strict=True)
    rows, columns = (spans(length, size // stride, overlap // stride) for length, size, overlap in axes)
    return [Tile(*place) for place in product(rows, columns)]


def spans(length: int, size: int, overlap: int) -> list[Span]:
    """Stretches of ``size`` that cover ``length``, as few as share at least ``overlap`` with their neighbours."""
    if length <= size:
        return [(0, length)]
    gaps = math.ceil((length - size) / (size - overlap))
    starts = [round(gap * (length - size) / gaps) for gap in range(gaps + 1)]
    return [(start, start + size) for start in starts]


def blend(parts: Sequence[Tensor], tiles: Sequence[Tile]) -> Tensor:
    """Tiles [..., h, w] -> the picture [..., H, W], in float32 at least where there are several.

    Args:
        parts: what was made of each tile.
        tiles: its place in the picture.
    """
    if len(parts) == 1:
        return parts[0]
    like = parts[0].new_zeros((), dtype=torch.promote_types(parts[0].dtype, torch.float32))
    rows, columns = weights([tile.rows for tile in tiles]), weights([tile.columns for tile in tiles])
    size = (max(stop for _, stop in rows), max(stop for _, stop in columns))
    picture = like.new_zeros(*parts[0].shape[:-2], *size)
    for part, tile in zip(parts, tiles, strict=True):
        weight = rows[tile.rows][:, None] * columns[tile.columns]
        tile.of(picture).add_(part * weight.to(like))
    return picture


def weights(places: Sequence[Span]) -> dict[Span, Tensor]:
    """The weight of each stretch of an axis at each of its points, in float64; they add up to 1 everywhere."""
    axis = sorted(set(places))
    raw = {span: torch.ones(span[1] - span[0], dtype=torch.float64) for span in axis}
    for before, after in pairwise(axis):
        shared = before[1] - after[0]
        ramp = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared
        raw[before][-shared:] *= ramp.flip(0)
        raw[after][:shared] *= ramp
    total = torch.zeros(axis[-1][1], dtype=torch.float64)
    for span, weight in raw.items():
        total[slice(*span)] += weight
    return {span: weight / total[slice(*span)] for span, weight in raw.items()}
