"""How fast what is shown moves, by matching blocks of neighbouring frames: no learned network, no OpenCV.

Frames are made grey and at most 256 pixels wide. Each block of 16 x 16 is looked for in the frame before, at every
displacement of up to 7 pixels to each side; the one with the least mean absolute difference is its motion, of equally
good ones the shortest. So motion of more than 7 in 256 of the width from a frame to the next is not seen as such, and a
block without any texture does not move. A video's motion is the mean over blocks and pairs of frames.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nearstep.errors import NearstepError

WIDTH, BLOCK, REACH = 256, 16, 7
_LUMA = (0.299, 0.587, 0.114)
_SHORT = 1e-2  # grey levels for each pixel of displacement: the shorter of equally good ones wins


def motion(frames: np.ndarray, fps: float) -> float:
    """Of a video, in widths of its picture a second.

    Args:
        frames: uint8 [T, H, W, 3], two or more.
        fps: frames a second.

    Raises:
        NearstepError: if the pictures are too small for one block.
    """
    grey = _grey(frames)
    return float(displacements(grey).norm(dim=-1).mean()) / grey.shape[-1] * fps


def _grey(frames: np.ndarray) -> Tensor:
    grey = torch.from_numpy(frames @ np.array(_LUMA, dtype=np.float32))  # [T, H, W], 0 to 255
    height, width = grey.shape[1:]
    if width > WIDTH:
        size = (max(1, round(height * WIDTH / width)), WIDTH)
        grey = F.interpolate(grey[:, None], size=size, mode="area")[:, 0]
    return grey


def displacements(grey: Float[Tensor, "T H W"]) -> Float[Tensor, "P h w 2"]:
    """How far, down and to the right, each block has come since the frame before, in pixels.

    Raises:
        NearstepError: if the pictures are too small for one block.
    """
    height, width = grey.shape[1:]
    if min(height, width) < BLOCK + 2 * REACH:
        raise NearstepError(f"pictures of {width}x{height}: motion needs {BLOCK + 2 * REACH} pixels a side")
    here = grey[1:, REACH : height - REACH, REACH : width - REACH]
    best, found = None, None
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            top, left = REACH - down, REACH - right
            before = grey[:-1, top : top + here.shape[1], left : left + here.shape[2]]
            cost = F.avg_pool2d((here - before).abs()[:, None], BLOCK)[:, 0] + _SHORT * (down**2 + right**2) ** 0.5
            step = torch.tensor([down, right], dtype=grey.dtype).expand(*cost.shape, 2)
            if best is None or found is None:
                best, found = cost, step
            else:
                better = cost < best
                best, found = torch.where(better, cost, best), torch.where(better[..., None], step, found)
    assert found is not None
    return found
