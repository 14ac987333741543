"""What a pipeline hands out: clips made whole, and chunks as they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from nearstep.flow.plan import ChunkPlan
from nearstep.stream.output import pixels
from nearstep.stream.request import Request

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass(frozen=True, kw_only=True)
class VideoOutput:
    """Clips and what made them."""

    frames: Any
    """One clip per prompt: ``pt`` [B, T, 3, H, W], ``np`` [B, T, H, W, 3] in [0, 1], ``pil`` lists of images,
    ``latent`` [B, F, C, h, w]."""
    plan: ChunkPlan
    seed: int
    request: Request


@dataclass(frozen=True, kw_only=True)
class ChunkVideo:
    """A finished chunk, decoded."""

    index: int
    start: int
    """Pixel frame of the clip that the chunk begins with."""
    video: Tensor
    """[B, T, 3, H, W] in [0, 1], float32."""
    latents: Tensor
    """[B, F, C, h, w]."""
    steps: int
    """Denoising calls it took."""


def formatted(video: Tensor, output_type: str) -> Any:
    """A video [B, T, 3, H, W] in [0, 1] as diffusers users expect it: ``np``, ``pt`` or ``pil``."""
    if output_type == "pt":
        return video
    if output_type == "np":
        return video.permute(0, 1, 3, 4, 2).cpu().numpy()
    return [[Image.fromarray(picture) for picture in pixels(clip)] for clip in video]
