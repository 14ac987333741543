"""The server as one ASGI app: the page, the takes, and what tells how it is."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from nearstep.json_files import TEXT, optional
from nearstep.server.answers import HANDLERS, STATIC, entered, json_body
from nearstep.server.guard import Door, Guard
from nearstep.server.jobs import Jobs
from nearstep.server.kept import CONTEXT, KeptTake, joined
from nearstep.server.live import attend
from nearstep.server.metrics import CONTENT_TYPE, Metrics
from nearstep.server.protocol import LONGEST_PROMPT, PLAN, PROMPT, SEED, Close, checked
from nearstep.server.refusals import Refusal, absent, check_size
from nearstep.server.studio import Ask, Studio
from nearstep.server.uploads import Uploads, context_of
from nearstep.stream.recording import Recording

LONGEST_RECORDING = 16 * 2**20
UPLOAD_PATHS = ("/api/uploads", "/api/recordings", "/v1/videos")
_OPENING = {"prompt": PROMPT, "plan": optional(PLAN), "seed": optional(SEED), "upload": optional(TEXT)}
_AGAIN = {"again": TEXT, "plan": optional(PLAN)}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a page is told of the model."""

    name: str
    fps: float
    height: int
    width: int
    chunk: int
    """Frames of a chunk."""
    plan: str
    """Its own."""
    words: tuple[str, ...] = ()
    """Those that a prompt may use, where they are few."""
    prompts: tuple[str, ...] = ()
    """Some to begin with."""


class Api:
    """What is answered at each address."""

    def __init__(self, studio: Studio, model: ModelFacts, door: Door, metrics: Metrics, uploads: Uploads) -> None:
        self.studio, self._model, self._door, self._metrics, self._uploads = studio, model, door, metrics, uploads

    def routes(self) -> list[BaseRoute]:
        """All addresses."""
        both = [("/api/takes/{name}", False), ("/api/watch/{name}", True)]
        shared: list[BaseRoute] = []
        for path, watch in both:
            at = Readers(self.studio, watch=watch)
            shared += [
                Route(path, at.facts, methods=["GET"]),
                Route(f"{path}/video.mp4", at.video),
                Route(f"{path}/recording.jsonl", at.recording),
                Route(f"{path}/chunks/{{chunk}}.jpg", at.picture),
                WebSocketRoute(f"{path}/live", at.live),
            ]
        return [
            Route("/", self.page),
            Route("/watch/{name}", self.page),
            Route("/favicon.ico", self.icon),
            Mount("/static", StaticFiles(directory=STATIC)),
            Route("/api/enter", self.enter, methods=["POST"]),
            Route("/api/model", self.model),
            Route("/api/uploads", self.upload, methods=["POST"]),
            Route("/api/recordings", self.load, methods=["POST"]),
            Route("/api/takes", self.listing, methods=["GET"]),
            Route("/api/takes", self.open, methods=["POST"]),
            Route("/api/takes/{name}", self.remove, methods=["DELETE"]),
            *shared,
            Route("/health", self.health),
            Route("/health/live", self.health),
            Route("/health/ready", self.ready),
            Route("/metrics", self.metrics),
        ]

    async def page(self, _: Request) -> Response:
        """The page, also for who only watches."""
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def icon(self, _: Request) -> Response:
        """What browsers ask for by themselves."""
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    async def enter(self, request: Request) -> Response:
        """A token as a cookie."""
        return await entered(request, self._door)

    async def model(self, _: Request) -> Response:
        """What the page is about."""
        return JSONResponse({**asdict(self._model), "sessions": self.studio.limits.sessions})

    async def upload(self, request: Request) -> Response:
        """A picture or a clip."""
        content = await request.body()
        return JSONResponse({"id": await asyncio.to_thread(self._uploads.add, content)}, status_code=201)

    async def listing(self, _: Request) -> Response:
        """All takes, open and closed."""
        return JSONResponse({"takes": self.studio.listing()})

    async def open(self, request: Request) -> Response:
        """A new take: of a prompt, or another one made again under another plan."""
        body = await json_body(request)
        if "again" in body:
            asked = checked(body, _AGAIN, "the request", frozenset({"again"}))
            kept = self.studio.find_kept(asked["again"])
            recording = await asyncio.to_thread(Recording.load, kept.recording)
            return await self._opened(recording, asked.get("plan"), kept.folder / CONTEXT, kept.folder.name)
        asked = checked(body, _OPENING, "the request", frozenset({"prompt"}))
        upload = self._uploads.path(asked["upload"]) if "upload" in asked else None
        ask = Ask(prompt=asked["prompt"], plan=asked.get("plan"), seed=asked.get("seed"), context=context_of(upload))
        return await self._begun(ask, upload)

    async def load(self, request: Request) -> Response:
        """A recording from a file, made again; ?plan= and ?upload= as for a new take."""
        content = await request.body()
        if len(content) > LONGEST_RECORDING:
            raise Refusal(413, f"a recording of more than {LONGEST_RECORDING} bytes")
        upload = self._uploads.path(name) if (name := request.query_params.get("upload")) else None
        plan = request.query_params.get("plan") or None
        return await self._opened(await asyncio.to_thread(_recording, content), plan, upload, None)

    async def remove(self, request: Request) -> Response:
        """Close a take that is open; delete one that is closed."""
        name = request.path_params["name"]
        with suppress(Refusal):
            await self.studio.close(self.studio.find(name), Close.GONE, "it was closed")
            return JSONResponse({"id": name, "state": "closed"})
        self.studio.remove(self.studio.find_kept(name))
        return JSONResponse({"id": name, "state": "deleted"})

    async def health(self, _: Request) -> Response:
        """Whether the process answers, and whether it can make anything."""
        return JSONResponse({"live": True, "ready": self.studio.worker.alive})

    async def ready(self, _: Request) -> Response:
        """200 if streams can be opened, else 503."""
        alive = self.studio.worker.alive
        return JSONResponse({"ready": alive}, status_code=200 if alive else 503)

    async def metrics(self, _: Request) -> Response:
        """Numbers for Prometheus."""
        studio = self.studio
        page = self._metrics.page(takes=len(studio.takes), viewers=studio.viewers, waiting=studio.worker.waiting)
        return Response(page, media_type=CONTENT_TYPE)

    async def _opened(
        self, recording: Recording, plan: str | None, context: Path | None, parent: str | None
    ) -> Response:
        if len(recording.chunks) > self.studio.limits.longest:
            raise Refusal(
                413, f"a recording of {len(recording.chunks)} chunks; {self.studio.limits.longest} are allowed"
            )
        opening = recording.opening
        check_size(opening.width, opening.height, usual=self._model.width * self._model.height)
        prompts = [opening.prompt, opening.negative_prompt, *(each.changes.prompt or "" for each in recording.chunks)]
        if (longest := max(map(len, prompts))) > LONGEST_PROMPT:
            raise Refusal(413, f"a prompt of {longest} signs in the recording; {LONGEST_PROMPT} are allowed")
        ask = Ask(recording=recording, plan=plan, parent=parent, context=context_of(context))
        return await self._begun(ask, context)

    async def _begun(self, ask: Ask, context: Path | None) -> Response:
        take = await self.studio.open(ask, context)
        return JSONResponse(take.facts(steers=True), status_code=201)


