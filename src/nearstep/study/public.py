"""The part of a study that a server opens: trials and clips, and nothing of whose they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.json_files import TEXT, Kind, check_fields, list_of, object_of, optional, read_object
from nearstep.study.plan import CLIPS, MOST_TRIALS, PUBLIC, TRIALS

APART = 6
"""Clips of one prompt are shown with so many trials between them, where there are enough."""
_NAME = Kind(
    "a name of 16 hexadecimal digits",
    lambda value: isinstance(value, str) and len(value) == 16 and set(value) <= set("0123456789abcdef"),
)


@dataclass(frozen=True, kw_only=True)
class ShownTrial:
    """Two clips beside each other."""

    id: str
    left: str
    """Name of a clip."""
    right: str
    group: str
    """The same for all trials of one prompt."""
    prompt: str | None


@dataclass(frozen=True, kw_only=True)
class Public:
    """What is shown."""

    folder: Path
    question: str
    trials: dict[str, ShownTrial]

    @classmethod
    def open(cls, study: Path) -> Public:
        """The public part of a study's folder.

        Raises:
            NearstepError: if there is none, or it is damaged.
        """
        path = study / PUBLIC / TRIALS
        if not study.is_dir():
            raise NearstepError(f"there is no study {study}; nearstep study make writes one")
        advice = "make the study again"
        content = read_object(path, advice)
        row = object_of({**dict.fromkeys(("id", "left", "right", "group"), _NAME), "prompt": optional(TEXT)})
        check_fields(content, {"question": TEXT, "trials": list_of(row)}, path)
        if not 0 < len(content["trials"]) <= MOST_TRIALS:
            raise NearstepError(f"{path} holds {len(content['trials'])} trials; {advice}")
        names = ("id", "left", "right", "group", "prompt")
        trials = [ShownTrial(**{name: row[name] for name in names}) for row in content["trials"]]
        found = cls(folder=study / PUBLIC, question=content["question"], trials={each.id: each for each in trials})
        for name in sorted(found.clips):
            if not found.clip(name).is_file():
                raise NearstepError(f"{found.clip(name)} is missing; {advice}")
        return found

    @property
    def clips(self) -> frozenset[str]:
        """Names of all clips."""
        return frozenset(name for trial in self.trials.values() for name in (trial.left, trial.right))

    def clip(self, name: str) -> Path:
        """The file of a clip."""
        return self.folder / CLIPS / f"{name}.mp4"

    def order(self, rater: str) -> list[ShownTrial]:
        """All trials in a rater's own order, by a hash of the name: whoever comes back finds the same."""
        drawn = sorted(self.trials.values(), key=lambda trial: rng.key("study order", rater, trial.id))
        return spread(drawn)

    def left_of(self, rater: str, done: Collection[str], count: int) -> list[ShownTrial]:
        """The next trials of a rater."""
        return [trial for trial in self.order(rater) if trial.id not in done][:count]


def spread(drawn: list[ShownTrial]) -> list[ShownTrial]:
    """The same order, but for trials of a prompt that was shown just before, which wait until it is forgotten."""
    order: list[ShownTrial] = []
    waiting = drawn
    while waiting:
        late: list[ShownTrial] = []
        placed = len(order)
        for trial in waiting:
            if trial.group in {each.group for each in order[-APART:]}:
                late.append(trial)
            else:
                order.append(trial)
        if len(order) == placed:  # nothing else is left
            order.append(late.pop(0))
        waiting = late
    return order
