"""Windows of clips or of their latents, near what there is to see.

Most of a frame is background, which is learnt first; what makes a clip hard lies in a small part of it. A step of many
windows around that sees it far more often, at the same cost, than a step of few whole frames.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_WANDER = 0.75
"""How far a window's middle lies from the focus at most, as a part of its side in all."""


def cropped(
    video: Float[Tensor, "B F C H W"], focus: Float[Tensor, "B 2"], side: int, draw: torch.Generator, *, grid: int = 1
) -> Float[Tensor, "B F C side side"]:
    """A square of each clip, which lies near its focus and inside the frame.

    Args:
        video: clips or latents.
        focus: (x, y) of each, in their pixels or latents.
        side: height and width of the square.
        draw: where it lies.
        grid: its corner is a multiple of this.
    """
    away = (torch.rand(len(video), 2, generator=draw) - 0.5) * _WANDER * side
    corners = ((focus + away - side / 2) / grid).round() * grid
    most = (video.shape[-1] - side) // grid * grid
    places = corners.clamp(0, most).int().tolist()
    return torch.stack([clip[..., y : y + side, x : x + side] for clip, (x, y) in zip(video, places, strict=True)])
