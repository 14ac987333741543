"""Decoding, at once or beside the making of the next chunk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from nearstep.protocols import LatentStream
from nearstep.stream.finite import check_finite

T = TypeVar("T")


class Deferred(Generic[T]):
    """A value that is made when it is first needed, or by a thread beside; made again if that broke off.

    Args:
        make: makes it.
        beside: starts at once there.
    """

    def __init__(self, make: Callable[[], T], beside: Executor | None = None) -> None:
        self._lock = threading.Lock()
        self._make: Callable[[], T] | None = make
        self._value: list[T] = []
        self._started: Future[T] | None = beside.submit(self._made) if beside else None

    def _made(self) -> T:
        if not self._value:
            make = self._make
            assert make is not None  # it goes only when the value is kept
            self._value.append(make())
            self._make = None  # and with it all that the value was made of
        return self._value[0]

    @property
    def done(self) -> bool:
        """Whether nobody has to wait for it."""
        started = self._started  # and no lock: whoever waits in ``result`` holds it
        return bool(self._value) or (started is not None and started.done() and not started.cancelled())

    def result(self) -> T:
        """The value, once it is there."""
        with self._lock:
            started = self._started
            if self._value or started is None or started.cancel():
                value = self._made()
            else:
                try:
                    value = started.result()
                except BaseException:
                    if started.done():  # it failed, and is made anew when it is asked for again
                        self._started = None
                    raise  # else who waited was interrupted, and the making goes on
            self._started = None
            return value


class Decoded(NamedTuple):
    """Pixels, and the decoder's stream as it is after them."""

    stream: LatentStream
    video: Tensor
    """[B, T, 3, H, W] in [0, 1], float32."""


class DecoderThread:
    """Decodes chunks in order: at once, or in a thread beside the making of the next chunk.

    Args:
        device: where the decoder is.
        beside: in a thread of its own, on a GPU also in a CUDA stream of its own.
    """

    def __init__(self, device: torch.device, *, beside: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="nearstep-decoding") if beside else None
        self._cuda = torch.cuda.Stream(device) if beside and device.type == "cuda" else None

    def start(self, before: Deferred[Decoded], latents: Tensor) -> Deferred[Decoded]:
        """The chunk ``latents`` [B, F, C, h, w] after what ``before`` decoded, which stays as it is."""
        cuda = self._cuda  # and not self: what waits to be decoded keeps no thread alive
        ready = torch.cuda.current_stream(latents.device).record_event() if cuda else None

        @torch.no_grad()
        def decode() -> Decoded:
            with torch.cuda.stream(cuda):  # none: where we are
                if cuda and ready:
                    cuda.wait_event(ready)
                stream = before.result().stream.copy()  # a decoding that breaks off leaves no trace
                video = check_finite(stream.decode(latents).float(), "a chunk's pixels")
                if cuda:
                    cuda.synchronize()
            return Decoded(stream, video)

        return Deferred(decode, self._pool)

    def pixels(self, decoded: Deferred[Decoded]) -> Deferred[Tensor]:
        """The pixels alone: who keeps them keeps no decoder's stream, once they are there."""
        return Deferred(lambda: decoded.result().video, self._pool)

    def close(self) -> None:
        """End the thread; what it has begun is finished."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)
