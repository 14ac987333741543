"""The clips that a run's updates learn from: its usual ones, and now and then those of a lesson."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nearstep.cost.fake_step import Config
from nearstep.cost.sizes import Sizes
from nearstep.errors import NearstepError
from nearstep.train.lessons import batches


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
    firsts = [lesson.first_chunk for lesson in config.lessons]
    for (batch, clip, first), alike in Counter(zip(own_batches, sizes.lessons, firsts, strict=True)).items():
        own = replace(usual, clip=clip, first_chunk=first)
        yield Course(config=replace(alone, batch=batch), sizes=own, share=alike / (every * count))
