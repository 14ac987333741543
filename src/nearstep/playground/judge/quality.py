"""How good a clip looks, as figures in [0, 1]; 1 is what the renderer makes.

Notation: I the clip, R the fitted scene drawn cleanly (redraw.py), c the object's core colour, r its radius, and
h(x) = 1 / (1 + x^2), which is one half at x = 1.

sharpness
    sum(grad I . grad R) / sum(grad R . grad R) around the object, cut to [0, 1]: the part of the ideal edges that is
    there. Noise is uncorrelated with them and neither adds nor takes away.
fidelity
    h(e / 0.1), e = mean of the root mean squares of I - R near the object and of I - backdrop elsewhere.
steadiness
    h(f / 0.05), f = mean absolute change from frame to frame of the empty background, plus that of c.
identity
    mean over chunks k of [same shape] min(r_k / r, r / r_k) h(|c_k - c| / 0.2); 0 for a chunk without object.
constancy
    min(1, q_K / q_1) with q_k = (sharpness + fidelity) / 2 of chunk k: how much of the first chunk's quality the last
    one keeps; drift lowers it.
smoothness
    h(d), d = root mean square distance of the track from the fitted path, in pixels.
pace
    the measured speed v against the stated one s, within its spread of 8 %: min(1, v / 0.92 s, 1.08 s / v); for a
    stated rest max(0, 1 - v / slow).

Quality is their mean; all are 0 for a clip without an object.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nearstep.playground.judge.redraw import Redrawn
from nearstep.playground.judge.segment import Sight
from nearstep.playground.judge.shapes import Fit
from nearstep.playground.world import SIZE, SPEEDS

FIGURES = ("sharpness", "fidelity", "steadiness", "identity", "constancy", "smoothness", "pace")

_ERROR = 0.1
_CHANGE = 0.05
_COLOUR = 0.2
_LEAST_EDGES = 0.1
"""Edge energy of a frame below which there is no object; the faintest small one has 3."""
_SPREAD = 0.08


def half_at(value: Tensor, scale: float) -> Tensor:
    """h(value / scale): 1 at 0, one half at ``scale``."""
    return 1 / (1 + (value / scale).square())


def sharpness(sight: Sight, ideal: Redrawn) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the sharpness of each frame, both [B, T]."""
    there, wanted = (
        sum(
            torch.einsum("btchw,btchw,bthw->bt", picture.diff(dim=axis), edges, _between(ideal.near, axis))
            for axis, edges in ((-1, ideal.window.diff(dim=-1)), (-2, ideal.window.diff(dim=-2)))
        )
        for picture in (sight.pixels, ideal.window)
    )
    return torch.as_tensor(there), torch.as_tensor(wanted)


def error(video: Tensor, sight: Sight, ideal: Redrawn) -> Tensor:
    """The e of fidelity in each frame, [B, T]."""
    near = ideal.near
    area = near.sum(dim=(-2, -1))
    on = torch.einsum("btchw,bthw->bt", (sight.pixels - ideal.window).square(), near)
    behind = sight.pixels - ideal.behind
    off = (video - ideal.backdrop).square().sum(dim=(2, 3, 4)) - torch.einsum("btchw,bthw->bt", behind.square(), near)
    return 0.5 * ((on / (3 * area)).sqrt() + (off.clamp(min=0.0) / (3 * (SIZE**2 - area))).sqrt())


def change(video: Tensor, sight: Sight, ideal: Redrawn) -> Tensor:
    """The f of steadiness, [B]: over neighbouring frames that both show the object."""
    both = (sight.found[:, 1:] & sight.found[:, :-1]).to(video.dtype)
    empty = (sight.empty[:, 1:] & sight.empty[:, :-1]).to(video.dtype)
    moved = F.avg_pool2d(video.diff(dim=1).abs().mean(dim=2), 2)  # [B, T-1, h, w]
    background = (moved * empty).sum(dim=(-2, -1)) / empty.sum(dim=(-2, -1)).clamp(min=1)
    colour = ideal.colour.diff(dim=1).abs().mean(dim=-1)
    return ((background + colour) * both).sum(dim=1) / both.sum(dim=1).clamp(min=1)


def identity(sight: Sight, fitted: Fit, ideal: Redrawn, chunks: tuple[int, ...]) -> Tensor:
    """Shape, size and colour of each chunk against the whole clip's, [B]."""
    colour = per_chunk(ideal.colour, sight.found, chunks)
    whole = per_chunk(ideal.colour, sight.found, (ideal.colour.shape[1],))
    ratio = fitted.chunk_radius / fitted.radius[:, None]
    same = (fitted.chunk_shape == fitted.shape[:, None]) & (fitted.chunk_overlap > 0)
    kept = torch.minimum(ratio, 1 / ratio) * half_at((colour - whole).norm(dim=-1), _COLOUR)
    return (kept * same).mean(dim=1)


def pace(speed: Tensor, stated: Tensor) -> Tensor:
    """Measured speed [B] against the stated one [B], 0 for a stated rest."""
    moving = torch.minimum(speed / ((1 - _SPREAD) * stated), (1 + _SPREAD) * stated / speed).clamp(max=1.0)
    resting = (1 - speed / min(SPEEDS.values())).clamp(min=0.0)
    return torch.where(stated > 0, moving, resting)


def per_chunk(frames: Tensor, found: Tensor, chunks: tuple[int, ...]) -> Tensor:
    """Mean over each chunk's frames with an object, [B, T, ...] -> [B, K, ...]; 0 where a chunk has none."""
    seen = found.unflatten(1, (-1, *[1] * (frames.dim() - 2)))
    parts = zip(torch.where(seen, frames, 0.0).split(chunks, 1), seen.split(chunks, 1), strict=True)
    return torch.stack([part.sum(dim=1) / count.sum(dim=1).clamp(min=1) for part, count in parts], dim=1)


def measure_quality(
    video: Tensor, sight: Sight, fitted: Fit, ideal: Redrawn, chunks: tuple[int, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    """The figures that need no track, each [B], and (sharpness + fidelity) / 2 of each chunk [B, K]."""
    found = sight.found
    edges, wanted = sharpness(sight, ideal)
    sharp = per_chunk(edges, found, chunks) / per_chunk(wanted, found, chunks).clamp(min=_LEAST_EDGES)
    sharp = sharp.clamp(0.0, 1.0)
    true = half_at(per_chunk(error(video, sight, ideal), found, chunks), _ERROR) * (fitted.chunk_overlap > 0)
    course = 0.5 * (sharp + true)
    kept = course[:, -1] / course[:, 0].clamp(min=torch.finfo(course.dtype).tiny)
    figures = {
        "sharpness": sharp.mean(dim=1),
        "fidelity": true.mean(dim=1),
        "steadiness": half_at(change(video, sight, ideal), _CHANGE),
        "identity": identity(sight, fitted, ideal, chunks),
        "constancy": kept.clamp(max=1.0),
    }
    return figures, course


def _between(mask: Tensor, axis: int) -> Tensor:
    # The mask at the differences of neighbours along the axis.
    return mask.narrow(axis, 1, mask.shape[axis] - 1)
