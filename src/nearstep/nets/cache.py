"""Keys and values of finished frames.

The cache is an object that the caller owns and passes in. A read never changes what it holds; only `commit` writes,
detached, so that no gradient of a later chunk reaches an earlier one. Positions travel with the keys, and what a chunk
may read follows from positions by the rule of masks.py, so a cached call sees what the masked call sees.

A chunk that may break off is made on a branch, which shares the memory and writes behind what the cache holds: until
the next branch, the cache it was made from is as good as new. No keys or values are copied for that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets.fp8 import FACTOR, packed, unpacked
from nearstep.nets.rope import advance
from nearstep.reach import EVERYTHING, Reach

KeysValues = tuple[Tensor, Tensor]  # each [B, tokens, heads, head_dim]


class Past(NamedTuple):
    """What one layer's attention reads before its own keys and values.

    keys, values: [B, tokens, heads, head_dim], views of the cache wherever it holds numbers as they are read; keys as
        they were rotated.
    room: the last tokens are free space of the cache, where the call may put its own keys and values instead of copying
        the past beside them. Never so under grad, where attention keeps its inputs for the backward pass.
    """

    keys: Tensor
    values: Tensor
    room: bool


class Move(NamedTuple):
    """A gap that is being closed."""

    change: tuple[tuple[int, ...], tuple[int, ...]]
    """Positions before and after."""
    index: int
    """Which part moves now: those before it have moved."""
    part: Tensor | None
    """What it is; None before anything has moved."""


class KVCache:
    """Preallocated keys and values of `capacity_frames` frames for every layer.

    reach: how far back a chunk may look (masks.py); a relative sink's keys are rotated forward with the window.
    chunk_frames: what the next chunk has at least. Frames that it does not see are dropped by the commit before it.
    fp8: hold eight-bit floats, with a factor for each token and head (fp8.py); what is read is in `dtype` all the same.
    append_only: never drop a frame. Training needs it: the backward pass may read frames again, so a commit that would
        have to drop one is refused.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        capacity_frames: int,
        tokens_per_frame: int,
        heads: int,
        head_dim: int,
        reach: Reach = EVERYTHING,
        chunk_frames: int = 1,
        append_only: bool = False,
        dtype: torch.dtype = torch.float32,
        fp8: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (batch, capacity_frames * tokens_per_frame, heads, head_dim + FACTOR if fp8 else head_dim)
        held = torch.uint8 if fp8 else dtype
        self.keys = [torch.zeros(shape, dtype=held, device=device) for _ in range(layers)]
        self.values = [torch.zeros(shape, dtype=held, device=device) for _ in range(layers)]
        self.dtype, self.fp8 = dtype, fp8
        self.batch = batch
        self.capacity_frames = capacity_frames
        self.tokens_per_frame = tokens_per_frame
        self.reach = reach
        self.chunk_frames = chunk_frames
        self.append_only = append_only
        self.end = 0
        """Frames committed so far, dropped ones included: where the next chunk starts."""
        self.positions: tuple[int, ...] = ()
        """Absolute frame in every used slot, ascending."""
        self._sink: list[Tensor] = []
        """Every layer's keys of the sink as they were committed, once the window has left it behind."""
        self.sink_shift = 0
        """Frames by which the held keys of the sink have been rotated forward."""
        self.skipped: tuple[int, int] = (0, 0)
        """From which frame to which nothing was committed (`skip_to`): nobody sees anything there."""
        self.branched = False
        """Whether another cache needs the frames held here that no later chunk sees."""
        self._move: Move | None = None
        """Where the closing of a gap is; it may break off."""

    def in_sight(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Those of `positions` at which anything was committed: where frames were skipped, nobody sees anything."""
        first, end = self.skipped
        return tuple(position for position in positions if not first <= position < end)

    def find(self, positions: Sequence[int]) -> list[slice]:
        """Slots of the held `positions` (ascending), as few slices as possible."""
        missing = sorted(set(positions) - set(self.positions))
        if missing:
            raise NearstepError(
                f"frames {missing} are not in the cache, which holds {list(self.positions)}; "
                "commit every earlier chunk first, and do not go back past a dropped frame"
            )
        slots = [slot for slot, position in enumerate(self.positions) if position in set(positions)]
        if not slots:
            return []
        breaks = [i + 1 for i, (a, b) in enumerate(pairwise(slots)) if b != a + 1]
        return [slice(slots[a], slots[b - 1] + 1) for a, b in pairwise([0, *breaks, len(slots)])]

    def read(self, layer: int, slots: Sequence[slice], *, frames: int) -> Past | None:
        """One layer's keys and values in `slots`, for a call on `frames` frames after them; None if there are none."""
        if not slots:
            return None
        keys, values, stop = self.keys[layer], self.values[layer], slots[-1].stop + frames
        fits = len(slots) == 1 and slots[0].stop == len(self.positions) and stop <= self.capacity_frames
        if fits and not self.fp8 and not torch.is_grad_enabled():
            tokens = self._tokens(slice(slots[0].start, stop))
            return Past(keys[:, tokens], values[:, tokens], room=True)
        return Past(self._wide(self._gather(keys, slots)), self._wide(self._gather(values, slots)), room=False)

    def commit(self, start: int, layers: Sequence[KeysValues]) -> None:
        """Append the frames `start`, `start` + 1, ... whose keys and values every layer gives; detached."""
        if start != self.end:
            raise NearstepError(
                f"cannot commit frames from {start} on: the cache ends at frame {self.end}; commit chunks in order"
            )
        frames = layers[0][0].shape[1] // self.tokens_per_frame
        if not self.branched:
            self._forget(frames)
        held = len(self.positions)
        self._check_room(held, frames)
        tokens = self._tokens(slice(held, held + frames))
        with torch.no_grad():
            for layer, (keys, values) in enumerate(layers):
                self.keys[layer][:, tokens].copy_(self._held(keys))
                self.values[layer][:, tokens].copy_(self._held(values))
        self.positions += tuple(range(start, start + frames))
        self.end = start + frames

    def branch(self) -> KVCache:
        """Another cache that holds the same, in the same memory; what is committed to it does not show here.

        This one may be read, and branched again, until a branch of it is branched or cleared. A branch forgets only
        when it is branched in its turn.
        """
        self._forget(0)
        branch = copy.copy(self)
        branch.branched = True
        return branch

    def emptied(self) -> KVCache:
        """An empty cache in the memory of this one, which is of no use any more."""
        empty = copy.copy(self)
        empty.clear()
        return empty

    def clear(self) -> None:
        """Forget all frames, as if none had been committed."""
        self.end, self.positions, self._sink, self.sink_shift, self.skipped = 0, (), [], 0, (0, 0)
        self.branched, self._move = False, None

    def skip_to(self, frame: int) -> None:
        """Go on at a later frame, with nothing in between: what a stream has forgotten stays forgotten."""
        if frame < self.end:
            raise NearstepError(f"cannot skip to frame {frame}: the cache ends at frame {self.end} already")
        if frame > self.end:
            self.skipped, self.end = (self.end, frame), frame
            self._shift_sink(frame + self.chunk_frames)  # as a commit before `frame` would have

    def copy(self) -> KVCache:
        """Another cache that holds the same, and shares nothing with this one."""
        other = copy.deepcopy(self)
        other.branched = False
        return other

    def _forget(self, frames: int) -> None:
        """Drop what no chunk after the next `frames` sees, and close the gap, so that a read is a view.

        slots   [ sink | hidden | window | free ]   ->   [ sink | window | next `frames` | free ]

        Where this breaks off it goes on when it is called again, and nothing may be read before.
        """
        if self.append_only:
            return
        # The chunk after the next frames ends here at the earliest; later chunks see no older frames.
        next_end = self.end + frames + self.chunk_frames
        kept = tuple(p for p in self.positions if self.reach.covers(p, next_end))
        self._check_room(len(kept), frames)
        self._shift_sink(next_end)
        if kept != self.positions:
            self._close_gaps(kept)
            self.positions = kept

    def _close_gaps(self, kept: tuple[int, ...]) -> None:
        """What is kept moves down to the first slots, run by run, in ascending order: nothing kept is overwritten.

        Each part is copied before it moves, for old and new place may overlap, and the copy is kept until the next part
        moves: a part that was moving when something broke off is moved again.
        """
        ends = list(accumulate(run.stop - run.start for run in self.find(kept)))
        targets = [slice(a, b) for a, b in pairwise([0, *ends])]
        runs = [(self._tokens(run), self._tokens(target)) for run, target in zip(self.find(kept), targets, strict=True)]
        parts = [(buffer, *run) for run in runs if run[0] != run[1] for buffer in (*self.keys, *self.values)]
        change = (self.positions, kept)
        move = self._move if self._move and self._move.change == change else Move(change, 0, None)
        with torch.no_grad():
            for index in range(move.index, len(parts)):
                buffer, source, target = parts[index]
                part = move.part if index == move.index and move.part is not None else buffer[:, source].clone()
                self._move = Move(change, index, part)
                buffer[:, target] = part
        self._move = Move(change, len(parts), None)

    def _check_room(self, held: int, frames: int) -> None:
        if held + frames <= self.capacity_frames:
            return
        if self.append_only:
            raise NearstepError(
                f"an append-only cache of {self.capacity_frames} frames cannot take {frames} more after "
                f"{held}; make it with at least {held + frames} frames"
            )
        raise NearstepError(
            f"a cache of {self.capacity_frames} frames cannot take {frames} more after {held} that are still "
            f"in sight; make it with at least {held + frames} frames or set a shorter window"
        )

    def _shift_sink(self, end: int) -> None:
        """Rotate a relative sink's keys to where a chunk that ends before frame `end` sees them.

        Always from what was committed: rounding does not add up, and it may be done twice.
        """
        frames = self.reach.sink_shift(end)
        if frames == self.sink_shift or not self.positions:
            return
        tokens = self._tokens(slice(0, sum(p < self.reach.sink for p in self.positions)))
        with torch.no_grad():
            self._sink = self._sink or [keys[:, tokens].clone() for keys in self.keys]
            for keys, first in zip(self.keys, self._sink, strict=True):
                keys[:, tokens] = self._held(advance(self._wide(first), frames))
        self.sink_shift = frames

    def _held(self, x: Tensor) -> Tensor:
        """Numbers as the buffers hold them."""
        return packed(x) if self.fp8 else x

    def _wide(self, x: Tensor) -> Tensor:
        """The inverse."""
        return unpacked(x, self.dtype) if self.fp8 else x

    def _tokens(self, slots: slice) -> slice:
        return slice(slots.start * self.tokens_per_frame, slots.stop * self.tokens_per_frame)

    def _gather(self, buffer: Tensor, slots: Sequence[slice]) -> Tensor:
        """[B, tokens of the slots, heads, head_dim]; a view where they lie side by side."""
        parts = [buffer[:, self._tokens(run)] for run in slots]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
