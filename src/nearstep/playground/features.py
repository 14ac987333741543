"""Features of a clip for the Fréchet distance: a small video network that has learnt to name what clips show.

It looks at every fourth frame, points at places in each, and tells all attributes of the scene from what is at these
places and from their course over time. Features are the first layer's mean (edges: it feels blur and noise), the
appearance and the course, each number scaled to unit variance on real clips. Trained by playground/train_features.py;
the weights are part of the package.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from nearstep.playground.world import AXES, BACKGROUNDS, COLOURS, DIRECTIONS, FRAMES, MOTIONS, SHAPES, SIZES, SPEEDS
from nearstep.shapes import TEMPORAL_STRIDE

CLASSES: dict[str, tuple[str | None, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "motion": tuple(MOTIONS),
    "direction": (*DIRECTIONS, *AXES, None),
    "speed": (*SPEEDS, None),
    "background": tuple(BACKGROUNDS),
}
"""Attribute -> the values it can take; None where a scene at rest has none."""

WEIGHTS = "assets/judge/features.safetensors"
_GROUPS = 8
_FRAMES = len(range(0, FRAMES, TEMPORAL_STRIDE))
_LOOKS = 4
"""Every how many of the sparse frames the appearance is looked at closely."""


class FeatureNet(nn.Module):
    """Convolutions over space, places as expected coordinates of soft maps, and a small network over their course.

    Args:
        edges: width of the first layer, at half the clip's size.
        parts: width of the second, at a quarter; the places are read off it.
        appearance: width of the last two, at an eighth.
        places: soft maps in each frame.
        course: numbers that sum up how the places move.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, edges: int = 16, parts: int = 32, appearance: int = 48, places: int = 4, course: int = 24
    ) -> None:
        super().__init__()
        self.edges = nn.Conv2d(12, edges, 3, padding=1)
        self.parts = nn.Conv2d(edges, parts, 3, stride=2, padding=1)
        self.shapes = nn.Conv2d(parts, appearance, 3, stride=2, padding=1)
        self.objects = nn.Conv2d(appearance, appearance, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, size) for size in (parts, appearance, appearance))
        self.places = nn.Conv2d(parts, places, 1)
        self.course = nn.Sequential(
            nn.Linear(_FRAMES * places * 2, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, course)
        )
        self.names = nn.Linear(2 * appearance + course, sum(map(len, CLASSES.values())))
        size = edges + 2 * appearance + course
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Sparse clips [B, T', 3, H, W] in [0, 1] -> raw features [B, D] and the logits of all names [B, N]."""
        batch, frames = video.shape[:2]
        first = F.gelu(self.edges(F.pixel_unshuffle(video.flatten(0, 1) * 2 - 1, 2)))
        parts = F.gelu(self.norms[0](self.parts(first)))
        maps = self.places(parts).flatten(2).softmax(dim=-1).view(batch, frames, -1, *parts.shape[2:])
        course = self.course(_expected_places(maps).flatten(1))
        close = parts.unflatten(0, (batch, frames))[:, ::_LOOKS].flatten(0, 1)
        for layer, norm in zip((self.shapes, self.objects), list(self.norms)[1:], strict=True):
            close = F.gelu(norm(layer(close)))
        close = close.unflatten(0, (batch, -1))
        seen = torch.cat([close.mean(dim=(1, 3, 4)), close.amax(dim=(3, 4)).mean(dim=1)], dim=1)
        edges = first.unflatten(0, (batch, frames)).mean(dim=(1, 3, 4))
        return torch.cat([edges, seen, course], dim=1), self.names(torch.cat([seen, course], dim=1))

    @torch.no_grad()
    def features(self, video: Tensor) -> Tensor:
        """Scaled features [B, D] of the first 33 frames of whole clips [B, T, 3, H, W]."""
        return (self(video[:, :FRAMES:TEMPORAL_STRIDE])[0] - self.mean) / self.deviation


def _expected_places(maps: Tensor) -> Tensor:
    # Expected (x, y) of soft maps [B, T', P, h, w] relative to their mean over time, [B, T', P, 2], in units in which
    # a fast object crosses about one.
    steps = torch.linspace(-2.0, 2.0, maps.shape[-1], device=maps.device)
    places = torch.stack([(maps.sum(dim=axis) * steps).sum(dim=-1) for axis in (-2, -1)], dim=-1)  # x, y
    return places - places.mean(dim=1, keepdim=True)


def split_names(logits: Tensor) -> dict[str, Tensor]:
    """Attribute -> its part of the logits [B, N]."""
    return dict(zip(CLASSES, logits.split([len(names) for names in CLASSES.values()], dim=1), strict=True))


def load_feature_net(path: Path) -> FeatureNet:
    """A trained network from its safetensors file."""
    net = FeatureNet()
    net.load_state_dict(load_file(path))
    return net.eval()


@cache
def feature_net() -> FeatureNet:
    """The network that comes with the package."""
    return load_feature_net(Path(str(resources.files("nearstep"))) / WEIGHTS)
