"""Things are drawn exactly: coverage adds up, whole pixels move whole pictures, resolutions agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nearstep.playground.sprites import CATEGORIES, CELL, THINGS, coverage, pictures, place_things

SIDES = st.floats(0.1, 0.6)
PLACES = st.floats(0.31, 0.69)


def test_there_are_as_many_things_in_every_category():
    counts = [sum(thing.category == category for thing in THINGS.values()) for category in CATEGORIES]
    assert 32 <= len(THINGS) <= 64 and 8 <= len(CATEGORIES) <= 10
    assert len(set(counts)) == 1


def test_any_first_things_are_of_as_many_categories_as_can_be():
    names = list(THINGS)
    for count in range(1, len(CATEGORIES) + 1):
        assert len({THINGS[name].category for name in names[:count]}) == count


def test_pictures_are_premultiplied_and_have_a_rim():
    colour, alpha = pictures()[:, :3], pictures()[:, 3:]
    assert (colour <= alpha + 1e-6).all()
    assert alpha[..., 0, :].max() == 0 and alpha[..., :, -1].max() == 0
    assert (alpha.flatten(1).max(dim=1).values > 0.99).all()


@given(PLACES, SIDES)
def test_coverage_of_all_pixels_is_the_texels_width(centre: float, side: float):
    size = 48
    parts = coverage(torch.tensor([centre]), torch.tensor([side]), torch.arange(size)[None], size)
    assert torch.allclose(parts.sum(dim=1), torch.tensor(side * size / (CELL - 2)), atol=1e-4)
    assert (parts.sum(dim=2) <= 1 + 1e-5).all()


@given(st.sampled_from(range(len(THINGS))), PLACES, PLACES, SIDES)
def test_the_light_of_a_thing_depends_on_its_size_alone(thing: int, x: float, y: float, side: float):
    size = 48
    layer = place_things(torch.tensor([thing]), torch.tensor([[[x, y]]]), torch.tensor([[side]]), size)
    texel = side * size / (CELL - 2)
    expected = pictures()[thing].sum(dim=(1, 2)) * texel**2
    assert torch.allclose(layer.pixels.sum(dim=(0, 1, 3, 4)), expected, rtol=1e-3, atol=1e-2)


def test_a_move_by_whole_pixels_moves_the_picture():
    size, thing, side = 64, torch.tensor([0]), torch.full((1, 1), 0.3)
    here = place_things(thing, torch.tensor([[[0.4, 0.5]]]), side, size).spread(size)
    there = place_things(thing, torch.tensor([[[0.4 + 3 / size, 0.5 - 2 / size]]]), side, size).spread(size)
    assert torch.allclose(here.roll((-2, 3), dims=(-2, -1)), there, atol=1e-5)


def test_a_finer_frame_averages_to_the_coarser_one():
    thing, centre, side = torch.tensor([5]), torch.tensor([[[0.43, 0.52]]]), torch.full((1, 1), 0.37)
    coarse, fine = (place_things(thing, centre, side, size).spread(size) for size in (32, 128))
    assert torch.allclose(F.avg_pool2d(fine[0, 0], 4), coarse[0, 0], atol=1e-5)


def test_a_layer_hides_what_is_behind_by_its_coverage():
    size = 32
    layer = place_things(torch.tensor([2]), torch.tensor([[[0.5, 0.5]]]), torch.full((1, 1), 0.5), size)
    white = torch.ones(1, 1, 3, size, size)
    layer.draw_over(white)
    whole = layer.spread(size)
    assert torch.allclose(white, 1 - whole[:, :, 3:] + whole[:, :, :3], atol=1e-6)
    assert torch.equal(layer.cut(whole), layer.pixels)


@pytest.mark.parametrize("name", THINGS)
def test_every_thing_is_told_from_every_other_at_the_smallest_size(name: str):
    # The matched filters of the judge tell two things apart by the squared difference of their pictures.
    index, size = list(THINGS).index(name), 16
    centre = torch.full((len(THINGS), 1, 2), 0.5)
    drawn = place_things(torch.arange(len(THINGS)), centre, torch.ones(len(THINGS), 1), size).pixels[:, 0]
    away = (drawn - drawn[index]).square().sum(dim=(1, 2, 3))
    away[index] = torch.inf
    assert away.min() > 0.06 * drawn[index].square().sum()
