"""Plans without an end: the steps of the next chunk, decided when its turn comes.

``"4,1x"`` as in plan.py; ``"adaptive"`` stops a chunk once its steps agree; ``"fps:16"`` holds a frame rate on the
machine it runs on. A plan counts from the start of a stream and again from every change of prompt or plan, so that
first-frame enhancement comes by itself where a scene begins.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nearstep.flow.plan import ADAPTIVE, Live, Schedule, parse, refused, respaced

T = TypeVar("T")

DEFAULT_AGREEMENT = 0.945
"""Cosine at which one step is as good as the next, read off the paper's figure."""

StopRule = Callable[[int, Tensor | None, Tensor], bool]
"""Whether a chunk is done after so many steps, from the x0 [B, F, C, H, W] of its last two; None before the first."""
Levels = Sequence[Sequence[float]]
"""``[chunk][step - 1]`` the agreement that is enough; the last of each repeats."""


class ChunkSteps(NamedTuple):
    """What a chunk is to take."""

    schedule: Schedule
    stop: StopRule | None = None
    """What may end it before the schedule does."""


@runtime_checkable
class LivePlan(Protocol):
    """Decides as the stream goes."""

    def next(self, since: int, before: Tensor | None = None) -> ChunkSteps:
        """What the next chunk is to take.

        Args:
            since: chunks made since the start, or since the prompt or plan changed.
            before: clean latents [B, f, C, H, W] just before the chunk; None where there are none.
        """
        ...

    def observe(self, steps: int, calls: float, rest: float) -> None:
        """What the last chunk took: steps, seconds in the network, and seconds in all else."""
        ...

    def copy(self) -> LivePlan:
        """A plan that has observed the same, and shares nothing that changes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Repeating:
    """Steps as written; the last entry repeats."""

    steps: tuple[int, ...]
    shift: float
    grid: int

    def next(self, since: int, before: Tensor | None = None) -> ChunkSteps:
        """The respaced list of this many steps."""
        return ChunkSteps(respaced(_at(self.steps, since), shift=self.shift, grid=self.grid))

    def observe(self, steps: int, calls: float, rest: float) -> None:
        """Nothing to learn from it."""

    def copy(self) -> LivePlan:
        """Itself: it never changes."""
        return self


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Steps until one says nothing new: it goes on where the chunk before ended, or agrees with the step before.

    So first-frame enhancement comes by itself, wherever something begins.
    """

    levels: tuple[tuple[float, ...], ...]
    """See Levels; by chunk since the start or change."""
    shift: float
    grid: int

    def next(self, since: int, before: Tensor | None = None) -> ChunkSteps:
        """The whole ladder, and when to leave it."""
        levels = _at(self.levels, since)

        def stop(step: int, earlier: Tensor | None, x0: Tensor) -> bool:
            return agreement(step, earlier, x0, before) >= _at(levels, step - 1)

        return ChunkSteps(ladder(shift=self.shift, grid=self.grid), stop)

    def observe(self, steps: int, calls: float, rest: float) -> None:
        """Nothing to learn from it."""

    def copy(self) -> LivePlan:
        """Itself: it never changes."""
        return self


@dataclass(kw_only=True)
class FrameRatePlan:
    """As many steps as leave the frame rate whole, the first chunk all of them."""

    fps: float
    frames: int
    """Pixel frames of a chunk."""
    shift: float
    grid: int
    _call: float | None = field(default=None, init=False)
    _rest: float = field(default=0.0, init=False)

    def next(self, since: int, before: Tensor | None = None) -> ChunkSteps:
        """From measured times; one step until there are any, but for the first chunk."""
        steps = self.grid if since == 0 else 1
        if since and self._call is not None:
            spare = self.frames / self.fps - self._rest
            steps = min(self.grid, max(1, int(spare / self._call) - 1))  # a commit costs a call
        return ChunkSteps(respaced(steps, shift=self.shift, grid=self.grid))

    def observe(self, steps: int, calls: float, rest: float) -> None:
        """Remember, half old and half new: a stutter passes, a slower machine stays."""
        call = calls / (steps + 1)
        self._rest = rest if self._call is None else (self._rest + rest) / 2
        self._call = call if self._call is None else (self._call + call) / 2

    def copy(self) -> LivePlan:
        """One with the same timings, that goes on to measure its own."""
        return copy.copy(self)


def ladder(*, shift: float, grid: int) -> Schedule:
    """The times of an adaptive chunk, good to stop at: all of the grid but its second, next to pure noise.

    A chunk that stopped there would have seen no low time; after 2 of 4 cells, as plan "2" has it (docs/stream.md).
    """
    return respaced(grid - 1 if grid > 2 else grid, shift=shift, grid=grid)


def agreement(step: int, earlier: Tensor | None, x0: Tensor, before: Tensor | None) -> float:
    """How little a step said that was not known: the least of ``agreements`` over the batch."""
    return float(agreements(step, earlier, x0, before).min())


def agreements(step: int, earlier: Tensor | None, x0: Tensor, before: Tensor | None) -> Tensor:
    """Cosine of each sample [B]: of x0 [B, F, C, H, W] and that of the step before.

    After the first step, of its first frame and the last of ``before``, and -1 where nothing came before.
    """
    if earlier is None or step == 1:
        if before is None:
            return x0.new_full(x0.shape[:1], -1.0, dtype=torch.float32)
        earlier, x0 = before[:, -1:], x0[:, :1]
    return cosine_similarity(earlier.flatten(1).float(), x0.flatten(1).float())


def live_plan(text: str, *, shift: float, grid: int, frames: int, levels: Levels = ()) -> LivePlan:
    """What a plan string means for a stream.

    Args:
        text: a plan string that can go on for ever.
        shift: the model's shift k.
        grid: steps of the grid the model was distilled on.
        frames: pixel frames of a chunk.
        levels: the model's calibrated ones for ``"adaptive"``; see ``DEFAULT_AGREEMENT``.

    Raises:
        NearstepError: for a string that does not parse, ends, or asks for more steps than the student was trained on.
    """
    plan = parse(text)
    if isinstance(plan, Live):
        return _decided(plan, shift=shift, grid=grid, frames=frames, levels=levels)
    if not plan.repeats:
        raise refused(text, "ends, and a stream does not: end it with x to repeat the last entry")
    if max(plan.entries) > grid:
        raise refused(text, f"asks for {max(plan.entries)} steps and the student was trained for 1 to {grid}")
    return Repeating(steps=plan.entries, shift=shift, grid=grid)


def _decided(plan: Live, *, shift: float, grid: int, frames: int, levels: Levels) -> LivePlan:
    if plan.kind == ADAPTIVE:
        if plan.number is not None or not levels:
            levels = [[DEFAULT_AGREEMENT if plan.number is None else plan.number]]
        return Adaptive(levels=tuple(tuple(chunk) for chunk in levels), shift=shift, grid=grid)
    assert plan.number is not None  # the parser's table says that a rate needs one
    return FrameRatePlan(fps=plan.number, frames=frames, shift=shift, grid=grid)


def _at(entries: Sequence[T], index: int) -> T:
    return entries[min(index, len(entries) - 1)]
