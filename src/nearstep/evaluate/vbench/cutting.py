"""Videos cut into the clips of VBench-Long, in a folder of their own.

    FOLDER/videos/                  links to the videos, and split_clip/ with their clips (long.py)
    FOLDER/first_frames/            of each video with several clips their first frames, as a video
    FOLDER/sample.json              what the videos are, and which protocol

A video's clips are a folder that is whole or absent, and it comes last. The first link comes before split_clip/: the
official look-up reads the suffix of videos off what is listed first, and some file systems list in the order of making.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearstep.data.containers import open_film, rgb, timed
from nearstep.data.videos import read_rate
from nearstep.errors import NearstepError
from nearstep.evaluate.vbench.long import FIRSTS, PROTOCOL, SPLIT, check_video_name, clip_name, clips_of
from nearstep.evaluate.vbench.results import RECORD, read_record
from nearstep.files import beside, check_name, replacing_folder, sweep, write_json
from nearstep.pictures import Picture
from nearstep.stream.output import write_video

_SAME = ("protocol", "seconds", "wording")
_SHOWN = 3  # videos in an error
BY_DIMENSION = "by dimension"


def cut_all(
    videos: Path, out: Path, seconds: Mapping[str, int], said: Mapping[str, Any], *, tell: Callable[[str], None]
) -> None:
    """Cut what is not cut yet.

    Args:
        videos: the folder that holds them.
        out: gets the clips.
        seconds: name of a video -> how long its clips are.
        said: what the videos are, for the record.
        tell: takes a line about each video that is cut.

    Raises:
        NearstepError: for a name that cannot have clips, or clips of another kind in ``out``, before any work; at the
            end for videos that could not be cut.
    """
    for name in seconds:
        check_video_name(name)
        check_name(out / clip_name(name.removesuffix(".mp4"), 0))
    _claim(videos, out, {**said, "protocol": PROTOCOL})
    sweep(out / "videos" / SPLIT)
    failed: list[str] = []
    for name, length in seconds.items():
        if _done(videos / name, out):
            continue
        try:
            tell(f"{name}: {_cut(videos / name, out, length)}")
        except NearstepError as error:
            failed.append(f"{videos / name}: {error}")
    if failed:
        more = f" (and {len(failed) - _SHOWN} more)" if len(failed) > _SHOWN else ""
        raise NearstepError(
            f"{len(failed)} of {len(seconds)} videos could not be cut: {'; '.join(failed[:_SHOWN])}{more}; make them "
            "again or move them elsewhere (the others are cut)"
        )


def _claim(videos: Path, out: Path, said: Mapping[str, Any]) -> None:
    if out.resolve().is_relative_to(videos.resolve()) or videos.resolve().is_relative_to(out.resolve()):
        raise NearstepError(f"-o {out} holds the videos themselves, or lies among them; name a folder of its own")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise NearstepError(f"-o {out} is there and holds something else than clips; name a new folder")
    there = read_record(out) if (out / RECORD).is_file() else said
    for name in _SAME:
        if there.get(name) != said.get(name):
            raise NearstepError(
                f"{out} has clips of {name} {there.get(name)!r}, not {said.get(name)!r}; name another folder"
            )
    write_json(out / RECORD, dict(said))


def _done(source: Path, out: Path) -> bool:
    link = out / "videos" / source.name
    if not link.is_file() or not (out / "videos" / SPLIT / source.stem).is_dir():
        return False
    there, now = link.stat(), source.stat()
    return (there.st_mtime_ns, there.st_size) == (now.st_mtime_ns, now.st_size)


def _cut(source: Path, out: Path, seconds: int) -> str:
    link, target = out / "videos" / source.name, out / "videos" / SPLIT / source.stem
    rate = int(read_rate(source))  # as the official cutter takes it, and writes it
    if rate * seconds < 2:
        raise NearstepError(f"{rate} frames a second; a clip of {seconds} s needs two frames")
    shutil.rmtree(target, ignore_errors=True)
    _link(source, link)
    try:
        lengths = _write_clips(source, target, out / FIRSTS / source.name, rate, seconds)
    except NearstepError:
        link.unlink()
        raise
    return f"{len(lengths)} clip{'s' * (len(lengths) > 1)} of {lengths[0]} frames at {rate} a second"


def _write_clips(source: Path, target: Path, first_frames: Path, rate: int, seconds: int) -> list[int]:
    """Frames of each clip."""
    firsts: list[Picture] = []
    lengths: list[int] = []
    with replacing_folder(target) as part:
        for number, clip in enumerate(clips_of(_pictures(source), rate * seconds)):
            _check(clip)
            name = clip_name(source.stem, number, full=len(clip) < rate * seconds)
            write_video(part / name, _film(clip), fps=rate, metadata={"clip_of": source.name, "number": number})
            firsts.append(clip[0])
            lengths.append(len(clip))
        if not lengths:
            raise NearstepError("it holds no frames")
        _keep_firsts(first_frames, firsts, rate)
    return lengths


def _check(clip: Sequence[Picture]) -> None:
    height, width, _ = clip[0].shape
    if len(clip) < 2:
        raise NearstepError("it has one frame; a clip needs two")
    if height % 2 or width % 2:
        raise NearstepError(f"it is {width}x{height}; clips are H.264, as the official ones, which needs even sides")


def _pictures(path: Path) -> Iterator[Picture]:
    with open_film(path) as film:
        for _, frame in timed(film.frames(), rate=1.0):
            yield rgb(frame)


def _film(pictures: Sequence[Picture]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def _keep_firsts(path: Path, firsts: Sequence[Picture], rate: int) -> None:
    # One clip has no other to be compared with.
    if len(firsts) > 1:
        write_video(path, _film(firsts), fps=rate)
    else:
        path.unlink(missing_ok=True)


def _link(source: Path, link: Path) -> None:
    part = beside(link)
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):  # another disk, or one without links
            os.link(source.resolve(), part)
        if not part.exists():
            shutil.copy2(source, part)  # with its time
        part.replace(link)
    except OSError as error:
        raise NearstepError(f"cannot write {link}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def listed_first(folder: Path) -> str:
    """What a folder's file system lists first: where that is no video, the official look-up finds no clip at all."""
    return next(iter(os.listdir(folder)), "")  # noqa: PTH208  # its own order, not a sorted one
