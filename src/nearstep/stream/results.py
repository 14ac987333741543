"""What a pipeline hands out: clips made whole, and chunks as they are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.flow.plan import ChunkPlan
from nearstep.shapes import pixel_frames
from nearstep.stream.decoding import Deferred
from nearstep.stream.output import pixels
from nearstep.stream.request import Request

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass(frozen=True, kw_only=True, repr=False)
class VideoOutput:
    """Clips and what made them; as a tuple it is what diffusers gives, ``(frames,)``."""

    frames: Any
    """One clip per prompt: ``pt`` [B, T, 3, H, W], ``np`` [B, T, H, W, 3] in [0, 1], ``pil`` lists of images,
    ``latent`` [B, F, C, h, w]."""
    plan: ChunkPlan
    seed: int
    """That of the first clip, where each had a generator (``request.seeds``)."""
    request: Request

    def to_tuple(self) -> tuple[Any]:
        """What ``return_dict=False`` gives."""
        return (self.frames,)

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in (names := [part.name for part in fields(self)]):
            raise KeyError(f"{key!r}; there are {', '.join(names)}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __repr__(self) -> str:
        clips, clip = len(self.request.prompts), self.request.clip
        what = f"{clips} clip{'s' * (clips > 1)} of {pixel_frames(clip.shape.frames)} frames"
        return f"VideoOutput({what}, {_kind(self.frames)}; plan {self.plan}, seed {self.seed})"


@dataclass(frozen=True, kw_only=True, repr=False)
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
    later: Deferred[Tensor] | None = None
    """What the codec makes of the chunk, beside the stream, where it was asked for (``final=True``)."""

    def final(self) -> Tensor:
        """The codec's pixels [B, T, 3, H, W] in [0, 1], float32, as soon as they are there; ``video`` is the preview.

        Raises:
            NearstepError: if the stream was opened without ``final=True``.
        """
        if self.later is None:
            raise NearstepError("this stream makes no finer pixels beside; open it with final=True")
        return self.later.result()

    def __repr__(self) -> str:
        clips, frames, _, height, width = self.video.shape
        beside = f", {clips} clips" if clips > 1 else ""
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        last = self.start + frames - 1
        return f"ChunkVideo({self.index}: frames {self.start} to {last}, {height} x {width}{beside}, {steps})"


def _kind(frames: Any) -> str:
    """What a clip's frames are, in a word or two."""
    if isinstance(frames, list):
        return "pictures"
    return f"{'array' if isinstance(frames, np.ndarray) else 'tensor'} {(*frames.shape,)}"


def formatted(video: Tensor, output_type: str) -> Any:
    """A video [B, T, 3, H, W] in [0, 1] as diffusers users expect it: ``np``, ``pt`` or ``pil``."""
    if output_type == "pt":
        return video
    if output_type == "np":
        return video.permute(0, 1, 3, 4, 2).cpu().numpy()
    return [[Image.fromarray(picture) for picture in pixels(clip)] for clip in video]
