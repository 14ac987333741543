"""``-o -``: a video to standard output, for a player or an encoder behind a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import BinaryIO

from nearstep.errors import NearstepError


def is_pipe(output: str | Path) -> bool:
    """Whether this names standard output."""
    return str(output) == "-"


def check_pipe() -> None:
    """Refuse to write a video to a screen.

    Raises:
        NearstepError: if standard output is a terminal, or closed.
    """
    try:
        shown = os.isatty(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError) as error:
        raise NearstepError("-o - writes to standard output, which is closed; name a file") from error
    if shown:
        raise NearstepError("-o - writes a video to a terminal here; pipe it (... -o - | ffplay -), or name a file")


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Standard output for bytes; whatever is printed meanwhile goes where messages go."""
    sys.stdout.flush()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0) as file, redirect_stdout(sys.stderr):
        yield file
