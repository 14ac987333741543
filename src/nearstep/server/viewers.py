"""Who looks at a stream: each viewer has a short queue of its own, and all of them are sent the same bytes.

A viewer says which chunk it has begun to show (`ack`). Those who steer set the pace: no more than :data:`AHEAD` chunks
are made beyond what the fastest of them shows. Who only watches and falls behind skips chunks; memory does not grow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from nearstep.server.protocol import AHEAD, Json

MOST_CHUNKS = AHEAD + 2
"""That wait for one viewer; then the oldest is skipped."""
MOST_TEXTS = 4 * 64
"""Other messages that wait for one viewer; a viewer with more of them does not read."""


class Slow(Exception):
    """The viewer does not read."""


class Viewer:
    """One connection's queue of what it is to be sent.

    Args:
        steers: whether it may change the stream.
    """

    def __init__(self, *, steers: bool) -> None:
        self.steers = steers
        self.epoch = 0
        self.shown = -1
        """The newest chunk of the epoch that it has begun to show."""
        self.skipped = 0
        self._items: deque[Json | tuple[Json, bytes]] = deque()
        self._chunks = self._texts = 0
        self._there = asyncio.Event()
        self._over: int | None = None

    def tell(self, event: Json) -> None:
        """Send an event, in order with all else."""
        self._texts += 1
        if self._texts > MOST_TEXTS:
            self._items.clear()
            self.end(-1)
            return
        self._put(event)

    def show(self, event: Json, data: bytes) -> None:
        """Send a chunk; the oldest that waits is skipped where there are too many."""
        if self._chunks == MOST_CHUNKS:
            self._skip()
        self._chunks += 1
        self._put((event, data))

    def end(self, code: int) -> None:
        """Close it after what waits, with this code; -1: because it does not read."""
        self._over = code
        self._there.set()

    async def next(self) -> Json | tuple[Json, bytes] | int:
        """What to send next, or the code to close with.

        Raises:
            Slow: if it does not read.
        """
        while not self._items:
            if self._over == -1:
                raise Slow
            if self._over is not None:
                return self._over
            self._there.clear()
            await self._there.wait()
        item = self._items.popleft()
        if isinstance(item, tuple):
            self._chunks -= 1
        else:
            self._texts -= 1
        return item

    def _put(self, item: Json | tuple[Json, bytes]) -> None:
        if self._over is None:
            self._items.append(item)
            self._there.set()

    def _skip(self) -> None:
        at = next(place for place, item in enumerate(self._items) if isinstance(item, tuple))
        event, _ = self._items[at]
        assert isinstance(event, dict)
        self._items[at] = {**event, "type": "skipped"}
        self._chunks, self._texts, self.skipped = self._chunks - 1, self._texts + 1, self.skipped + 1


def goal_of(viewers: Iterable[Viewer], epoch: int) -> int:
    """The first chunk that need not be made yet, with these viewers; 0 with none."""
    there = [*viewers]
    steering = [viewer for viewer in there if viewer.steers] or there
    shown = [viewer.shown for viewer in steering if viewer.epoch == epoch]
    return max(shown, default=-1) + 1 + AHEAD if steering else 0
