"""The loop that serves every stage: step, log, show, save, stop, resume."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.files import check_name, swap_folder, sweep, write_json
from nearstep.json_files import read_object
from nearstep.lock import held
from nearstep.ranges import check_count, check_number
from nearstep.train import checkpoint
from nearstep.train.checkpoint import TrainState
from nearstep.train.metrics import Metrics
from nearstep.train.parallel import Ranks, ranks
from nearstep.train.progress import Progress, say

MODEL, UNFINISHED = "model", "unfinished"
"""Where a run's result lies, and where the model of one lies whose time was over first."""
_END = "finished.json"


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
    workers: int = 0
    """Processes that make the batches of codec and teacher ahead: on a GPU, as many as there are cores to spare."""

    def __post_init__(self) -> None:
        check_name(self.folder)
        for name in ("steps", "log_every", "save_every", "preview_every"):
            check_count(name, getattr(self, name))
        check_count("workers", self.workers, least=0, most=1024)
        if self.minutes is not None:
            check_number("minutes", self.minutes, above=0)


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


class Stopped(SystemExit):
    """A signal ended a run, which saved first; the exit code is the one that shells give the signal."""


def run(make: Callable[[], Stage], config: LoopConfig, recipe: dict[str, Any]) -> Path:
    """Train to the end and export; a run with a checkpoint goes on from it.

    Args:
        make: loads the stage, once the folder is this run's alone.
        config: where the run lives and how long it is.
        recipe: what the run is (recipe.py).

    Returns:
        The folder of the finished model, or of the unfinished one where ``config.minutes`` were over first.

    Raises:
        NearstepError: if somebody else trains in the folder, or it belongs to another recipe, or cannot be written.
        Stopped: after Ctrl-C or SIGTERM; the step is saved and nothing is exported.
    """
    here = ranks()
    with held(config.folder) if here.main else nullcontext():
        if here.main:
            sweep(config.folder)
        saved = checkpoint.latest(config.folder)
        if saved:
            checkpoint.check(recipe, saved)
            if _finished(config):
                line = f"{config.folder} is finished: {config.folder / MODEL} is made, after {config.steps} steps. "
                say(line + "Give more steps with --loop.steps, or another --loop.folder", shown=here.main)
                return config.folder / MODEL
        stage = make()
        if saved:
            checkpoint.load(stage.state, recipe, saved, here)
            longer = checkpoint.steps_of(saved) not in (None, config.steps)
            note = "; rates follow the new length from here on" if longer else ""
            say(f"going on from {saved}, {stage.state.step} of {config.steps} steps{note}", shown=here.main)
        return _train(stage, config, recipe, here)


def _train(stage: Stage, config: LoopConfig, recipe: dict[str, Any], here: Ranks) -> Path:
    metrics = Metrics(config.folder, stage.state.step, tensorboard=config.tensorboard) if here.main else None
    if metrics:
        metrics.restore(stage.state.unwritten)
    deadline = time.monotonic() + 60 * config.minutes if config.minutes else math.inf
    done, signalled = stage.state.step, 0
    if done and _previewed(config, done) and not _picture(config, done).exists():  # a kill has lost it
        stage.preview(_picture(config, done))
    with _stop_signals() as stopped, Progress(config.steps, done, shown=here.main) as progress:
        for index in range(done, config.steps):
            logged = here.mean(stage.step(index))
            stage.state.step = done = index + 1
            signalled, late = _why_stop(stopped, time.monotonic() > deadline, here)
            last = done == config.steps or bool(signalled) or late
            if metrics:
                metrics.add(logged)
                progress.advance(metrics.flush(done) if last or done % config.log_every == 0 else {})
                stage.state.unwritten = metrics.unwritten() if done % config.save_every == 0 else {}
            if last or done % config.save_every == 0:
                checkpoint.save(stage.state, recipe, config.folder, here)
            # Of a run that a signal stops, the next sitting makes it; a run that is finished has no next one.
            if done == config.steps or (not signalled and (last or _previewed(config, done))):
                stage.preview(_picture(config, done))
            if last:
                break
    if metrics:
        metrics.close()
    return _end(stage, config, here, signalled)


def _end(stage: Stage, config: LoopConfig, here: Ranks, signalled: int) -> Path:
    done, folder = stage.state.step, config.folder
    whole = done == config.steps
    if signalled and not whole:
        line = f"stopped by {signal.Signals(signalled).name} after step {done} of {config.steps}, which is saved in"
        say(f"{line} {folder}; the same command goes on from there. No model was exported", shown=here.main)
        raise Stopped(128 + signalled)
    target = folder / (MODEL if whole else UNFINISHED)
    _export(stage, target, here)
    if here.main and whole:
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        write_json(folder / _END, {"steps": done})
    if whole:
        say(f"finished after {done} steps: the model is {target}", shown=here.main)
    else:
        line = f"time is over after step {done} of {config.steps}, which is saved; the same command goes on"
        say(f"{line}. {target} is the model as it is now", shown=here.main)
    here.wait()
    if signalled:
        raise Stopped(128 + signalled)
    return target


def _finished(config: LoopConfig) -> bool:
    try:
        done = read_object(config.folder / _END).get("steps")
    except NearstepError:  # it says nothing, so the run ends once more
        return False
    return done == config.steps and (config.folder / MODEL).is_dir()


def _picture(config: LoopConfig, done: int) -> Path:
    return config.folder / "previews" / f"{done:07d}.png"


def _previewed(config: LoopConfig, done: int) -> bool:
    return done == config.steps or done % config.preview_every == 0


def _export(stage: Stage, target: Path, here: Ranks) -> None:
    """Write the stage's result, which gets its name when it is whole."""
    part = checkpoint.new_part(target, here)
    try:
        stage.export(part)
        if here.main:
            swap_folder(part, target)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise NearstepError(
            f"cannot write {target}: {why}; the run is saved, and the same command writes it once that is mended"
        ) from error
    finally:
        if here.main:
            shutil.rmtree(part, ignore_errors=True)


def _why_stop(stopped: Sequence[int], late: bool, here: Ranks) -> tuple[int, bool]:
    # A signal, or the end of the time, on one rank is one on all.
    number = stopped[0] if stopped else 0
    flags = torch.tensor([number == signal.SIGTERM, number == signal.SIGINT, late], dtype=torch.int64)
    terminated, interrupted, over = (bool(flag) for flag in here.total(flags))
    return signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0, over


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    # A first SIGTERM or Ctrl-C lets the step end and saves; a second Ctrl-C ends at once.
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not received:  # by the system's own call: a print may be under way
            os.write(2, b"\nnearstep: this step is made and saved, then the run stops; Ctrl-C again ends it at once\n")
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody listen to signals
        yield received
        return
    handlers = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
