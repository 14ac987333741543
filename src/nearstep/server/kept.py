"""A take on disk, from its first chunk on: what a kill leaves of it can be downloaded.

ID/take.json         what it is, and the address it is watched at
ID/recording.jsonl   how to make it again (stream/recording.py)
ID/context.npy       the picture or clip that it went on from, if it did
ID/init.mp4          the initialisation of its video, and then a fragment and a picture of each chunk:
ID/000007.m4s        ID/000007.jpg
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.files import link_or_copy, write_json
from nearstep.json_files import NUMBER, TEXT, check_fields, optional, read_object
from nearstep.server.fragments import Fragment
from nearstep.server.names import NAME
from nearstep.server.protocol import Json

RECORDING, INIT, FACTS, CONTEXT = "recording.jsonl", "init.mp4", "take.json", "context.npy"
_SCHEMA = {"id": TEXT, "watch": TEXT, "opened": NUMBER, "prompt": TEXT, "parent": optional(TEXT)}


class KeptTake:
    """The folder of one take.

    Args:
        folder: its folder, which is made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NearstepError(f"cannot make {folder}: {error.strerror}; name another folder with --state") from error

    @property
    def recording(self) -> Path:
        """Its recording's file."""
        return self.folder / RECORDING

    def recorded(self) -> bytes:
        """Its recording as far as it was written: the whole lines of a file that may grow while it is read.

        Raises:
            FileNotFoundError: if the take is gone.
        """
        content = self.recording.read_bytes()
        return content[: content.rfind(b"\n") + 1]

    def describe(self, facts: Json) -> None:
        """Write what it is."""
        write_json(self.folder / FACTS, facts)

    def facts(self) -> Json:
        """What it is.

        Raises:
            NearstepError: if the file is not there or damaged.
        """
        path = self.folder / FACTS
        return dict(check_facts(read_object(path), path))

    def write(self, chunk: int, fragment: Fragment, picture: bytes) -> None:
        """Keep a chunk, whole or not at all."""
        if not (self.folder / INIT).exists():
            _write(self.folder / INIT, fragment.init)
        _write(self._picture(chunk), picture)
        _write(self._media(chunk), fragment.media)

    def read(self, chunk: int) -> Fragment:
        """A chunk that is kept."""
        return Fragment((self.folder / INIT).read_bytes(), self._media(chunk).read_bytes())

    def cut(self, chunk: int) -> None:
        """Chunks from this one on go."""
        for media in self.folder.glob("??????.m4s"):
            if int(media.stem) >= chunk:
                media.unlink(missing_ok=True)
                media.with_suffix(".jpg").unlink(missing_ok=True)

    def take_over(self, other: KeptTake, chunks: int) -> None:
        """Begin with so many chunks of another take; files that never change take no room twice."""
        for name in [INIT, CONTEXT, *(f"{chunk:06}{end}" for chunk in range(chunks) for end in (".jpg", ".m4s"))]:
            source, target = other.folder / name, self.folder / name
            try:
                os.link(source, target)
            except FileNotFoundError:
                continue
            except OSError:
                link_or_copy(source, target)

    def picture(self, chunk: int) -> Path:
        """A chunk's small picture."""
        return self._picture(chunk)

    def video(self) -> list[Path]:
        """Files that are, one after the other, its video; none where it has no chunk."""
        parts: list[Path] = []
        while (part := self._media(len(parts))).is_file():
            parts.append(part)
        return [self.folder / INIT, *parts] if parts else []

    def remove(self) -> None:
        """All of it goes."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _media(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06}.m4s"

    def _picture(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06}.jpg"


def check_facts(content: Json, path: Path) -> Json:
    """What a take.json says, if it is one."""
    check_fields(content, _SCHEMA, path)
    return content


def kept_takes(folder: Path) -> Iterator[tuple[KeptTake, Json]]:
    """All that is kept in a folder, the newest first; what is damaged is left alone."""
    found: list[tuple[KeptTake, Json]] = []
    for path in folder.glob(f"*/{FACTS}"):
        with suppress(NearstepError, OSError):
            if NAME.fullmatch(path.parent.name):
                found.append((kept := KeptTake(path.parent), kept.facts()))
    yield from sorted(found, key=lambda pair: -pair[1]["opened"])


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)


def joined(parts: list[Path]) -> Iterator[bytes]:
    """The bytes of files, one after the other, as they are now.

    A take may be rewound meanwhile: what was taken back then breaks this off, as chunks of two pasts are no video.

    Raises:
        FileNotFoundError: if one of them is gone, or another took its place.
    """
    return _read([(part, _written(part.stat())) for part in parts])


def _written(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_mtime_ns


def _read(parts: list[tuple[Path, tuple[int, int]]]) -> Iterator[bytes]:
    for part, written in parts:
        with part.open("rb") as file:
            if _written(os.fstat(file.fileno())) != written:
                raise FileNotFoundError(f"{part.name} was taken back")
            content = file.read()
        yield content


def as_text(content: Json) -> str:
    """JSON in one line."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
