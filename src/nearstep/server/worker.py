"""The one thread that uses the device. Streams and videos take turns, a chunk each, in a circle.

    while it lives:   do what was asked for between chunks      (open, fork, close: `call`)
                      the next in the circle that is ready takes its turn

A stream that waits for its viewer is not ready and costs nothing. Who joins comes last.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Protocol, TypeVar, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Turns(Protocol):
    """What takes turns."""

    def ready(self) -> bool:
        """Whether a turn would do something."""
        ...

    def take_turn(self, waiting: int) -> None:
        """Make one chunk, or do what else waits; called on the worker's thread.

        Args:
            waiting: others that are ready at this moment.
        """
        ...

    def break_off(self, error: BaseException) -> None:
        """A turn raised this; it is not in the circle any more."""
        ...


class Worker:
    """Runs turns in a thread of its own, and encodes what they made in another, in order."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._circle: deque[Turns] = deque()
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="nearstep-device", daemon=True)
        self.encoder = ThreadPoolExecutor(1, thread_name_prefix="nearstep-encoding")
        """Takes what follows a chunk, in the order of the chunks."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Streams and videos that are ready for their turn."""
        with self._news:
            return sum(turns.ready() for turns in self._circle)

    def call(self, action: Callable[[], T]) -> Future[T]:
        """Do this between two chunks, on the worker's thread; in the order of the calls."""
        done: Future[T] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(action())
            except BaseException as error:
                done.set_exception(error)

        with self._news:
            if self._ended:
                done.set_exception(CancelledError())
                return done
            self._calls.append(run)
            self._news.notify()
        return done

    def join(self, turns: Turns) -> None:
        """Let this take turns, from the next round on."""
        with self._news:
            self._circle.append(turns)
            self._news.notify()

    def leave(self, turns: Turns) -> None:
        """It takes no more turns; one that it has now is finished."""
        with self._news:
            if turns in self._circle:
                self._circle.remove(turns)

    def wake(self) -> None:
        """Something may have become ready."""
        with self._news:
            self._news.notify()

    def stop(self) -> None:
        """End after the chunk that is being made, and wait for that."""
        with self._news:
            self._ended = True
            self._news.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.encoder.shutdown(wait=True)

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._ended and not self._calls and not any(turns.ready() for turns in self._circle):
                    self._news.wait()
                if self._ended:
                    return
                calls = [*self._calls]
                self._calls.clear()
                turns = None if calls else self._next_ready()
                waiting = sum(other.ready() for other in self._circle) - 1
            for call in calls:
                call()
            if turns is not None:
                self._let(turns, max(waiting, 0))

    def _next_ready(self) -> Turns | None:
        """The next of the circle that is ready, which then stands last."""
        for _ in range(len(self._circle)):
            turns = self._circle.popleft()
            self._circle.append(turns)
            if turns.ready():
                return turns
        return None

    def _let(self, turns: Turns, waiting: int) -> None:
        try:
            turns.take_turn(waiting)
        except Exception as error:
            self.leave(turns)
            turns.break_off(error)
