"""A take as a small file: what was asked and when, and how many steps each chunk got. Enough to make it again.

JSON lines: the opening, then a line per chunk with its times and with what changed just before it. All noise has a name
(rng.py), so a replay on the same build is equal bit for bit; under another plan the same noise starts each chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import replacing

VERSION = 1
CHANGES = ("prompt", "plan", "seed")
"""What may change between chunks."""
_OPENING = {*CHANGES, "negative_prompt", "guidance", "sample", "height", "width", "window", "sink", "following"}


@dataclass
class Record:
    """One take."""

    opening: Mapping[str, Any]
    """What the session was opened with, and what it was made on."""
    chunks: list[dict[str, Any]] = field(default_factory=list)
    """Of each chunk: ``times`` of its steps, and those of CHANGES that were asked for just before it."""

    def until(self, chunk: int) -> Record:
        """The take up to, and without, this chunk."""
        return Record(self.opening, [dict(entry) for entry in self.chunks[:chunk]])

    def wishes(self) -> dict[str, Any]:
        """Prompt, plan and seed as they are at the take's end."""
        current = {name: self.opening[name] for name in CHANGES}
        for entry in self.chunks:
            current |= {name: entry[name] for name in CHANGES if name in entry}
        return current

    def lines(self) -> Iterator[str]:
        """The file's lines."""
        yield json.dumps({"nearstep": VERSION, **self.opening})
        for index, entry in enumerate(self.chunks):
            yield json.dumps({"chunk": index, **entry})

    def save(self, path: str | Path) -> Path:
        """Write it, whole or not at all."""
        with replacing(Path(path)) as part:
            part.write_text("".join(f"{line}\n" for line in self.lines()), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Record:
        """Read it.

        Raises:
            NearstepError: naming the first line that is no part of a record.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NearstepError(f"cannot read the record {path}: {error}") from error
        rows = [_row(path, number, line) for number, line in enumerate(text.splitlines(), 1)]
        if not rows or rows[0].pop("nearstep", None) != VERSION or not set(rows[0]) >= _OPENING:
            raise NearstepError(f"{path} is no record of version {VERSION}; a session writes one: session.record.save")
        for index, row in enumerate(rows[1:]):
            if row.pop("chunk", None) != index or not isinstance(row.get("times"), list):
                raise NearstepError(f"{path}, line {index + 2}: chunk {index} and its times belong here; cut it off")
        return cls(rows[0], rows[1:])


def _row(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise NearstepError(f"{path}, line {number} is no JSON object; a record is one to a line")
    return row
