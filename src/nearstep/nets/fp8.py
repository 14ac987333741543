"""Eight-bit floats (e4m3) with a factor of its own for each row.

    x = s q,    s = max |x| / 448 of a row,    q rounded to three bits of mantissa

They save memory, and time on cards that multiply them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nearstep.nets.kernels import written_out

FP8 = torch.float8_e4m3fn
Scaled = tuple[Tensor, Tensor]
"""Eight-bit numbers [..., columns] and the factor of each row, [..., 1] in float32."""
FACTOR = torch.float32.itemsize
"""Bytes of a row's factor."""


def by_rows(x: Tensor) -> Scaled:
    """Rows [..., columns] in eight bits, each scaled to their range."""
    largest = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True)  # without a copy of x
    # A row of zeros, and one so small that its factor would vanish, become zeros.
    factor = (largest.float() / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / factor).to(FP8), factor


def packed(x: Tensor) -> Tensor:
    """Rows [..., columns] as bytes [..., columns + FACTOR]: the numbers, and behind them their factor."""
    numbers, factor = by_rows(x)
    return torch.cat([numbers.view(torch.uint8), factor.contiguous().view(torch.uint8)], dim=-1)


def unpacked(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of ``packed``, rounded to ``dtype``."""
    numbers, factor = rows[..., :-FACTOR].view(FP8), rows[..., -FACTOR:].contiguous().view(torch.float32)
    return (numbers.float() * factor).to(dtype)


def product(x: Scaled, weight: Scaled) -> Tensor:
    """x weight^T of matrices, in bfloat16: torch's own scaled product, on a CPU written out (it is faster there)."""
    (a, scale_a), (b, scale_b) = x, (part.t() for part in weight)
    if written_out(a):
        return (a.float() @ b.float() * scale_a * scale_b).to(torch.bfloat16)
    multiply: Callable[..., Tensor] = torch._scaled_mm
    return multiply(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=True)
