"""Compares what a clip shows with what its caption states, thing by thing."""

from __future__ import annotations

from dataclasses import dataclass

from nearstep.playground.judge.names import Found, FoundThing
from nearstep.playground.parsing import Stated, Subject
from nearstep.playground.relations import OPPOSITES

ATTRIBUTES = (
    "count",
    "thing",
    "category",
    "size",
    "motion",
    "direction",
    "speed",
    "place",
    "relation",
    "binding",
)
"""What is compared. ``count`` is always stated, ``binding`` wherever two things are."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Which statements a clip shows."""

    marks: dict[str, tuple[int, ...]]
    """Attribute -> 1 or 0 for each statement of it."""
    subjects: tuple[int | None, ...]
    """Which found thing each stated one is; None where it is missing."""

    @property
    def shares(self) -> dict[str, float]:
        """Attribute -> part of its statements that are shown."""
        return {name: sum(marks) / len(marks) for name, marks in self.marks.items()}

    @property
    def semantic(self) -> float:
        """Mean over the attributes stated."""
        return sum(self.shares.values()) / len(self.marks)

    @property
    def correct(self) -> bool:
        """Everything stated is shown."""
        return all(all(marks) for marks in self.marks.values())


def compare(stated: Stated, found: Found) -> Agreement:
    """Hold a caption against what was found in its clip."""
    subjects = _match(stated.subjects, found.things)
    marks: dict[str, list[int]] = {"count": [int(len(found.things) == len(stated.subjects) and not found.more)]}
    for subject, index in zip(stated.subjects, subjects, strict=True):
        thing = None if index is None else found.things[index]
        for attribute in subject.stated:
            marks.setdefault(attribute, []).append(int(thing is not None and _shows(subject, attribute, thing)))
    if stated.place:
        marks["place"] = [int(found.place == stated.place)]
    if stated.relation:
        shown = stated.relation if subjects == (0, 1) else OPPOSITES[stated.relation]
        marks["relation"] = [int(None not in subjects and shown in found.relations)]
    if len(stated.subjects) == 2:
        marks["binding"] = [int(None not in subjects and not _swapped(stated.subjects, found.things, subjects))]
    return Agreement(marks={name: tuple(values) for name, values in marks.items()}, subjects=subjects)


def _shows(subject: Subject, attribute: str, thing: FoundThing) -> bool:
    if attribute in ("thing", "category"):
        return thing.thing in subject.things
    return thing.shows(attribute) == subject.stated[attribute]


def _is(subject: Subject, thing: FoundThing) -> int:
    return int(thing.thing in subject.things)


def _fits(subject: Subject, thing: FoundThing) -> int:
    # How many of the attributes besides its name the thing shows.
    return sum(_shows(subject, name, thing) for name in subject.stated if name not in ("thing", "category"))


def _match(subjects: tuple[Subject, ...], things: tuple[FoundThing, ...]) -> tuple[int | None, ...]:
    # The names decide which thing is which, the other attributes where names do not.
    places = [*range(len(things)), None]
    ways = [(one,) for one in places]
    if len(subjects) == 2:
        ways = [(one, two) for one in places for two in places if one is None or one != two]

    def likeness(way: tuple[int | None, ...]) -> tuple[int, int, int]:
        pairs = [(subject, things[index]) for subject, index in zip(subjects, way, strict=True) if index is not None]
        return sum(_is(*pair) for pair in pairs), len(pairs), sum(_fits(*pair) for pair in pairs)

    return max(ways, key=likeness)


def _swapped(subjects: tuple[Subject, ...], things: tuple[FoundThing, ...], chosen: tuple[int | None, ...]) -> bool:
    # Whether each thing shows what is said of the other rather than what is said of it.
    one, two = (things[index or 0] for index in chosen)
    straight = _fits(subjects[0], one) + _fits(subjects[1], two)
    crossed = _fits(subjects[0], two) + _fits(subjects[1], one)
    return crossed > straight
