"""A stream as a small file: what it was opened with, what changed and when, and how many steps each chunk got.

JSON lines: the opening, then a line per chunk with its times and with what changed just before it. All noise has a name
(rng.py), so a replay on the same build is equal bit for bit; under another plan the same noise starts each chunk.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import check_regular, path_of, replacing
from nearstep.json_files import (
    FLAG,
    NUMBER,
    TEXT,
    WHOLE,
    Kind,
    check_fields,
    count,
    list_of,
    optional,
    parsed_object,
    within,
)

VERSION = 2
_OPENING: dict[str, Kind] = {
    **dict.fromkeys(("prompt", "negative_prompt", "plan", "weights", "torch"), TEXT),
    **dict.fromkeys(("seed", "sample"), WHOLE),
    **dict.fromkeys(("height", "width"), count(10**6)),
    "guidance": NUMBER,
    "window": optional(count()),
    "sink": count(least=0),
    **dict.fromkeys(("relative_sink", "recommit"), FLAG),
    "context": optional(TEXT),
}
"""What the fields of an opening may be in a file."""
_ENTRY: dict[str, Kind] = {
    "times": list_of(within(0, 1)),
    "prompt": optional(TEXT),
    "plan": optional(TEXT),
    "seed": optional(WHOLE),
}
_FIRST_NAMES = {"following": "relative_sink", "given": "context"}
"""What version 1 called fields of the opening -> their names now."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What may change between two chunks; None where it stays."""

    prompt: str | None = None
    plan: str | None = None
    seed: int | None = None

    def then(self, later: Changes) -> Changes:
        """Both, one after the other."""
        return Changes(**{**self.named(), **later.named()})

    def named(self) -> dict[str, Any]:
        """What does change, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a session was opened with, and what it was made on."""

    prompt: str
    negative_prompt: str
    plan: str
    seed: int
    sample: int
    guidance: float
    height: int
    """In pixels, as ``width`` is."""
    width: int
    window: int | None
    """As in masks.Reach, like ``sink`` and ``relative_sink``."""
    sink: int
    relative_sink: bool
    recommit: bool = True
    """Whether a new prompt committed the frames in sight anew; a recording that does not say so is of when all did."""
    context: str | None = None
    """A digest of the latents that it went on from, where it did."""
    weights: str = ""
    """A digest of the network."""
    torch: str = ""
    """The version of torch."""


@dataclass(frozen=True, kw_only=True)
class ChunkEntry:
    """A chunk's line: enough to make it again."""

    times: tuple[float, ...]
    """Those of its steps."""
    changes: Changes = field(default_factory=Changes)
    """What changed just before it."""


