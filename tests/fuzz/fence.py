"""A fence around the harness: what a case writes outside of its folders is stopped, and counts as a fault.

Cases are run by whoever runs the tests, perhaps as root. Names that are drawn lead nowhere else by themselves; should
one do so all the same, the interpreter's own audit events stop it before anything is touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"), (0,)),
    **dict.fromkeys(("os.rename", "os.link"), (0, 1)),
    "os.symlink": (1,),
}
"""Event -> which of its arguments are paths that it changes."""
_OWN_PEAK = "/proc/self/clear_refs"
"""Where a process asks that its own peak of memory begins anew, as bench does (proc(5))."""


class OutsideError(BaseException):
    """A write beyond the fence; nothing may take it for an error of its own."""


class _Fence:
    """Where writes may go; nowhere is forbidden while it is None."""

    inside: tuple[str, ...] | None = None
    there: bool = False


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    allowed = _Fence.inside
    if allowed is None:
        return
    if event == "open":
        path, _, flags = arguments
        changed = [path] if isinstance(flags, int) and flags & _WRITES else []
    else:
        changed = [arguments[place] for place in _CHANGES.get(event, ())]
    for path in changed:
        if isinstance(path, str | bytes | os.PathLike) and not _is_inside(os.fsdecode(path), allowed):
            _Fence.inside = None  # so that what is said of it may be written
            raise OutsideError(f"{event} of {os.fsdecode(path)!r}, outside of the harness's folders")


def _is_inside(path: str, allowed: tuple[str, ...]) -> bool:
    if path in (os.devnull, _OWN_PEAK) or path.endswith(".pyc") or "__pycache__" in path:
        return True
    full = os.path.abspath(path)  # noqa: PTH100  (links that a case made stay in its folder or are read alone)
    return any(full == root or full.startswith(f"{root}/") for root in allowed)


@contextmanager
def fenced(*folders: Path) -> Iterator[None]:
    """Stop writes outside of these folders."""
    if not _Fence.there:
        sys.addaudithook(_look)
        _Fence.there = True
    roots = {str(root) for folder in folders for root in (folder, folder.resolve())}
    _Fence.inside = tuple(roots)
    try:
        yield
    finally:
        _Fence.inside = None
