"""Memory as the allocator sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile


class Meter:
    """What the allocator gave and took back, by torch's profiler: another tool than the prediction's count."""

    def __init__(self) -> None:
        self.live = 0
        self.peaks: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            yield
        peak = self.live
        for event in seen.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.name() == "[memory]":
                self.live += event.nbytes()
                peak = max(peak, self.live)
        self.peaks[name] = max(self.peaks.get(name, 0), peak)
