"""From videos or prompts to shards of latents. Killed at any moment, the same call goes on after the last whole shard.

Videos are decoded in processes of their own, in order and some ahead; the codec runs here, in batches that never cross
a shard. So neither the number of workers nor a restart changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nearstep.cluster import Cluster, each
from nearstep.data.decoding import Work, attempt, decoding
from nearstep.data.shards import (
    DTYPES,
    INDEX,
    Index,
    Record,
    Shards,
    ShardWriter,
    check_same,
    clip_bytes,
    read_index,
    write_index,
)
from nearstep.data.videos import ClipSize, Video
from nearstep.errors import NearstepError
from nearstep.files import sweep, write_json_lines

SKIPPED = "skipped.jsonl"
NO_CAPTION = "no caption: neither a text file beside it nor a line in the metadata"
_SHARD_BYTES = 2**28
_SHARD_CLIPS = 512

Encode = Callable[[Tensor], Tensor]
"""Video [B, T, 3, H, W] in [0, 1] -> latents [B, F, C, h, w]."""
Make = Callable[[list[str], list[int]], Tensor]
"""Prompts and their numbers, which name the noise -> latents [B, F, C, h, w]."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A video that gave no clip."""

    file: str
    reason: str


def open_folder(folder: Path, index: Index) -> Index:
    """What ``folder`` holds of these latents so far; a new folder is claimed for them.

    Raises:
        NearstepError: if it holds something else.
    """
    found = read_index(folder)
    if found is None:
        if folder.exists() and (not folder.is_dir() or any(part for part in folder.iterdir() if part.name[0] != ".")):
            raise NearstepError(f"{folder} is there and has no {INDEX} of latents; name a new or an empty folder")
        return index
    check_same(folder, found, index)
    return found


