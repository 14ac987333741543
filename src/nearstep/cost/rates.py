"""From times of stages to what people call FPS.

Published frame rates count different things, so each is named here with what it counts and who counts so, and all are
taken from the same clip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearstep.cost.clock import Span

TEXT, DECODE, CODEC, FILE = "text", "decode", "codec decode", "mp4"
STEP, COMMIT, FUSED, CACHE = "step", "commit", "commit + step", "cache"
CALLS = {"__call__": STEP, "commit": COMMIT, "commit_then": FUSED, "new_cache": CACHE}
"""Method of a denoiser -> the stage that it is; a new kind of call is one more entry."""
NETWORK_CALLS = (STEP, FUSED, COMMIT)


@dataclass(frozen=True, kw_only=True)
class ChunkTime:
    """What one chunk of a clip took."""

    pixel_frames: int
    wall: float
    """Seconds from when it was asked for until its pixels were there; the first chunk's include the text."""
    spans: tuple[Span, ...]
    beside: tuple[Span, ...] = ()
    """Decoded again by another decoder, outside of the wall time."""

    def seconds(self, *stages: str) -> float:
        """Seconds in these stages, together."""
        return sum(span.seconds for span in (*self.spans, *self.beside) if span.stage in stages)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A definition of frames a second."""

    name: str
    counts: str
    """What its time is spent on."""
    whose: str
    """Who counts so."""
    stages: tuple[str, ...] = ()
    """Stages whose times add up; none: wall time."""
    separate: bool = False
    """Whether it counts a clip whose commits are calls of their own, as all others make them."""
    later: bool = False
    """Chunks after the first alone."""
    tiny: bool = False
    """Only where a tiny decoder made the pixels."""

    def of(self, chunks: Sequence[ChunkTime]) -> float | None:
        """Pixel frames a second; None where there is no such chunk."""
        chunks = chunks[1:] if self.later else chunks
        seconds = sum(chunk.seconds(*self.stages) if self.stages else chunk.wall for chunk in chunks)
        return sum(chunk.pixel_frames for chunk in chunks) / seconds if seconds else None


RATES = (
    Rate(
        name="steady",
        counts="wall time of the chunks after the first: calls, commits, decoding",
        whose="nearstep",
        later=True,
    ),
    Rate(name="clip", counts="wall time of the whole clip, from the prompt to the last pixel", whose="a user's watch"),
    Rate(
        name="no decoding",
        counts="calls and commits of the whole clip; no text, no decoding",
        whose="Causal Forcing++ (throughput), TurboDiffusion",
        stages=(*NETWORK_CALLS, CACHE),
        separate=True,
    ),
    Rate(
        name="no decoding, fused",
        counts="the same where a commit is part of the next call",
        whose="nearstep",
        stages=(*NETWORK_CALLS, CACHE),
    ),
    Rate(
        name="no commits",
        counts="denoising calls of the whole clip; no text, no commits, no decoding",
        whose="Causal Forcing++ (latency of a chunk)",
        stages=(STEP,),
        separate=True,
    ),
    Rate(
        name="tiny decoder",
        counts="calls, commits and the tiny decoder, chunks after the first",
        whose="FlashDreams",
        stages=(*NETWORK_CALLS, DECODE),
        separate=True,
        later=True,
        tiny=True,
    ),
    Rate(
        name="tiny decoder, no commits",
        counts="denoising calls and the tiny decoder, chunks after the first",
        whose="DiagDistill",
        stages=(STEP, DECODE),
        separate=True,
        later=True,
        tiny=True,
    ),
    Rate(
        name="own decoder",
        counts="calls, commits and the model's own decoder, chunks after the first",
        whose="nearstep, had no tiny decoder been given",
        stages=(*NETWORK_CALLS, CODEC),
        later=True,
        tiny=True,
    ),
)
"""The definitions (none of them counts writing a file). Others do not say what they count."""


def rates(clips: Mapping[str, Sequence[ChunkTime]], *, tiny: bool) -> list[dict[str, Any]]:
    """Frames a second of one clip by every definition that applies.

    Args:
        clips: chunks of the clip with ``fused`` commits, and of the one with ``separate`` ones where there are commits.
        tiny: whether a tiny decoder made the pixels.
    """
    applying = []
    for rate in RATES:
        chunks = clips.get("separate" if rate.separate else "fused", clips["fused"])
        fps = rate.of(chunks) if tiny or not rate.tiny else None
        if fps is not None:
            applying.append({"name": rate.name, "fps": fps, "counts": rate.counts, "whose": rate.whose})
    return applying


def summary(
    chunks: Sequence[ChunkTime],
    clips: Sequence[Sequence[ChunkTime]],
    flops: Sequence[Mapping[str, int]],
    floors: Mapping[str, float],
    *,
    file: float | None,
    wall: float,
) -> dict[str, Any]:
    """Times of a clip by stage.

    Args:
        chunks: of the clip whose times are shown.
        clips: all clips, for the quantiles.
        flops: of each chunk's stages.
        floors: stage -> FLOP a second that the machine reaches at best.
        file: seconds that its mp4 took.
        wall: seconds, with those.
    """
    spans = [span for chunk in chunks for span in (*chunk.spans, *chunk.beside)]
    everything = [span for clip in clips for chunk in clip for span in (*chunk.spans, *chunk.beside)]
    stages: dict[str, Any] = {}
    for stage in dict.fromkeys(span.stage for span in spans):
        own = [span.seconds for span in spans if span.stage == stage]
        pooled = [span.seconds for span in everything if span.stage == stage]
        stages[stage] = {"times": len(own), "seconds": sum(own), **_quantiles(pooled)}
        if count := sum(chunk.get(stage, 0) for chunk in flops):
            stages[stage] |= _share(count, sum(own), floors.get(stage))
    if file is not None:
        stages[FILE] = {"times": 1, "seconds": file}
    later = [chunk.wall for clip in clips for chunk in clip[1:]] or [clip[0].wall for clip in clips]
    return {
        "stages": stages,
        "calls": sum(stages[stage]["times"] for stage in NETWORK_CALLS if stage in stages),
        "flops": sum(sum(chunk.values()) for chunk in flops) - sum(chunk.get(CODEC, 0) for chunk in flops),
        "wall_seconds": wall,
        "first_frame_seconds": chunks[0].wall,
        "chunk_seconds": _quantiles(later),
    }


def _share(flops: int, seconds: float, floor: float | None) -> dict[str, Any]:
    """FLOPs and, where the floor is known, the part of the time in which products at its rate would be done."""
    return {"flops": flops} | ({"share_of_floor": flops / floor / seconds} if floor and seconds else {})


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {"p50": quantile(values, 0.5), "p95": quantile(values, 0.95)}


def quantile(values: Sequence[float], part: float) -> float:
    """Linear between the two values nearest to it in order, as numpy's default."""
    ordered, place = sorted(values), part * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
