"""Words that a closed vocabulary does not hold: what may be meant by them, in one short line.

A near word is one of the same meaning, the singular, or what a misspelling that begins alike was meant to be. Letters
that happen to be shared do not count: "cat" is not near "at".
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

SHOWN = {
    "cat": "kitten kitty tiger lion tomcat leopard",
    "dog": "puppy hound wolf fox poodle",
    "frog": "toad tadpole",
    "penguin": "duck chick owl",
    "parrot": "bird macaw eagle",
    "elephant": "mammoth hippo rhino",
    "animal": "pet beast creature horse cow rabbit bear mouse fish",
    "apple": "cherry tomato peach",
    "banana": "plantain",
    "grapes": "grape berries blueberries plum",
    "watermelon": "melon",
    "pear": "lime avocado",
    "strawberry": "raspberry berry",
    "fruit": "lemon kiwi mango pineapple food",
    "bus": "coach van minibus tram",
    "car": "automobile auto taxi jeep cab truck",
    "rocket": "spaceship spacecraft missile",
    "boat": "ship yacht ferry canoe",
    "train": "engine railway",
    "airplane": "aeroplane jet aircraft",
    "vehicle": "bicycle bike motorbike tractor helicopter machine",
    "football": "footie",
    "eight ball": "billiard pool",
    "rugby ball": "gridiron",
    "basketball": "netball",
    "baseball": "",
    "softball": "",
    "ball": "sphere toy volleyball tennis circle globe orb",
    "doughnut": "bagel ring",
    "cupcake": "muffin",
    "lollipop": "lolly",
    "cake": "pie tart gateau",
    "candy": "bonbon toffee",
    "cookie": "biscuit",
    "sweet": "dessert snack pastry chocolate",
    "tulip": "rose",
    "daisy": "marguerite",
    "hyacinth": "lavender lilac violet",
    "lotus": "lily",
    "sunflower": "",
    "hibiscus": "mallow",
    "flower": "plant bloom bouquet",
    "house": "home cottage hut cabin",
    "castle": "palace fortress",
    "tent": "camp",
    "factory": "mill works",
    "pagoda": "temple shrine",
    "tower": "skyscraper lighthouse",
    "building": "church school hospital",
    "guitar": "ukulele banjo bass",
    "piano": "keyboard keys",
    "drum": "drums bongo",
    "saxophone": "trumpet horn clarinet",
    "violin": "fiddle cello viola",
    "accordion": "concertina harmonica",
    "instrument": "harp flute music",
}
"""What a clip may show -> other words for it, or for what is like it."""

SAID = {
    "small": "mini miniature",
    "large": "giant enormous gigantic massive",
    "medium": "normal middling average",
    "red": "crimson scarlet maroon ruby",
    "blue": "navy azure cobalt cyan turquoise teal aqua",
    "yellow": "golden gold gold",
    "grey": "silver gray slate",
    "purple": "violet indigo lilac magenta",
    "pink": "magenta fuchsia rose",
    "orange": "amber",
    "green": "lime emerald olive",
    "rests": "rest resting stands stand lies motionless sit sitting sleeps",
    "slides": "slide sliding runs run goes flies drives walks rolls move moving floats races swims",
    "bounces": "bounce bouncing hops jumps jump",
    "circles": "circle circling orbit orbiting rotates spins turns revolves",
    "swings": "swing swinging dangles rocks",
    "slowly": "slow softly calmly",
    "quickly": "quick speedily hastily rushing",
    "up": "upwards north",
    "down": "downwards south",
    "left": "leftwards west",
    "right": "rightwards east",
    "anticlockwise": "counter",
    "night": "dark darkness space evening dusk twilight",
    "meadow": "field lawn garden park forest",
    "sand": "dune dunes beach",
    "water": "ocean river pond waves",
    "bricks": "brick",
    "snow": "winter snowy",
    "wood": "table floor wooden plank",
    "sky": "cloud heaven air",
    "above": "atop",
    "below": "under underneath",
    "behind": "after",
}
"""What may be said of it -> the same."""

_MEANT: dict[str, tuple[str, ...]] = {}
for _head, _others in {**SHOWN, **SAID}.items():
    for _word in (_head, *_others.split()):
        _MEANT[_word] = (*_MEANT.get(_word, ()), _head, *_others.split())

_FUNCTION = frozenset("a an and are as at in is it of on one that the there to toward from against over which".split())
"""Words that nobody means by another."""
_SHORTEST, _LONG = 4, 7
"""Letters from which a word may be misspelt, and from which in two places."""
_LISTED = 60
"""Words that a message lists at most."""


def near_word(word: str, known: Collection[str]) -> str | None:
    """The word of a vocabulary that comes closest, if one does."""
    word = word.lower()
    singular = word[:-1] if word.endswith("s") else word
    if singular != word and singular in known:
        return singular
    for form in (word, singular):
        for other in _MEANT.get(form, ()):
            if other in known or all(part in known for part in other.split()):
                return other
    spelt = [other for other in (*known, *_MEANT) if _misspelt(word, other)]
    for other in sorted(spelt, key=lambda other: (_changes(word, other), other)):
        if other in known:
            return other
        if meant := next((each for each in _MEANT[other] if each in known), None):
            return meant
    return None


def unknown_words(unknown: Sequence[str], known: Collection[str]) -> str:
    """``'kitten': did you mean cat?``, for each; and what can be shown at all, where one is near nothing."""
    words = [*dict.fromkeys(unknown)]
    near = {word: near_word(word, known) for word in words[:_LISTED]}  # each is held against the whole vocabulary
    hints = [f"{word!r}" + (f": did you mean {meant}?" if meant else "") for word, meant in near.items()]
    more = [f"and {len(words) - _LISTED} more"] if len(words) > _LISTED else []
    named = "; ".join(hints + more)
    if all(near.values()) or not (listed := _listed(known)):
        return named
    return f"{named}{' ' if named.endswith('?') else '; '}{listed}"


def _listed(known: Collection[str]) -> str:
    shown = [word for word in SHOWN if all(part in known for part in word.split())]
    if 0 < len(shown) <= _LISTED:
        return f"it shows: {', '.join(shown)}"
    return f"it knows: {' '.join(sorted(known))}" if len(known) <= _LISTED else ""


def _misspelt(word: str, other: str) -> bool:
    """Whether a word may be another one with a letter or two gone wrong, not the first."""
    if len(word) < _SHORTEST or len(other) < _SHORTEST - 1 or word[0] != other[0] or other in _FUNCTION:
        return False
    allowed = 2 if min(len(word), len(other)) >= _LONG else 1
    return abs(len(word) - len(other)) <= allowed and _changes(word, other) <= allowed


def _changes(word: str, other: str) -> int:
    """Letters put in, left out, changed, or swapped with the next (optimal string alignment)."""
    before, row = [0] * (len(other) + 1), [*range(len(other) + 1)]
    for i, letter in enumerate(word, start=1):
        new = [i]
        for j, of_other in enumerate(other, start=1):
            least = min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (letter != of_other))
            if i > 1 and j > 1 and letter == other[j - 2] and word[i - 2] == of_other:
                least = min(least, before[j - 2] + 1)
            new.append(least)
        before, row = row, new
    return row[-1]
