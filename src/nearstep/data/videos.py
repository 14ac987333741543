"""Folders of captioned videos, and clips of a chosen size and rate out of a video file.

A caption stands in a text file beside its video (``dog.mp4``, ``dog.txt``), or in a ``metadata.csv`` or
``metadata.jsonl`` at the top of the folder, as Hugging Face's video folders have it: a column ``file_name`` and a
column ``caption``, ``text`` or ``prompt``. Sub-folders are searched too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from nearstep.data.prompts import TABLES, caption_in, read_table, read_text
from nearstep.errors import NearstepError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
FILE_COLUMNS = ("file_name", "file", "video", "path")
METADATA = tuple(f"metadata{suffix}" for suffix in TABLES)

Picture = np.ndarray
"""uint8 [H, W, 3]."""
Frame = TypeVar("Frame")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A file and what it shows."""

    name: str
    """Path inside the folder, with forward slashes."""
    path: Path
    caption: str
    """Empty where there is none."""


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """What is cut out of a video."""

    frames: int
    """Pixel frames."""
    height: int
    width: int
    fps: float
    clips_per_video: int = 1
    """At most; one after the other from the beginning."""

    def __post_init__(self) -> None:
        if not 0 < self.fps < inf:
            raise NearstepError(f"fps={self.fps:g}; a frame rate is greater than 0")
        if self.clips_per_video < 1:
            raise NearstepError(f"clips_per_video={self.clips_per_video}; at least 1")


# --- folders -------------------------------------------------------------------------------------------------------


def list_videos(folder: Path, *, column: str | None = None) -> list[Video]:
    """The videos in ``folder``, sorted by name; those that the metadata names and that do not exist included.

    Args:
        folder: searched with its sub-folders; hidden files are left out.
        column: the metadata's caption column, where it has another name.

    Raises:
        NearstepError: if there is no folder, no video, or the metadata cannot be read.
    """
    if not folder.is_dir():
        raise NearstepError(f"{folder} is {'a file' if folder.exists() else 'not there'}; give a folder of videos")
    captions = _metadata(folder, column)
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = {path.as_posix() for path in inside if not any(part.startswith(".") for part in path.parts)}
    if not found:
        raise NearstepError(f"{folder} holds no videos; known are {', '.join(SUFFIXES)}")
    return [
        Video(name=name, path=folder / name, caption=captions.get(name) or _beside(folder / name))
        for name in sorted(found | set(captions))
    ]


def _metadata(folder: Path, column: str | None) -> dict[str, str]:
    files = [folder / name for name in METADATA if (folder / name).is_file()]
    if not files:
        return {}
    if len(files) > 1:
        raise NearstepError(f"{folder} holds {' and '.join(METADATA)}; keep one")
    captions: dict[str, str] = {}
    for line, row in read_table(files[0]):
        where = f"{files[0]}, line {line}"
        name = next((row[name] for name in FILE_COLUMNS if row.get(name)), None) if isinstance(row, dict) else None
        if not isinstance(name, str):
            raise NearstepError(f"{where}: no column {' or '.join(FILE_COLUMNS)} that names a video")
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise NearstepError(f"{where}: {name} is not inside {folder}; name videos relative to it")
        if path.as_posix() in captions:
            raise NearstepError(f"{where}: {name} is named twice; one caption each")
        captions[path.as_posix()] = caption_in(row, where, column).strip()
    return captions


def _beside(video: Path) -> str:
    text = video.with_suffix(".txt")
    return " ".join(read_text(text).split()) if text.is_file() else ""


# --- files ---------------------------------------------------------------------------------------------------------


def read_clips(path: Path, size: ClipSize) -> list[np.ndarray]:
    """The first clips of a video, uint8 [T, H, W, 3] each; at least one.

    The frame nearest in time is taken for each frame of the target rate. Pictures are turned upright, cropped at the
    centre to the target's aspect (pixels that are not square are counted as wide as they are shown) and resized by
    antialiased cubic interpolation.

    Raises:
        NearstepError: saying why there is none.
    """
    clips: list[np.ndarray] = []
    pictures: list[Picture] = []
    with _container(path) as container:
        for picture in _pictures(container, size):
            pictures.append(picture)
            if len(pictures) == size.frames:
                clips.append(np.stack(pictures))
                pictures = []
            if len(clips) == size.clips_per_video:
                break
    if not clips:
        raise NearstepError(f"too short: {len(pictures)} frames at {size.fps:g} fps, {size.frames} are needed")
    return clips


