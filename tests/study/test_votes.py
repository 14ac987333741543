"""Votes outlive what kills their writer, and count once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nearstep.errors import NearstepError
from nearstep.study.votes import Vote, VoteFile, rater_name, read_votes


def a_vote(trial: str = "t", rater: str = "ann", choice: str = "left") -> Vote:
    return Vote(trial=trial, rater=rater, choice=choice, seconds=1.5)


def test_a_vote_is_read_as_it_was_written(tmp_path: Path) -> None:
    votes, path = VoteFile(tmp_path / "v.jsonl"), tmp_path / "v.jsonl"
    assert read_votes(path).votes == ()
    cast = [a_vote(f"t{n}", "Zoë 雪", choice) for n, choice in enumerate(("left", "right", "tie"))]
    assert [votes.add(each) for each in cast] == ["left", "right", "tie"]
    assert read_votes(path).votes == tuple(cast)
    assert VoteFile(path).of("Zoë 雪") == {"t0": "left", "t1": "right", "t2": "tie"}


def test_the_first_vote_on_a_trial_counts(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    votes = VoteFile(path)
    assert votes.add(a_vote()) == "left" and votes.add(a_vote(choice="right")) == "left"
    assert len(path.read_text().splitlines()) == 1
    other = VoteFile(tmp_path / "other.jsonl")  # what another process, which knew nothing of it, has added
    other.add(a_vote(choice="right"))
    with path.open("ab") as file:
        file.write((tmp_path / "other.jsonl").read_bytes())
    found = read_votes(path)
    assert [vote.choice for vote in found.votes] == ["left"] and found.again == 1


def test_a_torn_line_is_counted_and_the_next_vote_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    VoteFile(path).add(a_vote("t0"))
    whole = path.read_bytes()
    VoteFile(path).add(a_vote("t1"))
    torn = path.read_bytes()
    for end in range(len(whole) + 1, len(torn)):  # killed at any byte of the second line
        path.write_bytes(torn[:end])
        votes = VoteFile(path)
        complete = end == len(torn) - 1  # all but the end of the line
        assert votes.of("ann").keys() == ({"t0", "t1"} if complete else {"t0"})
        votes.add(a_vote("t2"))
        found = read_votes(path)
        assert found.torn == (not complete) and found.votes[-1].trial == "t2"
        assert path.read_bytes().startswith(torn[:end])


WRITER = """
import sys
from pathlib import Path
from nearstep.study.votes import Vote, VoteFile
votes = VoteFile(Path(sys.argv[1]))
for n in range(10**6):
    votes.add(Vote(trial=f"{sys.argv[2]}-{n}", rater="ann", choice="left", seconds=0))
    print(n, flush=True)
"""


def test_what_was_answered_survives_kill_9_of_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    line = [sys.executable, "-c", WRITER, str(path)]
    running = [subprocess.Popen([*line, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")]
    told = [0, 0]

    def read(number: int) -> None:
        for said in running[number].stdout or ():
            told[number] = int(said)

    threads = [threading.Thread(target=read, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + 60
    while min(told) < 20:
        assert time.monotonic() < ends
        time.sleep(0.01)
    for process in running:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for thread in threads:
        thread.join()
    found = read_votes(path)
    there = {vote.trial for vote in found.votes}
    assert {f"{name}-{n}" for name, last in zip("ab", told, strict=True) for n in range(last + 1)} <= there
    assert found.torn <= 1 and found.again == 0
    VoteFile(path).add(a_vote("after"))
    assert "after" in {vote.trial for vote in read_votes(path).votes}


GOOD = {"trial": "t", "rater": "ann", "choice": "left", "seconds": 1, "time": 1.0}


@pytest.mark.parametrize(
    "change", [{"choice": "both"}, {"rater": 3}, {"seconds": "1"}, {"seconds": 1e9}, {"time": None}, {"trial": ["t"]}]
)
def test_a_line_that_is_json_and_no_vote_is_refused(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(NearstepError, match=f"line 2 is no vote.*{next(iter(change))}"):
        read_votes(path)
    path.write_text("[1]\n")
    with pytest.raises(NearstepError, match="line 1 is no vote: a list"):
        read_votes(path)


def test_a_file_that_cannot_be_written_takes_no_vote(tmp_path: Path) -> None:
    votes = VoteFile(tmp_path / "nowhere" / "v.jsonl")
    with pytest.raises(NearstepError, match="cannot write"):
        votes.add(a_vote())
    assert votes.of("ann") == {}


@pytest.mark.parametrize("name", ["", "  ", "a" * 61, "a\x00b", "\ud800", "a\x1bb"])
def test_names_that_cannot_be_shown_are_refused(name: str) -> None:
    with pytest.raises(NearstepError, match="1 to 60 signs"):
        rater_name(name)


def test_one_name_written_two_ways_is_one_name() -> None:
    assert rater_name("Zoe\u0308  Ann ") == rater_name("Zo\u00eb Ann")
