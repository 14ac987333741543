"""The playground: what a clip shows, exactly, and how it is drawn.

One or two things rest or move in front of a place. Every clip is a pure function of the world's settings and ``(seed,
index)``; positions, sizes and speeds are exact numbers, so a judge needs no learned net. What makes it hard for few
steps: pictures full of detail, two of them at once that must not swap what is said of them, motions that turn, and
textures that later chunks must keep although a thing has passed over them. Captions live in captions.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.playground.paths import MOTIONS, SPEEDS, WAYS, Track, draw_track, positions, start_of
from nearstep.playground.places import PLACES, backdrop
from nearstep.playground.relations import RELATIONS, holds, surely_broken, undisturbed
from nearstep.playground.sprites import THINGS, Layer, place_things

SIZES: dict[str, float] = {"small": 0.3, "medium": 0.375, "large": 0.468}
"""Size name -> longer extent of a thing, as a part of the frame's side."""

_SIZE_SPREAD = 0.04
_MOTION_ODDS = (0.14, 0.36, 0.18, 0.16, 0.16)
_RELATION_ODDS = (0.3, 0.2, 0.2, 0.075, 0.075, 0.075, 0.075)
"""None, in front of, behind, and the four sides."""
_TRIES = 30
"""Pairs of paths to try for a relation before other things and motions are drawn."""


_MOST_FRAMES = 33


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The settings of a world: its resolution, and the dials that make it easy or hard."""

    size: int = 48
    """Height and width of a frame in pixels."""
    frames: int = 33
    """Pixel frames of a clip, within which every motion shows what it is."""
    fps: int = 12
    things: int = 16
    """How many different things there are: the first ones of THINGS."""
    pairs: float = 0.4
    """Part of the clips that show two things."""
    scale: float = 1.0
    """Factor on every thing's size."""

    def __post_init__(self) -> None:
        if self.size < 16 or self.fps < 1 or not 9 <= self.frames <= _MOST_FRAMES:
            raise NearstepError(
                f"size={self.size}, frames={self.frames}, fps={self.fps}; at least 16 pixels and 1 frame a second, and "
                f"9 to {_MOST_FRAMES} frames: in more, what slides would meet a wall. Longer clips of a world are "
                "asked for where they are made (latents.frames)"
            )
        if not 2 <= self.things <= len(THINGS):
            raise NearstepError(f"things={self.things}; from 2 to {len(THINGS)}")
        if not (0.0 <= self.pairs <= 1.0 and 0.4 <= self.scale <= 1.0):
            raise NearstepError(f"pairs={self.pairs}, scale={self.scale}; pairs from 0 to 1, scale from .4 to 1")

    @property
    def names(self) -> tuple[str, ...]:
        """The things of this world."""
        return tuple(THINGS)[: self.things]


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A thing in a clip: the names that a caption can state, and the exact numbers behind them."""

    thing: str
    size: str
    motion: str
    direction: str | None
    """One of paths.WAYS[motion]; None where there are none."""
    speed: str | None
    """None at rest."""
    side: float
    """Longer extent, as a part of the frame's side."""
    track: Track

    @property
    def attributes(self) -> dict[str, str | None]:
        """What a caption can state of one thing."""
        names = {name: getattr(self, name) for name in ("thing", "size", "motion", "direction", "speed")}
        return {**names, "category": THINGS[self.thing].category, "colour": THINGS[self.thing].colour}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip's content."""

    actors: tuple[Actor, ...]
    """One or two."""
    place: str
    texture: int
    """Number of the place's texture."""
    relation: str | None
    """How the first thing lies to the second, in every frame or wherever they meet; None if it is not to be told."""

    @property
    def front(self) -> int:
        """Which actor is drawn over the other."""
        return 1 if self.relation == "behind" else 0


# --- sampling ------------------------------------------------------------------------------------------------------


def sample_scenes(config: WorldConfig, seed: int, indices: Iterable[int]) -> list[Scene]:
    """The scenes of ``indices`` in the endless stream named by ``seed``."""
    return [_sample(config, seed, index) for index in indices]


