"""A server in this process, at a port of its own, and clients of it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from nearstep.server.listen import listening
from nearstep.server.protocol import unpacked
from nearstep.server.serving import Serving, assembled
from nearstep.stream.pipeline import CausalVideoPipeline

RED, BLUE = "a small red ball slides left", "the large blue football bounces"


class Site:
    """A running server."""

    def __init__(self, port: int, studio, token: str | None = None) -> None:
        self.port, self.studio, self.token = port, studio, token

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        """One request: status, body, headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        connection.request(method, path, sent, {**own, **{k.replace("_", "-"): v for k, v in headers.items()}})
        answer = connection.getresponse()
        found = answer.status, answer.read(), dict(answer.getheaders())
        connection.close()
        return found

    def json(self, method: str, path: str, body: object = None, status: int = 200) -> dict:
        found, content, _ = self.ask(method, path, body)
        assert found == status, content
        return json.loads(content)

    def take(self, **opening: object) -> dict:
        return self.json("POST", "/api/takes", {"prompt": RED, "plan": "1", "seed": 3, **opening}, 201)

    @contextmanager
    def look(self, path: str, after: str = "", **options: object) -> Iterator[Look]:
        """A viewer of a take: "takes/ID" or "watch/ID"."""
        url = f"ws://127.0.0.1:{self.port}/api/{path}/live" + (f"?after={after}" if after else "")
        own = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        with connect(url, additional_headers=own, max_size=2**24, compression=None, **options) as socket:
            yield Look(socket)


class Look:
    """A viewer: what it was told, and the chunks that it got."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.events: list[dict] = []
        self.media: dict[tuple[int, int], bytes] = {}
        self.init = b""
        self.pace = True
        """Whether chunks are acknowledged as soon as they come."""

    def say(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def step(self, timeout: float = 20) -> dict | None:
        """Take one message."""
        message = self.socket.recv(timeout=timeout)
        if isinstance(message, bytes):
            epoch, chunk, self.init, media = unpacked(message)
            self.media[epoch, chunk] = media
            if self.pace:
                self.say("ack", epoch=epoch, chunk=chunk)
            return None
        self.events.append(json.loads(message))
        return self.events[-1]

    def until(self, wanted: Callable[[dict], bool]) -> dict:
        """Take messages until one is wanted."""
        for _ in range(2000):
            if (event := self.step()) is not None and wanted(event):
                return event
        raise AssertionError("it never came")

    def of(self, kind: str, **fields: object) -> dict:
        return self.until(lambda event: event["type"] == kind and fields.items() <= event.items())

    def chunk(self, index: int, epoch: int = 0) -> dict:
        event = self.of("chunk", index=index, epoch=epoch)
        while (epoch, index) not in self.media:
            self.step()
        return event


@contextmanager
def running(pipe: CausalVideoPipeline, state: Path, **options: object) -> Iterator[Site]:
    """A server of this model."""
    serving = Serving(state=state, **options)
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = assembled(pipe, "tiny", serving, port)
        thread = threading.Thread(target=server.run, args=(listener,), daemon=True)
        thread.start()
        while not server.uvicorn.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Site(port, server.studio, serving.token)
        finally:
            server.uvicorn.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it never did"
        time.sleep(0.02)
