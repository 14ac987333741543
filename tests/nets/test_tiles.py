"""Tiles cover the picture, share what they must, and blend so that nothing shows where they meet."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.errors import NearstepError
from nearstep.nets.tiles import Tiling, blend, cut, spans, weights

SIZES = st.integers(2, 40).flatmap(
    lambda size: st.tuples(st.integers(1, 200), st.just(size), st.integers(1, size // 2))
)


@given(SIZES)
def test_stretches_cover_the_axis_and_share_enough(case: tuple[int, int, int]) -> None:
    length, size, overlap = case
    found = spans(length, size, overlap)
    assert found[0][0] == 0 and found[-1][1] == length
    assert {stop - start for start, stop in found} == {min(size, length)}
    assert all(before[1] - after[0] >= overlap for before, after in pairwise(found))
    fewest = 1 if length <= size else -(-(length - overlap) // (size - overlap))
    assert len(found) == fewest


@given(SIZES)
def test_weights_add_up_to_one(case: tuple[int, int, int]) -> None:
    total = torch.zeros(case[0], dtype=torch.float64)
    for span, weight in weights(spans(*case)).items():
        assert (weight > 0).all()
        total[slice(*span)] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


def test_two_tiles_blend_linearly() -> None:
    found = weights([(0, 8), (4, 12)])
    torch.testing.assert_close(found[0, 8][4:], torch.tensor([0.875, 0.625, 0.375, 0.125], dtype=torch.float64))
    assert torch.equal(found[0, 8][:4], torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cut_and_blended_is_the_picture(dtype: torch.dtype) -> None:
    picture = torch.randn(2, 3, 1, 13, 22, generator=torch.Generator().manual_seed(0)).to(dtype)
    tiles = cut(13, 22, Tiling(size=(16, 32), overlap=(8, 8)), stride=2)
    assert len(tiles) == 6
    again = blend([tile.of(picture) for tile in tiles], tiles)
    torch.testing.assert_close(again.to(dtype), picture)
    pixels = picture.repeat_interleave(2, -1).repeat_interleave(2, -2)
    scaled = [tile.times(2) for tile in tiles]
    torch.testing.assert_close(blend([tile.of(pixels) for tile in scaled], scaled).to(dtype), pixels)


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        ((60, 64), (16, 16), "height 60 with overlap 16: both must be multiples of 8"),
        ((64, 64), (16, 12), "width 64 with overlap 12: both must be multiples of 8"),
        ((64, 64), (16, 40), "width 64 may share 8 to 32 pixels, not 40"),
        ((64, 64), (0, 16), "height 64 may share 8 to 32 pixels, not 0"),
        ((0, 64), (16, 16), "height 0"),
    ],
    ids=str,
)
def test_tiles_a_codec_cannot_cut_are_named(size, overlap, message: str) -> None:
    with pytest.raises(NearstepError, match=message):
        Tiling(size=size, overlap=overlap).check(8)
