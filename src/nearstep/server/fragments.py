"""Chunks as fragmented mp4: each begins with a key frame and stands alone, and all of them in a row are a file.

A chunk is written as ``nearstep stream`` writes (stream/output.py), into memory; then the boxes that say when it is
shown (``tfdt``) and which fragment it is (``mfhd``) are set to where the chunk lies in its stream.

    [ftyp | moov] the initialisation, the same for all chunks of a size      [moof | mdat] ... one for each frame
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from nearstep.errors import NearstepError
from nearstep.stream.mp4 import piped_mp4

SMALL = 256
"""Pixels of a longer side below which a video is of a small world."""
THUMBNAIL = 96
"""Pixels of a thumbnail's longer side, about."""
_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"moof", b"traf"})


class Fragment(NamedTuple):
    """A chunk as bytes."""

    init: bytes
    media: bytes


class _Box(NamedTuple):
    kind: bytes
    start: int
    """Of its content."""
    end: int


def encoded(clip: np.ndarray, *, fps: float, start: int) -> Fragment:
    """A chunk as a fragment that is shown from frame ``start`` of its stream on.

    Args:
        clip: uint8 [T, H, W, 3]; a small one is written at twice its size, else its colours would be blurred in 4:2:0.
        fps: frames a second.
        start: number of its first frame.
    """
    file = io.BytesIO()
    if max(clip.shape[1:3]) < SMALL:
        clip = clip.repeat(2, axis=1).repeat(2, axis=2)
    _, height, width, _ = clip.shape
    with piped_mp4(file, height=height, width=width, fps=fps) as grow:
        grow(clip)
    written = bytearray(file.getvalue())
    boxes = list(_boxes(written, 0, len(written)))
    first = next(box.start for box in boxes if box.kind == b"moof") - 8
    last = max(box.end for box in boxes if box.kind == b"mdat")
    ticks = _ticks(written, boxes, len(clip), fps)
    for number, box in enumerate(box for box in boxes if box.kind == b"mfhd"):
        _write(written, box.end - 4, 4, start + number + 1)
    for box in (box for box in boxes if box.kind == b"tfdt"):
        width_ = box.end - box.start - 4  # after version and flags
        here = int.from_bytes(written[box.end - width_ : box.end], "big")
        _write(written, box.end - width_, width_, here + start * ticks)
    return Fragment(bytes(written[:first]), bytes(written[first:last]))


def thumbnail(picture: np.ndarray) -> bytes:
    """A picture uint8 [H, W, 3] as a small JPEG; small worlds are enlarged by a whole number."""
    image, longer = Image.fromarray(picture), max(picture.shape[:2])
    if longer > THUMBNAIL:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    else:
        times = THUMBNAIL // longer
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85, subsampling=0)
    return file.getvalue()


def _ticks(written: bytearray, boxes: list[_Box], frames: int, fps: float) -> int:
    """Ticks of the track's clock that a frame lasts."""
    (head,) = (box for box in boxes if box.kind == b"mdhd")
    at = head.start + (20 if written[head.start] else 12)  # version 1 has longer dates before it
    return round(int.from_bytes(written[at : at + 4], "big") / fps)


def _boxes(written: bytearray, start: int, end: int) -> Iterator[_Box]:
    while start + 8 <= end:
        size, kind = int.from_bytes(written[start : start + 4], "big"), bytes(written[start + 4 : start + 8])
        if size < 8 or start + size > end:
            raise NearstepError("the encoder wrote a box of an mp4 that has no end")
        yield _Box(kind, start + 8, start + size)
        if kind in _CONTAINERS:
            yield from _boxes(written, start + 8, start + size)
        start += size


def _write(written: bytearray, at: int, size: int, value: int) -> None:
    written[at : at + size] = value.to_bytes(size, "big")
