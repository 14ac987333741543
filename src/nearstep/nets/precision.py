"""Which dtype numbers are computed in."""

from __future__ import annotations

import torch
from torch import Tensor

from nearstep.errors import NearstepError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What networks run in, by name."""
_EXACT = {**DTYPES, "float64": torch.float64}
"""With what a reference is computed in, which no command offers."""


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
