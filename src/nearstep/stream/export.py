"""A clip in any shape that a pipeline hands out, to a video file: what diffusers calls export_to_video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.pictures import array_of, tensor_of
from nearstep.stream.output import write_video
from nearstep.stream.results import ChunkVideo, VideoOutput

Frames = VideoOutput | ChunkVideo | Tensor | np.ndarray | Sequence[Any]
"""A pipeline's output or chunk of one clip, a list of chunks, or the clip: an array [T, H, W, 3], a tensor
[T, 3, H, W] or a list of pictures; bytes, or numbers from 0 to 1."""


def export_to_video(video_frames: Frames, output_video_path: str | Path, fps: float = 16) -> str:
    """Write one clip in the format that the suffix of the path names (mp4, gif, webp, or png: a contact sheet).

    Args:
        video_frames: the clip.
        output_video_path: where to.
        fps: frames a second; a model's own are ``pipe.settings.fps``.

    Returns:
        The path.

    Raises:
        NearstepError: for what is no clip, or several; nothing is written then.
    """
    metadata = video_frames.request.metadata(0) if isinstance(video_frames, VideoOutput) else None
    return str(write_video(output_video_path, clip_of(video_frames), fps=fps, metadata=metadata))


def clip_of(frames: Frames) -> Tensor:
    """One clip as [T, 3, H, W] in [0, 1].

    Raises:
        NearstepError: for what is no clip, several clips, or numbers beyond 0 to 1.
    """
    if isinstance(frames, VideoOutput):
        return clip_of(_only(frames.frames))
    if isinstance(frames, ChunkVideo):
        return clip_of(_only(frames.video))
    if isinstance(frames, list | tuple):
        if not frames:
            raise NearstepError("there are no frames to write")
        if isinstance(frames[0], list | tuple):
            return clip_of(_only(frames))
        if isinstance(frames[0], VideoOutput):
            raise NearstepError(f"{len(frames)} clips are no video; write each to a file of its own")
        if isinstance(frames[0], ChunkVideo):
            return torch.cat([clip_of(chunk) for chunk in frames])
        return _joined(frames)
    if not isinstance(frames, np.ndarray | Tensor):
        raise NearstepError(f"a clip is an array, a tensor or pictures, not {type(frames).__name__}")
    clip = tensor_of(frames)
    if clip.ndim == 5:
        return clip_of(_only(frames))
    given = tuple(clip.shape)
    if clip.ndim == 4 and isinstance(frames, np.ndarray):
        clip = clip.movedim(-1, 1)
    if clip.ndim != 4 or clip.shape[1] != 3 or not clip.numel():
        raise NearstepError(f"no clip has the shape {given}; use [T, H, W, 3], or tensors [T, 3, H, W]")
    clip = clip.float() / 255 if clip.dtype == torch.uint8 else clip
    if clip.isfinite().all() and not 0 <= clip.min() <= clip.max() <= 1:
        raise NearstepError("a clip is bytes, or numbers from 0 to 1; these go beyond (of output_type='latent'?)")
    return clip


def _joined(frames: Sequence[Any]) -> Tensor:
    """Single frames: pictures, arrays [H, W, 3] or tensors [3, H, W]."""
    parts = [array_of(frame) if isinstance(frame, Image.Image) else frame for frame in frames]
    if strange := [part for part in parts if not isinstance(part, Tensor | np.ndarray)]:
        raise NearstepError(f"a frame is a picture, an array or a tensor, not {type(strange[0]).__name__}")
    if len({(type(part), part.dtype, tuple(part.shape)) for part in parts}) > 1:
        raise NearstepError("the frames of a clip are of one kind and one size")
    if parts[0].ndim == 4:  # each of them a clip
        return clip_of(_only(parts))
    stack: Any = torch.stack if isinstance(parts[0], Tensor) else np.stack
    return clip_of(stack(parts))


def _only(clips: Any) -> Any:
    if len(clips) != 1:
        raise NearstepError(f"{len(clips)} clips are no video; write each to a file of its own (frames[0], ...)")
    return clips[0]
