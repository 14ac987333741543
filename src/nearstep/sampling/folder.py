"""A folder of sampled clips: ``videos/``, what they are (``sample.json``), and what each took (``clips*.jsonl``).

FOLDER/videos/PROMPT-INDEX.mp4     each says itself what made it
FOLDER/sample.json                 the system, the prompts, the seed
FOLDER/clips.jsonl                 a line a clip: network calls, seconds, size; a part K/N writes clips-K-of-N.jsonl
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.files import write_json
from nearstep.json_files import read_object
from nearstep.sampling.filming import Record

VIDEOS, RECORD, CLIPS = "videos", "sample.json", "clips"
_AGAIN = "remove it, or sample into another folder"


def claim(folder: Path, said: Mapping[str, Any], same: Sequence[str], *, overwrite: bool) -> None:
    """Write what the clips of a folder are, where no clips of another kind are in it.

    Args:
        folder: gets the clips.
        said: what they are.
        same: names that have to be as they were; other prompts of the same wording may come beside those there.
        overwrite: clips that are there will be replaced, so they may be anything.

    Raises:
        NearstepError: naming the first difference.
    """
    check_same(folder, said, same, overwrite=overwrite)
    write_json(folder / RECORD, dict(said))


def check_same(folder: Path, said: Mapping[str, Any], same: Sequence[str], *, overwrite: bool) -> None:
    """Refuse what :func:`claim` would; nothing is written."""
    there = read_object(folder / RECORD, _AGAIN) if (folder / RECORD).is_file() else {}
    told = json.loads(json.dumps(dict(said)))
    for name in same if there and not overwrite else ():
        if there.get(name) != told.get(name):
            raise NearstepError(
                f"{folder} has videos of {name} {there.get(name)!r}, not {told.get(name)!r}; name another folder, or "
                "--overwrite"
            )


def log_name(first: int, parts: int) -> str:
    """Of the file that a part of the work writes."""
    return f"{CLIPS}.jsonl" if parts == 1 else f"{CLIPS}-{first}-of-{parts}.jsonl"


def note_record(file: Path, record: Record) -> None:
    """Add a line for a clip whose video is there; what a killed process left of its last line is cut off first."""
    with file.open("a+b") as log:
        log.seek(0)
        whole = log.read().rpartition(b"\n")
        log.truncate(len(whole[0]) + len(whole[1]))
        log.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")


@dataclass(frozen=True, kw_only=True)
class Took:
    """What the clips of a folder took, in the middle of them; None where nobody noted it, or they differ."""

    clips: int
    """With a line about them."""
    calls: int | None
    seconds: float | None
    """Half of the clips took more: the first one, which warms up, does not count for more than one."""
    frames: int | None
    fps: float | None

    @property
    def rate(self) -> float | None:
        """Frames made a second: those of a clip over the seconds from its prompt to its pixels."""
        return self.frames / self.seconds if self.frames and self.seconds else None


def took(folder: Path) -> Took:
    """What ``clips*.jsonl`` say.

    Raises:
        NearstepError: for a line that is none of ours.
    """
    rows = list(read_records(folder).values())
    return Took(
        clips=len(rows),
        calls=_shared([row.calls for row in rows]),
        seconds=statistics.median(row.seconds for row in rows) if rows else None,
        frames=_shared([row.frames for row in rows]),
        fps=_shared([row.fps for row in rows]),
    )


def read_records(folder: Path) -> dict[str, Record]:
    """Name of a clip -> what it took; of several lines the newest counts.

    Raises:
        NearstepError: for a line that is none of ours.
    """
    names, found = {field.name for field in fields(Record)}, {}
    for file in sorted(folder.glob(f"{CLIPS}*.jsonl"), key=lambda file: file.stat().st_mtime_ns):
        *lines, _ = file.read_text(encoding="utf-8").split("\n")  # the last one is empty, or not whole
        for number, line in enumerate(lines, start=1):
            try:
                said = json.loads(line)
                found[said["name"]] = Record(**{name: said[name] for name in names})
            except (ValueError, KeyError, TypeError) as error:
                raise NearstepError(f"{file}, line {number} says nothing about a clip; {_AGAIN}") from error
    return found


def _shared(values: Sequence[Any]) -> Any:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
