"""Plans: how many steps each chunk gets, and at which times. Data, not behaviour.

A schedule of n steps holds n times and costs n network calls; n = 1 is no special case. A plan is a schedule per
chunk. One grammar everywhere (recipes, command line, Python), for clips and for streams::

    plan    = steps | live
    steps   = N {"," N} ["x"]              x repeats the last entry, and so does an entry that is alone
    live    = "adaptive" [":" cosine]      decided as a stream goes (live_plan.py)
            | "fps:" rate

    "4"        every chunk 4 steps
    "4,1x"     first chunk 4, the others 1: first-frame enhancement, the paper's 1*
    "4,2,1x"   4, then 2, then 1 for the rest
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nearstep.errors import NearstepError
from nearstep.flow.times import shifted
from nearstep.ranges import check_count, check_number

GRID = 4
"""Steps of the grid a student is distilled on [paper]."""

ADAPTIVE, FRAME_RATE = "adaptive", "fps"
"""Kinds of live plans, as they are written."""

GRAMMAR = (
    'a plan is steps per chunk, "4" (every chunk), "4,1x" (first 4, the rest 1) or "4,2,1x"; '
    f'of streams also "{ADAPTIVE}", "{ADAPTIVE}:.95" and "{FRAME_RATE}:16"'
)

MOST_STEPS = 1000
"""Most steps of a chunk; flow-matching teachers are trained on 1,000 times, and run with 50."""
MOST_FRAMES = 10**6
"""Most latent frames of a plan that is written out; streams have no end."""
MOST_RATE = 1000
"""Frames a second."""
_SHOWN = 80  # characters of a plan in an error

_STEPS = re.compile(r"[0-9]+(,[0-9]+)*x?")
_LIVE = re.compile(r"(?P<kind>[a-z]+)(:(?P<number>[0-9]*\.?[0-9]+))?")


class _Number(NamedTuple):
    """What may stand behind the colon of a live plan."""

    needed: bool
    most: float


_KINDS = {ADAPTIVE: _Number(needed=False, most=1.0), FRAME_RATE: _Number(needed=True, most=MOST_RATE)}


@dataclass(frozen=True)
class Schedule:
    """The times of one chunk's steps: strictly decreasing in (0, 1], the first one 1 (pure noise)."""

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        if not self.times or self.times[0] != 1.0 or self.times[-1] <= 0.0 or not falling:
            raise NearstepError(f"schedule {self.times} must start at 1 and fall strictly, staying above 0")

    def __len__(self) -> int:
        """Steps, each one network call."""
        return len(self.times)


