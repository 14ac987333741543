"""A case, how it is run, and what became of it.

A case runs in this process, in a folder of its own, under an alarm, as the command line would run it. What it did is
one of :class:`Outcome`; a case is a function of (seed, family, number), so each can be run again alone.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from nearstep.errors import NearstepError
from tests.fuzz.fence import fenced

if TYPE_CHECKING:
    from tests.fuzz.kit import Kit

SECONDS = 20
"""Of the processor: a case that takes more hangs; the longest honest ones take five."""
PATIENCE = 60
"""Seconds of waiting, for a pipe that nobody writes to or on a busy machine."""
LONGEST_LINE = 4000
MARKER = "executed"
"""The file that a payload would make in the case's folder."""


class Outcome(StrEnum):
    """What became of a case."""

    FINE = "fine"
    REFUSED = "refused"
    """In one line, or by the option parser, with the exit code that is documented."""
    TRACEBACK = "tracebacks"
    GARBAGE = "garbage accepted"
    """Accepted, and what came of it is wrong, as its family's oracle says."""
    HANG = "hangs"
    EXECUTED = "executed"
    """A file's payload ran."""


GOOD = (Outcome.FINE, Outcome.REFUSED)


class Hang(BaseException):
    """The alarm; no ``except Exception`` may take it for an error of its own."""


class Refused(Exception):
    """A command that ended with exit code 2."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something odd that is done, and what is wrong with what comes of it if it is accepted."""

    what: str
    act: Callable[[], Any]
    judge: Callable[[Any], str | None] = lambda _: None
    """What is wrong with a result, or None."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Cases of one kind."""

    name: str
    case: Callable[[Random, Kit, Path], Case]
    """Draws a case; it may write into the folder that it is given, where it will then run."""
    share: int
    """How many of 10,000 cases are of it."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What became of one case."""

    family: str
    number: int
    what: str
    outcome: Outcome
    detail: str
    seconds: float


def run(family: Family, number: int, kit: Kit, seed: int) -> Found:
    """Draw case ``number`` of a family and run it."""
    folder = kit.root / "cases" / f"{family.name}-{number}" / "a" / "b"  # a name such as ../../x stays in it
    shutil.rmtree(folder.parents[1], ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        case = family.case(Random(f"{seed} {family.name} {number}"), kit, folder)
        outcome, detail = _outcome(case, folder, kit)
    finally:
        shutil.rmtree(folder.parents[1], ignore_errors=True)
        torch.set_num_threads(1)
    seconds = time.monotonic() - began
    return Found(family=family.name, number=number, what=case.what, outcome=outcome, detail=detail, seconds=seconds)


def _outcome(case: Case, folder: Path, kit: Kit) -> tuple[Outcome, str]:
    try:
        with _inside(folder), fenced(kit.root), _alarm(SECONDS, PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = case.act()
            complaint = case.judge(result)
        outcome = (Outcome.FINE, str(result)[:200]) if complaint is None else (Outcome.GARBAGE, complaint)
    except Hang:
        outcome = Outcome.HANG, f"not done after {SECONDS} s of work, or {PATIENCE} of waiting"
    except (Refused, NearstepError) as error:
        text = str(error)
        outcome = (Outcome.REFUSED, text) if len(text) <= LONGEST_LINE else (Outcome.GARBAGE, f"a line of {len(text)}")
    except Exception as error:
        outcome = Outcome.TRACEBACK, _where(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome = Outcome.TRACEBACK, _where(error)
    return (Outcome.EXECUTED, str(outcome)) if (folder / MARKER).exists() else outcome


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "nearstep" in Path(frame.filename).parts] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before, home, temporary = Path.cwd(), os.environ.get("HOME"), tempfile.tempdir
    os.chdir(folder)
    os.environ["HOME"] = tempfile.tempdir = str(folder.parent)
    try:
        yield
    finally:
        os.chdir(before)
        tempfile.tempdir = temporary
        os.environ.pop("HOME") if home is None else os.environ.update(HOME=home)


@contextmanager
def _alarm(work: float, wait: float) -> Iterator[None]:
    def ring(_signal: int, _frame: object) -> None:
        raise Hang

    clocks = {signal.SIGPROF: (signal.ITIMER_PROF, work), signal.SIGALRM: (signal.ITIMER_REAL, wait)}
    before = {number: signal.signal(number, ring) for number in clocks}
    for clock, seconds in clocks.values():
        signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        for number, (clock, _) in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


def command(*arguments: object) -> str:
    """Run ``nearstep ARGUMENTS`` as the program does, what nobody foresaw with its traceback; what it printed.

    Raises:
        Refused: with the line that it ended with.
    """
    from nearstep.cli.main import DEBUG, main

    # As a terminal in UTF-8 is: half a character cannot be printed.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        code = main([*map(str, arguments), DEBUG])
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stdout, sys.stderr = kept
        out.flush()
        err.flush()
        said, told = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    if code in (0, None):
        return said
    last = (told.strip().splitlines() or [""])[-1]
    if code == 2:
        raise Refused(last)
    raise RuntimeError(f"exit code {code}: {last}")
