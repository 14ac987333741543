"""Several servers of one model behind one address, through Ray Serve (the extra ``cluster``).

    visitor -> Ray's proxy at HOST:PORT -> ByOwner -> replica 0, 1, ...: a Server with a device and a folder of its own

An id names the replica that it belongs to (names.py), so whoever asks for a take or a video is sent there; whoever
names none goes where their last page came from (a cookie), and who has none anywhere. A replica that dies is started
again with its rank, and so with its folder: what it kept is there.
"""

from __future__ import annotations

import http.client
import logging
import pickle
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ray import serve  # pyright: ignore[reportMissingImports]  # an extra, which development does without
from ray.serve.request_router import (  # pyright: ignore[reportMissingImports]
    PendingRequest,
    RequestRouter,
    RunningReplica,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nearstep.cluster import Cluster
from nearstep.errors import NearstepError
from nearstep.files import enter_shared
from nearstep.server.guard import cookie_of
from nearstep.server.names import NAME, replica_of

COOKIE = "nearstep-replica"
_OWNED = re.compile(rf"/(?:api/(?:takes|watch)|watch|v1/videos)/(?:video_)?({NAME.pattern})(?:/.*)?")
_RANK, _FRESH = "rank", 1.0  # seconds between two tellings of a replica's rank
_APP = "nearstep"


def owner_of(scope: Scope) -> int | None:
    """The rank of the replica that a request is for, by its path or else its cookie; None: any will do."""
    if found := _OWNED.fullmatch(scope["path"]):
        return replica_of(found[1])
    for name, value in scope["headers"]:
        if name.lower() == b"cookie":
            rank = cookie_of(value.decode("latin-1"), COOKIE)
            if rank is not None and rank.isdecimal():
                return int(rank)
    return None


def _scope(request: object) -> Scope:
    # What a proxy hands on it has packed itself, a moment before.
    opened = pickle.loads(request) if isinstance(request, bytes) else request
    return cast(Scope, cast(Any, opened).asgi_scope)


class ByOwner(RequestRouter):
    """Sends a request to the replica that it is for; Ray makes one in each of its proxies."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas to try, of which the least busy is taken."""
        owner = None if pending_request is None else owner_of(_scope(pending_request.args[0]))
        of = [each for each in candidate_replicas if owner is not None and each.routing_stats.get(_RANK) == owner]
        return [of or candidate_replicas]


class Remembered:
    """ASGI: the page's cookie says which replica it came from.

    Args:
        app: what answers.
        replica: its rank.
    """

    def __init__(self, app: ASGIApp, replica: int) -> None:
        self._app = app
        self._cookie = f"{COOKIE}={replica}; Path=/; HttpOnly; SameSite=Strict".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] == "/":
                message["headers"] = [*message["headers"], (b"set-cookie", self._cookie)]
            await send(message)

        await self._app(scope, receive, named if scope["type"] == "http" else send)


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many servers, and where."""

    count: int
    cluster: Cluster
    host: str
    port: int
    connections: int
    """That a replica takes at once."""

    @contextmanager
    def deployed(self, build: Callable[[int], ASGIApp]) -> Iterator[None]:
        """They serve as long as the context lasts.

        Args:
            build: is sent to each replica, and makes the app of the one of a rank.

        Raises:
            NearstepError: if there is no cluster, no room in it, or others serve there.
        """
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        with self.cluster.joined() as ray:
            share = self._share(ray)
            self._check_free()
            try:
                serve.start(proxy_location="HeadOnly", http_options={"host": self.host, "port": self.port})
                serve.run(_deployment(self, share, build).bind(), name=_APP, route_prefix="/")
                self._check_there()
                yield
            finally:
                with suppress(Exception):  # the cluster itself may have ended
                    serve.delete(_APP)
                    if not serve.status().applications:
                        serve.shutdown()

    def _share(self, ray: Any) -> dict[str, int]:
        there = {name: int(count) for name, count in ray.available_resources().items()}
        gpus = there.get("GPU", 0) if self.cluster.gpus else 0
        room = gpus or there.get("CPU", 0) // self.cluster.cpus
        if room < self.count:
            what = f"{gpus} GPUs" if gpus else f"room for {room} of --cpus {self.cluster.cpus}"
            raise NearstepError(f"--replicas {self.count}: the cluster has {what} free; ask for fewer")
        return {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": self.cluster.cpus}

    def _check_free(self) -> None:
        if _APP in serve.status().applications:
            raise NearstepError("this cluster serves a model already; end that first, or name another --cluster")

    def _check_there(self) -> None:
        """A cluster that serves something else already has its address from before."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        connection = http.client.HTTPConnection(host, self.port, timeout=20)
        try:
            connection.request("GET", "/health/live")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        raise NearstepError(
            f"nothing answers at {host}:{self.port}; this cluster may serve at another --host or --port"
        )


def _deployment(replicas: Replicas, share: dict[str, int], build: Callable[[int], ASGIApp]) -> Any:
    folder = str(Path.cwd())

    def app() -> ASGIApp:
        enter_shared(folder)
        rank = serve.get_replica_context().rank.rank
        return Remembered(build(rank), rank)

    class Replica:
        """One server; the router asks for its rank."""

        def record_routing_stats(self) -> dict[str, int]:
            return {_RANK: serve.get_replica_context().rank.rank}

    router = {
        "request_router_class": f"{ByOwner.__module__}.{ByOwner.__qualname__}",
        "request_routing_stats_period_s": _FRESH,
    }
    return serve.deployment(
        serve.ingress(app)(Replica),
        name=_APP,
        num_replicas=replicas.count,
        max_ongoing_requests=replicas.connections,
        request_router_config=router,
        ray_actor_options=share,
    )


def wait() -> None:
    """Until Ctrl-C."""
    threading.Event().wait()
