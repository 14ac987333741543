"""The clips that a run's updates learn from: its usual ones, and now and then those of a lesson."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from nearstep.cost.fake_step import Config
from nearstep.cost.sizes import Sizes
from nearstep.errors import NearstepError
from nearstep.train.distill.config import DistillFields
from nearstep.train.lessons import Lesson, batches


@dataclass(frozen=True, kw_only=True)
class Course:
    """Updates that are alike."""

    config: Config
    """The run as if it had no other updates."""
    sizes: Sizes
    share: float
    """Of all updates."""


def courses(config: Config, sizes: Sizes) -> Iterator[Course]:
    """The usual updates, if there are any, then those of each kind of lesson, whose clips ``sizes.lessons`` says.

    Lessons of as many clips of one size cost the same, and are one course.

    Raises:
        NearstepError: if the sizes are of other lessons.
    """
    count, every = len(config.lessons), config.lesson_every
    if count != len(sizes.lessons):
        raise NearstepError(f"the run has {count} lessons, and {len(sizes.lessons)} have sizes; give each one's clip")
    alone, usual = replace(config, lessons=()), replace(sizes, lessons=())
    left = 1 - 1 / every if count else 1.0
    if left:
        yield Course(config=alone, sizes=usual, share=left)
    _, *own_batches = batches(config.batch, config.lessons)
    parts = zip(config.lessons, own_batches, sizes.lessons, strict=True)
    for kind, alike in Counter(_kind(config, *part) for part in parts).items():
        own = replace(usual, clip=kind.clip, first_chunk=kind.first_chunk, starts=kind.starts)
        taking = replace(alone, batch=kind.batch)
        if isinstance(taking, DistillFields):
            taking = replace(taking, first_steps=kind.first_steps)
        yield Course(config=taking, sizes=own, share=alike / (every * count))


class _Kind(NamedTuple):
    """What the cost of a lesson's update depends on."""

    batch: int
    clip: tuple[int, int, int, int]
    first_chunk: int | None
    starts: tuple[int, ...]
    """Where scenes begin that have steps of their own."""
    first_steps: int | None


def _kind(config: Config, lesson: Lesson, batch: int, clip: tuple[int, int, int, int]) -> _Kind:
    steps = lesson.first_steps or (config.first_steps if isinstance(config, DistillFields) else None)
    starts = () if steps is None else lesson.latents.changes
    return _Kind(batch=batch, clip=clip, first_chunk=lesson.first_chunk, starts=starts, first_steps=steps)
