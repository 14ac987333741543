"""What the videos of a folder show, as their owners' tools wrote it down.

A caption stands in a text file beside its video (``dog.mp4`` with ``dog.txt``, ``dog.mp4.txt`` or ``dog.caption``), or
in a table at the top of the folder (:data:`METADATA`) with a column that names the video and one that holds the text. A
video is looked for as it is named, and then as people and programs name the same file: with its folder before it, from
the disk's root, with backslashes, in capitals, without its suffix, with accents composed or not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from nearstep.data.prompts import caption_in
from nearstep.data.tables import TABLES, cell, read_table, read_text
from nearstep.errors import NearstepError

FILE_COLUMNS = ("file_name", "file", "video", "path", "video_path", "file_path", "filename", "media_path", "video_name")
"""Names of the column that says which video, in this order."""
METADATA = (
    *(f"{stem}{suffix}" for stem in ("metadata", "captions") for suffix in TABLES),
    *("videos2caption.json", "video2caption.json"),
)
"""Names of a table of captions."""
BESIDE = (".txt", ".caption", ".cap")
"""Suffixes of a file beside a video, in place of the video's or behind it."""


class Named:
    """The files of a folder, found under the names that tables give them.

    Args:
        folder: the folder.
        files: their paths inside, with forward slashes.
    """

    def __init__(self, folder: Path, files: Iterable[str]) -> None:
        self.roots = {str(root) for root in (folder, folder.absolute(), folder.resolve())}
        self.files = {*files}
        self._alike: dict[str, set[str]] = {}
        for file in self.files:
            for name in (_plain(file), _plain(str(PurePosixPath(file).with_suffix("")))):
                self._alike.setdefault(name, set()).add(file)

    def find(self, name: str) -> str | None:
        """The file that is meant; the name itself, tidied, where there is none; None for one outside of the folder."""
        tidy = name.strip()
        for root in self.roots:
            if tidy.startswith(f"{root}/"):
                tidy = tidy[len(root) + 1 :]
        if "\\" in tidy and tidy not in self.files:
            tidy = PureWindowsPath(tidy).as_posix()
        path = PurePosixPath(tidy)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in tidy:
            return None
        for first in range(len(path.parts)):  # the folder's own name, or those above it, may stand before
            inside = PurePosixPath(*path.parts[first:]).as_posix()
            if inside in self.files:
                return inside
            if len(alike := self._alike.get(_plain(inside), set())) == 1:
                return next(iter(alike))
        return path.as_posix()


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def table_captions(folder: Path, files: Collection[str], column: str | None = None) -> dict[str, str]:
    """File -> caption, as the folder's table says.

    Args:
        folder: the folder.
        files: the videos in it.
        column: the table's caption column, where it has another name.

    Raises:
        NearstepError: naming the line that is wrong, or two tables.
    """
    tables = [folder / name for name in METADATA if (folder / name).is_file()]
    if not tables:
        return {}
    if len(tables) > 1:
        raise NearstepError(f"{folder} holds {' and '.join(table.name for table in tables)}; keep one")
    named, captions = Named(folder, files), dict[str, str]()
    for line, row in read_table(tables[0]):
        where = f"{tables[0]}, line {line}"
        name = _name(row, where)
        file = named.find(name)
        if file is None:
            raise NearstepError(f"{where}: {name} is not inside {folder}; name videos relative to it")
        if file in captions:
            raise NearstepError(f"{where}: {name} is named twice; one caption each")
        captions[file] = caption_in(row, where, column).strip()
    return captions


def _name(row: Any, where: str) -> str:
    found = cell(row, FILE_COLUMNS) if isinstance(row, Mapping) else None
    if found is None or not isinstance(found[1], str) or not found[1].strip():
        raise NearstepError(f"{where}: no column {', '.join(FILE_COLUMNS[:5])} that names a video")
    return found[1]


def caption_beside(video: Path, there: Mapping[str, Path]) -> str:
    """The caption in the file beside a video; empty where there is none.

    Args:
        video: the video.
        there: the text files of its folder, by :func:`text_files`.

    Raises:
        NearstepError: if there is one that cannot be read.
    """
    for stem in (video.with_suffix(""), video):
        for suffix in BESIDE:
            if (file := there.get(f"{stem}{suffix}")) is not None:
                return " ".join(read_text(file).split())
    return ""


def text_files(folder: Path) -> dict[str, Path]:
    """The files in a folder and below that may hold a caption, by their paths with suffixes in small letters."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in BESIDE and path.is_file())
    return {f"{path.with_suffix('')}{path.suffix.lower()}": path for path in sorted(found, reverse=True)}
