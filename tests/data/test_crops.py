"""Windows hold the focus, lie inside the frame and on the grid."""

from __future__ import annotations

import pytest
import torch

from nearstep.data.crops import cropped


def coordinates(batch: int, size: int) -> torch.Tensor:
    """Clips [B, 1, 2, size, size] whose pixels say where they are, as (x, y)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([x, y])[None, None].expand(batch, 1, -1, -1, -1).float()


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_windows_hold_their_focus_inside_the_frame_and_on_the_grid(grid: int):
    draw, focus = torch.Generator().manual_seed(0), torch.rand(200, 2) * 64
    found = cropped(coordinates(200, 64), focus, 32, draw, grid=grid)
    assert found.shape == (200, 1, 2, 32, 32)
    corners = found[:, 0, :, 0, 0]
    assert bool((corners % grid == 0).all())
    assert float(corners.min()) == 0
    assert float(corners.max()) == 32
    inside = (focus >= corners - grid) & (focus < corners + 32 + grid)
    assert bool(inside.all())
    assert len({tuple(corner) for corner in corners.tolist()}) > 20  # not always in the same place


def test_a_draw_names_its_windows():
    clips, focus = coordinates(8, 64), torch.full((8, 2), 32.0)
    one, same, other = (cropped(clips, focus, 16, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_window_as_large_as_the_frame_is_the_frame():
    clips = coordinates(3, 16)
    assert torch.equal(cropped(clips, torch.zeros(3, 2), 16, torch.Generator()), clips)
