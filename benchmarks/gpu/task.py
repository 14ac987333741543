"""What a part of the kit gets: what to measure, where, until when; and where each number goes at once."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nearstep.cost.clock import Floor, matmul_floor, synchronise

MACHINE = "machine"
"""The first line of each part."""
MOST_TIMES = 20
NARROW = torch.bfloat16
"""What inference computes in."""


class Record:
    """Lines of JSON, each in its file before the next number is measured: a part that is killed leaves what it has.

    Args:
        path: of the file, which grows.
        part: stands in every line.
    """

    def __init__(self, path: Path, part: str) -> None:
        self.path, self.part = path, part

    def __call__(self, name: str, **values: Any) -> None:
        """Write one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.part, "name": name, **values}) + "\n")

    @contextmanager
    def trying(self, name: str) -> Iterator[None]:
        """What fails within is a line of its own, and the rest goes on."""
        try:
            yield
        except (RuntimeError, ValueError, AttributeError, AssertionError) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            short = isinstance(error, torch.OutOfMemoryError)
            self(name, error=f"out of memory: {said}" if short else said)
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one part is asked to do."""

    size: str
    """A name of sizes.SIZES."""
    device: torch.device
    scratch: Path
    """A folder that is gone afterwards."""
    out: Path
    """Where files that are wanted go."""
    record: Record
    until: float
    """By time.monotonic."""
    skip: tuple[str, ...] = ()
    """What is left out of every part: "compile", "text"."""

    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.until - time.monotonic()

    def enough(self, seconds: float, name: str) -> bool:
        """Whether there is time for what takes so long; where there is not, a line says what was left out."""
        if self.left() > seconds:
            return True
        self.record(name, skipped=f"{self.left():.0f} s are left, and it takes about {seconds:.0f}")
        return False

    @property
    def cuda(self) -> bool:
        """Whether this is a GPU of NVIDIA's."""
        return self.device.type == "cuda"

    def needs_cuda(self, name: str) -> bool:
        """Whether there is none; a line says what was left out."""
        if not self.cuda:
            self.record(name, skipped="needs CUDA")
        return not self.cuda

    def seconds(self, call: Callable[[], Any], budget: float = 0.5) -> float:
        """Of one call, the median of as many as fit in the budget, three at least; one before them is not counted."""
        call()
        taken: list[float] = []
        while len(taken) < 3 or (sum(taken) < budget and len(taken) < MOST_TIMES):
            synchronise(self.device)
            began = time.perf_counter()
            call()
            synchronise(self.device)
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    def floor(self, dtype: torch.dtype = NARROW, name: str = "") -> Floor:
        """The rate of square products, measured now and written down."""
        found = matmul_floor(dtype, self.device)
        self.record(f"floor, {name or named(dtype)}", rate=found.rate, side=found.side)
        return found


def named(dtype: torch.dtype) -> str:
    """Its name as people write it."""
    return str(dtype).removeprefix("torch.")


def relative(made: torch.Tensor, expected: torch.Tensor) -> float:
    """The error's norm over that of what was expected."""
    truth = expected.double().cpu()
    return ((made.double().cpu() - truth).norm() / truth.norm()).item()
