"""The clips that a run's updates learn from: its usual ones, and now and then those of a lesson."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    kinds = zip(own_batches, sizes.lessons, (_rollout(config, lesson) for lesson in config.lessons), strict=True)
    for (batch, clip, (first, starts, opening)), alike in Counter(kinds).items():
        own = replace(usual, clip=clip, first_chunk=first, starts=starts)
        yield Course(config=replace(alone, batch=batch, **dict(opening)), sizes=own, share=alike / (every * count))


def _rollout(config: Config, lesson: Lesson) -> tuple[int | None, tuple[int, ...], tuple[tuple[str, int], ...]]:
    """What a lesson's rollouts differ in: the first chunk, and where scenes begin with steps of their own."""
    steps = lesson.first_steps or (config.first_steps if isinstance(config, DistillFields) else None)
    if steps is None:
        return lesson.first_chunk, (), ()
    return lesson.first_chunk, lesson.latents.changes, (("first_steps", steps),)
