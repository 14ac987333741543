"""Rotary positions: closed form, relative, and never further than known."""

from __future__ import annotations

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.nets.rope import advance, axis_widths, check_distances, rope_table, rotate


def table(frames: tuple[int, ...], height: int = 2, width: int = 3, head_dim: int = 24) -> tuple:
    return rope_table(frames, height, width, head_dim=head_dim, dtype=torch.float64, device=torch.device("cpu"))


def test_a_wan_head_is_shared_out_as_44_42_42() -> None:
    assert axis_widths(128) == (44, 42, 42)
    assert all(sum(axis_widths(d)) == d and min(axis_widths(d)) % 2 == 0 for d in range(6, 130, 2))


def test_rotation_is_the_complex_exponential_of_frame_row_and_column() -> None:
    cos, sin = table((5, 9))
    t, h, w = (width // 2 for width in axis_widths(24))
    frame, row, column = 9, 1, 2  # the last token of the second frame
    rates = [torch.arange(n, dtype=torch.float64) / n for n in (t, h, w)]
    angles = torch.cat([p * 10000**-r for p, r in zip((frame, row, column), rates, strict=True)])
    x = torch.randn(1, 12, 3, 24, dtype=torch.float64)
    turned = torch.view_as_complex(x[:, -1].unflatten(-1, (-1, 2))) * torch.polar(torch.ones(12).double(), angles)
    torch.testing.assert_close(rotate(x, (cos, sin))[:, -1], torch.view_as_real(turned).flatten(-2))


def test_products_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 6, 1, 24, dtype=torch.float64)
    near = (rotate(q, table((4,))) * rotate(k, table((1,)))).sum(-1)
    far = (rotate(q, table((33,))) * rotate(k, table((30,)))).sum(-1)
    torch.testing.assert_close(near, far)


def test_a_key_turned_later_is_the_key_of_a_later_frame() -> None:
    key = torch.randn(1, 6, 2, 24, dtype=torch.float64)
    torch.testing.assert_close(advance(rotate(key, table((4,))), 1_000_000), rotate(key, table((1_000_004,))))


@pytest.mark.parametrize(("frames", "oldest", "height"), [((63, 64), 0, 2), ((1063, 1064), 1000, 2), ((0,), 0, 65)])
def test_a_distance_past_the_limit_raises(frames: tuple[int, ...], oldest: int, height: int) -> None:
    with pytest.raises(NearstepError, match="distance 64 is out of range"):
        check_distances(frames, oldest, height, 3, limit=64)
    check_distances(frames, oldest, height, 3, limit=65)
