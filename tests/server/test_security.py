"""Who is let in, what is refused, and that nothing hostile stops the server or leaves a traceback."""

from __future__ import annotations

import http.client
import io
import json
import os
import random
import socket
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from served import RED, Site, eventually, running
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from nearstep.cli import serve
from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.lock import SERVING, held
from nearstep.server import guard, listen
from nearstep.server.protocol import LONGEST_MESSAGE, MOST_WAITING, Close, read_request, unpacked
from nearstep.server.studio import Limits


@pytest.fixture(scope="module")
def locked(tiny, tmp_path_factory):
    """A server that asks for a token."""
    with running(tiny, tmp_path_factory.mktemp("locked"), token="open-sesame-1") as found:
        yield found


SECRET = [
    ("GET", "/api/model"),
    ("GET", "/api/takes"),
    ("POST", "/api/takes"),
    ("POST", "/api/uploads"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), SECRET)
def test_without_the_token_nothing_is_told(locked: Site, method: str, path: str) -> None:
    for given in ("", "Bearer wrong-token", "Bearer ", "Basic open-sesame-1", "Bearer open-sesame-1x", "Bearer \xe9"):
        status, body, _ = locked.ask(method, path, b"{}" if method == "POST" else None, Authorization=given)
        assert status == 401 and "token" in json.loads(body)["error"]["message"]
    assert locked.ask(method, path, b"{}" if method == "POST" else None)[0] != 401


def test_a_token_becomes_a_cookie_that_scripts_cannot_read(locked: Site) -> None:
    assert locked.ask("GET", "/", Authorization="")[0] == 200  # the page itself holds no secret
    assert locked.ask("POST", "/api/enter", {"token": "wrong"}, Authorization="")[0] == 401
    status, _, headers = locked.ask("POST", "/api/enter", {"token": "open-sesame-1"}, Authorization="")
    cookie = headers["set-cookie"]
    assert status == 200 and "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert locked.ask("GET", "/api/takes", Authorization="", Cookie=cookie.partition(";")[0])[0] == 200


def test_a_websocket_needs_the_token_too_and_watching_does_not(locked: Site) -> None:
    take = locked.take()
    url = f"ws://127.0.0.1:{locked.port}/api"
    with pytest.raises(InvalidStatus) as refused, connect(f"{url}/takes/{take['id']}/live"):
        pass
    assert refused.value.response.status_code == 401
    with connect(f"{url}/watch/{take['watch']}/live") as socket:
        assert json.loads(socket.recv(timeout=10))["steers"] is False


def test_pages_of_others_may_not_talk_to_it(site: Site) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{site.port + 1}", "http://127.0.0.1"):
        assert site.ask("POST", "/api/takes", {"prompt": RED}, Origin=origin)[0] == 403
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"ws://127.0.0.1:{site.port}/api/takes/x/live", origin=origin),
        ):
            pass
        assert refused.value.response.status_code == 403
    answer = site.ask("GET", "/api/model", Origin=f"http://127.0.0.1:{site.port}")
    assert answer[0] == 200 and "access-control-allow-origin" not in {name.lower() for name in answer[2]}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[::2]", "192.0.2.1"]
)
def test_a_name_that_was_made_to_point_here_is_refused(site: Site, host: str) -> None:
    assert site.ask("GET", "/api/model", Host=host)[0] in (400, 421)


def test_nor_may_a_websocket_use_such_a_name(site: Site) -> None:
    with (
        socket.create_connection(("127.0.0.1", site.port)) as there,
        pytest.raises(InvalidStatus) as refused,
        connect("ws://evil.example/api/takes/x/live", sock=there),
    ):
        pass
    assert refused.value.response.status_code == 421


