"""Which dtype numbers are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from nearstep.errors import NearstepError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What networks run in, by name."""
_EXACT = {**DTYPES, "float64": torch.float64}
"""With what a reference is computed in, which no command offers."""


Products = Literal["float32", "TF32", "bfloat16"]
"""What float32 numbers are multiplied in; sums of products are in float32."""


@contextmanager
def products_in(kind: Products, device: str) -> Iterator[None]:
    """Inside, networks in float32 multiply so, whatever autocast is around; TF32 is float32 where there is none.

    Args:
        kind: float32, TensorFloat-32 (10 bits of mantissa) or bfloat16 (7).
        device: the type of the device.
    """
    narrow = tf32() if kind == "TF32" and device == "cuda" else nullcontext()
    with narrow, torch.autocast(device, torch.bfloat16, enabled=kind == "bfloat16"):
        yield


@cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether devices of this type have products of bfloat16 numbers of their own.

    A processor without them (x86 before AVX-512) makes each number wide first, and takes many times as long as for
    products in float32 (benchmarks/products.py).
    """
    if device == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def narrowed(device: str, wanted: bool = True) -> torch.autocast:
    """Autocast to bfloat16, where it is wanted and the device has its products; else float32 stays what it is.

    Args:
        device: its type.
        wanted: what the caller's settings ask for.
    """
    return torch.autocast(device, torch.bfloat16, enabled=wanted and multiplies_bfloat16(device))


@contextmanager
def tf32() -> Iterator[None]:
    """Products and convolutions of float32 numbers in TensorFloat-32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def wide(x: Tensor) -> Tensor:
    """x in float32 if it is narrower; float32 and float64 are left alone."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def find_dtype(name: torch.dtype | str) -> torch.dtype:
    """The type that a name means, with or without ``torch.`` before it.

    Raises:
        NearstepError: for others than those of :data:`DTYPES` and float64.
    """
    found = _EXACT.get(str(name).removeprefix("torch."))
    if found is None:
        raise NearstepError(f"networks do not run in {name!r}; use {', '.join(DTYPES)}")
    return found


def one_dtype(torch_dtype: torch.dtype | str | None, dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The type that an argument names under its older or its newer name; None where neither is given.

    Raises:
        NearstepError: for two that differ, or no type that networks run in.
    """
    named = {find_dtype(name) for name in (torch_dtype, dtype) if name is not None}
    if len(named) > 1:
        raise NearstepError(f"torch_dtype={torch_dtype} and dtype={dtype} are one argument; give one of them")
    return next(iter(named), None)
