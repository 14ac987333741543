"""Picture features in the place of a denoiser's: what VGG16 makes of some decoded frames of each clip (Radian).

A denoiser's features are of noised latents; these are of what is looked at. Samples then go to the discriminator as
they are (Psi adds no noise), and the student's gradient comes through the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from nearstep.models.vgg import WIDTHS, Vgg16
from nearstep.nets.codec import VideoCodec

BLOCKS = (2, 3, 4)
"""Whose features are read: textures, parts, objects."""
PICTURE_WIDTHS = tuple(WIDTHS[block] for block in BLOCKS)
"""Of those."""


class PictureBackbone(nn.Module):
    """Called as a network for its features; frozen.

    Args:
        codec: decodes the samples.
        network: sees their frames.
        frames: how many, evenly spread from the first to the last.
    """

    config: Mapping[str, Any] = MappingProxyType({})
    """Of a transformer that sees whole clips: nothing is said of chunks."""

    def __init__(self, codec: VideoCodec, network: Vgg16, frames: int) -> None:
        super().__init__()
        self.decoder, self.network, self.frames = codec.vae, network, frames
        self._codec = codec
        self.requires_grad_(False)

    @classmethod
    def open(cls, codec: VideoCodec, weights: Path, frames: int) -> PictureBackbone:
        """With VGG16's weights from a file.

        Raises:
            NearstepError: if the file holds something else.
        """
        return cls(codec, Vgg16.open(weights), frames)

    def forward(
        self, x: Tensor, t: Tensor, text: object, *, visibility: object = None, features: Sequence[int]
    ) -> tuple[None, dict[int, Tensor]]:
        """Clips [B, F, C, h, w] -> (None, block -> [B, frames * cells, WIDTHS[block]]); all else says nothing.

        All blocks are brought to the cells of the second one, so that tokens of one place stand beside each other.
        """
        video = self._codec.decode(x)
        shown = torch.linspace(0, video.shape[1] - 1, min(self.frames, video.shape[1])).round().long()
        layers = self.network(video[:, shown].flatten(0, 1), max(features) + 1)
        cells = layers[sorted(features)[min(1, len(features) - 1)]].shape[2:]
        found = {block: adaptive_avg_pool2d(layers[block], cells) for block in features}
        return None, {block: rearrange(part, "(b t) d h w -> b (t h w) d", b=len(x)) for block, part in found.items()}
