"""Captions of the playground: varied wording over a closed vocabulary, and the way back.

``caption`` words a scene, ``parse`` reads the attributes a caption states. Each attribute's words are disjoint from
every other's, so the way back is a look-up and a caption is never ambiguous.
"""

from __future__ import annotations

import random
import re

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.playground.world import Scene
from nearstep.words import unknown_words

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "circle": ("circle", "ball", "disc"),
        "square": ("square", "box", "block"),
        "triangle": ("triangle",),
        "star": ("star",),
        "ring": ("ring", "hoop", "donut"),
        "cross": ("cross", "plus"),
    },
    "colour": {name: (name,) for name in ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")},
    "size": {
        "small": ("small", "little", "tiny"),
        "medium": ("medium", "average"),
        "large": ("large", "big", "huge"),
    },
    "motion": {
        "still": ("still", "rests", "waits"),
        "slide": ("slides", "glides", "drifts", "moves", "travels"),
        "bounce": ("bounces", "rebounds"),
    },
    "speed": {"slow": ("slowly", "gently", "lazily"), "fast": ("quickly", "rapidly", "swiftly", "fast")},
    "background": {
        "night": ("night", "midnight"),
        "slate": ("slate",),
        "forest": ("forest", "woods"),
        "sand": ("sand", "desert"),
        "dusk": ("dusk", "sunset"),
        "snow": ("snow",),
    },
    "left": {"left": ("left", "leftward")},
    "right": {"right": ("right", "rightward")},
    "up": {"up": ("up", "upward", "upper")},
    "down": {"down": ("down", "downward", "lower")},
    "horizontal": {"horizontal": ("horizontally", "side", "sideways")},
    "vertical": {"vertical": ("vertically",)},
}
"""Attribute -> value -> the words that state it. The last six together state ``direction``."""

_PLACES = {
    "night": ("at night", "at midnight", "in the night"),
    "slate": ("on slate", "against slate", "in front of slate"),
    "forest": ("in the forest", "in the woods", "in front of a forest"),
    "sand": ("on sand", "over the sand", "in the desert"),
    "dusk": ("at dusk", "at sunset", "in the dusk"),
    "snow": ("on snow", "over the snow", "in the snow"),
}
_WAYS = {
    "left": ("left", "leftward", "to the left"),
    "right": ("right", "rightward", "to the right"),
    "up": ("up", "upward"),
    "down": ("down", "downward"),
    "up left": ("up and to the left", "toward the upper left", "up and left"),
    "up right": ("up and to the right", "toward the upper right", "up and right"),
    "down left": ("down and to the left", "toward the lower left", "down and left"),
    "down right": ("down and to the right", "toward the lower right", "down and right"),
    "horizontal": ("left and right", "from side to side", "horizontally", "sideways"),
    "vertical": ("up and down", "vertically"),
}
_RESTS = ("stays still", "rests", "waits", "is still")
_GLUE = "a an the is are stays there that which and to toward from of in on at over against front it one".split()
_DROP_ODDS = 0.12

_MEANING = {
    word: (attribute, value) for attribute, values in WORDS.items() for value, words in values.items() for word in words
}


def vocabulary() -> tuple[str, ...]:
    """Every word a caption may hold, sorted."""
    return tuple(sorted({*_MEANING, *_GLUE}))


def phrases() -> dict[str, list[str]]:
    """What a caption can state -> the phrases that state it."""
    named = {name: values for name, values in WORDS.items() if name in ("shape", "colour", "size", "motion", "speed")}
    named |= {"direction": _WAYS, "background": _PLACES}
    return {name: [phrase for group in values.values() for phrase in group] for name, values in named.items()}


def tokens(text: str) -> list[str]:
    """Lower-case words of ``text``; punctuation separates."""
    return re.findall(r"[a-z0-9]+", text.lower())


def caption(scene: Scene, *, seed: int, index: int, complete: bool = True) -> str:
    """Word a scene; the wording is named by ``(seed, index)``.

    Args:
        scene: what to say.
        seed: the wording's stream.
        index: the wording's place in it.
        complete: state every attribute; otherwise size, speed and background are each left out now and then, so that
            a model trained on such captions understands short prompts too.
    """
    draw = random.Random(rng.key("caption", seed, index))
    said = {name: complete or draw.random() > _DROP_ODDS for name in ("size", "speed", "background")}
    adjectives = [draw.choice(WORDS["size"][scene.size])] if said["size"] else []
    noun = draw.choice(WORDS["shape"][scene.shape])
    subject = " ".join([*adjectives, scene.colour, noun])
    article = draw.choice((_article(subject), "the", "one"))
    place = draw.choice(_PLACES[scene.background]) if said["background"] else ""
    does = _doing(draw, scene, say_speed=said["speed"])
    form = draw.randrange(4)
    if form == 0 and place:
        return f"{place}, {article} {subject} {does}"
    if form == 1:
        return f"there is {_article(subject)} {subject} that {does} {place}".strip()
    return f"{article} {subject} {does} {place}".strip()


def _doing(draw: random.Random, scene: Scene, *, say_speed: bool) -> str:
    if scene.motion == "still":
        return draw.choice(_RESTS)
    verb = draw.choice(WORDS["motion"][scene.motion])
    way = draw.choice(_WAYS[scene.direction or ""])
    if not say_speed:
        return f"{verb} {way}"
    adverb = draw.choice(WORDS["speed"][scene.speed or ""])
    return draw.choice((f"{verb} {adverb} {way}", f"{adverb} {verb} {way}", f"{verb} {way} {adverb}"))


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def parse(text: str) -> dict[str, str]:
    """The attributes that ``text`` states, by name; attributes it leaves open are absent.

    Raises:
        NearstepError: on words outside the vocabulary, with the known words that come closest to them.
    """
    words = tokens(text)
    if unknown := [word for word in words if word not in _MEANING and word not in _GLUE]:
        raise NearstepError(f"unknown in this world: {unknown_words(unknown, vocabulary())}")
    stated: dict[str, set[str]] = {}
    for word in words:
        if word in _MEANING:
            attribute, value = _MEANING[word]
            stated.setdefault(attribute, set()).add(value)
    attributes: dict[str, str] = {}
    for name in ("shape", "colour", "size", "motion", "speed", "background"):
        values = stated.get(name, set())
        if len(values) > 1:
            raise NearstepError(f"{text!r} states more than one {name}: {', '.join(sorted(values))}; keep one")
        if values:
            attributes[name] = values.pop()
    if direction := _direction(stated, attributes.get("motion")):
        attributes["direction"] = direction
    return attributes


def _direction(stated: dict[str, set[str]], motion: str | None) -> str | None:
    said = [name for name in ("up", "down", "left", "right") if name in stated]
    if motion == "bounce":
        across = "horizontal" in stated or bool({"left", "right"} & set(said))
        along = "vertical" in stated or bool({"up", "down"} & set(said))
        return None if across == along else ("horizontal" if across else "vertical")
    if {"up", "down"} <= set(said) or {"left", "right"} <= set(said):
        raise NearstepError(f"a slide goes one way, not {' and '.join(said)}; a bounce goes both")
    return " ".join(said) or None