def test_where_all_addresses_are_listened_at_numbers_and_named_hosts_do() -> None:
    door = guard.Door(addresses=True, hosts=guard.LOCAL | {"studio.example"})
    ours = guard.Guard(lambda *_: None, door)
    check = {"type": "http", "path": "/", "headers": []}
    for host, fine in (
        ("192.0.2.1:7860", True),
        ("[2001:db8::1]:80", True),
        ("studio.example", True),
        ("a.example", False),
    ):
        scope = {**check, "headers": [(b"host", host.encode())]}
        try:
            ours.check(scope)
            assert fine
        except guard.Refusal as refusal:
            assert not fine and refusal.status == 421


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e", ".", "a" * 5000, "%00", "x" * 22]
)
def test_an_id_is_no_path(site: Site, name: str) -> None:
    for path in (
        f"/api/takes/{name}",
        f"/api/takes/{name}/recording.jsonl",
        f"/api/watch/{name}/video.mp4",
        f"/static/{name}",
    ):
        status, body, _ = site.ask("GET", path)
        assert status in (404, 405) and b"root:" not in body
        assert site.ask("DELETE", path)[0] in (404, 405)


@pytest.mark.parametrize("number", ["9" * 8, "9" * 5000, "-1", "1e3", "%D9%A1", "1.0", "x"])
def test_a_chunk_that_is_no_number_of_one_is_absent(site: Site, number: str) -> None:
    take = site.take()
    for whose in (f"takes/{take['id']}", f"watch/{take['watch']}"):
        assert site.ask("GET", f"/api/{whose}/chunks/{number}.jpg")[0] == 404


def test_headers_keep_markup_and_frames_out(site: Site) -> None:
    for path in ("/", "/watch/anything", "/static/app.js"):
        headers = site.ask("GET", path)[2]
        assert (
            "default-src 'self'" in headers["Content-Security-Policy"]
            and "unsafe" not in headers["Content-Security-Policy"]
        )
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it is large."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(10**6))) + part(b"IEND", b"")


def test_uploads_are_pictures_or_clips_and_no_bombs(site: Site) -> None:
    for content, status in (
        (b"", 415), (b"<script>alert(1)</script>", 415), (b"\x89PNG\r\n\x1a\n" + b"x" * 100, 415),
        (bomb(60000, 60000), 413), (bomb(10000, 10000), 413), (bomb(100, 100)[:60], 415), (b"GIF89a", 415),
    ):  # fmt: skip
        found, body, _ = site.ask("POST", "/api/uploads", content)
        assert found == status, body
        assert str(Path.cwd()).encode() not in body and b".upload" not in body
    assert site.ask("POST", "/api/takes", {"prompt": RED, "upload": "../../x"})[0] == 404
    file = io.BytesIO()
    Image.new("RGB", (90, 60), (200, 30, 30)).save(file, format="PNG")
    name = json.loads(site.ask("POST", "/api/uploads", file.getvalue())[1])["id"]
    take = site.take(upload=name)
    with site.look(f"takes/{take['id']}") as look:
        assert look.chunk(0)["frames"] == 8  # it goes on from the picture
    again = site.json("POST", "/api/takes", {"again": take["id"], "plan": "2"}, 201)
    assert again["plan"] == "2"


