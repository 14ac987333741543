"""Programs of others: a command line with places that are filled in, run without a shell."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence

from nearstep.errors import NearstepError

_LAST = 300  # characters of a program's own complaint


def words_of(template: str, places: Mapping[str, str], known: Sequence[str]) -> list[str]:
    """The words of a command line, every place in braces filled in.

    Args:
        template: such as ``"python sample.py {output}"``; braces that are no place are doubled.
        places: place -> what stands there; a word stays one word, whatever that is.
        known: the places that an error names.

    Raises:
        NearstepError: for a place that nothing fills, or no words at all.
    """
    listing = ", ".join(f"{{{name}}}" for name in known)
    try:
        words = [word.format(**places) for word in shlex.split(template)]
    except (KeyError, IndexError, ValueError) as error:
        raise NearstepError(
            f"--command {template!r} cannot be filled in ({error}); its places are {listing}, and other braces are "
            "doubled"
        ) from error
    if not words:
        raise NearstepError(f"--command {template!r} names no program; its places are {listing}")
    return words


def run_program(words: Sequence[str], what: str, hint: str) -> None:
    """Run a program to its end.

    Raises:
        NearstepError: if it cannot be run or fails: ``what``, the last line that it said, and ``hint``.
    """
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise NearstepError(f"{what}: {words[0]}: {error.strerror}; {hint}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NearstepError(f"{what} (exit code {done.returncode}: {said[-1][:_LAST] if said else 'silent'}); {hint}")
