"""H.264 in an mp4: whole, or growing while it can be watched already; colours as players expect them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from nearstep.errors import NearstepError
from nearstep.files import new_part

Pixels = np.ndarray
"""A clip as uint8 ``[T, H, W, 3]``."""
Grow = Callable[[Pixels], None]
"""Takes the next frames of a video."""
H264_OPTIONS = {"crf": "16", "preset": "medium"}  # visually lossless; the clips are small
LONGEST_SIDE = 16_384
"""Pixels; x264 takes no more."""


class Layout(NamedTuple):
    """How an mp4 is laid out."""

    container: dict[str, str]
    encoder: dict[str, str]


class _Colours(NamedTuple):
    """How pictures become luma and chroma."""

    name: str
    """As FFmpeg's scaler calls it."""
    matrix: int
    """ITU-T H.273's number."""


BT601, BT709 = _Colours("ITU601", 6), _Colours("ITU709", 1)
HD_LINES = 720
"""From here on players take BT.709 where a file does not say; it says so."""
_VIDEO_RANGE = 1  # 16 to 235


# faststart puts the index first, so that a page can play the file while it loads.
WHOLE = Layout({"movflags": "faststart"}, {"x264-params": "mbtree=0"})
"""x264's macroblock tree reads memory that it never wrote (its code for AVX-512 does): now and then the same frames
became other bytes, and other frames when decoded. Without it, as in fragments, the same frames are the same file."""
# No index but one for each frame, and no frame that waits for later ones: what was written can be read.
FRAGMENTS = Layout(
    {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}, {"tune": "zerolatency"}
)


def check_sides(suffix: str, most: int, height: int, width: int) -> None:
    """Refuse frames that a format cannot hold.

    Raises:
        NearstepError: for a side of more than ``most`` pixels.
    """
    if max(height, width) > most:
        raise NearstepError(f"{suffix} has sides of at most {most} pixels, not {width}x{height}; write .png")


@contextmanager
def growing_mp4(path: str | Path, *, height: int, width: int, fps: float, comment: str = "") -> Iterator[Grow]:
    """A video that can be watched while it is made; call what it gives with each part.

    With the first part it is at ``path``, in place of what was there, and it can be read up to the newest part whatever
    ends the program; what was made stays when something goes wrong.

    Args:
        path: where to, ending in .mp4.
        height: pixels, even.
        width: pixels, even.
        fps: pixel frames per second.
        comment: kept in the file.

    Raises:
        NearstepError: if it cannot be written; it says whether a part is there.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise NearstepError(f"cannot write {path}: a video that grows as it is made ends in .mp4")
    part, there = new_part(path), False
    try:
        with mp4_writer(part, height, width, fps, comment, FRAGMENTS) as write:

            def grow(clip: Pixels) -> None:
                nonlocal there
                write(clip)
                if not there:
                    part.replace(path.resolve())
                    there = True

            yield grow
    except OSError as error:
        left = "what was made before is in it" if there else "nothing was left behind"
        raise NearstepError(f"cannot write {path}: {error.strerror}; {left}") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def piped_mp4(file: BinaryIO | BytesIO, *, height: int, width: int, fps: float, comment: str = "") -> Iterator[Grow]:
    """A video for who reads it while it is made, such as a player behind a pipe; as :func:`growing_mp4`.

    Raises:
        NearstepError: if it cannot be written.
        BrokenPipeError: if nobody reads it any more.
    """
    try:
        with mp4_writer(file, height, width, fps, comment, FRAGMENTS) as write:
            yield write
    except BrokenPipeError:
        raise
    except OSError as error:
        raise NearstepError(f"cannot write the video: {error.strerror}") from error


@contextmanager
def mp4_writer(
    file: Path | BinaryIO | BytesIO, height: int, width: int, fps: float, comment: str, layout: Layout
) -> Iterator[Grow]:
    """A video that is written as far as it has grown; what it gives takes the next frames.

    Args:
        file: where to; OSErrors are the caller's to explain.
        height: pixels, even.
        width: pixels, even.
        fps: pixel frames per second.
        comment: kept in the file.
        layout: of the file.

    Raises:
        NearstepError: for sides that the format cannot have.
    """
    import av  # a tenth of a second that only this format needs

    if height % 2 or width % 2:
        raise NearstepError(f"mp4 (h264, yuv420p) needs even sides, not {width}x{height}; write .webp or .gif")
    check_sides(".mp4", LONGEST_SIDE, height, width)
    with av.open(file, "w", format="mp4", options=layout.container) as container:
        container.metadata["comment"] = comment
        options = {**H264_OPTIONS, **layout.encoder}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        colours = BT709 if height >= HD_LINES else BT601
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = colours.matrix, BT709.matrix, BT709.matrix
        context.color_range = _VIDEO_RANGE

        def grow(clip: Pixels) -> None:
            for picture in clip:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace=colours.name, dst_color_range=_VIDEO_RANGE)
                container.mux(stream.encode(frame))

        try:
            yield grow
        finally:  # what was made is finished, whatever ends it
            container.mux(stream.encode())
