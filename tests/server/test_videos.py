"""/v1/videos by OpenAI's own client, and a table of jobs that outlives the server."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import av
import openai
import pytest
from PIL import Image
from served import BLUE, RED, Site, eventually, running

from nearstep.errors import NearstepError
from nearstep.server.jobs import MOST_TRIES, Jobs, new_name
from nearstep.server.studio import Limits
from nearstep.stream.pipeline import CausalVideoPipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of OpenAI's own service, which ends


def client(site: Site, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{site.port}/v1", api_key=key, max_retries=0)


def count(content: bytes) -> int:
    with av.open(io.BytesIO(content)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_video_is_asked_for_watched_and_fetched(site: Site) -> None:
    videos = client(site).videos
    video = videos.create(prompt=RED, model="tiny", seconds="2", size="32x32", extra_body={"seed": 5, "plan": "2,1x"})
    assert (video.object, video.seconds, video.size, video.prompt) == ("video", "2", "32x32", RED)
    done = videos.poll(video.id)
    assert (done.status, done.progress, done.error) == ("completed", 100, None)
    content = videos.download_content(video.id).content
    assert count(content) == 21  # 3 chunks: 2 s at 12 frames a second, the first chunk being shorter
    picture = Image.open(io.BytesIO(videos.download_content(video.id, variant="thumbnail").content))
    assert picture.size == (96, 96)
    again = videos.create_and_poll(prompt=RED, seconds="2", extra_body={"seed": "5", "plan": "2,1x"})
    assert videos.download_content(again.id).content == content
    assert [model.id for model in client(site).models.list()] == ["tiny"]
    assert client(site).models.retrieve("tiny").owned_by == "nearstep"


def test_a_file_that_somebody_removed_is_said_to_be_gone(tiny: CausalVideoPipeline, tmp_path: Path) -> None:
    with running(tiny, tmp_path) as site:
        done = client(site).videos.create_and_poll(prompt=RED, seconds="1")
        for file in (tmp_path / "videos").iterdir():
            file.unlink()
        for variant in ("video", "thumbnail"):
            status, body, _ = site.ask("GET", f"/v1/videos/{done.id}/content?variant={variant}")
            assert (status, f"the {variant} of".encode() in body) == (410, True)


def test_a_video_goes_on_from_a_picture(site: Site) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 200, 30)).save(file, format="PNG")
    videos = client(site).videos
    done = videos.create_and_poll(prompt=RED, seconds="1", input_reference=("a.png", file.getvalue(), "image/png"))
    assert count(videos.download_content(done.id).content) == 16  # and not 13: the picture was the odd frame


def test_pages_of_videos_go_both_ways(site: Site) -> None:
    videos = client(site).videos
    names = [videos.create(prompt=RED, seconds="1").id for _ in range(5)]
    newest = [video.id for video in videos.list(limit=2)][:5]  # by itself from page to page
    assert newest == names[::-1]
    oldest = [video.id for video in videos.list(limit=100, order="asc")]
    assert [name for name in oldest if name in names] == names
    removed = videos.delete(names[0])
    assert removed.deleted and removed.id == names[0]
    with pytest.raises(openai.NotFoundError):
        videos.retrieve(names[0])


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "a purple elephant"}, 400, "elephant"),
        ({"prompt": RED, "seconds": "-1"}, 400, "seconds"),
        ({"prompt": RED, "seconds": "nan"}, 400, "seconds"),
        ({"prompt": RED, "seconds": 10**9}, 400, "seconds"),
        ({"prompt": RED, "size": "big"}, 400, "size"),
        ({"prompt": RED, "size": "31x31"}, 400, "31"),
        ({"prompt": RED, "size": "9999x9999"}, 400, "size"),
        ({"prompt": RED, "model": "sora-2"}, 404, "tiny"),
        ({"prompt": RED, "plan": "0"}, 400, "plan"),
        ({"prompt": RED, "plan": "1", "num_inference_steps": 2}, 400, "not both"),
        ({"prompt": RED, "promt": "x"}, 400, "did you mean prompt"),
        ({"prompt": [RED]}, 400, "prompt"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(site: Site, body: dict, status: int, said: str) -> None:
    found, content, _ = site.ask("POST", "/v1/videos", body)
    error = json.loads(content)["error"]
    assert found == status and said in error["message"], error
    assert error["type"] == "invalid_request_error"


def test_forms_that_are_none_and_names_that_are_none(site: Site) -> None:
    form = {"Content_Type": "multipart/form-data; boundary=x"}
    assert site.ask("POST", "/v1/videos", b"--x\r\nnonsense", **form)[0] == 400
    assert site.ask("POST", "/v1/videos", b"\xff\xfe")[0] == 400
    many = b"".join(b'--x\r\nContent-Disposition: form-data; name="a%d"\r\n\r\n1\r\n' % n for n in range(100))
    assert site.ask("POST", "/v1/videos", many + b"--x--\r\n", **form)[0] == 400
    for name in ("video_x", "..%2f..%2fvideos.sqlite", "video_" + "a" * 22):
        for end in ("", "/content"):
            assert site.ask("GET", f"/v1/videos/{name}{end}")[0] == 404
    for limit in ("%C2%B2", "0" * 9 + "9" * 20, "101"):
        assert site.ask("GET", f"/v1/videos?limit={limit}")[0] == 400
    long = json.dumps({"prompt": RED, "negative_prompt": "ball " * 1000}).encode()
    assert site.ask("POST", "/v1/videos", long)[0] == 400
    assert site.ask("GET", "/v1/videos?limit=0")[0] == 400 and site.ask("GET", "/v1/videos?order=up")[0] == 400


def test_one_is_cancelled_and_the_others_are_made(tiny, tmp_path: Path) -> None:
    with running(tiny, tmp_path, limits=Limits(jobs=2)) as site:
        long = site.json("POST", "/v1/videos", {"prompt": RED, "seconds": 1000})
        short = site.json("POST", "/v1/videos", {"prompt": BLUE, "seconds": 1})
        assert site.ask("POST", "/v1/videos", {"prompt": RED})[0] == 429
        eventually(lambda: site.json("GET", f"/v1/videos/{long['id']}")["status"] == "in_progress")
        assert site.ask("GET", f"/v1/videos/{long['id']}/content")[0] == 409
        assert site.json("POST", f"/v1/videos/{long['id']}/cancel")["status"] == "cancelled"
        assert site.ask("POST", f"/v1/videos/{long['id']}/cancel")[0] == 409
        eventually(lambda: site.json("GET", f"/v1/videos/{short['id']}")["status"] == "completed")
        assert [path.suffix for path in (tmp_path / "videos").glob(f"{long['id']}*")] == []


def test_a_stream_goes_on_beside_a_video(site: Site) -> None:
    video = site.json("POST", "/v1/videos", {"prompt": RED, "seconds": 300})
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        assert max(look.chunk(index)["waiting"] for index in range(6)) >= 1
    site.json("DELETE", f"/v1/videos/{video['id']}")


def test_jobs_wait_again_where_the_server_ended_and_not_for_ever(tmp_path: Path) -> None:
    jobs, name = Jobs(tmp_path / "a.sqlite"), new_name()
    jobs.add(name, {"prompt": RED, "chunks": 3})
    for again in range(MOST_TRIES):
        assert jobs.waiting().id == name and jobs.start(name) and not jobs.start(name)
        jobs.advance(name, 2)
        jobs.hand_back()  # a server that ends in peace costs no try
        assert jobs.start(name) and jobs.find(name).tries == again + 1
        jobs.begin_again()
    found = jobs.find(name)
    assert found.status == "failed" and str(MOST_TRIES) in found.error and jobs.waiting() is None
    (tmp_path / "b.sqlite").write_text("no table")
    with pytest.raises(NearstepError, match="--state"):
        Jobs(tmp_path / "b.sqlite")


SERVER = """
import sys
sys.path[:0] = {paths!r}
from nearstep.cli.main import main
sys.exit(main(["serve", {model!r}, "--port", "0", "--state", {state!r}, "--device", "cpu"]))
"""


def started(model: Path, state: Path) -> tuple[subprocess.Popen, Site]:
    script = SERVER.format(paths=[path for path in sys.path if path], model=str(model), state=str(state))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    for line in process.stderr or ():
        if "http://127.0.0.1:" in line:
            return process, Site(int(line.split("127.0.0.1:")[1].split("/")[0]), None)
    raise AssertionError("it did not start")


@pytest.mark.slow  # two processes, seconds each
def test_a_killed_server_keeps_takes_and_goes_on_with_videos(model_folder: Path, tmp_path: Path) -> None:
    process, site = started(model_folder, tmp_path)
    try:
        take = site.take()
        with site.look(f"takes/{take['id']}") as look:
            look.chunk(5)
        video = site.json("POST", "/v1/videos", {"prompt": RED, "seconds": 60, "seed": 1})
        eventually(lambda: site.json("GET", f"/v1/videos/{video['id']}")["progress"] > 0, 30)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process, site = started(model_folder, tmp_path)
    try:
        lines = site.ask("GET", f"/api/takes/{take['id']}/recording.jsonl")[1].splitlines()
        assert len(lines) >= 1 + 6
        assert count(site.ask("GET", f"/api/takes/{take['id']}/video.mp4")[1]) >= 5 + 4 * 8
        eventually(lambda: site.json("GET", f"/v1/videos/{video['id']}")["status"] == "completed", 100)
        assert count(site.ask("GET", f"/v1/videos/{video['id']}/content")[1]) == 8 * 90 - 3
    finally:
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.wait(20)
        assert time.monotonic() - began < 15


def test_where_its_table_cannot_be_used_it_takes_no_more(tiny, tmp_path: Path, monkeypatch) -> None:
    with running(tiny, tmp_path) as site:
        site.json("POST", "/v1/videos", {"prompt": RED, "seconds": "1"})

        def locked(_: Jobs) -> None:
            raise sqlite3.OperationalError("database is locked")

        monkeypatch.setattr(Jobs, "waiting", locked)
        site.ask("POST", "/v1/videos", {"prompt": RED, "seconds": "1"})
        eventually(lambda: site.ask("POST", "/v1/videos", {"prompt": RED})[0] == 503)
        assert b"database is locked" in site.ask("POST", "/v1/videos", {"prompt": RED})[1]
