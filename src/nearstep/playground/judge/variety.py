"""Variety: do clips of captions that leave something open show all that they may, as real clips do?

For every attribute that a caption leaves open (which fruit, which size, where), the values that the clips show are
counted, apart for each category or motion, and held against those of real clips:

    recall = sum over values of min(p_shown, p_real).

Few clips miss some values by chance, so recall is divided by what as many real clips would have on average. A model
that always shows the same fruit out of six has about a sixth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from nearstep import rng
from nearstep.playground.judge.agreement import compare
from nearstep.playground.judge.names import Found, FoundThing
from nearstep.playground.parsing import Stated
from nearstep.playground.world import Actor, Scene

OPEN = ("thing", "size", "direction", "speed", "place")
_DRAWS = 200

Key = tuple[str, str | None]
"""(attribute, what it is counted apart for)."""


def variety(stated: Sequence[Stated], found: Sequence[Found], real: Iterable[Scene]) -> dict[str, float]:
    """Attribute of OPEN -> recall in [0, 1] over what the captions leave open; absent where none does.

    Args:
        stated: the captions, read.
        found: what the clip of each shows.
        real: scenes of the world, a few thousand.
    """
    shown = _count(_shown(stated, found))
    truth = _count(_real(real))
    parts: dict[str, list[tuple[int, float]]] = {}
    for key, counts in shown.items():
        size = sum(counts.values())
        if key in truth:
            parts.setdefault(key[0], []).append((size, _recall(counts, truth[key], key)))
    return {
        name: sum(size * recall for size, recall in parts[name]) / sum(size for size, _ in parts[name])
        for name in OPEN
        if name in parts
    }


def _count(values: Iterable[tuple[Key, str]]) -> dict[Key, Counter[str]]:
    counts: dict[Key, Counter[str]] = {}
    for key, value in values:
        counts.setdefault(key, Counter())[value] += 1
    return counts


def _shown(stated: Sequence[Stated], found: Sequence[Found]) -> Iterable[tuple[Key, str]]:
    for said, clip in zip(stated, found, strict=True):
        for subject, index in zip(said.subjects, compare(said, clip).subjects, strict=True):
            if index is None:
                continue
            thing = clip.things[index]
            if subject.thing is None and thing.category == subject.category:
                yield ("thing", thing.category), thing.thing
            for name in ("size", "direction", "speed"):
                if getattr(subject, name) is None and (value := thing.shows(name)):
                    yield _key(name, thing), value
        if said.place is None and clip.place:
            yield ("place", None), clip.place


def _real(scenes: Iterable[Scene]) -> Iterable[tuple[Key, str]]:
    for scene in scenes:
        yield ("place", None), scene.place
        for actor in scene.actors:
            yield ("thing", actor.attributes["category"]), actor.thing
            for name in ("size", "direction", "speed"):
                if value := getattr(actor, name):
                    yield _key(name, actor), value


def _key(name: str, thing: FoundThing | Actor) -> Key:
    return name, None if name == "size" else thing.motion


def _recall(counts: Counter[str], truth: Counter[str], key: Key) -> float:
    names = sorted(truth)
    real = torch.tensor([truth[name] for name in names], dtype=torch.float64)
    real = real / real.sum()
    size = sum(counts.values())
    shares = torch.tensor([counts[name] / size for name in names], dtype=torch.float64)
    draws = torch.multinomial(
        real.expand(_DRAWS, -1), size, replacement=True, generator=rng.generator("variety", *map(str, key), size)
    )
    drawn = torch.stack([(draws == index).sum(dim=1) for index in range(len(names))], dim=1) / size
    expected = torch.minimum(drawn, real).sum(dim=1).mean()
    return float((torch.minimum(shares, real).sum() / expected).clamp(max=1.0))
