"""What happens, as JSON lines on standard error: a line an event. Prompts are left out unless they are asked for."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from typing import TextIO

from nearstep.server.protocol import Json

PRIVATE = frozenset({"prompt"})
QUIET = frozenset({"chunk"})
"""Events that are counted and not written."""


class Events:
    """Writes events.

    Args:
        prompts: whether prompts are written, too.
        file: where to; standard error by default.
    """

    def __init__(self, *, prompts: bool = False, file: TextIO | None = None) -> None:
        self._hidden = frozenset() if prompts else PRIVATE
        self._file = file

    def __call__(self, event: str, facts: Json) -> None:
        """Write one."""
        if event in QUIET:
            return
        told = {name: value for name, value in facts.items() if name not in self._hidden and value not in (None, "")}
        line = json.dumps({"time": round(time.time(), 3), "event": event, **told})
        if (file := self._file or sys.stderr) is None:  # closed before we began
            return
        with suppress(OSError, ValueError):  # nobody reads it any more, which stops no stream
            file.write(f"{line}\n")
