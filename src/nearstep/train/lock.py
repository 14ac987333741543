"""One training at a time in a run folder.

The lock is the kernel's, on a file of the folder, so that a process that dies lets go of it whatever kills it. The file
says who holds it: on a disk that hosts share, a lock that another host has left is never taken over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.json_files import parsed

FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a disk says that knows no locks: the file then holds nobody back but other hosts."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The run folder, made if need be, while nobody else trains in it.

    Raises:
        NearstepError: if somebody does, or the folder cannot be written.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise NearstepError(
            f"cannot train in {folder}: {error.strerror}; name a folder that can be written with --loop.folder"
        ) from error
    try:
        _take(file, path)
        try:
            yield
        finally:
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _take(file: int, path: Path) -> None:
    owner = _owner(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            name, host = owner.get("process", "?"), owner.get("host", "?")
            raise NearstepError(
                f"{path.parent} is being trained in by process {name} on {host}; "
                "wait for it, end it, or name another folder with --loop.folder"
            ) from error
    host = socket.gethostname()
    if owner.get("host", host) != host:
        raise NearstepError(
            f"{path.parent} is locked by process {owner.get('process', '?')} on another host, {owner['host']}, and "
            f"nobody can tell from here whether it lives; if it does not, delete {path}"
        )
    said = json.dumps({"host": host, "process": os.getpid()}).encode()
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, said, 0)
    except OSError as error:
        raise NearstepError(f"cannot write {path}: {error.strerror}") from error


def _owner(file: int) -> dict[str, str]:
    try:
        said = parsed((os.pread(file, 4096, 0) or b"{}").decode())
    except (ValueError, OSError):
        return {}
    return {str(name): str(value) for name, value in said.items()} if isinstance(said, dict) else {}
