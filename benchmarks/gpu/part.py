"""One part in a process of its own, started by kit.py: what it breaks and what it holds ends with it."""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.gpu.task import MACHINE, Record, Task
from nearstep.cost.clock import machine


@dataclass(frozen=True, kw_only=True)
class Options:
    """What kit.py passes on."""

    name: tyro.conf.Positional[str]
    """A file beside this one with a function ``run``."""
    size: Literal["1.3B", "tiny"]
    device: str
    lines: Path
    """Where the numbers go."""
    out: Path
    """Where other files go."""
    seconds: float
    """Until it is killed."""
    skip: tuple[str, ...] = ()
    """What it leaves out."""


def main(options: Options) -> None:
    """Run it."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(
            size=options.size,
            device=torch.device(options.device),
            scratch=Path(scratch),
            out=options.out,
            record=Record(options.lines, options.name),
            until=time.monotonic() + options.seconds,
            skip=options.skip,
        )
        facts = machine(task.device)
        task.record(MACHINE, **{"is": facts.pop("name"), "python": sys.version.split()[0], **facts})
        importlib.import_module(f"benchmarks.gpu.{options.name}").run(task)


if __name__ == "__main__":
    main(tyro.cli(Options))
