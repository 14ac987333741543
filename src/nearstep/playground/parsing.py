"""Reads a caption: which things it speaks of, and what it states of each."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cache

from nearstep.errors import NearstepError
from nearstep.playground.sprites import THINGS
from nearstep.playground.words import (
    ADJECTIVES,
    CATEGORY_NOUNS,
    GLUE,
    NOUNS,
    PLACE_WORDS,
    RELATION_WORDS,
    VERBS,
)
from nearstep.words import unknown_words


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a caption states of one thing; None where it leaves it open."""

    things: frozenset[str]
    """The things that it may be."""
    thing: str | None = None
    category: str | None = None
    """Stated or, where the thing is named, implied."""
    size: str | None = None
    motion: str | None = None
    direction: str | None = None
    speed: str | None = None

    @property
    def stated(self) -> dict[str, str]:
        """Attribute -> value; ``thing`` or ``category``, never both."""
        names = ("thing" if self.thing else "category", "size", "motion", "direction", "speed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a caption states."""

    subjects: tuple[Subject, ...]
    """One or two."""
    place: str | None
    relation: str | None
    """How the first subject lies to the second."""


def tokens(text: str) -> list[str]:
    """Lower-case words of ``text``, in any script; punctuation separates."""
    return re.findall(r"[^\W_]+", text.lower())


def _phrases() -> dict[tuple[str, ...], tuple[str, str]]:
    # Words of a phrase -> (what it is, its value).
    known: dict[tuple[str, ...], tuple[str, str]] = {(word,): ("glue", word) for word in GLUE}
    tables = {"thing": NOUNS, "category": CATEGORY_NOUNS, **ADJECTIVES, **VERBS}
    for name, values in {**tables, "place": PLACE_WORDS, "relation": RELATION_WORDS}.items():
        for value, phrases in values.items():
            known |= {tuple(tokens(phrase)): (name, value) for phrase in phrases}
    return known


_KNOWN = _phrases()
_LONGEST = max(map(len, _KNOWN))


def vocabulary(things: Collection[str] = tuple(THINGS)) -> tuple[str, ...]:
    """Every word that a caption in a world of these things may hold, sorted."""
    shown = [phrase for phrase, (name, value) in _KNOWN.items() if name != "thing" or value in things]
    return tuple(sorted({word for phrase in shown for word in phrase}))


_vocabulary = cache(vocabulary)


def parse(text: str, things: tuple[str, ...] = tuple(THINGS)) -> Stated:
    """What ``text`` states.

    Args:
        text: a caption.
        things: those of the world that it is a caption of.

    Raises:
        NearstepError: on words outside the vocabulary, with the known words that come closest to them; and on a caption
            that names no thing or more than two, states two values of one attribute, or what no thing here has.
    """
    words = tokens(text)
    known = _vocabulary(things)
    if unknown := [word for word in words if word not in known]:
        raise NearstepError(f"unknown in this world: {unknown_words(unknown, known)}")
    reader = _Reader(text, things)
    for kind, value in _units(words):
        reader.read(kind, value)
    return reader.result()


def _units(words: list[str]) -> Iterator[tuple[str, str]]:
    # The longest phrases first: "left of" is a relation, "rugby ball" no ball of any kind.
    start = 0
    while start < len(words):
        for length in range(_LONGEST, 0, -1):
            phrase = tuple(words[start : start + length])
            if phrase in _KNOWN:
                yield _KNOWN[phrase]
                break
        else:
            phrase = (words[start],)  # a word that is known as a part of a phrase alone
        start += len(phrase)


@dataclass
class _Reader:
    text: str
    world: tuple[str, ...]
    """Its things."""
    waiting: dict[str, set[str]] = field(default_factory=dict)
    """Attributes said before their noun."""
    subjects: list[dict[str, set[str]]] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    relation: str | None = None
    linking: str | None = None
    """A relation whose second noun is still to come."""

    def read(self, kind: str, value: str) -> None:
        if kind in ("thing", "category"):
            self.subjects.append({**self.waiting, kind: {value}})
            self.waiting = {}
            self.relation, self.linking = self.linking or self.relation, None
        elif kind == "place":
            self.places.add(value)
            self.linking = None  # in front of a wall
        elif kind == "relation":
            self.linking = value
        elif kind != "glue":
            before_noun = kind in ADJECTIVES or not self.subjects
            said = self.waiting if before_noun else self.subjects[-1]
            said.setdefault(kind, set()).add(value)

    def result(self) -> Stated:
        if not self.subjects or len(self.subjects) > 2:
            raise NearstepError(f"{self.text!r} names {len(self.subjects)} things; name one or two")
        if self.waiting:
            said = ", ".join(value for values in self.waiting.values() for value in values)
            raise NearstepError(f"{self.text!r} says {said} of nothing; name the thing after it")
        if self.linking or (self.relation and len(self.subjects) == 1):
            raise NearstepError(
                f"{self.text!r} says {self.linking or self.relation} what? Name the other thing after it"
            )
        return Stated(
            subjects=tuple(map(self.subject, self.subjects)),
            place=self.one("place", self.places),
            relation=self.relation,
        )

    def one(self, name: str, values: set[str]) -> str | None:
        if len(values) > 1:
            raise NearstepError(f"{self.text!r} states more than one {name}: {', '.join(sorted(values))}; keep one")
        return next(iter(values), None)

    def subject(self, said: dict[str, set[str]]) -> Subject:
        thing, category, size, colour, motion, speed = (
            self.one(name, said.get(name, set())) for name in ("thing", "category", "size", "colour", "motion", "speed")
        )
        direction = self.direction(said, motion)
        if motion is None and direction:
            motion = "orbit" if "turn" in said else "slide"
        if motion == "rest" and (speed or direction):
            raise NearstepError(f"{self.text!r}: what rests has no {'speed' if speed else 'direction'}; leave it out")
        things = {name for name in self.world if name == thing or THINGS[name].category == category}
        fitting = frozenset(name for name in things if colour is None or THINGS[name].colour == colour)
        if not fitting:
            colours = ", ".join(f"{name} {THINGS[name].colour}" for name in sorted(things) if THINGS[name].colour)
            raise NearstepError(f"no {thing or category} here is {colour}" + (f"; {colours}" if colours else ""))
        category = THINGS[thing].category if thing else category
        return Subject(
            things=fitting, thing=thing, category=category, size=size, motion=motion, direction=direction, speed=speed
        )

    def direction(self, said: dict[str, set[str]], motion: str | None) -> str | None:
        ways = [name for name in ("up", "down", "left", "right") if name in said]
        axes = [name for name in ("horizontal", "vertical") if name in said]
        turn = self.one("turn", said.get("turn", set()))
        if turn and (ways or axes or motion not in ("orbit", None)):
            raise NearstepError(f"{self.text!r}: only what circles goes {turn}")
        if motion == "bounce":
            across, along = (
                {"left", "right", "horizontal"} & {*ways, *axes},
                {"up", "down", "vertical"} & {*ways, *axes},
            )
            return None if bool(across) == bool(along) else ("horizontal" if across else "vertical")
        if ways and motion in ("orbit", "swing"):
            raise NearstepError(
                f"{self.text!r}: what {'circles' if motion == 'orbit' else 'swings'} has no such direction"
            )
        if axes:
            raise NearstepError(f"{self.text!r}: only what bounces goes both ways; name one, such as left")
        if {"up", "down"} <= set(ways) or {"left", "right"} <= set(ways):
            raise NearstepError(f"{self.text!r}: a slide goes one way, not {' and '.join(ways)}; a bounce goes both")
        return turn or " ".join(ways) or None