def test_bodies_are_bounded(site: Site) -> None:
    for path, size, status in (("/api/takes", guard.BODY + 1, 413), ("/api/takes", guard.BODY - 1, 400)):
        assert site.ask("POST", path, b"x" * size)[0] == status
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.request("POST", "/api/takes", iter([b"x" * 50_000] * 20), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert connection.getresponse().status == 413
    for length in ("-1", "nonsense", "1" * 30):
        assert site.ask("POST", "/api/takes", b"", Content_Length=length)[0] in (400, 413)


def test_who_asks_byte_by_byte_is_sent_away(site: Site, monkeypatch) -> None:
    monkeypatch.setattr(listen, "PATIENCE", 0.3)
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as slow:
        slow.sendall(b"GET /api/model HTTP/1.1\r\nHo")
        assert slow.recv(100).startswith(b"HTTP/1.1 408") and slow.recv(100) == b""
    monkeypatch.setattr(guard, "SLOWEST", 0.3)
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as slow:
        slow.sendall(b"POST /api/takes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_there_is_an_end_of_takes_and_viewers(tiny, tmp_path: Path) -> None:
    with running(tiny, tmp_path, limits=Limits(sessions=2, viewers=2)) as site:
        takes = [site.take(), site.take()]
        status, body, _ = site.ask("POST", "/api/takes", {"prompt": RED})
        assert status == 429 and "--sessions" in json.loads(body)["error"]["message"]
        first = f"takes/{takes[0]['id']}"
        with site.look(first) as look, site.look(first):
            look.say("fork", ref="f", chunk=0)
            assert "--sessions" in look.of("refused")["why"]
            with pytest.raises(ConnectionClosed) as closed, site.look(first) as third:
                third.of("never")
            assert closed.value.rcvd.code == Close.FULL
        site.json("DELETE", f"/api/takes/{takes[0]['id']}")
        site.take()


def hostile(draw: random.Random) -> str | bytes:
    """A message that is none, or not now."""
    wild = [None, True, -1, 2**70, 1.5, "x", "x" * 5000, [], {}, [[]], {"a": 1}, "\ud800", "<b>", "../..", "nan"]
    kinds = ["change", "rewind", "fork", "ack", "play", "pause", "ping", "open", "", "__proto__", None, 3]
    choice = draw.randrange(8)
    if choice == 0:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(200)))
    if choice == 1:
        return draw.choice(
            ["", "{", "[]", "null", '"x"', "{}", "NaN", '{"type":', "\x00", "[" * 5000, '{"type": "ping"} x']
        )
    names = ["ref", "chunk", "epoch", "prompt", "plan", "seed", "type", "x"]
    fields = {draw.choice(names): draw.choice(wild) for _ in range(draw.randrange(5))}
    return json.dumps({"type": draw.choice(kinds), **fields})


def test_a_thousand_hostile_messages_leave_a_server_that_works(tiny, tmp_path: Path, capfd) -> None:
    draw, told, reasons = random.Random(0), 0, set()
    with running(tiny, tmp_path) as site:
        take = site.take()
        with site.look(f"takes/{take['id']}") as calm:
            calm.chunk(0)
            while told < 1000:  # whom the server has had enough of is gone before all of its 25 are sent
                try:
                    with site.look(f"takes/{take['id']}", close_timeout=1) as look:
                        for _ in range(25):
                            look.socket.send(hostile(draw))
                            told += 1
                        while True:
                            look.step(timeout=0.05)
                except ConnectionClosed as closed:
                    reasons.add(closed.rcvd and closed.rcvd.code)
                except TimeoutError:
                    pass
            assert reasons & {Close.FAULTS, 1007} and reasons <= {Close.FAULTS, 1007, None}
            codes = []
            for _ in range(3):
                with pytest.raises(ConnectionClosed) as closed, site.look(f"takes/{take['id']}") as look:
                    look.socket.send("x" * (LONGEST_MESSAGE + 1))
                    look.of("never")
                # What the server left unread resets the connection, and that may outrun the frame with its reason.
                codes.append(closed.value.rcvd and closed.value.rcvd.code)
            assert 1009 in codes and {*codes} <= {1009, None}
            calm.say("play")
            newest = len(site.studio.find(take["id"]).chunks) - 1
            calm.until(lambda event: event["type"] == "chunk" and event["index"] > newest)
        eventually(lambda: site.studio.viewers == 0)
    written = capfd.readouterr()
    assert "Traceback" not in written.err + written.out


def test_too_many_requests_wait_for_one_chunk(site: Site) -> None:
    take = site.take()
    with site.look(f"takes/{take['id']}") as look:
        look.chunk(0)
        blocked = site.studio.worker.call(lambda: time.sleep(0.5))
        for number in range(MOST_WAITING + 5):
            look.say("change", ref=str(number), seed=number)
        assert look.of("refused", ref=str(MOST_WAITING + 4))
        blocked.result()
        look.of("applied", ref=str(MOST_WAITING - 1))


