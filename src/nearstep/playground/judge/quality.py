"""How good a clip looks, as figures in [0, 1]; 1 is what the renderer makes.

Notation: I the clip, R what was found, redrawn over the clip's own mean backdrop, and h(x) = 1 / (1 + x^2), which is
one half at x = 1.

sharpness
    sum(grad I . grad R) / sum(grad R . grad R) around the things, cut to [0, 1]: the part of the ideal edges that is
    there, mean over spans (judge.py) of the clip.
first sharpness
    The same of the first frame alone, which has no frame before it to lean on.
fidelity
    h(e / 0.1), e = mean of the root mean squares of I - R near the things and elsewhere.
steadiness
    h(f / 0.05), f = mean absolute change from frame to frame where nothing covers the backdrop.
keeping
    h(g / 0.05), g = root mean square between the backdrops of the first and the last third of the frames, where both
    are bare: the texture stays as it is although a thing has passed.
identity
    mean over spans of what the things explain of their own energy, cut to [0, 1].
constancy
    min(1, q_K / q_1) with q_k = (sharpness + fidelity) / 2 of span k.
smoothness
    h(d), d = root mean square distance of the tracks from the fitted paths, in pixels of a frame of 64.
pace
    the measured rate v against the stated one s, within its spread of 8 %: min(1, v / 0.92 s, 1.08 s / v); the nearest
    rate where the caption leaves it open; 1 for a stated rest that rests.

Quality is their mean; all are 0 for a clip in which no thing is found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearstep.playground.judge.find import Sight
from nearstep.playground.judge.fit import Fit

FIGURES = (
    "sharpness",
    "first sharpness",
    "fidelity",
    "steadiness",
    "keeping",
    "identity",
    "constancy",
    "smoothness",
    "pace",
)

_ERROR = 0.1
_CHANGE = 0.05
_PIXEL = 1 / 64
_BARE = 0.98
_TINY = 1e-6


def half_at(value: Tensor, scale: float) -> Tensor:
    """h(value / scale): 1 at 0, one half at ``scale``."""
    return 1 / (1 + (value / scale).square())


def edges(video: Tensor, redrawn: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the sharpness of each frame, both [B, T]."""
    there = wanted = torch.zeros(video.shape[:2])
    for axis in (-1, -2):
        ideal = redrawn.diff(dim=axis) * near.narrow(axis, 1, near.shape[axis] - 1)
        there = there + (video.diff(dim=axis) * ideal).sum(dim=(2, 3, 4))
        wanted = wanted + (redrawn.diff(dim=axis) * ideal).sum(dim=(2, 3, 4))
    return there, wanted


def measure_quality(
    video: Tensor, sight: Sight, there: Tensor, residual: Tensor, spans: tuple[int, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    """All figures but the pace, each [B], and (sharpness + fidelity) / 2 of each span [B, K].

    Args:
        video: [B, T, 3, H, W].
        sight: what was found in it.
        there: [B, 2] which of the things are in the clip from beginning to end.
        residual: [B] distance of the tracks from their paths, as a part of the frame's side.
        spans: frames of each span.
    """
    drawn, wanted = edges(video, sight.redrawn, sight.near)
    sharp = (_sums(drawn, spans) / _sums(wanted, spans).clamp(min=_TINY)).clamp(0.0, 1.0)
    first = (drawn[:, 0] / wanted[:, 0].clamp(min=_TINY)).clamp(0.0, 1.0)
    true = half_at(_means(_error(video, sight.redrawn, sight.near), spans), _ERROR)
    course = 0.5 * (sharp + true)
    kept = course[:, -1] / course[:, 0].clamp(min=_TINY)
    figures = {
        "sharpness": sharp.mean(dim=1),
        "first sharpness": first,
        "fidelity": true.mean(dim=1),
        "steadiness": half_at(_change(video, sight.bare), _CHANGE),
        "keeping": half_at(_drift(video, sight.bare), _CHANGE),
        "identity": _identity(sight, there.float(), spans),
        "constancy": kept.clamp(max=1.0),
        "smoothness": half_at(residual, _PIXEL),
    }
    return figures, course


def pace(rate: float, stated: float, spread: float) -> float:
    """Measured rate against the stated one."""
    if stated == 0.0 or rate == 0.0:
        return float(stated == rate)
    return min(1.0, rate / ((1 - spread) * stated), (1 + spread) * stated / rate)


def _error(video: Tensor, redrawn: Tensor, near: Tensor) -> Tensor:
    # Mean of the root mean squares near the things and away from them, [B, T].
    error = (video - redrawn).square().mean(dim=2, keepdim=True)
    parts = [(error * mask).sum(dim=(2, 3, 4)) / mask.sum(dim=(2, 3, 4)).clamp(min=1) for mask in (near, 1 - near)]
    return 0.5 * (parts[0].sqrt() + parts[1].sqrt())


def _change(video: Tensor, bare: Tensor) -> Tensor:
    both = ((bare[:, 1:] > _BARE) & (bare[:, :-1] > _BARE)).float()
    moved = video.diff(dim=1).abs().mean(dim=2, keepdim=True)
    return (moved * both).sum(dim=(1, 2, 3, 4)) / both.sum(dim=(1, 2, 3, 4)).clamp(min=1)


def _drift(video: Tensor, bare: Tensor) -> Tensor:
    third = max(1, video.shape[1] // 3)
    weight = (bare > _BARE).float()
    means, seen = [], []
    for part in (slice(0, third), slice(-third, None)):
        count = weight[:, part].sum(dim=1)
        means.append((video[:, part] * weight[:, part]).sum(dim=1) / count.clamp(min=1))
        seen.append(count > 0)
    both = (seen[0] & seen[1]).float()
    away = (means[1] - means[0]).square().mean(dim=1, keepdim=True)
    return ((away * both).sum(dim=(1, 2, 3)) / both.sum(dim=(1, 2, 3)).clamp(min=1)).sqrt()


def _identity(sight: Sight, there: Tensor, spans: tuple[int, ...]) -> Tensor:
    # Mean over things and spans of the explained part of their energy.
    parts = torch.stack([_explained(fit, spans) for fit in sight.things], dim=1)  # [B, 2]
    return (parts * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)


def _explained(fit: Fit, spans: tuple[int, ...]) -> Tensor:
    gain, energy = _sums(fit.gain, spans), _sums(fit.energy, spans)
    hidden = energy < 0.02 * energy.amax(dim=1, keepdim=True)
    share = torch.where(hidden, 1.0, gain / energy.clamp(min=_TINY))
    return share.clamp(0.0, 1.0).mean(dim=1)


def _sums(frames: Tensor, spans: tuple[int, ...]) -> Tensor:
    return torch.stack([part.sum(dim=1) for part in frames.split(spans, dim=1)], dim=1)


def _means(frames: Tensor, spans: tuple[int, ...]) -> Tensor:
    return torch.stack([part.mean(dim=1) for part in frames.split(spans, dim=1)], dim=1)
