"""What a session begins with: how far back it looks, and the picture or clip that it goes on from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.files import path_of
from nearstep.models.configs import Configs
from nearstep.nets.codec import VideoCodec
from nearstep.pictures import UNREADABLE, array_of, fitted, tensor_of, upright
from nearstep.ranges import check_count
from nearstep.reach import Reach
from nearstep.shapes import TEMPORAL_STRIDE, latent_frames

Picture = Image.Image | np.ndarray | Tensor | str | Path
"""A file, a PIL image, an array [H, W, 3] (uint8, or floating in [0, 1]), or a tensor [3, H, W] in [0, 1]."""
PixelClip = np.ndarray | Tensor | Sequence[Image.Image]
"""An array [T, H, W, 3], a tensor [T, 3, H, W] or PIL images, T = 4n + 1."""


def context_video(image: Picture | None, video: PixelClip | None, *, height: int, width: int) -> Tensor | None:
    """The picture or clip to go on from as [T, 3, H, W], bytes or numbers in [0, 1]; None where there is neither.

    A picture from a file, or of PIL, is cut at the centre and resized as videos are; arrays and tensors are taken as
    they are.

    Raises:
        NearstepError: if there are both, or they are not of this size or no pictures.
    """
    if image is not None and video is not None:
        raise NearstepError("give an image or a video to go on from, not both")
    if image is None and video is None:
        return None
    frames = _frames([_sized(_opened(image), height, width)] if image is not None else video)
    if frames.shape[2:] != (height, width):
        what, (high, wide) = "image" if video is None else "video", frames.shape[2:]
        raise NearstepError(
            f"the {what} is {high} high and {wide} wide, this stream {height} by {width}; "
            f"resize it, or open the stream with height={high}, width={wide}"
        )
    return frames


def read_picture(path: str | Path) -> Image.Image:
    """A picture file as RGB, upright as cameras say it is.

    Raises:
        NearstepError: naming the file that is none, or cannot be read.
    """
    path = path_of(path)
    if not path.is_file():
        raise NearstepError(f"cannot read the picture {path}: there is no such file")
    try:
        with Image.open(path) as image:
            return upright(image)
    except UNREADABLE as error:
        raise NearstepError(f"cannot read the picture {path}: {error}") from error


def _opened(picture: Picture) -> Picture:
    if isinstance(picture, str | Path):
        return read_picture(picture)
    if not isinstance(picture, Image.Image | np.ndarray | Tensor):
        raise NearstepError(f"an image is a file, a PIL image, an array or a tensor, not {type(picture).__name__}")
    return picture


def _sized(picture: Picture, height: int, width: int) -> Picture:
    if not isinstance(picture, Image.Image) or picture.size == (width, height):
        return picture
    return Image.fromarray(fitted(array_of(picture), height=height, width=width))


def stream_reach(
    model: Configs, chunk: int, *, window: int | None, sink: int | None, relative_sink: bool | None
) -> Reach:
    """How far a stream's chunks of so many frames look back: by default as far as the network was made for.

    A network without a window of its own was trained on whole clips: it gets its first chunk as a sink, and a window
    such that both together are as long as those clips. A network that was trained with a sink sees it where it lies.

    Raises:
        NearstepError: for a window shorter than a chunk, or a negative sink.
    """
    check_count("window", window)
    if sink is not None and (isinstance(sink, bool) or not isinstance(sink, Integral)):
        raise NearstepError(f"sink={sink!r:.60}; give a whole number of frames")
    if not isinstance(relative_sink, bool | None):
        raise NearstepError(f"relative_sink={relative_sink!r:.60}; give True or False")
    config, trained = model.transformer, latent_frames(model.settings.num_frames)
    own, trained_sink = config.get("window_frames"), config.get("sink_frames") or 0
    usual = trained_sink if own else min(chunk, max(0, trained - chunk))
    first = usual if sink is None else sink
    if first < 0:
        raise NearstepError(f"sink={sink}; give 0 (none) or how many of the first frames every chunk sees")
    newest = (own or max(chunk, trained - first)) if window is None else window
    if newest < chunk:
        raise NearstepError(f"window={newest} is shorter than a chunk of {chunk} frames; give at least {chunk}")
    newest, first = int(newest), int(first)  # of any library, but as recordings hold them
    return Reach(window=newest, sink=first, relative_sink=not trained_sink if relative_sink is None else relative_sink)


def digest(tensor: Tensor) -> str:
    """A short name for a tensor's content."""
    return hashlib.blake2b(tensor.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def _single(pictures: Any) -> list[Any]:
    """Frames as arrays or tensors, all of one kind and size."""
    if not isinstance(pictures, Sequence) or isinstance(pictures, str | bytes) or not pictures:
        raise NearstepError(f"a video is an array, a tensor or a list of pictures, not {pictures!r:.60}")
    images = [array_of(part) if isinstance(part, Image.Image) else part for part in pictures]
    if strange := [part for part in images if not isinstance(part, np.ndarray | Tensor)]:
        raise NearstepError(f"a frame is a picture, an array or a tensor, not {strange[0]!r:.60}")
    if len({(type(part), str(part.dtype), tuple(part.shape)) for part in images}) > 1:
        raise NearstepError("the frames of a video are of one kind and one size")
    return images


def _frames(pictures: Any) -> Tensor:
    """Pictures or a clip as [T, 3, H, W]: bytes, or float32 in [0, 1]."""
    if isinstance(pictures, Tensor | np.ndarray):
        parts = pictures
    else:
        images = _single(pictures)
        parts = torch.stack(images) if isinstance(images[0], Tensor) else np.stack(images)
    given = tuple(parts.shape)
    frames = tensor_of(np.moveaxis(parts, -1, 1) if isinstance(parts, np.ndarray) and parts.ndim == 4 else parts)
    if frames.ndim != 4 or frames.shape[1] != 3 or not frames.numel():
        raise NearstepError(
            f"an image or video of shape {given} was given; use arrays [T, H, W, 3], tensors [T, 3, H, W]"
        )
    if frames.dtype == torch.uint8:
        return frames  # a quarter of the memory; encode makes numbers of a few at a time
    if not 0 <= frames.min() <= frames.max() <= 1:
        raise NearstepError("pictures are bytes, or numbers from 0 to 1; these go beyond")
    return frames


def encoded(frames: Tensor, codec: VideoCodec, device: torch.device) -> Tensor:
    """Frames [T, 3, H, W] as latents [1, F, C, h, w], four frames at a time: equal to encoding them whole."""
    stream, cuts = codec.encoder_stream(), [1] + [TEMPORAL_STRIDE] * ((len(frames) - 1) // TEMPORAL_STRIDE)
    if sum(cuts) != len(frames):
        latent_frames(len(frames))  # which refuses such a number
    parts = (part.float() / 255 if part.dtype == torch.uint8 else part for part in frames.split(cuts))
    return torch.cat([stream.encode(part[None].to(device)) for part in parts], dim=1)