def test_a_message_after_the_end_is_refused_and_the_rest_goes_on(site: Site) -> None:
    take = site.take()
    with pytest.raises(ConnectionClosed), site.look(f"takes/{take['id']}") as look:
        look.chunk(0)
        site.json("DELETE", f"/api/takes/{take['id']}")
        look.say("change", ref="late", prompt=RED)
        look.of("never")
    site.take()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"type": "chnge", "ref": "a"}', "did you mean change"),
        ('{"type": "change"}', "ref"),
        ('{"type": "change", "ref": "a", "promt": "x"}', "did you mean prompt"),
        ('{"type": "change", "ref": "a", "prompt": "  "}', "1 to 4000 signs"),
        ('{"type": "change", "ref": "a", "seed": -1}', "2^53"),
        ('{"type": "rewind", "ref": "a", "chunk": true}', "whole number"),
    ],
)
def test_a_message_that_is_none_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(NearstepError, match=said.replace("^", r"\^")):
        read_request(text)
    with pytest.raises(NearstepError, match="no chunk"):
        unpacked(text.encode())


def test_prompts_stay_out_of_the_log_and_names_are_counted(tiny, tmp_path: Path, capfd) -> None:
    for wanted in (False, True):
        with running(tiny, tmp_path / str(wanted), log_prompts=wanted) as site:
            take = site.take()
            with site.look(f"takes/{take['id']}") as look:
                look.chunk(1)
            numbers = site.ask("GET", "/metrics")[1].decode()
            assert "nearstep_takes 1.0" in numbers and "nearstep_chunks_total" in numbers and "small red" not in numbers
            assert site.json("GET", "/health") == {"live": True, "ready": True}
        assert ("small red" in capfd.readouterr().err) is wanted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "99999"], "--port"),
        (["--token", "short"], "--token"),
        (["--idle", "soon"], "--idle"),
        (["--sessions", "0"], "--sessions"),
        (["--undo", "-1"], "--undo"),
        (["--host", "203.0.113.7", "--port", "1"], "cannot listen"),
        (["--host", "local\0host", "--port", "0"], "--host"),
        (["--host", "x" * 70 + ".example", "--port", "0"], "x"),
        (["no-such-model"], "no-such-model"),
    ],
)
def test_wrong_options_end_in_a_line(options: list[str], said: str, tmp_path: Path, capsys) -> None:
    assert main(["serve", *options, "--state", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_two_servers_do_not_share_what_they_keep(tmp_path: Path, capsys) -> None:
    with held(tmp_path, SERVING):
        assert main(["serve", "--port", "0", "--state", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"being served in by process {os.getpid()} " in said and "another folder with --state" in said


def test_what_is_missing_says_how_to_install_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(serve, "NEEDED", ("starlette", "no_such_package"))
    assert main(["serve"]) == 2
    assert "pip install 'nearstep[serve]'" in capsys.readouterr().err


def test_beyond_this_machine_there_is_a_token() -> None:
    local = serve.serving_of(serve.Serve(host="127.0.0.1"))
    assert local.token is None and serve.address("127.0.0.1", 80, None) == "http://127.0.0.1:80/"
    for host in ("0.0.0.0", "::", "192.0.2.1", "studio.example"):
        serving = serve.serving_of(serve.Serve(host=host))
        assert len(serving.token) >= 32
        assert serve.address(host, 80, serving.token).endswith(f":80/#token={serving.token}")
        assert serve.serving_of(serve.Serve(host=host)).token != serving.token
    assert serve.seconds_of("1.5h") == 5400 and serve.seconds_of("10m") == 600 and serve.seconds_of("30") == 30


def test_an_error_that_nobody_foresaw_is_logged_with_where_it_was(site: Site, monkeypatch, caplog) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(type(site.studio), "listing", broken)
    status, content, _ = site.ask("GET", "/api/takes")
    assert status == 500 and b"the server's log says where" in content
    eventually(lambda: "nobody foresaw this" in caplog.text)
    assert "in broken" in caplog.text
