"""Commands of several parts, such as ``nearstep vbench sample``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence

from nearstep.cli.text import table
from nearstep.errors import NearstepError

Parts = Mapping[str, tuple[str, Callable[[Sequence[str]], None]]]
"""Word after the command -> a line about it, and what runs it."""


def run_part(command: str, parts: Parts, arguments: Sequence[str]) -> None:
    """Find the part that is asked for, and run it; or say which there are.

    Args:
        command: the word after nearstep.
        parts: of the command.
        arguments: those behind it.

    Raises:
        NearstepError: for a part that there is not.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: nearstep {command} {{{','.join(parts)}}} [options]\n")
        print("\n".join(table([[f"  {name}", line] for name, (line, _) in parts.items()])))
        return
    name, *rest = arguments
    if name not in parts:
        near = difflib.get_close_matches(name, parts, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(parts)}"
        raise NearstepError(f"nearstep {command} has no part {name!r}: {hint}")
    parts[name][1](rest)
