"""Batches made ahead by processes of their own, where the next would otherwise be waited for.

A batch is a function of its number, so it is the same whoever makes it and whenever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

B = TypeVar("B")
_ENDLESS = 2**40


class Ahead(Generic[B]):
    """``make``, with the numbers that follow the one asked for made meanwhile.

    Args:
        make: number -> batch, of what is on the CPU; it must not touch an accelerator.
        workers: processes that make them; 0 makes each when it is asked for.
    """

    def __init__(self, make: Callable[[int], B], workers: int) -> None:
        self._make, self._workers = make, workers
        self._coming: Iterator[B] = iter(())
        self._next: int | None = None

    def __call__(self, number: int) -> B:
        """The batch of this number; one that does not follow the last begins anew."""
        if not self._workers:
            return self._make(number)
        if number != self._next:
            self._coming = iter(_loader(self._make, number, self._workers))
        self._next = number + 1
        return next(self._coming)


class _Numbered(Dataset[B]):
    def __init__(self, make: Callable[[int], B]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> B:
        return self._make(number)


def _loader(make: Callable[[int], B], first: int, workers: int) -> DataLoader[Any]:
    return DataLoader(
        _Numbered(make),
        batch_size=None,
        sampler=range(first, first + _ENDLESS),
        num_workers=workers,
        multiprocessing_context="fork",  # what makes a batch may hold open files and clips that were found before
    )
