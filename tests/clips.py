"""Real clips with their captions, and the ways to break them that several tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch.nn.functional as F
from torch import Tensor

from nearstep.playground.captions import caption
from nearstep.playground.world import Scene, render, sample_scenes

SEED = 7_100_000


class Clips(NamedTuple):
    scenes: list[Scene]
    captions: list[str]
    video: Tensor


def _draw(first: int, count: int) -> Clips:
    indices = range(first, first + count)
    scenes = sample_scenes(SEED, indices)
    captions = [caption(scene, seed=SEED, index=i) for i, scene in zip(indices, scenes, strict=True)]
    return Clips(scenes, captions, render(scenes))


def _blur(video: Tensor) -> Tensor:
    half = F.avg_pool2d(video.flatten(0, 1), 2)
    return F.interpolate(half, scale_factor=2, mode="bilinear").unflatten(0, video.shape[:2])


@pytest.fixture(scope="session")
def draw() -> Callable[[int, int], Clips]:
    """``draw(first, count)``: real clips, their scenes and captions."""
    return _draw


@pytest.fixture(scope="session")
def blur() -> Callable[[Tensor], Tensor]:
    """Half the size by area and back: what a weak codec does."""
    return _blur


@pytest.fixture(scope="session")
def clips() -> Clips:
    return _draw(0, 32)
