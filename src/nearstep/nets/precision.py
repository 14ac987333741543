"""Which dtype numbers are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32 if it is narrower; float32 and float64 are left alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
