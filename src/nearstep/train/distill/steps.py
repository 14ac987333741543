"""What each step of a distillation does, as a function of (seed, step) alone: no state, so a resume repeats it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from nearstep import rng
from nearstep.flow.plan import GRID, ChunkPlan, Schedule, prefix, respaced, subset

ScheduleKind = Literal["prefix", "respaced", "subset"]
"""How n steps lie on the grid: its first n entries (the reference's exit), spread evenly as at inference, or any n
entries that begin with noise."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One step: an update of the student, and those of assistant and discriminator on its samples."""

    steps: int
    """n of this step's samples, for all chunks."""
    adversarial: bool
    """Whether the discriminator learns."""
    heard: bool
    """Whether the student listens to it."""


def turn_at(step: int, *, seed: int, counts: Sequence[int], warmup: int, alone: int = 0) -> Turn:
    """The turn of step ``step``.

    Args:
        step: the step.
        seed: of the run.
        counts: step counts n to draw from, each as likely.
        warmup: steps of distribution matching alone.
        alone: steps after them in which the discriminator learns unheard, so that it does not mislead at first.
    """
    draw = torch.randint(len(counts), (), generator=rng.generator("turn", seed, step))
    return Turn(steps=counts[int(draw)], adversarial=step >= warmup, heard=step >= warmup + alone)


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
) -> ChunkPlan:
    """The plan of a training rollout: one schedule for all chunks, or the first chunk on a list of its own.

    Args:
        steps: n.
        kind: how the steps lie on the grid.
        lengths: latent frames of each chunk.
        shift: of the schedules.
        draw: for ``subset``.
        first: steps of the first chunk where it has its own list (first-frame enhancement while training).
    """
    schedule = schedule_of(steps, kind, shift=shift, draw=draw)
    schedules = [schedule] * len(lengths)
    if first is not None:
        schedules[0] = respaced(first, shift=shift)
    return ChunkPlan(text=str(steps), lengths=tuple(lengths), schedules=tuple(schedules))