def make_actor(
    config: WorldConfig,
    draw: random.Random,
    *,
    thing: str,
    size: str,
    motion: str,
    direction: str | None,
    speed: str | None,
) -> Actor:
    """A thing with the named attributes; ``draw`` chooses the exact numbers within them."""
    side = draw_side(config, draw, size)
    track = draw_track(draw, motion=motion, direction=direction, speed=speed, side=side, frames=config.frames)
    return Actor(thing=thing, size=size, motion=motion, direction=direction, speed=speed, side=side, track=track)


def draw_side(config: WorldConfig, draw: random.Random, size: str) -> float:
    """The extent of a thing of the named size, as a part of the frame's side."""
    return config.scale * SIZES[size] * draw.uniform(1 - _SIZE_SPREAD, 1 + _SIZE_SPREAD)


def _sample(config: WorldConfig, seed: int, index: int) -> Scene:
    draw = random.Random(rng.key("scene of things", seed, index))
    place, texture = draw.choice(PLACES), rng.key("texture of a scene", seed, index)
    if draw.random() >= config.pairs:
        actors, relation = (make_actor(config, draw, **_draw_names(draw, config.names)),), None
    else:
        relation = draw.choices((None, *RELATIONS), _RELATION_ODDS)[0]
        actors = _draw_pair(config, draw, relation)
    return Scene(actors=actors, place=place, texture=texture, relation=relation)


def _draw_names(draw: random.Random, things: Sequence[str]) -> dict[str, Any]:
    motion = draw.choices(MOTIONS, _MOTION_ODDS)[0]
    return {
        "thing": draw.choice(things),
        "size": draw.choice(tuple(SIZES)),
        "motion": motion,
        "direction": draw.choice(WAYS[motion]) if WAYS[motion] else None,
        "speed": None if motion == "rest" else draw.choice(SPEEDS),
    }


def _draw_pair(config: WorldConfig, draw: random.Random, relation: str | None) -> tuple[Actor, Actor]:
    # Two things of different categories, whose paths let the relation be seen. Names that hardly ever allow it (two
    # large things that cross the frame beside each other) give way to others.
    while True:
        names = [_draw_names(draw, config.names) for _ in range(2)]
        if THINGS[names[0]["thing"]].category == THINGS[names[1]["thing"]].category:
            continue
        for _ in range(_TRIES):
            first, second = (make_actor(config, draw, **said) for said in names)
            if allows(config, relation, first, second):
                return first, second


def allows(config: WorldConfig, relation: str | None, first: Actor, second: Actor) -> bool:
    """Whether the paths of two things show the relation of the first to the second; None: that they are apart."""
    if relation == "behind":
        relation, (first, second) = "in front of", (second, first)
    if surely_broken(relation, start_of(first.track), start_of(second.track), first.side, second.side):
        return False
    one, two = (positions(actor.track, config.frames) for actor in (first, second))
    if relation is None:
        return undisturbed(one, two, first.side, second.side)
    return holds(relation, one, two, first.side, second.side)


# --- drawing -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@torch.autocast("cpu", enabled=False)  # a pure function, whatever the caller computes in
def render(
    config: WorldConfig, scenes: Sequence[Scene], frames: int | None = None, first: int = 0
) -> Float[Tensor, "B T 3 size size"]:
    """Draw frames ``first .. first + frames - 1`` of the scenes, in [0, 1]; by default a whole clip."""
    frames = config.frames if frames is None else frames
    video = torch.empty(len(scenes), frames, 3, config.size, config.size)
    for clip, scene in zip(video, scenes, strict=True):  # one after another: a clip fits into a processor's cache
        clip.copy_(backdrop(scene.place, scene.texture, config.size))
        for actor in sorted(scene.actors, key=lambda actor: actor is scene.actors[scene.front]):
            _layer(actor, config.size, frames, first).draw_over(clip[None])
    return video


def _layer(actor: Actor, size: int, frames: int, first: int) -> Layer:
    thing = torch.tensor([tuple(THINGS).index(actor.thing)])
    side = torch.full((1, frames), actor.side)
    return place_things(thing, positions(actor.track, frames, first)[None], side, size)
