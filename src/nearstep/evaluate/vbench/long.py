"""VBench-Long's clips: how long they are, what they are called, and where they lie.

    VIDEOS/PROMPT-INDEX.mp4                                          the long videos
    VIDEOS/split_clip/PROMPT-INDEX/PROMPT-INDEX_000.mp4, _001, ...   their clips
    VIDEOS/split_clip/PROMPT-INDEX/PROMPT-INDEX_full.mp4             of a video that is shorter than one clip

The official scripts cut at scenes only when they are told to (--use_semantic_splitting, which their evaluate_long.sh
leaves out), and their look-up by standard prompts does not find clips of scenes; so ours cut at none. A clip of a scene
(``PROMPT-INDEX-Scene-0_000.mp4``) in somebody's scores still counts for its video.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from nearstep.errors import NearstepError

PROTOCOL = "VBench-Long"
SPLIT = "split_clip"
"""The folder of clips beside the videos."""
FILTERED = "filtered_clips"
"""The folder of what the official static filter has chosen: clips, all in one."""
FIRSTS = "first_frames"
"""Beside the folder of videos: for each of them a video of its clips' first frames."""
SECONDS = 2
"""Of a clip."""
LONGER = {"human_action": 10, "temporal_style": 10, "overall_consistency": 10}
"""Dimensions whose networks want longer clips; videos that they share with others are cut for them
(the official clip_length_mix.yaml)."""
_VIDEO = re.compile(r"[^_]*-\d+")
_CLIP = re.compile(r"(?P<video>[^_]*?-\d+)(?:-Scene-\d+)?_(?:\d{3,}|full)")
Frame = TypeVar("Frame")


def clip_seconds(dimensions: Iterable[str]) -> int:
    """How long the clips of a video are that is scored in these dimensions."""
    return max((LONGER.get(name, SECONDS) for name in dimensions), default=SECONDS)


def check_video_name(name: str) -> None:
    """Refuse a video whose clips the official evaluator would not find.

    Raises:
        NearstepError: saying how it reads names.
    """
    stem = name.removesuffix(".mp4")
    if stem == name or ".mp4" in stem or not _VIDEO.fullmatch(stem):
        raise NearstepError(
            f"{name}: the evaluator finds clips by what is before the first _ of their name, so a video is named "
            "PROMPT-INDEX.mp4, with no _ and no second .mp4 in it; rename it"
        )


def clips_of(frames: Iterable[Frame], each: int) -> Iterator[list[Frame]]:
    """A video's frames as clips of ``each`` frames.

    A rest is made a whole clip by the frames before it, which are then in two clips; a video that is shorter than one
    clip is one.
    """
    before: list[Frame] = []
    now: list[Frame] = []
    for frame in frames:
        now.append(frame)
        if len(now) == each:
            yield now
            before, now = now, []
    if now:
        yield [*before[len(now) :], *now]


def clip_name(video: str, number: int, *, full: bool = False) -> str:
    """What a video's clip is called; ``video`` without its suffix."""
    return f"{video}_full.mp4" if full else f"{video}_{number:03d}.mp4"


def video_of(path: str) -> str | None:
    """The name, without a suffix, of the video that a path is a clip of; None where it is no clip.

    The official results name a consistency's values ``.../PROMPT-INDEX_000.mp4/PROMPT-INDEX.mp4``.
    """
    for part in (Path(path), Path(path).parent):
        if found := _CLIP.fullmatch(part.stem):
            return found["video"]
    return None


def files_of(videos: Path) -> dict[str, tuple[str, ...]]:
    """Video -> the files that are its clips, in order, as seen from ``videos``.

    Args:
        videos: a folder of folders of clips, or of clips.

    Raises:
        NearstepError: naming what is neither.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(videos.glob("[!.]*")):
        for clip in sorted(path.iterdir()) if path.is_dir() else [path]:
            video = video_of(clip.name)
            if video is None or clip.suffix != ".mp4":
                raise NearstepError(f"{clip} is no clip of VBench-Long, such as PROMPT-0_000.mp4; move it elsewhere")
            found.setdefault(video, []).append(clip.relative_to(videos).as_posix())
    return {video: tuple(files) for video, files in found.items()}
