"""Video files as they come: which of their streams is the film, and how its frames are held upright.

Cover art and thumbnails are streams, too, and may come first. Phones store a matrix that says how frames are to be
turned or mirrored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nearstep.errors import NearstepError
from nearstep.pictures import Picture

if TYPE_CHECKING:
    from av import VideoFrame

LONGEST_STILL = 3600
"""Seconds that one frame may be shown: what claims to last longer is damaged."""
_HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics (ITU-T H.273) whose numbers mean other light than those of a screen."""


class Film(NamedTuple):
    """An open file and the stream of it that is the film."""

    container: Any
    stream: Any

    def frames(self) -> Iterator[VideoFrame]:
        """Its frames, decoded one after the other.

        Raises:
            NearstepError: if their numbers cannot be taken for those of a screen.
        """
        self.stream.codec_context.thread_count = 1  # files are decoded beside each other
        for frame in self.container.decode(self.stream):
            if (kind := _HDR.get(int(frame.color_trc))) is not None:
                raise NearstepError(
                    f"it is HDR ({kind}), which looks grey unless it is tone-mapped; make an SDR copy of it first "
                    "(ffmpeg's zscale and tonemap filters)"
                )
            yield frame


@contextmanager
def open_film(path: Path) -> Iterator[Film]:
    """A video file.

    Raises:
        NearstepError: if it is none, or turns out to be damaged while it is read.
    """
    import av

    try:
        if not path.is_file():
            raise NearstepError("there is no such file")
        index = _film_in(path)
        with av.open(path, metadata_errors="replace") as container:
            stream = container.streams[index]
            if stream.codec_context is None:
                raise NearstepError("it cannot be decoded: its codec is not known here")
            yield Film(container, stream)
    except (av.FFmpegError, OSError) as error:
        raise NearstepError(f"it cannot be decoded: {error.strerror}") from error
    except (ValueError, OverflowError, MemoryError, AttributeError, RuntimeError) as error:
        if isinstance(error, NearstepError):
            raise
        raise NearstepError(f"it cannot be decoded: {str(error).splitlines()[0] if str(error) else error!r}") from error


def _film_in(path: Path) -> int:
    """The index of the stream that is the film: no attached picture, more than one frame, then the largest."""
    import av
    from av.stream import Disposition

    with av.open(path, metadata_errors="replace") as container:  # titles in any encoding
        streams = container.streams.video
        if not streams:
            raise NearstepError("it holds no video stream")
        films = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
        if not films:
            raise NearstepError("it holds no video stream but a cover picture")
        if len(films) > 1:  # a cover that is not marked as one has a single frame
            films = _moving(container, films) or films
        # As ffmpeg chooses; of as large ones, the one that is marked as the default, then the first.
        chosen = max(films, key=lambda stream: (_area(stream), bool(stream.disposition & Disposition.default)))
        return chosen.index


def _area(stream: Any) -> int:
    context = stream.codec_context
    return context.width * context.height if context is not None else 0


def _moving(container: Any, streams: list[Any]) -> list[Any]:
    """Those with more than one packet; nothing is decoded, and reading ends when all are known to."""
    counts: Counter[int] = Counter()
    for packet in container.demux(streams):
        counts[packet.stream.index] += packet.size > 0
        if all(counts[stream.index] > 1 for stream in streams):
            break
    return [stream for stream in streams if counts[stream.index] > 1]


def timed(frames: Iterable[VideoFrame], rate: float) -> Iterator[tuple[float, VideoFrame]]:
    """Frames with the seconds at which they are shown, from 0 on; ``rate`` where the file does not say."""
    start, before = None, 0.0
    for number, frame in enumerate(frames):
        if frame.is_corrupt:
            raise NearstepError(f"it cannot be decoded: frame {number} is damaged")
        time = number / rate if frame.time is None else frame.time
        start = time if start is None else start
        if time - start - before > LONGEST_STILL:
            raise NearstepError(
                f"it cannot be decoded: frame {number} comes {time - start - before:g} s after the last"
            )
        before = time - start
        yield before, frame


class Turn(NamedTuple):
    """How a picture is to be held: mirrored along its diagonal first, then upside down, then left to right."""

    transposed: bool = False
    down: bool = False
    left: bool = False

    def __call__(self, picture: Picture) -> Picture:
        """The picture upright."""
        turned = picture.swapaxes(0, 1) if self.transposed else picture
        return turned[:: -1 if self.down else 1, :: -1 if self.left else 1]


def turn_of(frame: VideoFrame) -> Turn:
    """What a frame's display matrix says; what is no quarter turn counts as the nearest.

    The matrix (ISO/IEC 14496-12, 8.3.2) takes a point (x, y) to (a x + c y, b x + d y).
    """
    from av.sidedata.sidedata import Type

    data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
    if data is None:
        return Turn()
    a, b, _, c, d, *_ = (int(number) for number in np.frombuffer(bytes(data), np.int32))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Turn(down=d < 0, left=a < 0)
    return Turn(transposed=True, down=b < 0, left=c < 0)


def rgb(frame: VideoFrame) -> Picture:
    """A frame's picture as it is stored, uint8 [H, W, 3]."""
    return frame.to_ndarray(format="rgb24")
