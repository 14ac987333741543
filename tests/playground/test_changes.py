"""What follows a change of caption: what both share goes on, the rest is new at once."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.playground import PLAYGROUND
from nearstep.playground.changes import CHANGES, render_story, sample_story
from nearstep.playground.parsing import parse
from nearstep.playground.paths import MOTIONS, SPEEDS, WAYS, advanced, draw_onward, draw_track, positions, shows_motion
from nearstep.playground.world import WorldConfig, render, sample_scenes

WORLD = WorldConfig()
STARTS = (21, 45)


def tracks(motion: str, count: int = 30):
    for number in range(count):
        draw = random.Random(number)
        direction = draw.choice(WAYS[motion]) if WAYS[motion] else None
        speed = None if motion == "rest" else draw.choice(SPEEDS)
        yield draw_track(draw, motion=motion, direction=direction, speed=speed, side=0.3, frames=33)


@pytest.mark.parametrize("motion", MOTIONS)
def test_an_advanced_path_is_the_same_path_later(motion: str):
    for track in tracks(motion):
        for frames in (1, 9, 60, 333):
            later = positions(advanced(track, frames), 40)
            torch.testing.assert_close(later, positions(track, 40, first=frames), atol=1e-5, rtol=0)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_of_the_world_shows_what_it_is(motion: str):
    assert all(shows_motion(track, 33) for track in tracks(motion, 200))


def test_slides_into_a_wall_and_bounces_that_do_not_turn_do_not():
    slide, bounce = next(tracks("slide")), next(tracks("bounce"))
    assert not shows_motion(slide, 200)
    assert not shows_motion(bounce, 3)
    assert not shows_motion(replace(slide, anchor=(0.05, 0.5)), 33)


@pytest.mark.parametrize("motion", MOTIONS)
def test_an_onward_path_starts_where_the_other_is_and_stays_in_the_frame(motion: str):
    found = 0
    for number, track in enumerate(tracks("rest", 100)):
        draw = random.Random(number)
        direction = draw.choice(WAYS[motion]) if WAYS[motion] else None
        speed = None if motion == "rest" else draw.choice(SPEEDS)
        onward = draw_onward(draw, track, motion=motion, direction=direction, speed=speed, frames=33)
        if onward:
            found += 1
            path = positions(onward, 33)
            torch.testing.assert_close(path[0], positions(track, 1)[0], atol=1e-6, rtol=0)
            assert bool(((path >= onward.half) & (path <= 1 - onward.half)).all())
    assert found > 3


def test_a_story_begins_with_the_worlds_own_scene_and_is_a_function_of_its_name():
    for index in range(20):
        story = sample_story(WORLD, 5, index, STARTS)
        assert story[0] == sample_scenes(WORLD, 5, [index])[0]
        assert story == sample_story(WORLD, 5, index, STARTS)
        assert story[:2] == sample_story(WORLD, 5, index, STARTS[:1])
        assert len(story) == 3


def shared(before, after, at: int) -> int:
    """How many attributes of a pair of scenes are new; a cut counts as many."""
    pairs = list(zip(before.actors, after.actors, strict=False))
    if len(before.actors) != len(after.actors):
        return 9
    new = int(before.place != after.place)
    for one, other in pairs:
        new += (one.thing != other.thing) + (one.size != other.size)
        new += (one.motion, one.direction, one.speed) != (other.motion, other.direction, other.speed)
    return new


def test_one_attribute_is_new_and_the_rest_goes_on_from_where_it_is():
    counts = [0] * 10
    for index in range(150):
        before, after, _ = sample_story(WORLD, 6, index, STARTS)
        new = shared(before, after, 21)
        counts[min(new, 2)] += 1
        if new != 1:
            continue
        for one, other in zip(before.actors, after.actors, strict=True):
            here, there = positions(one.track, 1, first=21)[0], positions(other.track, 1)[0]
            assert float((here - there).abs().max()) < 1e-5
            same = (one.motion, one.direction, one.speed, one.size) == (
                other.motion,
                other.direction,
                other.speed,
                other.size,
            )
            if same:  # another size would meet the walls elsewhere
                path = positions(one.track, 33, first=21)
                torch.testing.assert_close(positions(other.track, 33), path, atol=1e-5, rtol=0)
        if before.place == after.place:
            assert before.texture == after.texture
    assert counts[0] == 0
    assert counts[1] > 60  # one new attribute
    assert counts[2] > 15  # cuts


@pytest.mark.parametrize("complete", [True, False])
def test_captions_tell_every_change(complete: bool):
    for said in PLAYGROUND.story_prompts(5, range(400), STARTS, complete=complete):
        for before, after in pairwise(map(parse, said)):
            assert before != after, said


def test_every_change_comes_up():
    seen = set()
    for index in range(150):
        before, after = sample_story(WORLD, 7, index, (33,))
        if shared(before, after, 33) == 1:
            seen.add("place" if before.place != after.place else "")
            for one, other in zip(before.actors, after.actors, strict=True):
                seen |= {name for name in ("thing", "size", "motion") if getattr(one, name) != getattr(other, name)}
        else:
            seen.add("cut")
    assert seen >= {"place", "thing", "size", "motion", "cut"}
    assert len(CHANGES) == 5


def test_a_story_is_drawn_scene_after_scene():
    story = sample_story(WORLD, 8, 3, STARTS)
    video = render_story(WORLD, story, STARTS, 60)
    assert video.shape == (60, 3, WORLD.size, WORLD.size)
    assert torch.equal(video[:21], render(WORLD, story[:1], frames=21)[0])
    assert torch.equal(video[21:45], render(WORLD, story[1:2], frames=24)[0])
    assert torch.equal(video[45:], render(WORLD, story[2:], frames=15)[0])
    assert torch.equal(render_story(WORLD, story, STARTS, 30), video[:30])


def test_the_judge_finds_in_each_scene_what_its_caption_says():
    starts, count = (33,), 16
    video = PLAYGROUND.stories(9, range(count), starts, frames=66)
    prompts = PLAYGROUND.story_prompts(9, range(count), starts)
    for number, part in enumerate((video[:, :33], video[:, 33:])):
        verdicts = PLAYGROUND.judge(part, [story[number] for story in prompts])
        assert sum(verdict.semantic for verdict in verdicts) / count >= 0.985
    assert all(before != after for before, after in prompts)
    old = PLAYGROUND.judge(video[:, 33:], [before for before, _ in prompts])
    assert sum(verdict.correct for verdict in old) <= count / 5  # the old caption is not what the new scene shows


@pytest.mark.parametrize("starts", [(0,), (9, 9), (21, 9), (-3,)])
def test_changes_come_one_after_another(starts):
    with pytest.raises(NearstepError, match="growing numbers above 0"):
        sample_story(WORLD, 0, 0, starts)
