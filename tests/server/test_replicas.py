"""Several servers behind one address: whose a take or a video is, is read from its id."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from served import Site, eventually

from nearstep.server.jobs import NAME as JOB_NAME
from nearstep.server.jobs import new_name as new_job
from nearstep.server.names import MOST_REPLICAS, NAME, new_name, replica_of


@pytest.mark.parametrize("rank", [0, 1, 63, 64, MOST_REPLICAS - 1])
def test_an_id_says_whose_it_is(rank: int) -> None:
    names = {new_name(rank) for _ in range(50)}
    assert len(names) == 50 and all(NAME.fullmatch(name) and replica_of(name) == rank for name in names)
    assert JOB_NAME.fullmatch(new_job(rank)) and replica_of(new_job(rank).removeprefix("video_")) == rank


def test_a_request_is_for_the_replica_that_its_path_names_or_its_cookie() -> None:
    pytest.importorskip("ray.serve", reason="ray, of the extra cluster, is not installed")
    from nearstep.server.replicas import owner_of

    def owner(path: str, cookie: str | None = None) -> int | None:
        headers = [] if cookie is None else [(b"cookie", cookie.encode())]
        return owner_of({"type": "http", "path": path, "headers": headers})

    name = new_name(5)
    for path in ("/api/takes/{}", "/api/takes/{}/live", "/api/watch/{}/chunks/3.jpg", "/watch/{}"):
        assert owner(path.format(name)) == 5 and owner(path.format(name), "nearstep-replica=2") == 5
    assert owner(f"/v1/videos/{new_job(7)}/content") == 7
    assert owner("/api/takes") is None and owner("/", "nearstep-replica=2; other=1") == 2
    for cookie in ("nearstep-replica=-1", "nearstep-replica=x", ";;;", "nearstep-replica=", "\\x00"):
        assert owner("/api/takes", cookie) is None
    for path in ("/api/takes/short", f"/api/takes/{name}x", "/static/app.js", f"/other/{name}"):
        assert owner(path) is None


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="replicas are found by the files that they hold open")
def test_two_replicas_share_an_address_and_keep_their_takes_when_one_dies(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="ray[serve], of the extra cluster, is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "nearstep.cli.main", "serve", str(model_folder), "--replicas", "2"]
    line += ["--port", str(port), "--state", str(tmp_path)]
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen(line, stderr=said, stdout=said)
    try:
        eventually(lambda: server.poll() is not None or "Ctrl-C ends" in (tmp_path / "said").read_text(), 150)
        assert server.poll() is None, (tmp_path / "said").read_text()
        _looked_at(Site(port, None), tmp_path)
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
    finally:
        server.kill()


def _holder(file: Path) -> int:
    """The process that holds a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.resolve() == file:
                return int(link.parts[2])
    raise AssertionError(f"nobody holds {file}")


def _looked_at(site: Site, folder: Path) -> None:
    takes: dict[int, dict] = {}
    ends = time.monotonic() + 100
    while len(takes) < 2:  # whoever names no replica goes to any
        assert time.monotonic() < ends
        take = site.take()
        takes.setdefault(replica_of(take["id"]), take)
    for rank, take in takes.items():
        assert (folder / f"replica-{rank}" / "takes" / take["id"]).is_dir()
        for _ in range(10):
            assert site.json("GET", f"/api/takes/{take['id']}")["id"] == take["id"]
        with site.look(f"takes/{take['id']}") as owner, site.look(f"watch/{take['watch']}") as guest:
            owner.chunk(2), guest.chunk(2)
            owner.say("pause")
            owner.of("state", state="paused")
    job = site.json("POST", "/v1/videos", {"prompt": "a small red ball slides left", "seconds": "1"})
    eventually(lambda: site.json("GET", f"/v1/videos/{job['id']}")["status"] == "completed", 60)
    assert site.ask("GET", f"/v1/videos/{job['id']}/content")[0] == 200

    cookie = site.ask("GET", "/")[2]["set-cookie"].partition(";")[0]
    mine = int(cookie.partition("=")[2])
    for _ in range(6):  # and whoever has the page of one stays with it
        _, content, _ = site.ask("POST", "/api/takes", {"prompt": "a small red ball slides left"}, Cookie=cookie)
        assert replica_of(json.loads(content)["id"]) == mine

    gone, other = takes[mine], takes[1 - mine]
    os.kill(_holder(folder / f"replica-{mine}" / "videos.sqlite"), signal.SIGKILL)
    assert site.json("GET", f"/api/takes/{other['id']}")["id"] == other["id"]
    path = f"/api/takes/{gone['id']}/recording.jsonl"
    eventually(lambda: site.ask("GET", path)[0] == 200, 90)
    assert site.ask("GET", path)[1].count(b"\n") >= 3
