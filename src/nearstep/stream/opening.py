"""What a session begins with: its wishes checked, its picture or clip encoded, its take read back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets.devices import device_of
from nearstep.nets.transformer import VideoTransformer
from nearstep.stream.recording import Record
from nearstep.stream.session import Session
from nearstep.stream.state import digest, reach_of

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline

Picture = Image.Image | np.ndarray | Tensor
"""A PIL image, an array [H, W, 3] (uint8, or floating in [0, 1]), or a tensor [3, H, W] in [0, 1]."""
Clip = np.ndarray | Tensor | Sequence[Image.Image]
"""An array [T, H, W, 3], a tensor [T, 3, H, W] or PIL images, T = 4n + 1."""


def open_session(
    pipe: CausalVideoPipeline,
    prompt: str,
    plan: str | None,
    *,
    seed: int | None = None,
    sample: int = 0,
    negative_prompt: str = "",
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    image: Picture | None = None,
    video: Clip | None = None,
    window: int | None = None,
    sink: int | None = None,
    following: bool | None = None,
    undo: int = 0,
    ahead: bool = False,
    log: str | Path | None = None,
    script: Sequence[Mapping[str, Any]] | None = None,
    keep_times: bool = True,
) -> Session:
    """A session, once all that is asked of it has been checked.

    Args:
        pipe: with a causal student.
        prompt: what it shows first.
        plan: what each chunk gets (flow/live_plan.py); the model's own by default.
        seed: names all noise; a random one by default (it is in the record).
        sample: which sample of the seed.
        negative_prompt: what guidance leads away from.
        guidance_scale: w in v = u + w (c - u); 1, none, by default.
        height: pixels.
        width: pixels.
        image: a picture to go on from.
        video: a clip to go on from, 4n + 1 frames.
        window: newest latent frames that a chunk sees, its own included.
        sink: first latent frames that it sees in addition.
        following: see the sink as if it lay just before the window; yes, unless the model was trained with a sink.
        undo: so many of the newest chunks can be taken back at once, each for a copy of the cache.
        ahead: make the next chunk while one is decoded: faster, and changes act one chunk later.
        log: a file that follows the record as it grows.
        script: a record's chunks, to be made again.
        keep_times: whether those get the steps they had.

    Raises:
        NearstepError: naming what the model cannot do; nothing has run by then.
    """
    config = pipe.transformer.config
    if config["chunk_frames"] is None:
        raise NearstepError("a stream needs a causal student, and this network is bidirectional: it makes clips whole")
    if not isinstance(prompt, str):
        raise NearstepError(f"a session has one prompt, not {prompt!r}; open one for each")
    asked = pipe.request(
        prompt,
        "1",
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        seed=seed,
        samples=[sample],
    )
    plan = plan or pipe.settings.default_plan
    reach = reach_of(config, pipe.settings.num_frames, window, sink, following)
    stride = pipe.codec.spatial_stride
    size = (asked.clip.shape.height * stride, asked.clip.shape.width * stride)
    given = _encoded(pipe, image, video, size)
    opening = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "plan": plan,
        "seed": asked.seed,
        "sample": sample,
        "guidance": asked.guidance,
        "height": size[0],
        "width": size[1],
        "window": reach.window,
        "sink": reach.sink,
        "following": reach.relative_sink,
        "given": None if given is None else digest(given),
        "weights": _weights(pipe),
        "torch": torch.__version__,
    }
    return Session(
        pipe,
        asked,
        plan,
        reach,
        given=given,
        opening=opening,
        script=script,
        keep_times=keep_times,
        undo=undo,
        ahead=ahead,
        log=None if log is None else Path(log),
    )


def open_replay(
    pipe: CausalVideoPipeline,
    take: Record | str | Path,
    plan: str | None,
    *,
    image: Picture | None = None,
    video: Clip | None = None,
    ahead: bool = False,
) -> Session:
    """As CausalVideoPipeline.replay."""
    take = take if isinstance(take, Record) else Record.load(take)
    was = take.opening
    names = ("seed", "sample", "negative_prompt", "height", "width", "window", "sink", "following")
    script = take.chunks if plan is None else [{k: v for k, v in row.items() if k != "plan"} for row in take.chunks]
    session = open_session(
        pipe,
        was["prompt"],
        plan or was["plan"],
        guidance_scale=was["guidance"],
        image=image,
        video=video,
        ahead=ahead,
        script=script,
        keep_times=plan is None,
        **{name: was[name] for name in names},
    )
    now = session.record.opening
    if now["given"] != was.get("given"):
        wanted = "the picture or clip it went on from" if was.get("given") else "no picture or clip"
        raise NearstepError(f"this take began with {wanted}; give the same (image= or video=)")
    if now["weights"] != was.get("weights"):
        warnings.warn("this take was made by other weights, so its frames will differ", stacklevel=3)
    return session


def _encoded(
    pipe: CausalVideoPipeline, image: Picture | None, video: Clip | None, size: tuple[int, int]
) -> Tensor | None:
    """Latents [1, F, C, h, w] of what is given."""
    if image is not None and video is not None:
        raise NearstepError("give an image or a video to go on from, not both")
    if image is None and video is None:
        return None
    frames = _frames([image] if image is not None else video)
    if frames.shape[2:] != size:
        what, (height, width) = "image" if video is None else "video", frames.shape[2:]
        raise NearstepError(
            f"the {what} is {height} high and {width} wide, this stream {size[0]} by {size[1]}; "
            f"resize it, or open the stream with height={height}, width={width}"
        )
    with torch.no_grad():
        latents = pipe.codec.encode(frames[None].to(device_of(pipe.vae)))
    return latents.to(device_of(cast(VideoTransformer, pipe.transformer)), torch.float32)


def _frames(given: Any) -> Tensor:
    """Pictures or a clip as [T, 3, H, W] in [0, 1], float32."""
    if isinstance(given, Tensor | np.ndarray):
        parts = given
    else:
        images: Any = [np.asarray(part.convert("RGB")) if isinstance(part, Image.Image) else part for part in given]
        parts = torch.stack(images) if isinstance(images[0], Tensor) else np.stack(images)
    frames = parts if isinstance(parts, Tensor) else torch.from_numpy(parts).movedim(-1, 1)
    if frames.ndim != 4 or frames.shape[1] != 3:
        raise NearstepError(
            f"an image or video of shape {tuple(parts.shape)} was given; use arrays [T, H, W, 3], tensors [T, 3, H, W]"
        )
    frames = frames.float() / 255 if frames.dtype == torch.uint8 else frames.float()
    if not 0 <= frames.min() <= frames.max() <= 1:
        raise NearstepError("pictures are bytes, or numbers from 0 to 1; these go beyond")
    return frames


def _weights(pipe: CausalVideoPipeline) -> str:
    """A short name for the network's weights: that of its output layer, which no training leaves alone."""
    return digest(cast(VideoTransformer, pipe.transformer).proj_out.weight)