def read_ending(path: Path, size: ClipSize, most: int) -> np.ndarray:
    """The last pictures of a video, at most so many, uint8 [T, H, W, 3]; made of it as for :func:`read_clips`.

    No more than these are held, however long the video is.

    Raises:
        NearstepError: saying why there are none.
    """
    with _container(path) as container:
        pictures = deque(_pictures(container, size), maxlen=most)
    if not pictures:
        raise NearstepError("it holds no frames")
    return np.stack(pictures)


class VideoFacts(NamedTuple):
    """What the head of a video file says; no frame is decoded for it."""

    height: int
    width: int
    comment: str
    """Empty where there is none; ``nearstep generate`` keeps there what made the clip, as JSON."""


def read_facts(path: Path) -> VideoFacts:
    """The head of a video file.

    Raises:
        NearstepError: saying why it is none.
    """
    with _container(path) as container:
        stream = container.streams.video[0]
        return VideoFacts(stream.height, stream.width, container.metadata.get("comment", ""))


def read_frames(path: Path, most: int) -> np.ndarray:
    """The frames of a video as they are, at most the first ``most`` of them, uint8 [T, H, W, 3].

    Raises:
        NearstepError: saying why there are none.
    """
    with _container(path) as container:
        frames = _timed(container.decode(container.streams.video[0]), rate=1.0)
        pictures = [frame.to_ndarray(format="rgb24") for _, (_, frame) in zip(range(most), frames, strict=False)]
    if not pictures:
        raise NearstepError("it holds no frames")
    return np.stack(pictures)


@contextmanager
def _container(path: Path) -> Iterator[Any]:
    import av

    if not path.is_file():
        raise NearstepError("there is no such file")
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise NearstepError("it holds no video stream")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise NearstepError(f"it cannot be decoded: {error.strerror}") from error


def _pictures(container: Any, size: ClipSize) -> Iterator[Picture]:
    """Upright pictures of the target's size and rate."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # files are decoded beside each other
    rate = float(stream.average_rate or size.fps)
    shown, picture = None, None
    for frame in at_rate(_timed(container.decode(stream), rate), size.fps, last=1 / rate):
        if frame is not shown or picture is None:
            turns = round((frame.rotation or 0) / 90)
            aspect = float(stream.sample_aspect_ratio or 1)
            picture = fitted(
                np.rot90(frame.to_ndarray(format="rgb24"), turns),
                height=size.height,
                width=size.width,
                aspect=1 / aspect if turns % 2 else aspect,
            )
            shown = frame
        yield picture


def _timed(frames: Iterable[Any], rate: float) -> Iterator[tuple[float, Any]]:
    start = None
    for number, frame in enumerate(frames):
        if frame.is_corrupt:
            raise NearstepError(f"it cannot be decoded: frame {number} is damaged")
        time = number / rate if frame.time is None else frame.time
        start = time if start is None else start
        yield time - start, frame


def at_rate(frames: Iterable[tuple[float, Frame]], fps: float, *, last: float) -> Iterator[Frame]:
    """The frames nearest in time to 0, 1/fps, 2/fps, ...; of two as near, the earlier one.

    Args:
        frames: (seconds, frame), in order, from second 0 on.
        fps: the rate wanted.
        last: seconds that the last frame is shown.
    """
    taken = 0
    before: tuple[float, Frame] | None = None
    for time, frame in frames:
        while before and taken / fps <= (before[0] + time) / 2:
            yield before[1]
            taken += 1
        before = (time, frame)
    while before and taken / fps <= before[0] + last / 2:
        yield before[1]
        taken += 1


def fitted(picture: Picture, *, height: int, width: int, aspect: float = 1.0) -> Picture:
    """The largest centred crop with the aspect of ``width x height``, resized to it.

    Args:
        picture: uint8 [H, W, 3].
        height: of the result.
        width: of the result.
        aspect: width of the picture's pixels over their height.
    """
    rows, columns, _ = picture.shape
    wanted = width / height / aspect  # columns for each row
    kept_rows = min(rows, max(1, round(columns / wanted)))
    kept_columns = min(columns, max(1, round(rows * wanted)))
    top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
    crop = np.ascontiguousarray(picture[top : top + kept_rows, left : left + kept_columns])
    pixels = torch.from_numpy(crop).permute(2, 0, 1)[None]  # bytes stay bytes: nine times as fast as float32
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).contiguous().numpy()
