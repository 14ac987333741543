"""The closed vocabulary of captions: which words state what, and how phrases are built.

Words of one attribute are disjoint from those of every other, so reading a caption is a look-up.
"""

from __future__ import annotations

from collections.abc import Sequence

from nearstep.playground.sprites import COLOURS, THINGS

_OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "airplane": ("plane",),
    "boat": ("sailboat",),
    "doughnut": ("donut",),
    "football": ("soccer ball",),
    "saxophone": ("sax",),
    "train": ("locomotive",),
}
_SINGULAR = {"grapes": "bunch of grapes"}
NOUNS: dict[str, tuple[str, ...]] = {name: (_SINGULAR.get(name, name), *_OTHER_NAMES.get(name, ())) for name in THINGS}
"""Thing -> the phrases that name it."""

CATEGORY_NOUNS: dict[str, tuple[str, ...]] = {
    "animal": ("animal",),
    "fruit": ("fruit",),
    "vehicle": ("vehicle",),
    "ball": ("ball",),
    "sweet": ("sweet", "treat"),
    "flower": ("flower", "blossom"),
    "building": ("building",),
    "instrument": ("instrument",),
}
"""Category -> the words that name it."""

ADJECTIVES: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {
        "small": ("small", "little", "tiny"),
        "medium": ("medium", "medium-sized"),
        "large": ("large", "big", "huge"),
    },
    "colour": {name: (name, "gray") if name == "grey" else (name,) for name in COLOURS},
}
"""Attribute -> value -> its words; they stand before the noun."""

VERBS: dict[str, dict[str, tuple[str, ...]]] = {
    "motion": {
        "rest": ("rests", "sits", "waits", "still"),
        "slide": ("slides", "glides", "drifts", "moves", "travels"),
        "bounce": ("bounces", "rebounds"),
        "orbit": ("circles", "orbits"),
        "swing": ("swings", "sways"),
    },
    "speed": {"slow": ("slowly", "gently", "lazily"), "fast": ("quickly", "rapidly", "swiftly", "fast")},
    "left": {"left": ("left", "leftward")},
    "right": {"right": ("right", "rightward")},
    "up": {"up": ("up", "upward", "upper")},
    "down": {"down": ("down", "downward", "lower")},
    "horizontal": {"horizontal": ("horizontally", "sideways", "side")},
    "vertical": {"vertical": ("vertically",)},
    "turn": {"clockwise": ("clockwise",), "anticlockwise": ("anticlockwise", "counterclockwise")},
}
"""Attribute -> value -> its words; they stand after the noun. All but the first two together state the direction."""

PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "night": ("night", "midnight", "stars"),
    "meadow": ("meadow", "grass"),
    "sand": ("sand", "desert", "beach"),
    "water": ("water", "sea", "lake"),
    "bricks": ("bricks", "wall"),
    "snow": ("snow", "ice"),
    "wood": ("wood", "planks"),
    "sky": ("sky", "clouds"),
}

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "in front of": ("in front of", "before"),
    "behind": ("behind",),
    "left of": ("left of",),
    "right of": ("right of",),
    "above": ("above",),
    "below": ("below", "beneath"),
}
"""Relation -> the phrases that state it."""

GLUE: tuple[str, ...] = tuple(
    "a an the is stays there that which and while as to toward from of in on at over against it one back forth".split()
)
"""Words that state nothing by themselves."""

# --- phrases, to make captions from --------------------------------------------------------------------------------

PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "night": ("at night", "at midnight", "in the night", "against the stars"),
    "meadow": ("on a meadow", "in the meadow", "on the grass"),
    "sand": ("on sand", "over sand", "in the desert", "on the beach"),
    "water": ("on water", "over the water", "on the sea", "on a lake"),
    "bricks": ("against bricks", "against a wall", "on bricks"),
    "snow": ("on snow", "over the snow", "in the snow", "on ice"),
    "wood": ("on wood", "on the planks", "over wood"),
    "sky": ("in the sky", "against the sky", "against the clouds"),
}

WAY_PHRASES: dict[str, tuple[str, ...]] = {
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
    "clockwise": ("clockwise",),
    "anticlockwise": ("anticlockwise", "counterclockwise"),
}

REST_PHRASES: tuple[str, ...] = ("rests", "sits", "waits", "stays still", "is still")
SWING_TAILS: tuple[str, ...] = ("", "", "back and forth")

RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    **RELATION_WORDS,
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
}


def phrases(things: Sequence[str]) -> dict[str, list[str]]:
    """What a caption can state -> the phrases that state it; the things that are named here, category by category."""
    listed = {
        " or ".join(nouns): [noun for name in things if THINGS[name].category == category for noun in NOUNS[name]]
        for category, nouns in CATEGORY_NOUNS.items()
    }
    shown = {THINGS[name].colour for name in things}
    colours = {name: words for name, words in ADJECTIVES["colour"].items() if name in shown}
    stated = {
        **ADJECTIVES,
        "colour": colours,
        "motion": {**VERBS["motion"], "rest": REST_PHRASES},
        "speed": VERBS["speed"],
    }
    stated |= {"direction": WAY_PHRASES, "place": PLACE_PHRASES, "relation": RELATION_PHRASES}
    return listed | {name: [phrase for group in values.values() for phrase in group] for name, values in stated.items()}
