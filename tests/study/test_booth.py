"""The voting page over HTTP: blind, resumed, for many raters at once, and unmoved by what is hostile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from served import Site
from studies import booth, new_study

from nearstep.study.plan import read_key
from nearstep.study.public import Public
from nearstep.study.votes import read_votes

NAMES = ("alphasystem", "betasystem")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return new_study(tmp_path_factory.mktemp("booth"), NAMES, count=12, attention=4)


@pytest.fixture
def site(study: Path):
    (study / "votes.jsonl").unlink(missing_ok=True)
    with booth(study) as found:
        yield found


def begin(site: Site, rater: str) -> dict:
    return site.json("POST", "/api/begin", {"rater": rater})


def cast(site: Site, rater: str, trial: str, choice: str = "left", status: int = 200) -> dict:
    asked = {"rater": rater, "trial": trial, "choice": choice, "seconds": 1.25}
    return site.json("POST", "/api/vote", asked, status)


def vote_all(site: Site, rater: str) -> list[str]:
    state, seen = begin(site, rater), []
    while state["trials"]:
        seen.append(state["trials"][0]["id"])
        state = cast(site, rater, seen[-1], ("left", "tie", "right")[len(seen) % 3])
    return seen


def test_a_rater_sees_every_trial_once_and_goes_on_where_the_last_vote_left_off(study: Path, site: Site) -> None:
    public = Public.open(study)
    state = begin(site, "ann")
    first = state["trials"][0]["id"]
    assert (state["done"], state["total"]) == (0, len(public.trials))
    state = cast(site, "ann", first)
    assert state["done"] == 1 and begin(site, " ann ")["trials"] == state["trials"]
    assert [first, *vote_all(site, "ann")] == [trial.id for trial in public.order("ann")]
    assert begin(site, "ann")["done"] == len(public.trials) and begin(site, "bob")["done"] == 0


def test_another_server_of_the_study_goes_on_there(study: Path, site: Site) -> None:
    state = cast(site, "ann", begin(site, "ann")["trials"][0]["id"])
    with booth(study) as other:
        assert begin(other, "ann") == state


def test_kill_9_of_the_server_loses_no_vote(study: Path) -> None:
    """The command itself, killed while votes come in, and started again."""
    (study / "votes.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-m", "nearstep.cli.main", "study", "serve", str(study), "--port", "0"]
    answered: list[str] = []
    state: dict = {}
    for _ in range(2):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                line = process.stderr.readline()
                site = Site(int(re.search(r"http://127.0.0.1:(\d+)/", line)[1]), None)
                state = begin(site, "ann")
                assert state["done"] == len(answered)
                for _ in range(4):
                    answered.append(state["trials"][0]["id"])
                    state = cast(site, "ann", answered[-1])
            finally:
                process.kill()
    recorded = read_votes(study / "votes.jsonl")
    assert [vote.trial for vote in recorded.votes] == answered and len(answered) == 8 and not recorded.torn


def test_raters_at_once(study: Path, site: Site) -> None:
    raters = [f"rater {n}" for n in range(6)]
    faults = []

    def run(rater: str) -> None:
        try:
            vote_all(site, rater)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(rater,)) for rater in raters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorded = read_votes(study / "votes.jsonl")
    assert not faults and recorded.torn == recorded.again == 0
    assert len(recorded.votes) == len(raters) * len(Public.open(study).trials)


def test_nothing_that_is_served_says_whose_a_clip_is(study: Path, site: Site) -> None:
    key, served = read_key(study), []
    lengths, headers = set(), set()
    for path in ("/", "/static/study.js", "/static/study.css", "/static/style.css", "/favicon.ico", "/health"):
        served.append(site.ask("GET", path))
        assert served[-1][0] == 200
    state = begin(site, "ann")
    while state["trials"]:
        trial = state["trials"][0]
        assert {*trial} == {"id", "left", "right", "prompt"}
        for side in ("left", "right"):
            status, content, said = site.ask("GET", f"/api/clips/{trial[side]}")
            assert status == 200 and re.fullmatch(r"[0-9a-f]{16}", trial[side])
            lengths.add(len(content))
            headers.add(json.dumps({name: value for name, value in said.items() if name.lower() != "date"}))
            served.append((status, content, said))
        served.append(site.ask("POST", "/api/begin", {"rater": "ann"}))
        state = cast(site, "ann", trial["id"])
    assert len(lengths) == 1 and len(headers) == 1
    told = {name.lower() for name in json.loads(headers.pop())}
    assert not told & {"last-modified", "etag", "content-disposition", "set-cookie"}
    for _, content, said in served:
        everything = content.lower() + json.dumps(said).lower().encode()
        assert not [name for name in NAMES if name.encode() in everything]
        assert str(key.seed).encode() not in everything and b"key.json" not in everything
        assert b"repeat" not in content[:200] and b"broken" not in content[:400]


def test_the_server_does_without_the_key(study: Path) -> None:
    key = (study / "key.json").rename(study.parent / "key.json")
    try:
        with booth(study) as site:
            assert begin(site, "ann")["total"] == len(Public.open(study).trials)
            for path in ("/key.json", "/../key.json", "/static/../../key.json", "/api/clips/..%2f..%2fkey.json"):
                assert site.ask("GET", path)[0] == 404
    finally:
        key.rename(study / "key.json")


@pytest.mark.parametrize(
    "path",
    [
        *("/api/clips/../key.json", "/api/clips/..%2f..%2fkey.json", "/api/clips/%2e%2e%2ftrials.json", "/api/clips/"),
        *("/api/clips/0000000000000000", "/api/clips/trials.json", "/static/%2e%2e/voting.py", "/votes.jsonl"),
        *("/public/trials.json", "/api/trials", "/api/clips/" + "a" * 5000, "/api/clips/%00"),
    ],
)
def test_no_path_leads_elsewhere(site: Site, path: str) -> None:
    status, content, _ = site.ask("GET", path)
    assert status in (404, 405) and len(content) < 500


def test_votes_that_are_none_are_refused(study: Path, site: Site) -> None:
    trial = begin(site, "ann")["trials"][0]["id"]
    good = {"rater": "ann", "trial": trial, "choice": "left", "seconds": 1}
    changes = [
        *({"choice": "both"}, {"choice": None}, {"choice": ["left"]}, {"seconds": -5}, {"seconds": 1e9}),
        *({"seconds": "1"}, {"rater": ""}, {"rater": 5}, {"rater": "a" * 100}, {"rater": "\ud800"}, {"more": 1}),
        *({"seconds": None}, {"trial": 7}),
    ]
    for change in changes:
        status, content, _ = site.ask("POST", "/api/vote", {**good, **change})
        assert status == 400, (change, content)
    cast(site, "ann", "0" * 16, status=404)
    cast(site, "ann", "../../key", status=404)
    for body in (b"", b"[]", b"{", b"\xff", b"null", b'{"rater": NaN}', b"[" * 5000):
        assert site.ask("POST", "/api/vote", body)[0] == 400
    assert site.ask("POST", "/api/vote", b"x" * 300_000)[0] == 413
    assert site.ask("GET", "/api/vote")[0] == 405
    assert not read_votes(study / "votes.jsonl").votes


def test_a_second_vote_changes_nothing(study: Path, site: Site) -> None:
    trial = begin(site, "ann")["trials"][0]["id"]
    cast(site, "ann", trial, "left")
    assert cast(site, "ann", trial, "left")["done"] == 1  # a page that did not hear the answer sends it again
    assert "voted on this already" in cast(site, "ann", trial, "right", 409)["error"]["message"]
    assert [vote.choice for vote in read_votes(study / "votes.jsonl").votes] == ["left"]


@pytest.mark.parametrize("name", ["judge", "Judge", " JUDGE "])
def test_nobody_votes_as_the_judge(site: Site, name: str) -> None:
    assert site.ask("POST", "/api/begin", {"rater": name})[0] == 403


def test_pages_of_others_and_other_hosts_are_not_answered(study: Path, site: Site) -> None:
    trial = begin(site, "ann")["trials"][0]["id"]
    vote = {"rater": "ann", "trial": trial, "choice": "left", "seconds": 1}
    for headers, status in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "null"}, 403),
    ):
        assert site.ask("POST", "/api/vote", vote, **headers)[0] == status
        assert site.ask("GET", "/api/clips/" + next(iter(Public.open(study).clips)), **headers)[0] == status
    assert not read_votes(study / "votes.jsonl").votes


def test_with_a_token_nothing_but_the_page_is_for_everybody(study: Path) -> None:
    clip = next(iter(Public.open(study).clips))
    with booth(study, token="open-sesame-1") as site:
        site.token = None
        assert site.ask("GET", "/")[0] == 200
        assert site.ask("GET", f"/api/clips/{clip}")[0] == 401
        assert site.ask("POST", "/api/begin", {"rater": "ann"})[0] == 401
        assert site.ask("POST", "/api/enter", {"token": "wrong"})[0] == 401
        status, _, headers = site.ask("POST", "/api/enter", {"token": "open-sesame-1"})
        cookie = headers["set-cookie"].partition(";")[0]
        assert status == 200 and site.ask("GET", f"/api/clips/{clip}", Cookie=cookie)[0] == 200
