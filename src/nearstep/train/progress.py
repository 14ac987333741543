"""What a run says while it trains: a bar in a terminal, a line per log step elsewhere, and how it ended."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_SHOWN = 4
_ASIDE = ("lr", "grad_norm", "seconds_per_step", "steps", "gamma")
"""Ends of names that a line has no room for; metrics.jsonl holds them all."""


class Progress:
    """Counts steps.

    Args:
        steps: of the whole run.
        done: made before.
        shown: False on all processes but one.
    """

    def __init__(self, steps: int, done: int, *, shown: bool) -> None:
        self.steps, self.done, self.shown = steps, done, shown
        self.before, self.began = done, time.monotonic()
        self.bar: Any = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=done, unit="step")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, row: dict[str, float]) -> None:
        """Count a step; ``row`` is what was logged with it, or nothing."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()
            if row:
                self.bar.set_postfix_str(_figures(row))
        elif row and self.shown:
            pace = (time.monotonic() - self.began) / (self.done - self.before)
            left = _duration(pace * (self.steps - self.done))
            say(f"step {self.done}/{self.steps}  {_figures(row)}  {pace:.3g} s/step, {left} left", name="")


def say(line: str, *, shown: bool = True, name: str = "nearstep: ") -> None:
    """One line to whoever watches."""
    if shown:
        sys.stderr.write(f"{name}{line}\n")
        sys.stderr.flush()


def _figures(row: dict[str, float]) -> str:
    names = [name for name in row if not name.endswith(_ASIDE)][:_SHOWN]
    return "  ".join(f"{name} {row[name]:.4g}" for name in names)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
