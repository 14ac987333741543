"""The loop that serves every stage: step, log, show, save, stop, resume."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from nearstep.files import sweep
from nearstep.models.folder import Settings
from nearstep.ranges import check_count, check_number
from nearstep.train import checkpoint
from nearstep.train.checkpoint import TrainState
from nearstep.train.metrics import Metrics
from nearstep.train.parallel import ranks


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Where a run lives, how long it is, and how often it reports."""

    folder: Path
    """Run folder: checkpoint, metrics and sample pictures. A run with a checkpoint there goes on from it."""
    steps: int
    minutes: float | None = None
    """Stop (and save) after this long; the same command goes on later."""
    log_every: int = 20
    save_every: int = 250
    preview_every: int = 500
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "save_every", "preview_every"):
            check_count(name, getattr(self, name))
        if self.minutes is not None:
            check_number("minutes", self.minutes, above=0)


@runtime_checkable
class Recipe(Protocol):
    """A stage's config: a dataclass with the loop's among its fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def loop(self) -> LoopConfig:
        """Where the run lives and how long it is."""
        ...


@runtime_checkable
class Stage(Protocol):
    """What a stage brings to the loop."""

    state: TrainState

    def step(self, index: int) -> dict[str, Tensor]:
        """One update, a function of the state and ``index`` alone; returns scalars to log."""
        ...

    def preview(self, path: Path) -> None:
        """Draw fixed-seed samples to ``path`` (PNG)."""
        ...

    def export(self, folder: Path) -> None:
        """Write the stage's result in diffusers' layout."""
        ...


def run(stage: Stage, config: LoopConfig, recipe: dict[str, Any]) -> Path:
    """Train to the end, or to SIGTERM, Ctrl-C or ``config.minutes``, and export; returns the exported folder."""
    here = ranks()
    if here.main:
        sweep(config.folder)
    if path := checkpoint.latest(config.folder):
        checkpoint.load(stage.state, recipe, path, here)
    metrics = Metrics(config.folder, tensorboard=config.tensorboard) if here.main else None
    deadline = time.monotonic() + 60 * config.minutes if config.minutes else None
    with _stop_signals() as stopped, _progress(config.steps, stage.state.step, shown=here.main) as advance:
        for index in range(stage.state.step, config.steps):
            logged = here.mean(stage.step(index))
            stage.state.step = done = index + 1
            late = bool(stopped) or (deadline is not None and time.monotonic() > deadline)
            last = done == config.steps or bool(here.total(torch.tensor(int(late))))
            if metrics:
                metrics.add(logged)
                advance(metrics.flush(done) if last or done % config.log_every == 0 else {})
            if last or done % config.save_every == 0:
                checkpoint.save(stage.state, recipe, config.folder, here)
            if last or done % config.preview_every == 0:
                stage.preview(config.folder / "previews" / f"{done:07d}.png")
            if last:
                break
    if metrics:
        metrics.close()
    stage.export(config.folder / "model")
    here.wait()
    return config.folder / "model"


def recipe_of(config: Recipe) -> dict[str, Any]:
    """A config as plain data, without what may differ when a run goes on (its length in minutes, its reporting)."""
    names = [field.name for field in dataclasses.fields(config) if field.name != "loop"]
    return {**{name: _plain(getattr(config, name)) for name in names}, "steps": config.loop.steps}


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return value.stated()  # a setting that a later version adds is no other recipe
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    # A first SIGTERM or Ctrl-C lets the step end and saves; a second Ctrl-C ends at once.
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    handlers = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _progress(steps: int, done: int, *, shown: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=steps, initial=done, disable=not (shown and sys.stderr.isatty()), unit="step") as bar:

        def advance(row: dict[str, float]) -> None:
            bar.update()
            if row:
                bar.set_postfix({name: f"{value:.4g}" for name, value in row.items() if name != "seconds_per_step"})

        yield advance
