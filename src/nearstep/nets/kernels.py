"""Which of its own kernels a CPU does without: what is faster there when it is written out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_FUSED = ContextVar("fused", default=False)


def written_out(x: Tensor) -> bool:
    """Whether a fused kernel on ``x`` may be written out."""
    return x.device.type == "cpu" and not _FUSED.get()


@contextmanager
def fused() -> Iterator[None]:
    """Inside, a CPU runs and keeps what an accelerator does: for those who count it (cost/fake_step.py)."""
    token = _FUSED.set(True)
    try:
        yield
    finally:
        _FUSED.reset(token)
