"""Features of clips to compare sets of them by, in closed form: thumbnails, and how much edge and motion is where.

No net learnt them, so they favour no world and no model. Thumbnails feel colours and places, edges feel blur, noise and
a first frame that is softer than the rest, differences in time feel how much moves.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

_CELLS = 4
"""Rows and columns of a thumbnail."""


def clip_features(video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B D"]:
    """Clips in [0, 1] -> what their first, middle and last frames show, coarsely, and what changes between them."""
    first, middle, last = (video[:, frame] for frame in (0, video.shape[1] // 2, -1))
    parts = [frame for frame in (first, middle, last)]
    parts += [edges(first), edges(video[:, 1:].flatten(0, 1)).unflatten(0, (len(video), -1)).mean(dim=1)]
    parts.append(video.diff(dim=1).abs().mean(dim=(1, 2))[:, None])
    return torch.cat([adaptive_avg_pool2d(part, _CELLS).flatten(1) for part in parts], dim=1)


def edges(frames: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 2 H W"]:
    """Strength of the differences across columns and across rows, padded to the frames' size."""
    across = torch.nn.functional.pad(frames.diff(dim=-1).abs().mean(dim=1), (0, 1))
    down = torch.nn.functional.pad(frames.diff(dim=-2).abs().mean(dim=1), (0, 0, 0, 1))
    return torch.stack([across, down], dim=1)
