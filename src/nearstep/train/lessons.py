"""What a run learns beside its usual clips: now and then a step takes clips of another kind.

Clips whose caption changes on the way, clips that go on from a picture, longer clips: each is a *lesson*, the lessons
take turns, and the usual clips have all other steps. Which step learns what is a function of its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from nearstep.data.latents import LatentsConfig
from nearstep.errors import NearstepError
from nearstep.ranges import check_count

L = TypeVar("L")


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Clips of another kind."""

    latents: LatentsConfig
    first_chunk: int | None = None
    """Latent frames of their first chunk; 1 makes it a picture, from which the clip goes on. None: as all others."""
    batch: int | None = None
    """Clips of an update: more of short ones, such as pictures, cost no more. None: as all others."""
    first_steps: int | None = None
    """Steps of a distillation's chunks where a scene begins, the first one and one at each change: those that a plan
    such as ``4,1x`` gives them. None: as all others."""


def lessons_of(
    lessons: Sequence[Lesson], every: int, *, chunks: bool = True, batches: bool = True, rollouts: bool = False
) -> tuple[Lesson, ...]:
    """The lessons that a run has, none where ``every`` is 0.

    Args:
        lessons: those of its recipe.
        every: steps of which one takes a lesson; 1 leaves none to the usual clips.
        chunks: whether its clips are made of chunks.
        batches: whether a lesson says how many clips an update has; phases do else.
        rollouts: whether its clips are rolled out, in steps.

    Raises:
        NearstepError: naming the option that fits no such run.
    """
    if every == 0:
        return ()
    check_count("lesson_every", every)
    for lesson in lessons:
        check_count("first_chunk", lesson.first_chunk)
        if lesson.first_chunk is not None and not chunks:
            raise NearstepError(
                f"first_chunk={lesson.first_chunk}: a bidirectional network has no chunks; leave it out"
            )
        check_count("batch", lesson.batch)
        if lesson.batch is not None and not batches:
            raise NearstepError(
                f"batch={lesson.batch}: a teacher's phases say how many clips an update has; leave it out"
            )
        check_count("first_steps", lesson.first_steps)
        if lesson.first_steps is not None and not rollouts:
            raise NearstepError(f"first_steps={lesson.first_steps}: only a distillation rolls clips out; leave it out")
    return tuple(lessons)


def batches(batch: int, lessons: Sequence[Lesson]) -> list[int]:
    """Clips of an update: of a usual one, which is the run's ``batch``, and of each lesson's."""
    return [batch, *(lesson.batch or batch for lesson in lessons)]


def taught(index: int, usual: L, lessons: Sequence[L], every: int) -> L:
    """What step ``index`` learns: a lesson at the end of every ``every`` steps, each in its turn."""
    if not lessons:
        return usual
    number, place = divmod(index, every)
    return lessons[number % len(lessons)] if place == every - 1 else usual