def shard_size(index: Index, clips: int | None = None) -> int:
    """Clips per shard: as asked, or as many as make a quarter of a gigabyte."""
    if clips is not None and clips < 1:
        raise NearstepError(f"{clips} clips per shard; at least 1")
    return clips or max(1, min(_SHARD_CLIPS, _SHARD_BYTES // clip_bytes(index)))


def remaining(videos: Sequence[Video], folder: Path, index: Index) -> list[Work]:
    """What is still to be done; videos without a caption, and those skipped before, are looked at again."""
    done: dict[str, tuple[int, int]] = {}
    for record in Shards(folder, index).records():
        if not {"file", "clip", "of"} <= record.keys():
            raise NearstepError(f"{folder} holds a record without its file, clip and of; make the latents again")
        done[record["file"]] = (record["clip"] + 1, record["of"])
    return [Work(video, first) for video in videos for first, of in [done.get(video.name, (0, -1))] if first != of]


def prepare_videos(
    work: Sequence[Work],
    size: ClipSize,
    writer: ShardWriter,
    encode: Encode,
    *,
    workers: int = 1,
    batch: int = 1,
    check: Callable[[str], object] = str,
    told: Callable[[int], object] = int,
    cluster: Cluster | None = None,
) -> list[Skipped]:
    """Encode the clips of videos into shards.

    Args:
        work: from :func:`remaining`.
        size: of the clips.
        writer: of the folder that was opened.
        encode: the codec.
        workers: processes that decode; 0 decodes here.
        batch: clips that are encoded together.
        check: refuses a caption by a NearstepError.
        told: called with the number of videos done, now and then.
        cluster: decodes and encodes there, a video an item and a clip at a time; None is here.

    Returns:
        what was skipped; also written to ``skipped.jsonl``, even where an error ends the work.
    """
    _start(writer)
    skipped: list[Skipped] = []
    waiting: list[tuple[np.ndarray, Record]] = []

    def flush() -> None:
        if waiting:
            skipped.extend(_encoded(waiting, writer, encode))
            waiting.clear()

    checked = [(item, refused(item.video, check)) for item in work]
    readable = [item for item, reason in checked if reason is None]
    skipped += [Skipped(file=item.video.name, reason=reason) for item, reason in checked if reason is not None]
    told(len(work) - len(readable))
    try:
        if cluster is None:
            with decoding(readable, size, workers) as decoded:
                for (video, first), clips in decoded:
                    if isinstance(clips, str):
                        skipped.append(Skipped(file=video.name, reason=clips))
                        clips = []
                    for number, clip in enumerate(clips[first:], start=first):
                        waiting.append((clip, _record(video, number, len(clips), size)))
                        if len(waiting) >= min(batch, writer.room):
                            flush()
                    told(1)
            flush()
        else:
            work_of = _Coded(size=size, encode=encode, dtype=writer.index.dtype)
            for (video, first), coded in zip(readable, each(work_of, readable, cluster), strict=True):
                if isinstance(coded, str):
                    skipped.append(Skipped(file=video.name, reason=coded))
                    coded = []
                for number, clip in enumerate(coded, start=first):
                    record = _record(video, number, first + len(coded), size)
                    skipped.extend(_kept(clip, record, writer))
                told(1)
        writer.flush()
    finally:
        _write_skipped(writer.folder / SKIPPED, skipped)
    return skipped


def prepare_prompts(
    prompts: Sequence[str],
    writer: ShardWriter,
    make: Make,
    *,
    batch: int = 1,
    told: Callable[[int], object] = int,
    cluster: Cluster | None = None,
) -> None:
    """Make latents from prompts, going on after those that the folder holds.

    Args:
        prompts: one clip each; the folder's first ones must be these.
        writer: of the folder that was opened.
        make: plays the teacher.
        batch: clips that are made together.
        told: called with the number of clips done.
        cluster: makes batches beside each other; None is this process.

    Raises:
        NearstepError: if the prompts changed, or latents are not finite.
    """
    held = [record["caption"] for record in Shards(writer.folder, writer.index).records()]
    if held != list(prompts[: len(held)]):
        place = next((i for i, (a, b) in enumerate(zip(held, prompts, strict=False)) if a != b), len(prompts))
        raise NearstepError(
            f"{writer.folder} was made from other prompts, from number {place + 1} on; use another folder"
        )
    _start(writer)
    batches = _batches(range(len(held), len(prompts)), batch, room=writer.room, shard=writer.size)
    asked = [([prompts[number] for number in numbers], [*numbers]) for numbers in batches]
    for numbers, made in zip(batches, each(partial(_asked, make), asked, cluster), strict=True):
        latents = made.to(DTYPES[writer.index.dtype]).cpu()
        if not bool(torch.isfinite(latents).all()):
            first = prompts[numbers.start]
            raise NearstepError(f"the clip of {first!r} or one after it is not finite in {writer.index.dtype}")
        for number, clip in zip(numbers, latents, strict=True):
            writer.add(clip, {"caption": prompts[number], "sample": number})
        told(len(numbers))
    writer.flush()


def _asked(make: Make, asked: tuple[list[str], list[int]]) -> Tensor:
    return make(*asked)


def _batches(places: range, batch: int, *, room: int, shard: int) -> list[range]:
    """Neighbouring places together, never across the end of a shard."""
    found: list[range] = []
    place = places.start
    while place < places.stop:
        end = min(place + min(batch, room), places.stop)
        found.append(range(place, end))
        room = room - (end - place) or shard
        place = end
    return found


@dataclass(frozen=True, kw_only=True)
class _Coded:
    """Decodes a video and encodes its clips, where the work is shared by a cluster."""

    size: ClipSize
    encode: Encode
    dtype: str

    def __call__(self, item: Work) -> list[Tensor] | str:
        clips = attempt(item.video.path, self.size)
        if isinstance(clips, str):
            return clips
        return [_latents(clip[None], self.encode, self.dtype)[0] for clip in clips[item.first :]]


def _start(writer: ShardWriter) -> None:
    sweep(writer.folder)
    if not writer.index.shards:
        write_index(writer.folder, writer.index)


def refused(video: Video, check: Callable[[str], object]) -> str | None:
    """Why a video cannot be used, as far as its caption shows."""
    if video.fault:
        return f"its caption: {video.fault}"
    if not video.caption:
        return NO_CAPTION
    try:
        check(video.caption)
    except NearstepError as error:
        return f"its caption: {str(error).partition(';')[0]}"  # without the list of all words that are known
    return None


def _encoded(waiting: Sequence[tuple[np.ndarray, Record]], writer: ShardWriter, encode: Encode) -> Iterator[Skipped]:
    """Encode and hand over; yields what cannot be kept."""
    latents = _latents(np.stack([clip for clip, _ in waiting]), encode, writer.index.dtype)
    for clip, (_, record) in zip(latents, waiting, strict=True):
        yield from _kept(clip, record, writer)


def _latents(clips: np.ndarray, encode: Encode, dtype: str) -> Tensor:
    """Pixels [B, T, H, W, 3] as the codec makes latents of them, on the CPU, as they are stored."""
    video = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255
    return encode(video).to(DTYPES[dtype]).cpu()


def _kept(clip: Tensor, record: Record, writer: ShardWriter) -> Iterator[Skipped]:
    """Hand a clip over; yields it where it cannot be kept."""
    if bool(torch.isfinite(clip).all()):
        writer.add(clip, record)
    else:
        yield Skipped(file=record["file"], reason=f"its latents are not finite in {writer.index.dtype}")


def _record(video: Video, number: int, clips: int, size: ClipSize) -> Record:
    start = round(number * size.frames / size.fps, 6)
    return {"caption": video.caption, "file": video.name, "clip": number, "of": clips, "start": start}


def _write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    if not skipped:
        path.unlink(missing_ok=True)
        return
    write_json_lines(path, [asdict(one) for one in sorted(skipped, key=lambda one: one.file)])
