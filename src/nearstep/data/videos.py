"""Folders of captioned videos (data/captions.py), and clips of a chosen size and rate out of a video file."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from nearstep.data.captions import caption_beside, table_captions, text_files
from nearstep.data.containers import LONGEST_STILL, Film, open_film, rgb, timed, turn_of
from nearstep.errors import NearstepError
from nearstep.pictures import Picture, fitted
from nearstep.ranges import check_count, check_number

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
MOST_FPS = 10_000
"""No camera makes more."""

Frame = TypeVar("Frame")


@dataclass(frozen=True, kw_only=True)
class Video:
    """A file and what it shows."""

    name: str
    """Path inside the folder, with forward slashes."""
    path: Path
    caption: str
    """Empty where there is none."""
    fault: str = ""
    """Why its caption cannot be read, where that is so."""


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
        check_number("fps", self.fps, above=0, most=MOST_FPS)
        for name in ("frames", "height", "width"):
            check_count(name, getattr(self, name), most=10**6)
        check_count("clips_per_video", self.clips_per_video, most=sys.maxsize)


# --- folders -------------------------------------------------------------------------------------------------------


def videos_in(folder: Path) -> list[Path]:
    """The videos that lie in a folder itself, sorted by name; hidden files are left out."""
    return [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.name[0] != "."]


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
    inside = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = {path.as_posix() for path in inside if not any(part.startswith(".") for part in path.parts)}
    if not found:
        raise NearstepError(f"{folder} holds no videos; known are {', '.join(SUFFIXES)}")
    captions, texts = table_captions(folder, found, column), text_files(folder)
    return [_video(folder, name, captions.get(name, ""), texts) for name in sorted(found | set(captions))]


def _video(folder: Path, name: str, caption: str, texts: Mapping[str, Path]) -> Video:
    try:
        own, fault = caption or caption_beside(folder / name, texts), ""
    except NearstepError as error:  # one file in another encoding costs its video and no other
        own, fault = "", str(error)
    return Video(name=name, path=folder / name, caption=own, fault=fault)


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
    with open_film(path) as film:
        for picture in _pictures(film, size):
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
    """The last pictures of a video, cut and resized as :func:`read_clips` does, uint8 [T, H, W, 3].

    Args:
        path: the video.
        size: of the pictures, and their rate; its ``frames`` are not asked for.
        most: how many, if there are as many; no more are held.

    Raises:
        NearstepError: saying why there are none.
    """
    with open_film(path) as film:
        pictures = [*deque(_pictures(film, size), maxlen=most)]
    if not pictures:
        raise NearstepError("it holds no frames")
    return np.stack(pictures)


def count_clips(path: Path, size: ClipSize) -> int:
    """How many clips a video has, as its head says; nothing is decoded.

    Raises:
        NearstepError: saying why there is none.
    """
    with open_film(path) as film:
        stream = film.stream
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif film.container.duration is not None:
            seconds = film.container.duration / 1e6  # in FFmpeg's unit
        else:
            return size.clips_per_video  # it does not say
        rate = float(stream.average_rate or size.fps)
    # Frames are taken as long as the last one is nearest (at_rate); a head may be off by less than a frame.
    pictures = int(max(0.0, seconds - 1 / (2 * rate)) * size.fps + 1e-6) + 1
    if pictures < size.frames:
        raise NearstepError(f"too short: {pictures} frames at {size.fps:g} fps, {size.frames} are needed")
    return min(size.clips_per_video, pictures // size.frames)


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
    with open_film(path) as film:
        context = film.stream.codec_context
        return VideoFacts(context.height, context.width, film.container.metadata.get("comment", ""))


def read_rate(path: Path) -> float:
    """Frames a second, as the file says.

    Raises:
        NearstepError: if it does not say, or is no video.
    """
    with open_film(path) as film:
        if not film.stream.average_rate:
            raise NearstepError(f"{path} does not say how many frames a second it has")
        return float(film.stream.average_rate)


def read_frames(path: Path, most: int) -> np.ndarray:
    """The frames of a video as they are, at most the first ``most`` of them, uint8 [T, H, W, 3].

    Raises:
        NearstepError: saying why there are none.
    """
    with open_film(path) as film:
        pictures = [rgb(frame) for _, (_, frame) in zip(range(most), timed(film.frames(), rate=1.0), strict=False)]
    if not pictures:
        raise NearstepError("it holds no frames")
    return np.stack(pictures)


def _pictures(film: Film, size: ClipSize) -> Iterator[Picture]:
    """Upright pictures of the target's size and rate."""
    stream = film.stream
    rate = float(stream.average_rate or size.fps)
    shown, picture = None, None
    for frame in at_rate(timed(film.frames(), rate), size.fps, last=1 / rate):
        if frame is not shown or picture is None:
            turn, aspect = turn_of(frame), float(stream.sample_aspect_ratio or 1)
            picture = fitted(
                turn(rgb(frame)),
                height=size.height,
                width=size.width,
                aspect=1 / aspect if turn.transposed else aspect,
            )
            shown = frame
        yield picture


def at_rate(frames: Iterable[tuple[float, Frame]], fps: float, *, last: float) -> Iterator[Frame]:
    """The frames nearest in time to 0, 1/fps, 2/fps, ...; of two as near, the earlier one.

    Args:
        frames: (seconds, frame), in order, from second 0 on.
        fps: the rate wanted.
        last: seconds that the last frame is shown; of a picture that stands longer, an hour.
    """
    last = min(last, LONGEST_STILL)
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
