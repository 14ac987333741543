"""How many bytes of tensors live at once: of tensors with numbers, or without (torch's fake tensors).

Every operation's results pass by here, backward passes included, so what is counted is what autograd really keeps. Not
counted: what was there before, what a kernel uses inside itself, and what an allocator loses between tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Module = TypeVar("Module", bound=torch.nn.Module)


class LiveBytes(TorchDispatchMode):
    """While it is entered, counts the storages that operations make, until nobody holds them any more."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0.0
        self.peaks: dict[str, float] = {}
        """Phase -> the most bytes that lived at once in it, what earlier phases left included."""
        self._phase: str | None = None
        self._counted: dict[int, tuple[weakref.ref[Any], float]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # What was there before counts for nothing, and views of it (a layer's transposed weight) must not either.
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage(), 0.0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return result

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside counts for ``name``, and not for the phase around it."""
        around, self._phase = self._phase, name
        self._note()
        try:
            yield
        finally:
            self._phase = around

    def recount(self, tensor: Tensor, size: float) -> None:
        """From now on ``tensor`` counts as ``size`` bytes: a process may hold a slice of what was computed whole."""
        self._drop(id(tensor.untyped_storage()))
        self._enter(tensor.untyped_storage(), size)

    def _enter(self, storage: Any, size: float | None = None) -> None:
        key = id(storage)
        if key in self._counted:
            return
        counted: float = storage.nbytes() if size is None else size
        self._counted[key] = (weakref.ref(storage, lambda _: self._drop(key)), counted)
        self.live += counted
        self._note()

    def _drop(self, key: int) -> None:
        _, size = self._counted.pop(key, (None, 0.0))
        self.live -= size

    def _note(self) -> None:
        if self._phase is not None:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0.0), self.live)


def without_numbers(module: Module, dtype: torch.dtype | None = None) -> Module:
    """Give a module made on the meta device parameters on the fake CPU, all in ``dtype``, or each in its own."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                empty = torch.empty(p.shape, dtype=dtype or p.dtype)
                part._parameters[name] = torch.nn.Parameter(empty, p.requires_grad)
    return module
