"""Which options to turn until a run fits, in the order in which they cost the least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from nearstep.cost.fake_step import Config, preview
from nearstep.cost.memory import Estimate, estimate
from nearstep.cost.sizes import Sizes
from nearstep.train.distill.config import DistillFields
from nearstep.train.lessons import batches


@dataclass(frozen=True)
class Option:
    """A change of a config, and the words that make it on the command line."""

    words: str
    change: Callable[[Config, int], Config | None]
    """(config, clips of a process) -> the changed one; None where it is so already, or cannot be."""


def _text_cache(config: Config, _: int) -> Config | None:
    return None if config.text_cache else replace(config, text_cache=Path("runs/text"))


def _micro(config: Config, share: int) -> Config | None:
    return None if (config.micro or share) == 1 else replace(config, micro=1)


def _teacher(config: Config, _: int) -> Config | None:
    if not isinstance(config, DistillFields) or config.teacher_dtype != "float32":
        return None
    if config.adversary and config.adversary.wide_role == "teacher":  # whose penalty needs float32
        return None
    return replace(config, teacher_dtype="bfloat16")


def _penalty(config: Config, _: int) -> Config | None:
    if not isinstance(config, DistillFields) or not config.adversary:
        return None
    if config.adversary.penalty == "finite difference":
        return None
    return replace(config, adversary=replace(config.adversary, penalty="finite difference"))


def _autocast(config: Config, _: int) -> Config | None:
    return None if config.autocast else replace(config, autocast=True)


def _checkpointing(config: Config, _: int) -> Config | None:
    return None if config.checkpointing else replace(config, checkpointing=True)


def _replay(config: Config, _: int) -> Config | None:
    if not isinstance(config, DistillFields) or config.replay or config.sampling == "data":
        return None
    return replace(config, replay=True)


OPTIONS = (
    Option("--text-cache runs/text", _text_cache),
    Option("--micro 1", _micro),
    Option("--teacher-dtype bfloat16", _teacher),
    Option("--adversary.penalty 'finite difference'", _penalty),
    Option("--autocast", _autocast),
    Option("--replay", _replay),
    Option("--checkpointing", _checkpointing),
)
"""Those that change neither result nor speed come first; replays cost a call a chunk, checkpointing a third more."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run with some options turned."""

    words: tuple[str, ...]
    """Those that have helped until now, and the one that is tried."""
    processes: int
    estimate: Estimate


def trials(config: Config, sizes: Sizes, processes: int, room: float) -> Iterator[Trial]:
    """The run as it is, then one option after the other beside those that helped, then more processes, until it fits.

    The last trial fits in ``room`` bytes, or nothing here makes the run fit.
    """
    at = partial(estimate, sizes=sizes, preview=preview(config, sizes))
    best = Trial(words=(), processes=processes, estimate=at(config, processes=processes))
    yield best
    for option in OPTIONS:
        changed = option.change(config, config.batch // processes)
        if best.estimate.peak <= room or changed is None:
            continue
        estimated = at(changed, processes=processes)
        trial = Trial(words=(*best.words, option.words), processes=processes, estimate=estimated)
        yield trial
        if trial.estimate.peak < best.estimate.peak:
            config, best = changed, trial
    while best.estimate.peak > room and _divides(config, 2 * best.processes):
        more = 2 * best.processes
        best = replace(best, processes=more, estimate=at(config, processes=more))
        yield best


def _divides(config: Config, processes: int) -> bool:
    return all(
        batch % processes == 0 and (batch // processes) % (config.micro or 1) == 0
        for batch in batches(config.batch, config.lessons)
    )
