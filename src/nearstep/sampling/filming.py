"""The one loop that turns prompts into files: a system makes a clip, it is timed, written, and said what it took.

for each target:   system.made(target) -> clip, calls   ->   target.path (whole or absent)   ->   Record
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from nearstep.files import replacing
from nearstep.sampling.target import Target
from nearstep.stream.output import pixels, write_video


@dataclass(frozen=True, kw_only=True)
class Made:
    """A clip that a system has made."""

    video: Tensor | bytes
    """[T, 3, H, W] in [0, 1], or an mp4 of the system's own, whose pictures are kept as they are encoded."""
    fps: float
    frames: int
    height: int
    width: int
    calls: int | None
    """Network calls that it took, each pass through a denoising network counted; None where nobody can know."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a clip took."""

    name: str
    """Of its file."""
    sample: int
    seconds: float
    """From the prompt to pixels, encoding of the file not included."""
    calls: int | None
    frames: int
    height: int
    width: int
    fps: float
    digest: str
    """Of its 8-bit pixels as they were made, which another build of the encoder writes otherwise; of a video of the
    system's own, of the file."""


@runtime_checkable
class System(Protocol):
    """Anything that makes clips of prompts. It is small until it is loaded, so that it can be sent to a worker."""

    @property
    def parts(self) -> int:
        """How often a clip says, while it is made, that a part of it is done."""
        ...

    def load(self) -> None:
        """Load what it needs now, rather than with the first clip."""
        ...

    def summary(self, count: int) -> str:
        """What will be made, in a line."""
        ...

    def said(self, target: Target) -> dict[str, Any]:
        """What a file says of itself: all that decides its pixels."""
        ...

    def made(self, target: Target, told: Callable[[], object]) -> Made:
        """Make a clip; ``told`` is called after each part."""
        ...


class Filmed(NamedTuple):
    """A clip that is in its file."""

    target: Target
    made: Made
    record: Record


Write = Callable[[Target, Made, Mapping[str, Any]], None]
"""Takes a clip, and what to say in its file."""


def write(target: Target, made: Made, said: Mapping[str, Any]) -> None:
    """Write a clip to its target, whole or not at all."""
    if isinstance(made.video, Tensor):
        write_video(target.path, made.video, fps=made.fps, metadata=said)
    else:
        relabel(made.video, target.path, said)


def film(
    system: System,
    targets: Sequence[Target],
    *,
    began: Callable[[Target], object] = id,
    told: Callable[[], object] = bool,
    write: Write = write,
) -> Iterator[Filmed]:
    """Make clips one after the other; each is in its file before the next begins.

    Args:
        system: makes them.
        targets: what of, and where to.
        began: called before each.
        told: called after each part of one.
        write: puts a clip where it belongs.
    """
    for target in targets:
        began(target)
        start = time.perf_counter()
        made = system.made(target, told)
        seconds = time.perf_counter() - start
        write(target, made, system.said(target))
        record = Record(
            name=target.path.name,
            sample=target.index,
            seconds=round(seconds, 4),
            calls=made.calls,
            frames=made.frames,
            height=made.height,
            width=made.width,
            fps=made.fps,
            digest=_digest(made.video),
        )
        yield Filmed(target, made, record)


def _digest(video: Tensor | bytes) -> str:
    whole = video if isinstance(video, bytes) else pixels(video).tobytes()
    return hashlib.blake2b(whole, digest_size=8).hexdigest()


def records(system: System, targets: Sequence[Target]) -> list[Record]:
    """:func:`film` for who wants no clips back: the work of one item on a cluster."""
    return [each.record for each in film(system, targets)]


def relabel(video: bytes, target: Path, said: Mapping[str, Any]) -> None:
    """Write a video, its pictures as they are encoded, as an mp4 that says what it shows."""
    import av

    with replacing(target) as part, av.open(io.BytesIO(video), "r") as given, av.open(part, "w", format="mp4") as copy:
        stream = given.streams.video[0]
        copied = copy.add_stream_from_template(stream)
        copy.metadata["comment"] = json.dumps(dict(said))
        for packet in given.demux(stream):
            if packet.dts is not None:  # the last one only flushes
                packet.stream = copied
                copy.mux(packet)
