"""Axes and sizes.

Axis letters, one meaning each, everywhere:

==  =======================================================
B   samples in a batch
F   latent frames ("frame" without a qualifier)
T   pixel frames, T = stride * (F - 1) + 1
C   latent channels
H   latent height (pixel height where the array holds pixels)
W   latent width (pixel width where the array holds pixels)
L   text tokens
D   text or model width
==  =======================================================

Latents are ``[B, F, C, H, W]``; pixel video is ``[B, T, 3, H, W]`` with values in ``[0, 1]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from nearstep.errors import NearstepError

TEMPORAL_STRIDE = 4
"""Pixel frames per latent frame after the first, for every Wan codec."""


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """Size of one clip of latents, without the batch axis."""

    frames: int
    channels: int
    height: int
    width: int

    @property
    def frame(self) -> tuple[int, int, int]:
        """Shape of one latent frame ``(C, H, W)``."""
        return self.channels, self.height, self.width


def latent_frames(pixel_frames: int, stride: int = TEMPORAL_STRIDE) -> int:
    """Latent frames of a clip of ``pixel_frames``.

    Raises:
        NearstepError: unless ``pixel_frames`` is ``stride * n + 1``.
    """
    if isinstance(pixel_frames, bool) or not isinstance(pixel_frames, Integral):
        raise NearstepError(f"num_frames={pixel_frames!r:.60}; give a whole number, {stride}n+1")
    if pixel_frames < 1 or (pixel_frames - 1) % stride:
        below = max(0, (pixel_frames - 1) // stride) * stride + 1
        raise NearstepError(
            f"num_frames={pixel_frames} is not {stride}n+1: the codec packs {stride} pixel frames into a latent frame "
            f"after the first; use {below} or {below + stride}"
        )
    return (pixel_frames - 1) // stride + 1


def pixel_frames(latent_frames: int, stride: int = TEMPORAL_STRIDE) -> int:
    """Pixel frames that ``latent_frames`` (at least 1) decode to."""
    if latent_frames < 1:
        raise NearstepError(f"a clip needs at least one latent frame, got {latent_frames}")
    return stride * (latent_frames - 1) + 1


def spatial_stride(config: Mapping[str, Any]) -> int:
    """Pixels per latent along height and width, from a codec's config: a halving between levels, times the patch."""
    return 2 ** (len(config["dim_mult"]) - 1) * (config.get("patch_size") or 1)


def chunk_frames(frames: int, latent: int, stride: int = TEMPORAL_STRIDE) -> tuple[int, ...]:
    """Pixel frames of each chunk of ``latent`` latent frames in a clip of ``frames``; the last may be shorter."""
    ends = [*range(first_pixel_frame(latent, stride), frames, stride * latent), frames]
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def first_pixel_frame(frame: int, stride: int = TEMPORAL_STRIDE) -> int:
    """The first pixel frame that latent frame ``frame`` stands for: the first one alone stands for one."""
    return max(0, stride * (frame - 1) + 1)
