"""Videos decoded beside each other, and handed over in order.

Each worker is a process of its own: a damaged file that crashes the decoder costs that file and nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from nearstep.data.videos import ClipSize, Video, read_clips
from nearstep.errors import NearstepError

_AHEAD = 2  # videos in work or waiting, per worker: a decoded clip of Wan's size is 97 MB
CRASHES = "it crashes the decoder"


class Work(NamedTuple):
    """What is left of a video: its clips from ``first`` on."""

    video: Video
    first: int


Decoded = tuple[Work, "list[np.ndarray] | str"]
"""The clips of a video, all of them; or why there are none."""


@contextmanager
def decoding(work: Sequence[Work], size: ClipSize, workers: int) -> Iterator[Iterator[Decoded]]:
    """The work decoded, in order, by ``workers`` processes; 0 decodes in this one."""
    if workers < 1:
        yield ((item, attempt(item.video.path, size)) for item in work)
        return
    decoders = _Decoders(size, workers)
    try:
        yield decoders.run(work)
    finally:
        decoders.pool.shutdown(wait=True, cancel_futures=True)


def attempt(path: Path, size: ClipSize) -> list[np.ndarray] | str:
    """The clips of a video, or why there are none: an answer that a process can send."""
    try:
        return read_clips(path, size)
    except NearstepError as error:
        return str(error)


class _Decoders:
    """A pool of processes that is replaced when one of them dies."""

    def __init__(self, size: ClipSize, workers: int) -> None:
        self.size, self.workers = size, workers
        self.pool = _pool(workers)

    def run(self, work: Sequence[Work]) -> Iterator[Decoded]:
        ahead, waiting = iter(work), deque[tuple[Work, ProcessPoolExecutor, Future[Any]]]()
        while True:
            while len(waiting) < self.workers * _AHEAD and (item := next(ahead, None)):
                waiting.append((item, *self._submit(item)))
            if not waiting:
                return
            item, pool, future = waiting.popleft()
            try:
                yield item, future.result()
            except BrokenProcessPool:  # by this file, or by one that was decoded beside it
                self._replace(pool)
                yield item, self._alone(item)

    def _submit(self, item: Work) -> tuple[ProcessPoolExecutor, Future[Any]]:
        try:
            return self.pool, self.pool.submit(attempt, item.video.path, self.size)
        except BrokenProcessPool:
            self._replace(self.pool)
            return self._submit(item)

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        if self.pool is broken:
            broken.shutdown(wait=True, cancel_futures=True)
            self.pool = _pool(self.workers)

    def _alone(self, item: Work) -> list[np.ndarray] | str:
        with _pool(1) as pool:
            try:
                return pool.submit(attempt, item.video.path, self.size).result()
            except BrokenProcessPool:
                return CRASHES


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, because a fork of a process that has run torch's threads may hang.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a parent that was killed cannot stop its workers
