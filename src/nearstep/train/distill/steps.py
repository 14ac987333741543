"""What each step of a distillation does, as a function of (seed, step) alone: no state, so a resume repeats it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch

from nearstep import rng
from nearstep.flow.plan import GRID, ChunkPlan, Schedule, prefix, respaced, subset

ScheduleKind = Literal["prefix", "respaced", "subset"]
"""How n steps lie on the grid: its first n entries (the reference's exit), spread evenly as at inference, or any n
entries that begin with noise."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one step of a distillation does: an update of the student, and those of assistant and discriminator."""

    steps: int
    """n of this step's samples, for all chunks."""
    discriminator_learns: bool
    """Whether n-step samples are held against references, and the discriminator learns from the pairs."""
    student_listens: bool
    """Whether the student's gradient holds the adversary's."""


def step_plan(step: int, *, seed: int, step_counts: Sequence[int], warmup: int, adversary_delay: int = 0) -> StepPlan:
    """The plan of step ``step``.

    Args:
        step: the step.
        seed: the run's.
        step_counts: numbers n to draw from, each as likely.
        warmup: steps of distribution matching alone.
        adversary_delay: steps after them in which the discriminator learns by itself, so that it does not mislead the
            student at first.
    """
    # The name of the draw is older than the word for what it decides; another name would draw other numbers.
    draw = torch.randint(len(step_counts), (), generator=rng.generator("turn", seed, step))
    return StepPlan(
        steps=step_counts[int(draw)],
        discriminator_learns=step >= warmup,
        student_listens=step >= warmup + adversary_delay,
    )


def schedule_of(steps: int, kind: ScheduleKind, *, shift: float, draw: torch.Generator, grid: int = GRID) -> Schedule:
    """A schedule of ``steps`` steps; ``draw`` chooses where ``kind`` leaves a choice."""
    if kind == "prefix":
        return prefix(steps, shift=shift, grid=grid)
    if kind == "respaced":
        return respaced(steps, shift=shift, grid=grid)
    later = torch.randperm(grid - 1, generator=draw)[: steps - 1] + 1
    return subset([0, *sorted(later.tolist())], shift=shift, grid=grid)


def training_plan(
    steps: int,
    kind: ScheduleKind,
    lengths: Sequence[int],
    *,
    shift: float,
    draw: torch.Generator,
    first: int | None = None,
    starts: Sequence[int] = (),
) -> ChunkPlan:
    """The plan of a training rollout: one schedule for all chunks, or chunks where scenes begin on a list of their own.

    Args:
        steps: n.
        kind: how the steps lie on the grid.
        lengths: latent frames of each chunk.
        shift: of the schedules.
        draw: for ``subset``.
        first: steps of a chunk where a scene begins, where it has its own list (first-frame enhancement in training).
        starts: frames where the second scene begins, the third and so on; the first one begins with the clip.
    """
    schedule = schedule_of(steps, kind, shift=shift, draw=draw)
    schedules = [schedule] * len(lengths)
    if first is not None:
        for chunk in opening_chunks(lengths, starts):
            schedules[chunk] = respaced(first, shift=shift)
    return ChunkPlan(text=str(steps), lengths=tuple(lengths), schedules=tuple(schedules))


def opening_chunks(lengths: Sequence[int], starts: Sequence[int] = ()) -> tuple[int, ...]:
    """The chunks, of these lengths, in which a scene begins: the first one, and those of the frames ``starts``."""
    ends = list(accumulate(lengths))
    return tuple(bisect_right(ends, frame) for frame in (0, *starts))
