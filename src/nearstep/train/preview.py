"""Pictures of a run while it trains: rows of frames as one PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from nearstep.files import replacing

COLUMNS = 9
_SCALE = 2


def write_grid(rows: Tensor, path: Path) -> None:
    """Write clips [B, T, 3, H, W] in [0, 1] as a PNG: a row per clip, COLUMNS of its frames evenly spread."""
    from PIL import Image

    picked = torch.linspace(0, rows.shape[1] - 1, min(COLUMNS, rows.shape[1])).round().long()
    sheet = rearrange(rows[:, picked], "b t c h w -> (b h) (t w) c")
    image = Image.fromarray((sheet.clamp(0, 1) * 255).round().byte().cpu().numpy())
    with replacing(path) as part:
        image.resize((image.width * _SCALE, image.height * _SCALE)).save(part, format="PNG")
