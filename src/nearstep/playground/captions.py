"""Captions of the playground: varied wording over a closed vocabulary at two levels.

``caption`` words a scene: "a red apple slides left slowly over sand" (level *thing*) or "a fruit slides left" (level
*category*), which has many right answers. parsing.py reads what a caption states, thing by thing. Adjectives belong to
the next noun, verbs and directions to the last one, a relation links the noun before to the noun after it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.playground.parsing import parse
from nearstep.playground.sprites import THINGS
from nearstep.playground.words import (
    ADJECTIVES,
    CATEGORY_NOUNS,
    NOUNS,
    PLACE_PHRASES,
    RELATION_PHRASES,
    REST_PHRASES,
    SWING_TAILS,
    VERBS,
    WAY_PHRASES,
)
from nearstep.playground.world import Actor, Scene

LEVELS: tuple[str, ...] = ("thing", "category")

_DROP_ODDS: dict[str, float] = {"thing": 0.12, "category": 0.35}
"""How often a caption that need not be complete leaves an attribute out."""
_COLOUR_ODDS = 0.3
_WAY_ENDS = frozenset(phrase.split()[-1] for phrases in WAY_PHRASES.values() for phrase in phrases)


def caption(scene: Scene, *, seed: int, index: int, level: str | None = None, complete: bool = True) -> str:
    """Word a scene; the wording is named by ``(seed, index)``.

    Args:
        scene: what to say.
        seed: the wording's stream.
        index: the wording's place in it.
        level: name each thing, or its category alone; None draws one of the two.
        complete: state every attribute but the colour; otherwise size, direction, speed, place and what a second thing
            does are left out now and then, so that a model trained on such captions understands short prompts too.

    Raises:
        NearstepError: if there is no such level.
    """
    if level not in (*LEVELS, None):
        raise NearstepError(f"level={level!r}; one of {', '.join(LEVELS)}, or None for either")
    draw = random.Random(rng.key("caption of things", seed, index))
    drawn = draw.choice(LEVELS)  # drawn in any case, so that both levels word the same clip alike
    wording = _Wording(draw, level or drawn, complete)
    return wording.of_two(scene) if len(scene.actors) == 2 else wording.of_one(scene)


def story_captions(scenes: Sequence[Scene], *, seed: int, index: int, complete: bool = True) -> tuple[str, ...]:
    """Word scenes that follow one another (changes.py), all alike; arguments as for :func:`caption`.

    What would leave the change open, so that nobody could tell what is to come, is stated after all: every attribute,
    and the thing by its name if need be.
    """
    for level, whole in ((None, complete), (None, True), ("thing", True)):
        said = tuple(caption(scene, seed=seed, index=index, level=level, complete=whole) for scene in scenes)
        if all(parse(before) != parse(after) for before, after in pairwise(said)):
            break
    return said


class _Wording:
    """One caption's choices."""

    def __init__(self, draw: random.Random, level: str, complete: bool) -> None:
        self.draw, self.level = draw, level
        self.drop = 0.0 if complete else _DROP_ODDS[level]

    def said(self) -> bool:
        return self.draw.random() >= self.drop

    def of_one(self, scene: Scene) -> str:
        (actor,) = scene.actors
        noun, does, place = self.noun(actor), self.does(actor), self.place(scene)
        form = self.draw.randrange(4)
        if form == 0 and place:
            return f"{place}, {self.article(noun)} {does}"
        if form == 1:
            return f"there is {_indefinite(noun)} that {does} {place}".strip()
        return f"{self.article(noun)} {does} {place}".strip()

    def of_two(self, scene: Scene) -> str:
        first, second = scene.actors
        one, other, place = self.article(self.noun(first)), self.article(self.noun(second)), self.place(scene)
        if scene.relation is None:
            link = self.draw.choice(("while", "and"))
            said = f"{one} {self.does(first)} {link} {other} {self.does(second)}"
        else:
            relation = self.draw.choice(RELATION_PHRASES[scene.relation])
            more = f"that {self.does(second)}" if self.said() else ""
            does = self.does(first)
            comma = "," if does.split()[-1] in _WAY_ENDS else ""  # "left, behind a bus", which is not left behind
            said = f"{one} {does}{comma} {relation} {other} {more}".strip()
        return f"{place}, {said}" if place and self.draw.random() < 0.25 else f"{said} {place}".strip()

    def noun(self, actor: Actor) -> str:
        words = [self.draw.choice(ADJECTIVES["size"][actor.size])] if self.said() else []
        thing = THINGS[actor.thing]
        if self.level == "category":
            return " ".join([*words, self.draw.choice(CATEGORY_NOUNS[thing.category])])
        if thing.colour and self.draw.random() < _COLOUR_ODDS:
            words.append(self.draw.choice(ADJECTIVES["colour"][thing.colour]))
        return " ".join([*words, self.draw.choice(NOUNS[actor.thing])])

    def article(self, noun: str) -> str:
        return self.draw.choice((_indefinite(noun), f"the {noun}", f"one {noun}"))

    def place(self, scene: Scene) -> str:
        return self.draw.choice(PLACE_PHRASES[scene.place]) if self.said() else ""

    def does(self, actor: Actor) -> str:
        if actor.motion == "rest":
            return self.draw.choice(REST_PHRASES)
        verb = self.draw.choice(VERBS["motion"][actor.motion])
        way = self.way(actor)
        if not self.said():
            return f"{verb} {way}".strip()
        adverb = self.draw.choice(VERBS["speed"][actor.speed or ""])
        before = (verb, adverb) if adverb == "fast" else (adverb, verb)  # no adverb that stands before its verb
        forms = (f"{verb} {adverb} {way}", f"{' '.join(before)} {way}", f"{verb} {way} {adverb}")
        return " ".join(self.draw.choice(forms).split())

    def way(self, actor: Actor) -> str:
        if actor.direction is None:
            return self.draw.choice(SWING_TAILS)
        return self.draw.choice(WAY_PHRASES[actor.direction]) if self.said() else ""


def _indefinite(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