class Readers:
    """What can be read of a take: by who steers it, or under the address for watching alone."""

    def __init__(self, studio: Studio, *, watch: bool) -> None:
        self._studio, self._watch = studio, watch

    async def facts(self, request: Request) -> Response:
        """What it is, and its chunks from ?from= on."""
        name = request.path_params["name"]
        try:
            take = self._studio.find(name, watch=self._watch)
        except Refusal:
            kept = self._kept(request)
            told = (
                {"state": "closed", "watch": kept.facts()["watch"]}
                if self._watch
                else {**kept.facts(), "state": "closed"}
            )
            return JSONResponse({**told, "chunks": []})
        first = request.query_params.get("from", "0")
        chunks = take.chunks[int(first) if re.fullmatch("[0-9]{1,7}", first) else 0 :]
        return JSONResponse({**take.facts(steers=not self._watch), "chunks": [asdict(chunk) for chunk in chunks]})

    async def video(self, request: Request) -> Response:
        """Its video, as far as it was made."""
        kept = self._kept(request)
        parts = await asyncio.to_thread(kept.video)
        if not parts:
            raise Refusal(404, "this take has no chunk yet")
        try:
            content = await asyncio.to_thread(joined, parts)
        except FileNotFoundError:
            raise Refusal(409, "this take was rewound this very moment; ask again") from None
        headers = {"Content-Disposition": 'attachment; filename="nearstep.mp4"'}
        return StreamingResponse(content, media_type="video/mp4", headers=headers)

    # What a take writes while it goes on is read before it is measured: a FileResponse asks a file for its length, then
    # opens it, and one that grew or was replaced between the two ends the connection.

    async def recording(self, request: Request) -> Response:
        """How to make it again."""
        kept = self._kept(request)
        content = await _content(kept.recorded)
        if content is None:
            raise absent("take", request.path_params["name"])
        headers = {"Content-Disposition": 'attachment; filename="nearstep.jsonl"'}
        return Response(content, media_type="application/jsonl", headers=headers)

    async def picture(self, request: Request) -> Response:
        """A small picture of a chunk."""
        kept, chunk = self._kept(request), request.path_params["chunk"]
        content = await _content(kept.picture(int(chunk)).read_bytes) if re.fullmatch("[0-9]{1,7}", chunk) else None
        if content is None:
            if "e" in request.query_params:  # of a page that has not heard yet that the chunk was taken back
                return Response(status_code=204)
            raise absent("chunk", chunk)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "no-cache"})

    async def live(self, socket: WebSocket) -> None:
        """The WebSocket (server/live.py)."""
        await attend(socket, self._studio, socket.path_params["name"], steers=not self._watch)

    def _kept(self, request: Request) -> KeptTake:
        return self._studio.find_kept(request.path_params["name"], watch=self._watch)


def make_app(api: Api, door: Door, jobs: Jobs, routes: Sequence[BaseRoute] = ()) -> Guard:
    """The app, which begins and ends what it is made of (ASGI's lifespan).

    Args:
        api: the studio's addresses.
        door: who is let in.
        jobs: videos that were asked for; those that wait are kept for the next start.
        routes: further addresses.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        api.studio.bind(asyncio.get_running_loop())
        api.studio.worker.start()
        sweeping = asyncio.create_task(_sweeping(api.studio))
        yield
        sweeping.cancel()
        await api.studio.close_all()
        await asyncio.to_thread(api.studio.worker.stop)
        jobs.hand_back()
        jobs.close()

    app = Starlette(
        routes=[*api.routes(), *routes],
        lifespan=lifespan,
        exception_handlers=HANDLERS,
    )
    return Guard(app, door, UPLOAD_PATHS)


async def _sweeping(studio: Studio) -> None:
    while True:
        await asyncio.sleep(min(1.0, studio.limits.idle / 4))
        await studio.sweep()


async def _content(read: Callable[[], bytes]) -> bytes | None:
    try:
        return await asyncio.to_thread(read)
    except FileNotFoundError:
        return None


def _recording(content: bytes) -> Recording:
    try:
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()  # ends of lines as a file's are read
    except ValueError as error:
        raise Refusal(400, f"cannot read the recording: {error}") from None
    return Recording.of_text(text, "the recording")
