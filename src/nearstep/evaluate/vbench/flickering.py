"""Temporal flickering, which needs no learned network: how far frames are from the frame before.

A video scores 1 - d / 255, where d is the mean over its pairs of neighbouring frames of the mean absolute difference of
their 8-bit values. That is the official function, whose differences are taken in float32; ours are exact integers, so
the two agree to a few 1e-9. It says something about flickering where nothing moves, which is what the official
static filter is for.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from nearstep.data.videos import read_frames
from nearstep.errors import NearstepError

_MOST = 1_000_000  # frames of a video


def flickering(path: Path) -> float:
    """The score of a video, between 0 and 1.

    Raises:
        NearstepError: if it cannot be read, or has fewer than two frames.
    """
    try:
        frames = read_frames(path, most=_MOST)
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from error
    if len(frames) < 2:
        raise NearstepError(f"{path} has one frame; flickering is between frames, so make longer videos")
    return flickering_of(frames)


def flickering_of(frames: np.ndarray) -> float:
    """The same of frames, uint8 [T, H, W, 3], two or more."""
    totals = [int(_apart(*pair).sum(dtype=np.int64)) for pair in pairwise(frames)]
    return 1 - sum(totals) / (len(totals) * frames[0].size * 255)


def _apart(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.maximum(first, second) - np.minimum(first, second)
