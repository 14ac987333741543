"""Who sees whom, decided from frame positions (method.md section 5).

One rule serves the masked forward of training and the cached forward of generation. A frame sees the frames of its own
chunk, and every clean frame of an earlier chunk that lies within reach: among the last `window` frames up to the end of
the observer's chunk, or among the first `sink` frames of the video. Noisy frames are seen by their own chunk alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.reach import EVERYTHING, Reach


@dataclass(frozen=True)
class Visibility:
    """What each frame of one network call may see.

    positions: absolute frame number of every frame in the sequence, which its rotary position follows too.
    spans: (first frame, one past the last) of the chunk that the frame belongs to.
    noisy: frames that only their own chunk may see.
    reach: how far back chunks look.
    """

    positions: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    noisy: tuple[bool, ...]
    reach: Reach = EVERYTHING

    def __post_init__(self) -> None:
        longest, window = max(end - start for start, end in self.spans), self.reach.window
        if window is not None and window < longest:
            raise NearstepError(
                f"a window of {window} frames is shorter than a chunk of {longest}; "
                f"give a window of at least {longest} frames"
            )

    def shifted(self, start: int) -> Visibility:
        """The same pattern for a sequence that begins at frame `start`."""
        if start == 0:
            return self
        return Visibility(
            positions=tuple(position + start for position in self.positions),
            spans=tuple((first + start, end + start) for first, end in self.spans),
            noisy=self.noisy,
            reach=self.reach,
        )

    def sees(self, observer: int, other: int) -> bool:
        """Whether frame number `observer` of the sequence sees frame number `other` of it."""
        (start, end), (_, other_end) = self.spans[observer], self.spans[other]
        if other_end == end and self.noisy[observer] == self.noisy[other]:
            return True
        return other_end <= start and not self.noisy[other] and self.recalls(observer, self.positions[other])

    def recalls(self, observer: int, position: int) -> bool:
        """Whether frame number `observer` sees the clean frame at an earlier absolute `position`."""
        return self.reach.covers(position, self.spans[observer][1])

    def sink_shift(self, observer: int) -> int:
        """Frames by which frame number `observer` of the sequence sees the sink nearer than it is."""
        return self.reach.sink_shift(self.spans[observer][1])

    def past(self) -> tuple[int, ...]:
        """Positions before the sequence that some frame of it sees."""
        first, window = min(self.positions), self.reach.window
        oldest = 0 if window is None else max(0, min(end for _, end in self.spans) - window)
        return (*range(min(self.reach.sink, oldest, first)), *range(oldest, first))

    def rows(self, past: Sequence[int] = ()) -> list[list[bool]]:
        """F rows of len(past) + F: what each frame sees of the committed frames `past` and of its own sequence."""
        observers = range(len(self.positions))
        return [[self.recalls(i, p) for p in past] + [self.sees(i, j) for j in observers] for i in observers]

    def frame_mask(self, past: Sequence[int] = ()) -> Tensor:
        """`rows` as a boolean tensor [F, len(past) + F]."""
        return torch.tensor(self.rows(past))


class Group(NamedTuple):
    """Tokens that see the same: queries `first` to `end`, and the runs of keys that they see.

    sink_shift: frames by which the keys of the first run, the sink, are still to be rotated forward.
    """

    first: int
    end: int
    keys: tuple[tuple[int, int], ...]
    sink_shift: int = 0


@lru_cache(maxsize=256)
def token_groups(
    visibility: Visibility, past: tuple[int, ...], tokens_per_frame: int, sink_shift: int = 0
) -> tuple[Group, ...]:
    """The sequence cut where visibility changes; keys count through [past | sequence]. Empty where all see all.

    sink_shift: frames by which the keys of the sink in the past have been rotated forward already.

    Attention then runs once a group, over exactly what the group sees: no mask is stored, which at 21 frames of 1560
    tokens would have 10^9 entries, and nothing hidden is computed.
    """
    n = tokens_per_frame
    # How many of the sink's frames are there: they come first, each at the place of its own number.
    front = (*past, *visibility.positions)[: visibility.reach.sink]
    sink = sum(place == position for place, position in enumerate(front))
    # A row for each frame: whom it sees, and how much nearer than its keys were rotated it sees the sink.
    visible = visibility.rows(past)
    rows = [(tuple(row), visibility.sink_shift(i) - sink_shift if sink else 0) for i, row in enumerate(visible)]
    if all(map(all, visible)) and not any(shift for _, shift in rows):
        return ()
    # Neighbours with equal rows are one group.
    starts = [i for i, row in enumerate(rows) if i == 0 or row != rows[i - 1]]
    return tuple(
        Group(a * n, b * n, _runs(rows[a][0], n, sink if rows[a][1] else 0), rows[a][1])
        for a, b in pairwise([*starts, len(rows)])
    )


def without_queries(groups: Sequence[Group], count: int) -> list[Group]:
    """The groups of a call whose first `count` tokens are seen and see nothing; queries count from the next one."""
    return [g._replace(first=max(0, g.first - count), end=g.end - count) for g in groups if g.end > count]


def _runs(row: Sequence[bool], n: int, cut: int = 0) -> tuple[tuple[int, int], ...]:
    """Stretches of true entries as (first, end), each entry n wide; one that spans `cut` ends there and begins anew."""
    edges = [i for i, (a, b) in enumerate(pairwise([False, *row, False])) if a != b]
    runs = [*zip(edges[::2], edges[1::2], strict=True)]
    if cut and (spanning := [run for run in runs if run[0] < cut < run[1]]):
        runs = sorted({*runs} - {*spanning} | {(spanning[0][0], cut), (cut, spanning[0][1])})
    return tuple((first * n, end * n) for first, end in runs)


def spans_of(chunk_lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(start, end) of its chunk for every frame: (1, 2) -> ((0, 1), (1, 3), (1, 3))."""
    if not chunk_lengths or min(chunk_lengths) < 1:
        raise NearstepError(f"chunk lengths {tuple(chunk_lengths)} must be one or more positive frame counts")
    ends = accumulate(chunk_lengths)
    return tuple((end - length, end) for length, end in zip(chunk_lengths, ends, strict=True) for _ in range(length))


def block_causal(chunk_lengths: Sequence[int], reach: Reach = EVERYTHING) -> Visibility:
    """Each chunk sees itself and the earlier ones within reach."""
    spans = spans_of(chunk_lengths)
    frames = len(spans)
    return Visibility(tuple(range(frames)), spans, (False,) * frames, reach)


def full(frames: int) -> Visibility:
    """Every frame sees every frame: one chunk."""
    return block_causal((frames,))


def teacher_forcing(chunk_lengths: Sequence[int], reach: Reach = EVERYTHING) -> Visibility:
    """For a sequence [clean | noisy] of 2F frames: noisy chunk i sees itself and the clean chunks before i."""
    clean = block_causal(chunk_lengths, reach)
    frames = len(clean.positions)
    return Visibility(
        positions=clean.positions * 2,
        spans=clean.spans * 2,
        noisy=(False,) * frames + (True,) * frames,
        reach=reach,
    )
