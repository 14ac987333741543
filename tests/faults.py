"""What breaks sessions off at a chosen point: errors in torch and in the decoder, and Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch.overrides import TorchFunctionMode

from nearstep.stream.pipeline import CausalVideoPipeline

PROMPT = "a small red ball slides left on snow"


class Injected(Exception):
    """What breaks an operation off, unless it is Ctrl-C."""


class TorchFault(TorchFunctionMode):
    """The call of torch with this number, of one thread, breaks off: before it does anything, or after."""

    def __init__(self, number: int, *, done_first: bool = False) -> None:
        super().__init__()
        self.left, self.done_first = number, done_first

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.left -= 1
        if self.left == -1 and not self.done_first:
            raise Injected
        result = function(*arguments, **(options or {}))
        if self.left == -1:
            raise Injected
        return result


class SignalFault:
    """Ctrl-C where Python looks for signals: when a function begins, and when one of C's has returned.

    The functions around ours that check types in tests are passed over: users do not have them.
    """

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame, event, _argument) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "c_return") or "beartype" in file or "jaxtyping" in file:
            return
        self.left -= 1
        if self.left == -1:
            sys.setprofile(None)
            raise KeyboardInterrupt

    def __enter__(self) -> SignalFault:
        sys.setprofile(self)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)


@contextmanager
def decoder_fault(kind: type, number: int) -> Iterator[None]:
    """A decoding breaks off half-way, in whichever thread it is."""
    whole, calls = kind.decode, iter(range(number + 1))

    def decode(self, latents, **options):
        if next(calls, None) == number:
            whole(self, latents[:, :1], **options)
            raise Injected
        return whole(self, latents, **options)

    kind.decode = decode
    try:
        yield
    finally:
        kind.decode = whole


Fault = tuple[str, int]
PARTS = 1000
"""Of a chunk, as a fault counts."""
KINDS = ("torch", "torch, done", "signal")


@dataclass(frozen=True)
class Work:
    """What a chunk of two steps takes."""

    torch: int
    """Calls of torch."""
    signals: int
    """Moments at which Python looks for signals."""

    @classmethod
    def of(cls, pipe: CausalVideoPipeline) -> Work:
        with pipe.open(PROMPT, "2", seed=1) as session:
            next(session), next(session)  # what torch imports when it is first used is imported
            with TorchFault(sys.maxsize) as torch_calls:
                next(session)
            with SignalFault(sys.maxsize) as signals:
                next(session)
        return cls(torch=sys.maxsize - torch_calls.left, signals=sys.maxsize - signals.left)

    def breaking(self, pipe: CausalVideoPipeline, fault: Fault) -> AbstractContextManager[Any]:
        """What breaks an operation off after so many parts of such a chunk."""
        kind, part = fault
        if kind == "signal":
            return SignalFault(part * self.signals // PARTS)
        if kind.startswith("torch"):
            return TorchFault(part * self.torch // PARTS, done_first=kind != "torch")
        return decoder_fault(type(pipe.latent_stream()), part % 2) if kind == "decoder" else nullcontext()
