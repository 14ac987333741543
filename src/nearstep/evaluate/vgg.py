"""A second look at clips, by VGG16's convolutions (models/vgg.py), which know none of our worlds.

With the heads of ``lpips`` (BSD, Zhang et al., 2018) the same layers give a distance of pictures like LPIPS. Both are
read from the downloaded wheels; reading needs the extra ``nearstep[perceptual]``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.models.vgg import WIDTHS, Vgg16, content_of
from nearstep.precision import narrowed

_HEADS = "weights/v0.1/vgg.pth"
_LOOKED_AT = (2, 3, 4)
"""Blocks whose means are features: textures, parts, objects."""
_DIMENSIONS = 64
"""Features of the first frame, and as many of the others: few enough for a covariance from some hundred clips."""
_UNIT = 25.0
"""Of features, so that distances are of the order of one."""
_TOGETHER = 32


class PictureFeatures:
    """Features of clips: means over VGG16's layers, turned by a fixed rotation and cut to few numbers."""

    def __init__(self, network: Vgg16) -> None:
        self._network = network
        widths = sum(WIDTHS[block] for block in _LOOKED_AT)
        draw = torch.randn(2, widths, _DIMENSIONS, generator=rng.generator("projection of picture features"))
        self._projection = torch.linalg.qr(draw)[0]

    @classmethod
    def open(cls, weights: str | Path) -> PictureFeatures:
        """Read VGG16, as :meth:`Vgg16.open` does."""
        return cls(Vgg16.open(weights))

    @torch.no_grad()
    def __call__(self, video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B D"]:
        """Clips in [0, 1] -> what their first frames hold, and what a middle and the last one hold."""
        frames = video[:, [0, video.shape[1] // 2, video.shape[1] - 1]].flatten(0, 1)
        means = torch.cat([self._means(part) for part in frames.split(_TOGETHER)]).unflatten(0, (len(video), 3))
        looks = torch.stack([means[:, 0], means[:, 1:].mean(dim=1)])
        return torch.cat((looks @ self._projection).unbind(), dim=-1)

    def _means(self, pictures: Tensor) -> Tensor:
        with narrowed(pictures.device.type):
            layers = self._network(pictures)
        return torch.cat([layers[block].float().mean(dim=(2, 3)) / _UNIT for block in _LOOKED_AT], dim=1)


class PictureDistance:
    """A distance of pictures that follows what people see: weighted squares between the directions of features."""

    def __init__(self, network: Vgg16, heads: list[Tensor]) -> None:
        self._network, self._heads = network, heads

    @classmethod
    def open(cls, weights: str | Path, heads: str | Path) -> PictureDistance:
        """Read VGG16 as :meth:`Vgg16.open` does, and the heads from the wheel of ``lpips`` or its ``vgg.pth``.

        Raises:
            NearstepError: if a file holds something else.
        """
        content = content_of(Path(heads), _HEADS)
        try:
            held = torch.load(content, map_location="cpu", weights_only=True)
            found = [held[f"lin{block}.model.1.weight"].reshape(1, width, 1, 1) for block, width in enumerate(WIDTHS)]
        except Exception as error:
            raise NearstepError(f"{heads} holds no heads of lpips: {error}; give its wheel or vgg.pth") from error
        return cls(Vgg16.open(weights), found)

    @torch.no_grad()
    def __call__(self, first: Float[Tensor, "N 3 H W"], second: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
        """How far apart pictures in [0, 1] are; 0 for equal ones."""
        total = first.new_zeros(len(first))
        layers = zip(self._network(first), self._network(second), self._heads, strict=True)
        for ours, theirs, head in layers:
            difference = (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square()
            total += F.conv2d(difference, head).mean(dim=(1, 2, 3))
        return total
