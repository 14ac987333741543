"""What follows a scene when its caption changes: what both captions share goes on from where it is.

A *story* is a scene and what it turns into, one after another, each shown from a frame of its own. A thing that both
share goes on along its path, or from where it is along another; a place, a size or a thing that differs is new from the
first frame on. So there is one right answer to a change of prompt, and a judge can tell what was lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.playground.paths import MOTIONS, SPEEDS, WAYS, advanced, draw_onward, shows_motion
from nearstep.playground.places import PLACES
from nearstep.playground.sprites import THINGS
from nearstep.playground.world import SIZES, Actor, Scene, WorldConfig, allows, draw_side, render, sample_scenes
from nearstep.ranges import grows

_TRIES = 20
"""Ways to change the same attribute before another one is tried."""

Change = Callable[[WorldConfig, random.Random, Scene], Scene | None]
"""(settings, draw, the scene as it goes on) -> the same with one attribute changed; None where the draw allows none."""


def sample_story(config: WorldConfig, seed: int, index: int, starts: Sequence[int]) -> tuple[Scene, ...]:
    """The scenes of a story in the endless stream named by ``seed``; the first is the world's own of that name.

    Args:
        config: the world.
        seed: the stream's.
        index: the story's place in it.
        starts: frames from which the second scene, the third and so on are shown, growing.

    Returns:
        A scene more than ``starts``, each with frame 0 of its paths where it begins.

    Raises:
        NearstepError: if ``starts`` do not grow from above 0.
    """
    check_starts(starts)
    scenes = sample_scenes(config, seed, [index])
    for number, (before, start) in enumerate(zip((0, *starts), starts, strict=False)):
        draw = random.Random(rng.key("change of a scene", seed, index, number))
        scenes.append(_changed(config, draw, scenes[-1], start - before))
    return tuple(scenes)


def render_story(
    config: WorldConfig, scenes: Sequence[Scene], starts: Sequence[int], frames: int
) -> Float[Tensor, "frames 3 size size"]:
    """Draw ``frames`` frames of a story, in [0, 1]."""
    ends = (*starts, frames)
    parts = [
        render(config, [scene], frames=min(end, frames) - start)[0]
        for scene, start, end in zip(scenes, (0, *starts), ends, strict=True)
        if start < frames
    ]
    return torch.cat(parts)


def check_starts(starts: Sequence[int]) -> None:
    """Refuse changes that do not come one after another.

    Raises:
        NearstepError: naming them.
    """
    if not grows(starts):
        raise NearstepError(f"changes at frames {tuple(starts)}; give growing numbers above 0")


def _changed(config: WorldConfig, draw: random.Random, scene: Scene, frames: int) -> Scene:
    """``scene`` after ``frames`` frames with one attribute changed, or all of it."""
    onward = replace(scene, actors=tuple(replace(actor, track=advanced(actor.track, frames)) for actor in scene.actors))
    for change in draw.sample(CHANGES, k=len(CHANGES)):
        for _ in range(_TRIES):
            candidate = change(config, draw, onward)
            if candidate and _tells(config, candidate):
                return candidate
    return _cut(config, draw, onward)


def _tells(config: WorldConfig, scene: Scene) -> bool:
    """Whether the scene shows from its first frame on what a caption says of it."""
    if not all(shows_motion(actor.track, config.frames) for actor in scene.actors):
        return False
    return len(scene.actors) == 1 or allows(config, scene.relation, *scene.actors)


# --- changes of one attribute -----------------------------------------------------------------------------------------


def _motion(config: WorldConfig, draw: random.Random, scene: Scene) -> Scene | None:
    """Another motion, direction or speed of one thing, from where it is."""
    number, actor = _one_of(draw, scene)
    motion = draw.choice(MOTIONS)
    direction = draw.choice(WAYS[motion]) if WAYS[motion] else None
    speed = None if motion == "rest" else draw.choice(SPEEDS)
    if (motion, direction, speed) == (actor.motion, actor.direction, actor.speed):
        return None
    track = draw_onward(draw, actor.track, motion=motion, direction=direction, speed=speed, frames=config.frames)
    if track is None:
        return None
    return _with(scene, number, replace(actor, motion=motion, direction=direction, speed=speed, track=track))


def _thing(config: WorldConfig, draw: random.Random, scene: Scene) -> Scene | None:
    """Another thing in the place of one, along the same path."""
    number, actor = _one_of(draw, scene)
    thing = draw.choice(config.names)
    others = {THINGS[other.thing].category for other in scene.actors if other is not actor}
    if thing == actor.thing or THINGS[thing].category in others:
        return None
    return _with(scene, number, replace(actor, thing=thing))


def _size(config: WorldConfig, draw: random.Random, scene: Scene) -> Scene | None:
    """Another size of one thing, about the same middle."""
    number, actor = _one_of(draw, scene)
    size = draw.choice(tuple(SIZES))
    if size == actor.size:
        return None
    side = draw_side(config, draw, size)
    return _with(scene, number, replace(actor, size=size, side=side, track=replace(actor.track, half=side / 2)))


def _place(config: WorldConfig, draw: random.Random, scene: Scene) -> Scene | None:
    """Another place behind the same things."""
    place = draw.choice(PLACES)
    return None if place == scene.place else replace(scene, place=place, texture=draw.getrandbits(31))


def _cut(config: WorldConfig, draw: random.Random, scene: Scene) -> Scene:
    """A scene that shares nothing but by chance."""
    (new,) = sample_scenes(config, draw.getrandbits(62), [draw.getrandbits(31)])
    return new


CHANGES: tuple[Change, ...] = (_motion, _thing, _size, _place, _cut)


def _one_of(draw: random.Random, scene: Scene) -> tuple[int, Actor]:
    number = draw.randrange(len(scene.actors))
    return number, scene.actors[number]


def _with(scene: Scene, number: int, actor: Actor) -> Scene:
    return replace(scene, actors=(*scene.actors[:number], actor, *scene.actors[number + 1 :]))
