"""Files that are whole or absent.

A file is written beside its target under a temporary name and then renamed. A full disk, an error or Ctrl-C therefore
leaves either the finished file or what was there before.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError

NAME_BYTES = 255
"""What file systems allow a name."""
PATH_BYTES = 4096
"""What they allow all names of a path together."""
_PART = re.compile(r"\.\d+@[0-9a-f]{8}\.[0-9a-f]{16}\.part")


def path_of(given: str | Path) -> Path:
    """A path that somebody wrote, with ~ filled in.

    Raises:
        NearstepError: for what is no path, or one that no file system takes.
    """
    if not isinstance(given, str | Path):
        raise NearstepError(f"a path is a string or a Path, not {given!r:.60}")
    try:
        path = Path(given).expanduser()
    except (RuntimeError, ValueError) as error:  # of a home that nobody has
        raise NearstepError(f"no file can be named {str(given)[:60]!r}: {error}") from error
    check_name(path)
    return path


def check_regular(path: Path) -> None:
    """Refuse to read what is there and is no file or folder: a pipe that nobody writes to would be waited for.

    Raises:
        NearstepError: naming it.
    """
    check_name(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise NearstepError(f"cannot read {path}: it is no regular file")


def check_name(path: Path) -> None:
    """Refuse a path that no file system takes.

    Raises:
        NearstepError: for a name or a path that is too long, a NUL, half a character, or links that go in a circle.
    """
    shown = f"{str(path)[:60]!r}..." if len(str(path)) > 60 else repr(str(path))
    try:
        written = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise NearstepError(f"no file can be named {shown}: it holds half a character") from error
    if b"\0" in written:
        raise NearstepError(f"no file can be named {shown}: it holds a NUL")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > NAME_BYTES:
        raise NearstepError(f"no file can be named {shown}: a name of {longest} bytes; {NAME_BYTES} are allowed")
    if len(os.fsencode(path.absolute())) >= PATH_BYTES:
        raise NearstepError(f"no file can be named {shown}: a path of {len(written)} bytes; {PATH_BYTES} are too many")
    try:
        path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: of a circle, before Python 3.13
        raise NearstepError(f"no file can be named {shown}: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place on success and is removed on anything else.

    Raises:
        NearstepError: if the file cannot be written.
    """
    part = new_part(path)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())  # a full disk may show only here
        part.replace(path.resolve())
    except OSError as error:  # PyAV's errors are OSErrors too
        raise NearstepError(f"cannot write {path}: {error.strerror}; nothing was left behind") from error
    finally:
        with suppress(OSError):
            part.unlink()


def new_part(path: Path) -> Path:
    """An empty file beside ``path`` that nobody else has, to write and then rename to it.

    Raises:
        NearstepError: if ``path`` cannot be replaced by a file, or none can be made there.
    """
    check_name(path)
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise NearstepError(f"cannot write {path}: it is {kind}; name a file")
    part = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link that somebody put there, or a file of theirs, is not opened.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666))
    except OSError as error:
        raise NearstepError(f"cannot write {path}: {error.strerror}; nothing was left behind") from error
    return part


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write data as JSON, whole or not at all; errors as for :func:`replacing`."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write an object a line, whole or not at all; names that are not UTF-8 as JSON escapes them."""
    with replacing(path) as part:
        lines = [json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows]
        part.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def check_writable(path: Path) -> None:
    """Find out now, before anything is made, whether a file could be written; its folder is made if need be.

    Raises:
        NearstepError: naming the path and the reason.
    """
    new_part(path).unlink()


def sweep(folder: Path, *, named: re.Pattern[str] | None = None) -> None:
    """Remove what processes of this host that were killed while they wrote have left in ``folder``.

    Args:
        folder: where they wrote.
        named: what their names have to match; by default all that begin with a number and end as parts do, which is
            right for a folder that is ours alone.
    """
    for part in folder.glob(".*.part"):
        if named is not None and not named.fullmatch(part.name):
            continue
        owner, _, host = part.name.split(".")[1].partition("@")
        elsewhere = host and host != f"{host_number():08x}"  # of whom nobody can say from here whether they live
        if owner.isdigit() and not elsewhere and not _alive(int(owner)):
            with suppress(OSError):  # somebody else's, or gone already
                shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink(missing_ok=True)


@cache
def _sweep_once(folder: Path) -> None:
    """:func:`sweep`, in a folder that may be anybody's: what has no name such as we give stays."""
    sweep(folder, named=_PART)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # a number that no process has
        return False
    except PermissionError:
        pass
    return True


def beside(path: Path) -> Path:
    """A temporary name, which nobody can foresee; what killed programs have left there goes, once."""
    path = path.resolve()  # through a link, so that the link stays
    _sweep_once(path.parent)
    return path.with_name(part_name(secrets.token_hex(8), os.getpid(), host_number()))


def part_name(name: str, process: int, host: int) -> str:
    """What a file or folder is called while a process of a host writes it."""
    return f".{process}@{host:08x}.{name}.part"


def host_number() -> int:
    """Names this host (or container) in few signs."""
    return zlib.crc32(socket.gethostname().encode())


def swap_folder(part: Path, target: Path) -> None:
    """Give the whole folder ``part`` the name ``target``; a folder that has it goes."""
    old = beside(target.with_name(f"old-{target.name}"))
    with suppress(FileNotFoundError):
        target.rename(old)
    part.rename(target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place on success and is removed on anything else.

    Raises:
        NearstepError: if ``path`` is there and not empty, or cannot be written.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise NearstepError(f"{path} is there already and not empty; name a new folder")
    part = beside(path)
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(path.resolve())
    except OSError as error:
        raise NearstepError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def keep_folder(source: Path, target: Path) -> None:
    """Give ``target`` the files of ``source``, weights as :func:`link_or_copy` does.

    Args:
        source: a folder of files.
        target: replaced when the new one is complete.

    Raises:
        NearstepError: if it cannot be written; ``target`` is then as it was.
    """
    if target.exists() and target.samefile(source):
        return
    part = beside(target)
    try:
        part.mkdir(parents=True)
        for file in source.iterdir():
            if file.is_file():
                link_or_copy(file, part / file.name)
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target.resolve())
    except OSError as error:
        raise NearstepError(f"cannot write {target}: {error.strerror or error}; nothing was left behind") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a new file ``target`` what is in ``source``; weights on the same disk take no room twice.

    Those are hard links: they outlive a move, and a removal, of either name. Whoever writes .safetensors writes a new
    file and renames it (safetensors does, and so does ``replacing``), so what is written to one name never shows under
    the other. All else is written in place by somebody, and is small: it is copied.
    """
    if target.suffix == ".safetensors":
        with suppress(OSError):  # another disk, or one without links
            target.hardlink_to(source.resolve())  # resolved: the hub's cache is made of symbolic links
            return
    shutil.copyfile(source, target)


def enter_shared(folder: str | Path) -> None:
    """Work in a folder of the machine that sent the work, so that relative paths mean here what they mean there.

    Raises:
        NearstepError: if it is not on this machine.
    """
    if not Path(folder).is_dir():
        raise NearstepError(f"{folder} is not on this machine; a cluster shares its folders at the same paths")
    os.chdir(folder)


def open_to_readers(folder: Path, like: Path) -> None:
    """Let whoever may read the file ``like`` read the weights in this new folder, too.

    safetensors writes files that only their owner may read. A file that is linked from elsewhere keeps its mode.
    """
    mode = like.stat().st_mode
    for file in folder.rglob("*.safetensors"):
        if file.stat().st_nlink == 1:
            file.chmod(mode)
