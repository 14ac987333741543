"""``nearstep COMMAND``: finds the command, and turns what can go wrong into one line and an exit code.

Nothing heavy is imported before a command is known, so that help answers at once.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TextIO

import nearstep
from nearstep.errors import NearstepError, hint

COMMANDS = {
    "generate": "make videos from prompts",
    "stream": "a video without an end, written as it is made; prompts may change; takes are made again",
    "compare": "the same prompts and noise under several plans, side by side",
    "serve": "a page to steer streams on while they are watched, and videos by HTTP",
    "info": "what a model is: components, sizes, plans and what they cost",
    "bench": "what a clip costs here: stages, frame rates as others count them, memory, distance to the floor",
    "calibrate": "measure when an adaptive plan may stop, and keep it in the model's folder",
    "convert": "any published Wan2.1 or student weights to a model folder, and back out",
    "evaluate": "measure a model, or a folder of clips named by their prompts, on the playground",
    "sample": "clips of the same prompts from any system: ours, diffusers' pipelines, a command",
    "vbench": "VBench's prompts as its authors sample, score and add them up",
    "table": "results as a table, in markdown, LaTeX, CSV or HTML; pages whose tables write themselves",
    "study": "a blind preference study: pairs of clips, a voting page, and a report with intervals",
    "prepare": "turn videos, or a teacher's clips of prompts, into the latents that training reads",
    "train": "run a recipe: train codec, teacher or student",
    "plan-memory": "whether a clip or a recipe fits your accelerators, and which option to turn if it does not",
    "ablate": "run and evaluate every rival recipe, several seeds each",
    "report": "one page about a training run: curves, alarms, samples over time",
}
"""Command -> one line about it. Each lives in the module of its name in this package, with _ for -, as
``run(arguments)``."""

UNFORESEEN, USER_ERROR, INTERRUPTED, TERMINATED, PIPE_CLOSED = 1, 2, 130, 143, 141  # as shells count
DEBUG = "--debug"
"""Asks for the traceback of what nobody foresaw; any command takes it, anywhere among its options."""
LONGEST_LINE = 2000
"""Signs of an error: a value of thousands was a mistake, and is not repeated whole."""
_SHOWN = 300  # characters of an error that nobody foresaw


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, or 2 after a one-line error, or 130 after Ctrl-C.

    It is 1 after an error that nobody foresaw, which is a fault of this program: one line, and with ``--debug`` its
    traceback.

    Args:
        arguments: of the command; None means this is the program itself, with its own arguments and signals.
    """
    if arguments is None:
        _open_streams()
        signal.signal(signal.SIGTERM, _terminate)
        arguments = sys.argv[1:]
    debug = DEBUG in arguments
    try:
        _dispatch([argument for argument in arguments if argument != DEBUG])
        _flush()
    except NearstepError as error:
        print(f"nearstep: {_shortened(str(error), LONGEST_LINE)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("\nnearstep: interrupted; finished files are whole, nothing half-written was left", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has enough
        _silence(sys.stdout)
        return PIPE_CLOSED
    except Exception as error:
        if debug:
            raise
        print(_unforeseen(error), file=sys.stderr)
        if isinstance(error, OSError):  # perhaps of a full disk behind stdout, which is flushed once more at the end
            _silence(sys.stdout)
        return UNFORESEEN
    return 0


def _unforeseen(error: Exception) -> str:
    """The line about an error of this program's own."""
    said = _shortened(str(error), _SHOWN)
    reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"nearstep: this should not have happened ({reason}); the same command with {DEBUG} says where"


def _shortened(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def _open_streams() -> None:
    """Standard streams that were closed go nowhere, and what an encoding lacks is escaped.

    A descriptor that is free would be the next file's, and what is written to standard output would end in a video.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        if free == 1:
            sys.stdout = os.fdopen(1, "w", closefd=False)
        elif free == 2:
            sys.stderr = os.fdopen(2, "w", closefd=False)
    os.close(free)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write what still waits for standard output.

    Raises:
        NearstepError: if it cannot be written, such as on a full disk.
        BrokenPipeError: if nobody reads it any more.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence(sys.stdout)
        raise NearstepError(f"cannot write to standard output: {error.strerror}") from error


def _silence(stream: TextIO) -> None:
    """What is still to be written there goes nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(TERMINATED)  # an exception, so that what is half-written is cleaned up


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    name, *rest = arguments
    if name in ("-V", "--version", "version"):
        print(f"nearstep {nearstep.__version__}")
        return
    if name not in COMMANDS:
        raise NearstepError(f"there is no command {name!r}: {hint(name, COMMANDS, 'commands are')}")
    importlib.import_module(f"nearstep.cli.{name.replace('-', '_')}").run(rest)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{line}" for name, line in COMMANDS.items())
    return (
        "usage: nearstep COMMAND [options]\n\n"
        "One-step causal video generation.\n\n"
        f"commands:\n{commands}\n\n"
        f"nearstep COMMAND --help explains a command; {DEBUG} shows where an unforeseen error comes from. To begin:\n\n"
        '  nearstep generate "a large red apple slides left on snow" --plan 4,1x --seed 7 -o apple.mp4\n'
    )


if __name__ == "__main__":
    sys.exit(main())
