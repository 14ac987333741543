"""Scenes are functions of their number, paths keep to their walls and relations, and pictures show what scenes say."""

from __future__ import annotations

import math
import random

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.playground.paths import DIRECTIONS, MOTIONS, RATES, SPEEDS, WAYS, draw_track, positions, start_of
from nearstep.playground.places import PLACES, backdrop, ground
from nearstep.playground.relations import (
    OPPOSITES,
    OVERLAPS,
    RELATIONS,
    SIDES,
    covered,
    holds,
    surely_broken,
    undisturbed,
)
from nearstep.playground.sprites import THINGS
from nearstep.playground.world import WorldConfig, render, sample_scenes

WORLD = WorldConfig()
SCENES = sample_scenes(WORLD, 0, range(400))
CASES = [
    (motion, way, speed)
    for motion in MOTIONS
    for way in (WAYS[motion] or (None,))
    for speed in (SPEEDS if motion != "rest" else (None,))
]


def test_a_scene_depends_on_seed_and_index_alone():
    assert sample_scenes(WORLD, 0, [7, 3]) == [SCENES[7], SCENES[3]]
    assert sample_scenes(WORLD, 1, [7]) != [SCENES[7]]


def test_every_value_of_every_attribute_comes_up():
    actors = [actor for scene in SCENES for actor in scene.actors]
    assert {actor.thing for actor in actors} == set(WORLD.names)
    assert {(actor.motion, actor.direction, actor.speed) for actor in actors} == set(CASES)
    assert {scene.place for scene in SCENES} == set(PLACES)
    assert {scene.relation for scene in SCENES} == {None, *RELATIONS}


def test_a_part_of_the_scenes_has_two_things_of_different_categories():
    pairs = [scene.actors for scene in SCENES if len(scene.actors) == 2]
    assert abs(len(pairs) / len(SCENES) - WORLD.pairs) < 3 * math.sqrt(0.25 / len(SCENES))
    assert all(THINGS[one.thing].category != THINGS[two.thing].category for one, two in pairs)
    assert all(len(scene.actors) == 1 for scene in sample_scenes(WorldConfig(pairs=0.0), 0, range(50)))


def test_the_dial_of_things_leaves_the_last_ones_out():
    few = WorldConfig(things=16)
    assert {actor.thing for scene in sample_scenes(few, 0, range(300)) for actor in scene.actors} == set(few.names)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_things_stay_in_the_frame(case):
    motion, way, speed = case
    draw = random.Random(1)
    for side in (0.25, 0.41):
        for _ in range(20):
            track = draw_track(draw, motion=motion, direction=way, speed=speed, side=side, frames=33)
            for frames in (33, 129):
                path = positions(track, frames)
                assert path.min() >= side / 2 - 1e-6 and path.max() <= 1 - side / 2 + 1e-6


@pytest.mark.parametrize("speed", SPEEDS)
def test_paths_are_what_they_are_called(speed: str):
    draw = random.Random(2)

    def path(motion: str, way: str | None) -> torch.Tensor:
        return positions(draw_track(draw, motion=motion, direction=way, speed=speed, side=0.3, frames=33), 33).double()

    for way, unit in DIRECTIONS.items():
        steps = path("slide", way).diff(dim=0)
        rate = steps.norm(dim=1).mean()
        assert torch.allclose(steps, rate * torch.tensor(unit, dtype=torch.float64), atol=1e-5)
        assert 0.91 < rate / RATES["slide"][speed] < 1.09
    for axis, way in enumerate(("horizontal", "vertical")):
        steps = path("bounce", way).diff(dim=0)
        assert steps[:, 1 - axis].abs().max() < 1e-6
        assert steps[:8, axis].mean() * steps[-8:, axis].mean() < 0
    for way, sign in (("clockwise", 1), ("anticlockwise", -1)):
        steps = path("orbit", way).diff(dim=0)
        turn = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
        assert (sign * turn > 0).all()
        assert steps.norm(dim=1).std() < 1e-4


def test_frames_that_start_later_are_those_of_the_longer_clip():
    whole = render(WORLD, SCENES[:6], frames=69)
    assert torch.equal(render(WORLD, SCENES[:6], frames=33, first=20), whole[:, 20:53])
    assert whole.min() >= 0 and whole.max() <= 1


def test_clips_do_not_depend_on_their_batch():
    assert torch.equal(render(WORLD, SCENES[:5])[3], render(WORLD, SCENES[3:4])[0])


