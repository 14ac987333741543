"""Videos that were asked for by HTTP, in a table that outlives the server (SQLite, a file).

A row says what was asked and how far it is. Whoever was being made when the server ended waits again when it starts, at
most :data:`MOST_TRIES` times: one that ends the server would end it for ever.
"""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nearstep.errors import NearstepError, first_line
from nearstep.server import names
from nearstep.server.protocol import Json

NAME = re.compile(f"video_{names.NAME.pattern}")
QUEUED, MAKING, DONE, FAILED, CANCELLED = "queued", "in_progress", "completed", "failed", "cancelled"
OVER = (DONE, FAILED, CANCELLED)
MOST_TRIES = 3
_TABLE = """
CREATE TABLE IF NOT EXISTS videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    asked TEXT NOT NULL,
    created REAL NOT NULL,
    completed REAL,
    status TEXT NOT NULL,
    made INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT
)"""
_COLUMNS = "number, id, asked, created, completed, status, made, tries, error"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row."""

    number: int
    """In order of asking."""
    id: str
    asked: Json
    """prompt, plan, seed, chunks, ...: what it is made of."""
    created: float
    completed: float | None
    status: str
    made: int
    """Chunks."""
    tries: int
    error: str | None


def new_name(replica: int | None = None) -> str:
    """The id of a video: as those of takes."""
    return f"video_{names.new_name(replica)}"


class Jobs:
    """The table.

    Args:
        path: its file.

    Raises:
        NearstepError: if it is no such file, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute(_TABLE)
            self._base.execute(f"SELECT {_COLUMNS} FROM videos LIMIT 1").fetchall()
        except (sqlite3.Error, OSError) as error:
            raise NearstepError(f"cannot use {path}: {first_line(error)}; name another folder with --state") from error

    def begin_again(self) -> None:
        """The server starts: what was being made waits again, or is given up."""
        told = f"the server ended {MOST_TRIES} times while this was made"
        with self._writing() as base:
            base.execute("UPDATE videos SET status=?, error=?, completed=? WHERE status=? AND tries>=?",
                         (FAILED, told, time.time(), MAKING, MOST_TRIES))  # fmt: skip
            base.execute("UPDATE videos SET status=?, made=0 WHERE status=?", (QUEUED, MAKING))

    def hand_back(self) -> None:
        """The server ends in peace: what is being made waits again, and has lost no try."""
        with self._writing() as base:
            base.execute("UPDATE videos SET status=?, made=0, tries=tries-1 WHERE status=?", (QUEUED, MAKING))

    def add(self, name: str, asked: Json) -> Job:
        """Ask for a video, under a new name."""
        with self._writing() as base:
            base.execute("INSERT INTO videos (id, asked, created, status) VALUES (?, ?, ?, ?)",
                         (name, json.dumps(asked), time.time(), QUEUED))  # fmt: skip
        found = self.find(name)
        assert found is not None
        return found

    def find(self, name: str) -> Job | None:
        """One of them, if it is there."""
        return next(iter(self._rows("WHERE id=?", (name,))), None)

    def waiting(self) -> Job | None:
        """The one that has waited longest."""
        return next(iter(self._rows("WHERE status=? ORDER BY number LIMIT 1", (QUEUED,))), None)

    def open_count(self) -> int:
        """How many wait or are being made."""
        with self._lock:
            (count,) = self._base.execute(
                "SELECT count(*) FROM videos WHERE status IN (?, ?)", (QUEUED, MAKING)
            ).fetchone()
        return int(count)

    def listing(self, *, after: int | None, limit: int, newest_first: bool) -> list[Job]:
        """Some of them.

        Args:
            after: the number of the last one of the page before.
            limit: how many.
            newest_first: the order.
        """
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = ("", ()) if after is None else (f"WHERE number {sign} ? ", (after,))
        return self._rows(f"{where}ORDER BY number {order} LIMIT ?", (*values, limit))

    def start(self, name: str) -> bool:
        """It begins to be made; False if it does not wait any more."""
        return self._changed("status=?, tries=tries+1, made=0", (MAKING,), name, QUEUED)

    def advance(self, name: str, made: int) -> None:
        """So many chunks are made."""
        self._changed("made=?", (made,), name, MAKING)

    def finish(self, name: str, status: str, error: str | None = None) -> bool:
        """It is over; False if it was before."""
        return self._changed("status=?, error=?, completed=?", (status, error, time.time()), name, QUEUED, MAKING)

    def remove(self, name: str) -> None:
        """Its row goes."""
        with self._writing() as base:
            base.execute("DELETE FROM videos WHERE id=?", (name,))

    def beyond(self, kept: int) -> list[Job]:
        """Those that are over and older than so many newer ones."""
        marks = ",".join("?" * len(OVER))
        return self._rows(f"WHERE status IN ({marks}) ORDER BY number DESC LIMIT -1 OFFSET ?", (*OVER, kept))

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()

    def _changed(self, what: str, values: tuple[object, ...], name: str, *statuses: str) -> bool:
        marks = ",".join("?" * len(statuses))
        with self._writing() as base:
            done = base.execute(
                f"UPDATE videos SET {what} WHERE id=? AND status IN ({marks})", (*values, name, *statuses)
            )
        return done.rowcount == 1

    def _rows(self, where: str, values: tuple[object, ...]) -> list[Job]:
        with self._lock:
            rows = self._base.execute(f"SELECT {_COLUMNS} FROM videos {where}", values).fetchall()
        names = _COLUMNS.split(", ")
        return [Job(**{**dict(zip(names, row, strict=True)), "asked": json.loads(row[2])}) for row in rows]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._base:
            yield self._base
