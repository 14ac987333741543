"""Rotary positions: closed form, relative, and never past the table."""

from __future__ import annotations

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.nets.rope import axis_widths, rope_table, rotate


def table(frames: tuple[int, ...], height: int = 2, width: int = 3, head_dim: int = 24) -> tuple:
    return rope_table(
        frames, height, width, head_dim=head_dim, limit=64, dtype=torch.float64, device=torch.device("cpu")
    )


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


@pytest.mark.parametrize(("frames", "height"), [((63, 64), 2), ((0,), 65)])
def test_a_position_past_the_table_raises(frames: tuple[int, ...], height: int) -> None:
    with pytest.raises(NearstepError, match="position 64 is out of range"):
        table(frames, height)
