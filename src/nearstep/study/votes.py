"""Votes: a file of JSON lines that only grows, each line on the disk before its rater is thanked.

A process that dies while it writes leaves a torn line, which is no JSON: it is counted and passed over, and the next
vote begins a line of its own. Of two votes of one rater on one trial the first counts.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.files import check_regular
from nearstep.json_files import TEXT, check_fields, one_of, parsed, within

CHOICES = ("left", "right", "tie")
LONGEST_NAME = 60
JUDGE = "judge"
"""The name under which a world's judge votes; nobody else may have it."""
DAY = 86_400.0
SECONDS = within(-1.0, DAY)
_FIELDS = {"trial": TEXT, "rater": TEXT, "choice": one_of(*CHOICES), "seconds": SECONDS, "time": within(0, 1e11)}


@dataclass(frozen=True, kw_only=True)
class Vote:
    """What a rater said of a trial."""

    trial: str
    rater: str
    choice: str
    """left, right or tie."""
    seconds: float
    """From when both clips were shown."""
    time: float = field(default_factory=lambda: round(time.time(), 3))
    """Since 1970."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The votes of a file, and what of it is none."""

    votes: tuple[Vote, ...] = ()
    """In order; the first of each rater on each trial."""
    torn: int = 0
    """Lines that were not written to their end."""
    again: int = 0
    """Further votes of a rater on a trial."""


def rater_name(given: str) -> str:
    """A rater's name as it is kept: composed, without blanks around it.

    Raises:
        NearstepError: for one that is empty, too long, or holds what cannot be shown.
    """
    name = " ".join(unicodedata.normalize("NFC", given).split())
    if not TEXT.holds(given) or not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise NearstepError(f"a name has 1 to {LONGEST_NAME} signs that can be shown; got {given[:80]!r}")
    return name


def read_votes(path: Path) -> Recorded:
    """The votes of a file; none where there is no file.

    Raises:
        NearstepError: naming a line that is JSON and no vote.
    """
    check_regular(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Recorded()
    except OSError as error:
        raise NearstepError(f"cannot read {path}: {error.strerror}") from error
    votes: dict[tuple[str, str], Vote] = {}
    torn = again = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            content = parsed(line.decode())
        except ValueError:
            torn += 1
            continue
        vote = _vote(content, f"{path}, line {number}")
        again += (vote.rater, vote.trial) in votes
        votes.setdefault((vote.rater, vote.trial), vote)
    return Recorded(votes=tuple(votes.values()), torn=torn, again=again)


def _vote(content: object, where: str) -> Vote:
    if not isinstance(content, dict):
        raise NearstepError(f"{where} is no vote: a {type(content).__name__}")
    check_fields(content, _FIELDS, where, fault=" is no vote")
    return Vote(**{name: content[name] for name in _FIELDS})


class VoteFile:
    """Adds votes to a file. Several threads, and several processes, may do so at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._one = path, threading.Lock()
        self._of: dict[str, dict[str, str]] = {}
        for vote in read_votes(path).votes:
            self._of.setdefault(vote.rater, {})[vote.trial] = vote.choice

    def of(self, rater: str) -> dict[str, str]:
        """Trial -> choice, of a rater's votes so far."""
        with self._one:
            return dict(self._of.get(rater, {}))

    @property
    def raters(self) -> int:
        """How many have voted."""
        return len(self._of)

    def add(self, vote: Vote) -> str:
        """Write a vote and wait for the disk; what counts for this rater and trial is returned, now or before.

        Raises:
            NearstepError: if it cannot be written; it does not count then.
        """
        with self._one:
            mine = self._of.setdefault(vote.rater, {})
            if vote.trial not in mine:
                _append(self._path, json.dumps(asdict(vote), ensure_ascii=False).encode())
                mine[vote.trial] = vote.choice
            return mine[vote.trial]


def _append(path: Path, line: bytes) -> None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = os.fstat(file).st_size
            whole = size == 0 or os.pread(file, 1, size - 1) == b"\n"
            wanted = line + b"\n" if whole else b"\n" + line + b"\n"
            if os.write(file, wanted) != len(wanted):
                raise NearstepError(f"cannot write {path}: the disk is full")
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise NearstepError(f"cannot write {path}: {error.strerror}") from error