@dataclass(frozen=True)
class Recording:
    """One stream, as far as it was made."""

    opening: Opening
    chunks: tuple[ChunkEntry, ...] = ()

    def then(self, entry: ChunkEntry) -> Recording:
        """The recording with one more chunk."""
        return Recording(self.opening, (*self.chunks, entry))

    def until(self, chunk: int) -> Recording:
        """The recording up to, and without, this chunk."""
        return Recording(self.opening, self.chunks[:chunk])

    def lines(self) -> Iterator[str]:
        """The file's lines."""
        yield json.dumps({"nearstep": VERSION, **asdict(self.opening)})
        for index in range(len(self.chunks)):
            yield self.line(index)

    @property
    def digest(self) -> str:
        """A short name for all of it."""
        return hashlib.blake2b("\n".join(self.lines()).encode(), digest_size=8).hexdigest()

    def line(self, chunk: int) -> str:
        """The line of one chunk."""
        entry = self.chunks[chunk]
        return json.dumps({"chunk": chunk, "times": entry.times, **entry.changes.named()})

    def save(self, path: str | Path) -> Path:
        """Write it, whole or not at all."""
        with replacing(target := path_of(path)) as part:
            part.write_text("".join(f"{line}\n" for line in self.lines()), encoding="utf-8")
        return target

    def append_last(self, path: Path) -> None:
        """Write the line of the newest chunk behind those that are there: whole, or not at all."""
        size = path.stat().st_size
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{self.line(len(self.chunks) - 1)}\n")
        except OSError:
            os.truncate(path, size)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read it, of this version or an earlier one.

        Raises:
            NearstepError: naming the first line that is no part of a recording.
        """
        check_regular(path := path_of(path))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise NearstepError(f"cannot read the recording {path}: {error}") from error
        return cls.of_text(text, path)

    @classmethod
    def of_text(cls, text: str, name: str | Path) -> Recording:
        """The recording that a file holds.

        Args:
            text: the file's.
            name: what errors and warnings call it.

        Raises:
            NearstepError: naming the first line that is no part of a recording.
        """
        *lines, torn = text.split("\n")
        if torn and (len(lines) == 0 or _is_object(torn)):
            lines.append(torn)  # whole, and without the end of its line
        elif torn:
            warnings.warn(f"{name} breaks off in its line {len(lines) + 1}, which is left out", stacklevel=3)
        rows = [_row(name, number, line) for number, line in enumerate(lines, 1)]
        return cls(_opening(name, rows[0] if rows else {}), tuple(_entry(name, *row) for row in enumerate(rows[1:])))


class Log:
    """A file that follows a recording as it grows, line by line.

    Args:
        path: the file; what is there is replaced.
        recording: what it holds first.

    Raises:
        NearstepError: if it cannot be written.
    """

    def __init__(self, path: Path, recording: Recording) -> None:
        self.path = path
        self._there: Recording | None = recording
        self._stopped = False
        recording.save(path)

    def follow(self, recording: Recording) -> None:
        """Bring the file up to date: one more line, or all of them.

        A full disk stops the log, with a warning, and not what is watched.
        """
        if self._stopped or recording is self._there:
            return
        there, self._there = self._there, None  # not known, should this break off
        try:
            if there is not None and recording.chunks and recording.chunks[:-1] == there.chunks:
                recording.append_last(self.path)
            else:
                recording.save(self.path)
        except (OSError, NearstepError) as error:
            self._stopped = True
            ends = len(recording.chunks) - 1
            warnings.warn(f"the log {self.path} ends at chunk {ends}: {error}", stacklevel=2)
            return
        self._there = recording


def _opening(path: str | Path, row: Mapping[str, Any]) -> Opening:
    version = row.get("nearstep")
    if version not in (1, VERSION):
        made = f"; it is of version {version}" if isinstance(version, int) else ""
        raise NearstepError(
            f"{path} is no recording of version 1 or {VERSION}{made}; a session writes one: session.recording.save"
        )
    names = _FIRST_NAMES if version == 1 else {}
    opening = {names.get(name, name): value for name, value in row.items() if name != "nearstep"}
    needed = {part.name for part in fields(Opening) if part.default is MISSING}
    if missing := sorted(needed - opening.keys()):
        raise NearstepError(f"{path} is no recording that can be made again: its first line lacks {missing[0]}")
    if unknown := sorted(opening.keys() - {part.name for part in fields(Opening)}):
        raise NearstepError(f"{path}, line 1: a recording of version {version} has no {unknown[0]!r}")
    check_fields(opening, _OPENING, f"{path}, line 1", needed=())
    return Opening(**opening)


def _entry(path: str | Path, index: int, row: dict[str, Any]) -> ChunkEntry:
    from nearstep.flow.plan import MOST_STEPS  # which needs torch

    times = row.pop("times", None)
    if row.pop("chunk", None) != index or not isinstance(times, list):
        raise NearstepError(f"{path}, line {index + 2}: chunk {index} and its times belong here; cut it off")
    if unknown := sorted(row.keys() - {part.name for part in fields(Changes)}):
        raise NearstepError(f"{path}, line {index + 2}: {unknown[0]!r} is nothing that changes between chunks")
    where = f"{path}, line {index + 2}"
    check_fields({"times": times, **row}, _ENTRY, where, needed=())
    falling = all(later < sooner for sooner, later in pairwise(times))
    if not 0 < len(times) <= MOST_STEPS or times[0] != 1 or not falling:
        raise NearstepError(f"{where} is damaged: times fall from 1 (noise), and are at most {MOST_STEPS}")
    return ChunkEntry(times=tuple(times), changes=Changes(**row))


def _is_object(line: str) -> bool:
    try:
        parsed_object(line)
    except ValueError:
        return False
    return True


def _row(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        return parsed_object(line)
    except ValueError:
        raise NearstepError(f"{path}, line {number} is no JSON object; a recording is one to a line") from None
