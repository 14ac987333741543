"""One program at a time in a folder: a training in its run's, a server in its state's.

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
from dataclasses import dataclass
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.json_files import parsed

FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a disk says that knows no locks: the file then holds nobody back but other hosts."""


@dataclass(frozen=True)
class Use:
    """What a folder is held for, in the words of its errors."""

    done: str
    """What is done in it: "cannot ... in it"."""
    being: str
    """What is being done in it: "it is being ... in"."""
    option: str
    """What names another folder."""


TRAINING = Use("train", "trained", "--loop.folder")
SERVING = Use("serve", "served", "--state")


@contextmanager
def held(folder: Path, use: Use = TRAINING) -> Iterator[None]:
    """The folder, made if need be, while nobody else uses it so.

    Raises:
        NearstepError: if somebody does, or the folder cannot be written.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise NearstepError(
            f"cannot {use.done} in {folder}: {error.strerror}; name a folder that can be written with {use.option}"
        ) from error
    try:
        _take(file, path, use)
        try:
            yield
        finally:
            os.ftruncate(file, 0)
    finally:
        os.close(file)


def _take(file: int, path: Path, use: Use) -> None:
    owner = _owner(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            name, host = owner.get("process", "?"), owner.get("host", "?")
            raise NearstepError(
                f"{path.parent} is being {use.being} in by process {name} on {host}; "
                f"wait for it, end it, or name another folder with {use.option}"
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