def respaced(steps: int, *, shift: float, grid: int = GRID) -> Schedule:
    """The inference list: ``steps`` entries of the grid, spread evenly; finer than the grid above it.

    On the 4-step grid before the shift: 1: [1]; 2: [1, .5]; 3: [1, .5, .25]; 4: all; 8: [1, .875, ...]. Where the grid
    does not divide evenly the low times are kept: a list that ends low is better (docs/stream.md).
    """
    _positive(steps)
    check_count("grid", grid)
    check_number("shift", shift, above=0)
    cells = [-(-k * grid // steps) / grid if steps <= grid else k / steps for k in range(steps)]
    return Schedule(tuple(shifted(1 - cell, shift) for cell in cells))


def prefix(steps: int, *, shift: float, grid: int = GRID) -> Schedule:
    """The training list of the reference's exit mechanism: the first ``steps`` entries of the grid."""
    return subset(range(steps), shift=shift, grid=grid)


def subset(cells: Sequence[int], *, shift: float, grid: int = GRID) -> Schedule:
    """Any increasing choice of grid cells 0 .. grid - 1 that begins with 0 (noise)."""
    if not cells or max(cells) >= grid:
        raise NearstepError(f"{list(cells)} does not fit a grid of {grid} steps (cells 0 to {grid - 1})")
    return Schedule(tuple(shifted(1 - cell / grid, shift) for cell in cells))


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """Chunk lengths in latent frames, and a schedule for each."""

    text: str
    lengths: tuple[int, ...]
    schedules: tuple[Schedule, ...]

    def __post_init__(self) -> None:
        if len(self.lengths) != len(self.schedules) or min(self.lengths, default=0) < 1:
            raise NearstepError(f"{len(self.schedules)} schedules for chunk lengths {self.lengths}; give each one")

    def __str__(self) -> str:
        return self.text

    @property
    def frames(self) -> int:
        """Latent frames of the whole clip."""
        return sum(self.lengths)

    @property
    def steps(self) -> int:
        """Denoising calls."""
        return sum(len(schedule) for schedule in self.schedules)

    @property
    def commits(self) -> int:
        """Calls at t = 0 that write a finished chunk to the cache; the last chunk needs none."""
        return len(self.lengths) - 1

    @property
    def calls(self) -> int:
        """All network calls: steps and commits. What to compare speeds by."""
        return self.steps + self.commits


class Steps(NamedTuple):
    """Steps as they are written, chunk by chunk."""

    entries: tuple[int, ...]
    repeats: bool
    """Whether the last entry holds for all later chunks."""


class Live(NamedTuple):
    """A plan that is decided as a stream goes."""

    kind: str
    number: float | None
    """What stands behind the colon, if anything does."""


def parse(text: str) -> Steps | Live:
    """What a plan string says, of a clip or of a stream: the one parser.

    Raises:
        NearstepError: if the string is no plan, or has a chunk without steps.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  (from a file, or a notebook)
        raise NearstepError(f"plan={text!r:.60}; a plan is a string, such as '4' or '4,1x'")
    text = text.strip()
    if _STEPS.fullmatch(text):
        written = text.removesuffix("x").split(",")
        # By their length first: numbers of thousands of digits are refused by int itself, in other words.
        if any(len(entry.lstrip("0")) > len(str(MOST_STEPS)) or int(entry) > MOST_STEPS for entry in written):
            raise refused(text, f"gives a chunk more than {MOST_STEPS:,} steps")
        entries = tuple(map(int, written))
        if min(entries) < 1:
            raise refused(text, "gives a chunk 0 steps, and it needs at least 1 step")
        return Steps(entries, repeats=text.endswith("x") or len(entries) == 1)
    match = _LIVE.fullmatch(text)
    number = float(match["number"]) if match and match["number"] else None
    rule = _KINDS.get(match["kind"]) if match else None
    if (
        match is None
        or rule is None
        or (number is None and rule.needed)
        or not (number is None or 0 < number <= rule.most)
    ):
        raise refused(text, "does not parse")
    return Live(match["kind"], number)


def refused(text: str, why: str) -> NearstepError:
    """The error for a plan that cannot be followed; it names every plan that can."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return NearstepError(f"plan {shown!r} {why}; {GRAMMAR}")


def parse_steps(text: str, chunks: int) -> tuple[int, ...]:
    """Steps per chunk of a plan string, for a clip of ``chunks`` chunks.

    Raises:
        NearstepError: if the string does not parse, is for streams alone, or names another number of chunks.
    """
    plan = parse(text)
    if isinstance(plan, Live):
        raise refused(text, "is for streams alone, which decide as they go, and this is a clip")
    (*entries, last), repeats = plan
    if not repeats and len(plan.entries) != chunks:
        raise refused(
            text, f"names {len(plan.entries)} chunks and the clip has {chunks}: end it with x to repeat the last entry"
        )
    return (*entries, *[last] * max(1, chunks - len(entries)))[:chunks]


def chunk_lengths(frames: int, chunk_frames: int | None, first: int | None = None) -> tuple[int, ...]:
    """Latent frames of each chunk; one chunk of all frames where ``chunk_frames`` is None (a bidirectional network).

    Args:
        frames: of the clip.
        chunk_frames: of a chunk.
        first: frames of the first chunk, where it has another length; it may be the only one.

    Raises:
        NearstepError: unless the frames divide into whole chunks.
    """
    check_count("frames", frames, least=0, most=MOST_FRAMES)
    check_count("chunk_frames", chunk_frames)
    if first is not None:
        return (first,) if first == frames else (first, *chunk_lengths(frames - first, chunk_frames))
    if chunk_frames is None:
        return (frames,)
    if frames < 1 or frames % chunk_frames:
        less = max(1, frames // chunk_frames) * chunk_frames
        raise NearstepError(
            f"{frames} latent frames are no whole number of chunks of {chunk_frames}; use {less} or "
            f"{less + chunk_frames} latent frames (num_frames {4 * less - 3} or {4 * (less + chunk_frames) - 3})"
        )
    return (chunk_frames,) * (frames // chunk_frames)


def make_plan(text: str, *, frames: int, chunk_frames: int | None, shift: float, grid: int = GRID) -> ChunkPlan:
    """The plan a string means for a clip of ``frames`` latent frames.

    Args:
        text: a plan string, such as ``"4,1x"``.
        frames: latent frames of the clip.
        chunk_frames: latent frames per chunk; None puts all frames in one chunk.
        shift: the model's shift k (flow/times.py).
        grid: steps of the grid the model was distilled on.
    """
    lengths = chunk_lengths(frames, chunk_frames)
    steps = parse_steps(text, len(lengths))
    schedules = tuple(respaced(n, shift=shift, grid=grid) for n in steps)
    return ChunkPlan(text=text.strip(), lengths=lengths, schedules=schedules)


def first_frame_enhanced(first: int, rest: int) -> str:
    """The plan string of first-frame enhancement: ``first`` steps for chunk 0, ``rest`` for all others [paper]."""
    return f"{first},{rest}x"


def _positive(steps: int) -> None:
    if steps < 1:
        raise NearstepError(f"a chunk needs at least 1 step, got {steps}")
