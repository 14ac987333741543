"""The world: seeded, inside its walls, exact, and captioned without ambiguity."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.playground import captions
from nearstep.playground.world import (
    BACKGROUNDS,
    COLOURS,
    FRAMES,
    SHAPES,
    SIZE,
    SIZES,
    Scene,
    bounds,
    make_scene,
    positions,
    render,
    sample_scenes,
    shape_mask,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return sample_scenes(3, range(600))


def test_a_scene_is_a_function_of_its_name(scenes: list[Scene]):
    assert sample_scenes(3, [17]) == [scenes[17]]
    assert sample_scenes(4, [17]) != [scenes[17]]


def test_every_attribute_occurs(scenes: list[Scene]):
    for name, known in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("background", BACKGROUNDS)):
        assert {getattr(scene, name) for scene in scenes} == set(known)


def test_objects_never_leave_the_picture(scenes: list[Scene]):
    for scene in scenes:
        low, high = bounds(scene.radius)
        path = positions(scene)
        assert float(path.min()) >= low - 1e-3
        assert float(path.max()) <= high + 1e-3


def test_slides_are_straight_and_bounces_turn_exactly_once_at_a_wall(scenes: list[Scene]):
    for scene in scenes:
        steps = positions(scene).diff(dim=0)
        if scene.motion == "bounce":
            turns = (steps[1:] * steps[:-1] < 0).any(dim=1)
            assert 1 <= int(turns.sum()) <= 2  # two where the wall lies between two frames
        else:
            torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-4, rtol=0)


def test_a_window_of_a_clip_is_the_clip_cut(scenes: list[Scene]):
    whole = render(scenes[:4])
    assert whole.shape == (4, FRAMES, 3, SIZE, SIZE)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 1
    torch.testing.assert_close(render(scenes[:4], frames=5, first=7), whole[:, 7:12])


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_have_the_area_of_the_shape_and_follow_its_centre(shape: str):
    centre = torch.tensor([22.0, 25.0])
    mask = shape_mask(shape, 10.0, centre)
    fine = shape_mask(shape, 80.0, torch.tensor([256.0, 256.0]), size=512)
    assert float(mask.sum()) == pytest.approx(float(fine.sum()) / 64, rel=0.03)
    moved = shape_mask(shape, 10.0, centre + torch.tensor([3.0, -2.0]))
    torch.testing.assert_close(moved[8:40, 6:46], mask[10:42, 3:43])


def test_the_picture_shows_the_colours_it_names():
    scene = make_scene(
        random.Random(0), shape="circle", colour="red", size="large", motion="still", direction=None, speed=None,
        background="snow",
    )  # fmt: skip
    frame = render([scene], frames=1)[0, 0]
    x, y = (round(c) for c in scene.start)
    torch.testing.assert_close(frame[:, y, x], torch.tensor(COLOURS["red"]), atol=0.02, rtol=0)
    torch.testing.assert_close(frame[:, 0, 0], torch.tensor(BACKGROUNDS["snow"][0]))


def test_captions_say_exactly_what_the_scene_is(scenes: list[Scene]):
    for index, scene in enumerate(scenes):
        text = captions.caption(scene, seed=0, index=index)
        stated = {name: value for name, value in scene.attributes.items() if value is not None}
        assert captions.parse(text) == stated, text
        short = captions.caption(scene, seed=0, index=index, complete=False)
        assert captions.parse(short).items() <= stated.items(), short
        assert set(captions.tokens(text)) <= set(captions.vocabulary())


def test_wording_varies(scenes: list[Scene]):
    assert len({captions.caption(scenes[0], seed=seed, index=0) for seed in range(50)}) > 25


def test_words_of_different_attributes_are_disjoint():
    words = [word for values in captions.WORDS.values() for group in values.values() for word in group]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a large purpel ball", "'purpel': did you mean purple?"),
        ("a red ball and a blue ball", "more than one colour"),
        ("a red ball slides left and right", "goes one way"),
        ("ein roter Ball", "'ein'"),
    ],
)
def test_what_is_not_understood_is_named(text: str, said: str):
    with pytest.raises(NearstepError) as caught:
        captions.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_captions_may_leave_things_open():
    assert captions.parse("A large red ball bounces!") == {
        "size": "large", "colour": "red", "shape": "circle", "motion": "bounce",
    }  # fmt: skip


def test_scenes_can_be_changed(scenes: list[Scene]):
    other = replace(scenes[0], colour="red" if scenes[0].colour != "red" else "blue")
    assert not torch.equal(render([other], frames=1), render([scenes[0]], frames=1))
