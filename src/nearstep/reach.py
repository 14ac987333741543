"""How far back chunks look: said once, for masks, caches, denoisers and streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The frames that a chunk sees beside its own."""

    window: int | None = None
    """Newest frames, a chunk's own included; None: all."""
    sink: int = 0
    """First frames of the video, seen in addition."""
    relative_sink: bool = False
    """The sink is seen as if it lay just before the window, however far that has moved on. Then no distance in an
    endless stream is longer than those a network was trained on."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Reach:
        """As a network's configuration says, which may be silent."""
        return cls(window=config.get("window_frames"), sink=config.get("sink_frames") or 0)

    def covers(self, position: int, end: int) -> bool:
        """Whether a chunk that ends before frame `end` may look back at frame `position`."""
        return self.window is None or position >= end - self.window or position < self.sink

    def sink_shift(self, end: int) -> int:
        """Frames by which a chunk that ends before frame `end` sees the sink nearer than it is."""
        if self.window is None or not self.sink or not self.relative_sink:
            return 0
        return max(0, end - self.window - self.sink)


EVERYTHING = Reach()
"""No window: chunks look back at all frames."""
