"""How long the parts of anything take, seen from outside: what is timed knows nothing of it.

A :class:`Clock` times named stages, and :class:`Timed` stands in the place of an object and times calls of its methods;
what it returns is what the object returns. Beside it: how fast this machine multiplies matrices, and how much memory a
stretch of code took.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import torch

MATRICES = {"cpu": (512, 1024, 2048), "other": (2048, 4096, 8192)}
"""Sides of the square matrices whose product is timed."""
_PRODUCTS = 5
_ENOUGH = 0.5
"""Seconds of products that tell a rate."""
_RESET_PEAK, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class Span(NamedTuple):
    """One stretch of one stage."""

    stage: str
    seconds: float
    """Without the stages inside it."""


class Clock:
    """Times stages of work on a device, and waits for the device before and after each.

    Stages may lie in each other: a stage's time is its own, so that times add up to no more than the wall's.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._spans: list[Span] = []
        self._inside = [0.0]

    def wait(self) -> None:
        """Until the device has done what it was given."""
        synchronise(self.device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens within."""
        self.wait()
        self._inside.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            seconds = time.perf_counter() - began
            self._spans.append(Span(name, seconds - self._inside.pop()))
            self._inside[-1] += seconds

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call a stage."""

        @wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return call

    def spans(self) -> list[Span]:
        """The spans that have ended since the last call of this."""
        spans, self._spans = self._spans, []
        return spans


class Timed:
    """``inner``, whose calls are timed.

    Args:
        inner: anything.
        clock: gets the times.
        stages: method -> stage; all other methods are ``inner``'s own.
    """

    def __init__(self, inner: object, clock: Clock, stages: Mapping[str, str]) -> None:
        self._inner = inner
        # Its methods are bound here, where protocols look: from Python 3.12 on they pass __getattr__ over.
        for name in dir(type(inner)):
            if not name.startswith("_") and callable(getattr(type(inner), name)):
                setattr(self, name, getattr(inner, name))
        for method, stage in stages.items():
            # __call__ is looked up on the class, so that one is kept under a name of its own.
            setattr(self, "_call" if method == "__call__" else method, clock.timed(stage, getattr(inner, method)))

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As ``inner``'s."""
        return self.__dict__.get("_call", self._inner)(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)


class Floor(NamedTuple):
    """The fastest that a machine was seen to multiply matrices."""

    rate: float
    """FLOP a second, 2 for a multiply-add."""
    side: int
    """Side of the square matrices whose product was fastest."""


def matmul_floor(dtype: torch.dtype, device: torch.device | str = "cpu") -> Floor:
    """Time products of square matrices, here and now: no network of such products runs faster than they do.

    Larger matrices are left out once one product has taken half a second: the processor has no products of this type,
    a side twice as long takes eight times that, and is no faster.
    """
    device = torch.device(device)
    found: list[Floor] = []
    for side in MATRICES["cpu" if device.type == "cpu" else "other"]:
        seconds = _product_seconds(side, dtype, device)
        found.append(Floor(2 * side**3 / seconds, side))
        if seconds > _ENOUGH:
            break
    return max(found)


def _product_seconds(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Of the fastest of some products."""
    # Random numbers: a GPU multiplies ones faster, as it draws less power.
    draw = torch.Generator(device).manual_seed(side)
    a = torch.rand(side, side, generator=draw, device=device).to(dtype)

    def product() -> float:
        synchronise(device)
        began = time.perf_counter()
        torch.mm(a, a)
        synchronise(device)
        return time.perf_counter() - began

    first, seconds = product(), []  # the first warms up, and its time does not count towards enough
    while len(seconds) < _PRODUCTS and sum(seconds) < _ENOUGH:
        seconds.append(product())
    return min(first, *seconds)


class Memory(NamedTuple):
    """The most memory that was held at once."""

    peak: int
    """Bytes."""
    before: int
    """Bytes that were held already when the stretch of code began: weights, and on a CPU the program."""
    by: str
    """What measured it."""


@contextmanager
def peak_memory(device: torch.device | str = "cpu") -> Iterator[list[Memory]]:
    """Measure what happens within; the list that this gives holds the result when it is over.

    A GPU's is what torch's allocator gave out. A CPU's is the process's resident memory, and its peak so far where the
    system cannot begin a new one.
    """
    device, result = torch.device(device), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        result.append(Memory(torch.cuda.max_memory_allocated(device), before, "torch.cuda.max_memory_allocated"))
        return
    by = _begin_peak()
    before = _resident("VmRSS") or _highest()
    yield result
    result.append(Memory(max(before, _resident("VmHWM") or _highest()), before, by))


def _begin_peak() -> str:
    """Let the process's peak of resident memory begin anew, and say what will have measured it."""
    try:
        _RESET_PEAK.write_text("5")  # proc(5)
    except OSError:
        return "peak resident memory of the process so far"
    return "peak resident memory of the process"


def _resident(field: str) -> int:
    """A field of Linux's account of this process, in bytes; 0 where there is none."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def _highest() -> int:
    """Most bytes this process has held; 0 on systems that do not say."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def synchronise(device: torch.device) -> None:
    """Wait until the device is idle; a CPU always is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize()


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What the numbers of a run depend on besides the code."""
    device = torch.device(device)
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "float32_products": torch.get_float32_matmul_precision(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, sys.platform)
