"""Fréchet distances of clips to a world's real ones, on each kind of features that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nearstep.evaluate import statistics
from nearstep.evaluate.frechet import gaussian, gaussian_distance
from nearstep.evaluate.statistics import Interval
from nearstep.protocols import World

CAPTIONS_SEED = 7_000_000
"""Stream of the captions to evaluate with; no training ever draws from it."""

Looks = Mapping[str, Callable[[Tensor], Tensor]]
"""Name of a distance -> clips [B, T, 3, H, W] to their features [B, D]."""


def looks_of(world: World, vgg: Path | None = None) -> Looks:
    """The world's own features, and VGG16's where their file is given (evaluate/vgg.py)."""
    if vgg is None:
        return {"frechet": world.features}
    from nearstep.evaluate.vgg import PictureFeatures

    return {"frechet": world.features, "perceptual": PictureFeatures.open(vgg)}


class Distances:
    """How far clips are from the first held-out ones of a world.

    Args:
        world: has the real clips.
        looks: the features to compare by; the world's own by default.
        count: how many real clips; as many as are compared with them.
        batch: drawn at once; does not change the results.
    """

    def __init__(self, world: World, looks: Looks | None, *, count: int, batch: int) -> None:
        self.looks = looks or looks_of(world)
        parts = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
        real = [self.look(world.clips(CAPTIONS_SEED, part)) for part in parts]
        self._real = {name: gaussian(torch.cat([row[name] for row in real])) for name in self.looks}

    def look(self, video: Tensor) -> dict[str, Tensor]:
        """What each look sees in clips, [B, D] each."""
        return {name: look(video) for name, look in self.looks.items()}

    def intervals(self, seen: Sequence[Mapping[str, Tensor]]) -> dict[str, Interval]:
        """The distances of all clips that were looked at."""
        return {name: self._interval(torch.cat([row[name] for row in seen]), name) for name in self.looks}

    def _interval(self, features: Tensor, name: str) -> Interval:
        found = statistics.statistic(features, lambda rows: gaussian_distance(*gaussian(rows), *self._real[name]))
        return replace(found, low=max(0.0, found.low))  # it is a square, whose spread may reach further