@pytest.mark.parametrize("size", [96, 128])
def test_a_finer_world_shows_the_same_scenes(size: int):
    fine = WorldConfig(size=size)
    scenes = sample_scenes(fine, 0, range(6))
    assert scenes == SCENES[:6]
    small = torch.nn.functional.interpolate(
        render(fine, scenes, frames=5).flatten(0, 1), (WORLD.size, WORLD.size), mode="area"
    ).unflatten(0, (6, 5))
    error = (small - render(WORLD, scenes, frames=5)).square().mean().sqrt()
    assert error < 0.03


@pytest.mark.parametrize("place", PLACES)
def test_a_texture_stays_and_another_number_gives_another(place: str):
    assert torch.equal(backdrop(place, 3, 64), backdrop(place, 3, 64))
    assert (backdrop(place, 3, 64) - backdrop(place, 4, 64)).abs().max() > 0.02
    assert (backdrop(place, 3, 64).mean(dim=2) - ground(place, 64).mean(dim=2)).abs().mean() < 0.15


def test_places_are_told_by_their_colour():
    means = torch.stack(
        [torch.stack([backdrop(place, n, 64) for n in range(8)]).mean(dim=(0, 2, 3)) for place in PLACES]
    )
    away = torch.cdist(means, means) + torch.eye(len(PLACES))
    assert away.min() > 0.08


@pytest.mark.parametrize("relation", RELATIONS)
def test_relations_hold_on_the_paths(relation: str):
    scenes = [scene for scene in SCENES if scene.relation == relation]
    for scene in scenes:
        one, two = scene.actors
        paths = [positions(actor.track, WORLD.frames) for actor in scene.actors]
        if relation in SIDES:
            axis, sign = SIDES[relation]
            assert (sign * (paths[1] - paths[0])[:, axis] > 0).all()
            assert not holds(OPPOSITES[relation], *paths, one.side, two.side)
        else:
            shared = covered(*paths, one.side, two.side)
            assert (shared > 0).float().mean() >= 0.3
            assert scene.front == OVERLAPS.index(relation)


def test_the_front_thing_covers_the_other():
    scene = next(scene for scene in SCENES if scene.relation == "in front of")
    alone = render(
        WORLD, [type(scene)(actors=scene.actors[:1], place=scene.place, texture=scene.texture, relation=None)]
    )
    other = render(
        WORLD, [type(scene)(actors=scene.actors[1:], place=scene.place, texture=scene.texture, relation=None)]
    )
    bare = backdrop(scene.place, scene.texture, WORLD.size)
    opaque = (alone - bare).abs().sum(dim=2, keepdim=True) > 0.5
    both = render(WORLD, [scene])
    inside = torch.nn.functional.avg_pool2d(opaque[0].float(), 5, stride=1, padding=2)[None] == 1
    assert torch.allclose(both[inside.expand_as(both)], alone[inside.expand_as(both)], atol=1e-2)
    clear = (alone - bare).abs().sum(dim=2, keepdim=True) == 0
    assert torch.allclose(both[clear.expand_as(both)], other[clear.expand_as(both)], atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"size": 8}, {"things": 1}, {"things": 99}, {"pairs": 1.5}, {"scale": 0.1}, {"fps": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(NearstepError, match=next(iter(wrong))):
        WorldConfig(**wrong)


@pytest.mark.parametrize(("motion", "way", "speed"), CASES)
def test_where_a_path_starts_is_told_without_a_tensor(motion: str, way: str | None, speed: str | None):
    draw = random.Random(3)
    for _ in range(8):
        track = draw_track(draw, motion=motion, direction=way, speed=speed, side=0.3, frames=WORLD.frames)
        torch.testing.assert_close(torch.tensor(start_of(track)), positions(track, 1)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("relation", [None, *OVERLAPS[:1], *SIDES])
def test_what_one_frame_rules_out_no_clip_shows(relation: str | None):
    draw, seen = random.Random(5), [0, 0, 0]
    for _ in range(2_000):
        side, other = draw.uniform(0.1, 0.5), draw.uniform(0.1, 0.5)
        first, second = ((draw.random(), draw.random()) for _ in range(2))
        paths = [torch.tensor([centre]) for centre in (first, second)]
        if relation in OVERLAPS:  # a frame alone may be one in which they do not meet
            shown = bool(covered(*paths, side, other).max() <= 0.6 * other**2)
        else:
            shown = holds(relation, *paths, side, other) if relation else undisturbed(*paths, side, other)
        broken = surely_broken(relation, first, second, side, other)
        assert not (broken and shown)
        seen[broken + 2 * shown] += 1
    assert seen[1] > 50 and seen[2] > 50 and seen[0] < 20  # what is left open is what is close
