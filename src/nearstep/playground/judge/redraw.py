"""Draws what was fitted once more, cleanly: each frame's ideal window, and the object's colour.

The ideal window takes the fitted shape at the tracked place, the frame's own object colour with the world's shading,
and the frame's own backdrop straightened to a line over its rows. So what it lacks is structure that does not belong to
the scene (blur, noise, ghosts, wrong edges), not a colour or a brightness that changes: those are judged by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nearstep.playground.judge.segment import WINDOW, Sight
from nearstep.playground.judge.shapes import Fit, draw_masks, spread
from nearstep.playground.world import SIZE, shading

_EDGE_SHARE = 1e-3
"""Weight of the edge in the object's colour, so that an object without a core has one."""


@dataclass(frozen=True, kw_only=True)
class Redrawn:
    """The fitted scene, frame by frame."""

    window: Tensor
    """[B, T, 3, WINDOW, WINDOW] ideal pixels."""
    behind: Tensor
    """[B, T, 3, WINDOW, 1] the straightened backdrop in the window."""
    backdrop: Tensor
    """[B, T, 3, H, 1] the straightened backdrop of the whole frame."""
    near: Tensor
    """[B, T, WINDOW, WINDOW] 1 on the object and two pixels around it, else 0."""
    colour: Tensor
    """[B, T, 3] colour of the object's core."""


def redraw(sight: Sight, fitted: Fit, chunks: tuple[int, ...]) -> Redrawn:
    """The ideal of each frame of ``sight``, with the shape and radius of its chunk."""
    centre = fitted.centre - sight.origin
    radius = spread(fitted.chunk_radius, chunks)
    mask = draw_masks(spread(fitted.chunk_shape, chunks), radius, centre)
    light = shading(radius, centre, WINDOW)
    weight = (_least_around(mask) + _EDGE_SHARE * mask) * sight.matte
    total = weight.sum(dim=(-2, -1)).clamp(min=torch.finfo(weight.dtype).tiny)
    colour = torch.einsum("btchw,bthw->btc", sight.pixels, weight) / total[..., None]
    backdrop = straighten(sight.backdrop)
    rows = sight.origin[..., 1, None] + torch.arange(WINDOW)
    behind = backdrop.gather(3, rows[:, :, None, :, None].expand(-1, -1, 3, -1, 1))
    paint = (colour[..., None, None] * light[:, :, None]).clamp(0.0, 1.0)
    near = F.max_pool2d((mask > 0).to(mask.dtype), 5, stride=1, padding=2)
    window = torch.lerp(behind.expand_as(paint), paint, mask[:, :, None])
    return Redrawn(window=window, behind=behind, backdrop=backdrop, near=near, colour=colour)


def straighten(backdrop: Tensor) -> Tensor:
    """Least-squares line over the rows of [B, T, 3, H, 1]: the world's backgrounds are graded linearly."""
    steps = torch.linspace(-1.0, 1.0, SIZE)[:, None]
    level = backdrop.mean(dim=3, keepdim=True)
    slope = (backdrop * steps).sum(dim=3, keepdim=True) / steps.square().sum()
    return level + slope * steps


def _least_around(mask: Tensor) -> Tensor:
    # Minimum over each pixel's 3 x 3 neighbours [B, T, H, W]: the mask without its edge.
    wide = torch.minimum(torch.minimum(mask[..., :-2], mask[..., 1:-1]), mask[..., 2:])
    tall = torch.minimum(torch.minimum(wide[..., :-2, :], wide[..., 1:-1, :]), wide[..., 2:, :])
    return F.pad(tall, (1, 1, 1, 1))
