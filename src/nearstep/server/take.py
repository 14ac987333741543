"""One stream of the studio: a session on the worker's thread, its chunks on disk, its viewers in the event loop.

    event loop   viewers, play and pause, requests and receipts          (attach, detach, ask, acknowledge, _arrived)
    worker       the session: what was asked for, then one more chunk    (ready, take_turn)
    encoder      fragment and picture of each chunk to disk, in order    (_keep, _cut)

The worker reads what the loop has set (`_goal`, `_playing`) and is woken when that changes; all else goes from one to
the next in order: by a queue to the worker, by its executor to the encoder, by call_soon_threadsafe to the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, replace
from typing import NamedTuple, Protocol, runtime_checkable

from nearstep.errors import NearstepError
from nearstep.server.fragments import encoded, thumbnail
from nearstep.server.kept import KeptTake
from nearstep.server.protocol import AHEAD, MOST_WAITING, VERSION, ChunkFacts, Close, Json, Request, State, packed
from nearstep.server.viewers import MOST_CHUNKS, Viewer, goal_of
from nearstep.server.worker import Worker
from nearstep.stream.output import pixels
from nearstep.stream.recording import Log
from nearstep.stream.results import ChunkVideo
from nearstep.stream.session import Session

TOLD = 256
"""Chunks that a new viewer is told of; earlier ones can be asked for by HTTP."""


class Origin(NamedTuple):
    """Where a take comes from, and what it is called."""

    id: str
    watch: str
    """The id under which it can be watched, and nothing else."""
    opened: float
    parent: str | None
    """What it was forked from, or made again."""


@runtime_checkable
class Place(Protocol):
    """What a take needs of the studio that it is in."""

    @property
    def worker(self) -> Worker:
        """Who makes its chunks."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where its viewers are."""
        ...

    @property
    def fps(self) -> float:
        """Frames a second."""
        ...

    @property
    def longest(self) -> int:
        """Chunks of the longest take."""
        ...

    def branch(self, take: Take, chunk: int) -> tuple[Origin, KeptTake]:
        """Name and folder of a fork of it, with the chunks before this one. Called on the encoder's thread."""
        ...

    def forked(self, fork: Take) -> Json:
        """A fork has begun; what the page is told. Called on the event loop."""
        ...

    def noted(self, event: str, take: Take, facts: Json) -> None:
        """Something happened. Called on the event loop."""
        ...


class _Order(NamedTuple):
    request: Request
    viewer: Viewer


class Take:
    """A stream that can be watched and steered.

    Args:
        origin: what it is called.
        session: what makes its chunks; only the worker's thread touches it.
        kept: where it is kept.
        place: the studio.
        chunks: those that it begins with, if it is a fork.
    """

    def __init__(
        self, origin: Origin, session: Session, kept: KeptTake, place: Place, chunks: tuple[ChunkFacts, ...] = ()
    ) -> None:
        self.origin, self.kept = origin, kept
        self._session, self._place = session, place
        self._log = Log(kept.recording, session.recording)
        opening = session.recording.opening
        self.size = (opening.height, opening.width)
        # Of the loop:
        self.viewers: set[Viewer] = set()
        self.chunks: list[ChunkFacts] = [*chunks]
        self.epoch = 0
        self.state: State = "playing"
        self.why = ""
        self.direction = _direction(session)
        self.last_watched = time.monotonic()
        self._waiting = 0
        # Set by the loop, read by the worker:
        self._goal = (0, 0)
        self._playing = True
        # Of the worker:
        self._orders: deque[_Order] = deque()
        self._made_in, self._rewound_to, self._over, self._ended = 0, 0, False, False
        self._keeping: Future[None] | None = None

    # --- on the worker's thread ------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether something was asked for, or a viewer can take one more chunk."""
        epoch, goal = self._goal
        goal = goal if epoch == self._made_in else self._rewound_to + AHEAD
        wanted = self._playing and not self._over and not self._ended and self._session.index < goal
        return bool(self._orders) or wanted

    def take_turn(self, waiting: int) -> None:
        """Do what was asked for, in order; then make a chunk if one is wanted."""
        while self._orders:
            self._obey(self._orders.popleft())
        if self.ready():
            self._make(waiting)

    def break_off(self, error: BaseException) -> None:
        """Nothing more comes of it; what was made is kept."""
        self._over = True
        why = str(error) if isinstance(error, NearstepError) else f"{type(error).__name__}: {error}"
        self._tell_loop(lambda: self._end("failed", why))

    def close(self) -> None:
        """Let go of its memory; called on the worker's thread."""
        self._over = True
        self._session.close()

    def _obey(self, order: _Order) -> None:
        request, session = order.request, self._session
        changes = {name: request.fields.get(name) for name in ("prompt", "plan", "seed")}
        try:
            if self._over:
                raise NearstepError("this take is over; fork or reopen it from its recording")
            if request.type == "fork":
                chunk = request.fields["chunk"]
                fork = session.fork(chunk, **changes)
                self._place.worker.encoder.submit(self._branch, order, fork, chunk)
                return
            if request.type == "rewind":
                session.rewind(request.fields["chunk"])
                self._log.follow(session.recording)
                self._cut(session.index)
            else:
                session.change(**changes)
        except NearstepError as error:
            why = str(error)
            self._after(lambda: self._receipt(order, "refused", {"why": why}))
            return
        chunk, direction = session.index, _direction(session)
        self._after(lambda: self._applied(order, chunk, direction))

    def _cut(self, chunk: int) -> None:
        self._made_in, self._rewound_to, self._ended = self._made_in + 1, chunk, False
        epoch = self._made_in
        self._place.worker.encoder.submit(self.kept.cut, chunk)
        self._after(lambda: self._rewound(chunk, epoch))

    def _make(self, waiting: int) -> None:
        if self._session.index >= self._place.longest:
            self._ended = True
            why = f"a take has at most {self._place.longest} chunks; rewind it, or fork it at an earlier one, to go on"
            self._after(lambda: self._end("ended", why))
            return
        began, keeping = time.perf_counter(), self._keeping
        direction = _direction(self._session)
        chunk = next(self._session, None)
        if keeping is not None:
            keeping.result()  # no more than one chunk waits to be encoded
        if chunk is None:
            self._ended = True
            self._after(lambda: self._end("ended", "all of the recording was made again"))
            return
        self._log.follow(self._session.recording)
        # A recording that is made again brings its own changes.
        direction |= self._session.recording.chunks[chunk.index].changes.named()
        facts = ChunkFacts(
            index=chunk.index,
            start=chunk.start,
            frames=chunk.video.shape[1],
            steps=chunk.steps,
            seconds=0.0,
            waiting=waiting,
            **direction,
        )
        self._keeping = self._place.worker.encoder.submit(self._keep, chunk, facts, self._made_in, began)

    # --- on the encoder's thread -----------------------------------------------------------------------------------

    def _keep(self, chunk: ChunkVideo, facts: ChunkFacts, epoch: int, began: float) -> None:
        clip = pixels(chunk.video[0])
        fragment = encoded(clip, fps=self._place.fps, start=chunk.start)
        try:
            self.kept.write(chunk.index, fragment, thumbnail(clip[0]))
        except OSError as error:
            raise NearstepError(f"a chunk could not be kept: {error.strerror}") from error
        facts = replace(facts, seconds=round(time.perf_counter() - began, 4))
        message = packed(epoch, chunk.index, *fragment)
        self._tell_loop(lambda: self._arrived(facts, epoch, message))

    def _branch(self, order: _Order, session: Session, chunk: int) -> None:
        """The past of a fork, before a rewind that was asked for next takes it back."""
        try:
            origin, kept = self._place.branch(self, chunk)
        except (NearstepError, OSError) as error:
            why = str(error) if isinstance(error, NearstepError) else f"it could not be kept: {error.strerror}"
            self._place.worker.call(session.close)
            self._tell_loop(lambda: self._receipt(order, "refused", {"why": why}))
            return
        self._tell_loop(lambda: self._forked(order, session, chunk, origin, kept))

    def _after(self, action: Callable[[], None]) -> None:
        """On the loop, after the chunks that were made before."""
        self._place.worker.encoder.submit(self._tell_loop, action)

    def _tell_loop(self, action: Callable[[], None]) -> None:
        if not self._place.loop.is_closed():
            self._place.loop.call_soon_threadsafe(action)

    # --- in the event loop -----------------------------------------------------------------------------------------

    def facts(self, *, steers: bool) -> Json:
        """What a viewer is told of it."""
        height, width = self.size
        own = {"id": self.origin.id, "parent": self.origin.parent} if steers else {}
        count = len(self.chunks)
        return {
            **own,
            **self.direction,
            "watch": self.origin.watch,
            "state": self.state,
            "why": self.why,
            "opened": self.origin.opened,
            "width": width,
            "height": height,
            "fps": self._place.fps,
            "count": count,
        }

    def attach(self, viewer: Viewer, after: tuple[int, int] | None) -> None:
        """Somebody begins to look, or goes on.

        Args:
            viewer: who.
            after: epoch and chunk that it has shown already.
        """
        count = len(self.chunks)
        first = after[1] + 1 if after is not None and after[0] == self.epoch and after[1] < count else count - AHEAD
        first = max(0, count - MOST_CHUNKS, first)
        viewer.epoch, viewer.shown = self.epoch, first - 1
        told = [asdict(facts) for facts in self.chunks[-TOLD:]]
        viewer.tell({
            "type": "hello", "protocol": VERSION, "take": self.facts(steers=viewer.steers), "steers": viewer.steers,
            "epoch": self.epoch, "from": first, "chunks": told,
        })  # fmt: skip
        with suppress(FileNotFoundError):  # cut off this moment, of which the viewer is told next
            for facts in self.chunks[first:]:
                data = packed(self.epoch, facts.index, *self.kept.read(facts.index))
                viewer.show(self._chunk_event(facts), data)
        self.viewers.add(viewer)
        if self.state in ("failed", "closed"):
            viewer.end(Close.GONE)
        self._watched()

    def detach(self, viewer: Viewer) -> None:
        """Somebody has left."""
        self.viewers.discard(viewer)
        self._watched()

    def acknowledge(self, viewer: Viewer, epoch: int, chunk: int) -> None:
        """A viewer has begun to show a chunk."""
        if epoch == self.epoch and viewer.shown < chunk < len(self.chunks):
            viewer.epoch, viewer.shown = epoch, chunk
            self._watched()

    def ask(self, viewer: Viewer, request: Request) -> None:
        """Do what a viewer asks for: at once, or between two chunks."""
        if request.type in ("play", "pause"):
            self.play(request.type == "play")
        elif self._waiting >= MOST_WAITING:
            why = f"{MOST_WAITING} requests wait for the chunk that is being made; ask again when they are done"
            viewer.tell({"type": "refused", "ref": request.ref, "why": why})
        elif self.state in ("failed", "closed"):
            viewer.tell({"type": "refused", "ref": request.ref, "why": f"this take is {self.state}"})
        else:
            viewer.tell({"type": "accepted", "ref": request.ref})
            self._waiting += 1
            self._orders.append(_Order(request, viewer))
            self._place.worker.wake()

    def play(self, on: bool) -> None:
        """Go on, or stop after the chunk that is being made."""
        if self.state in ("playing", "paused"):
            self.state = "playing" if on else "paused"
            self._playing = on
            self._place.worker.wake()
            self._tell_state()

    def end(self, code: int, why: str) -> None:
        """It is closed: whoever looks is told, and nothing more comes."""
        self._end("closed", why, code)

    def _watched(self) -> None:
        self.last_watched = time.monotonic()
        self._goal = (self.epoch, goal_of(self.viewers, self.epoch))
        self._place.worker.wake()

    def _chunk_event(self, facts: ChunkFacts) -> Json:
        return {"type": "chunk", "epoch": self.epoch, **asdict(facts)}

    def _arrived(self, facts: ChunkFacts, epoch: int, message: bytes) -> None:
        if epoch != self.epoch:
            return
        self.chunks.append(facts)
        event = self._chunk_event(facts)
        for viewer in self.viewers:
            viewer.show(event, message)
        self._place.noted("chunk", self, {"chunk": facts.index, "seconds": facts.seconds, "steps": facts.steps})

    def _rewound(self, chunk: int, epoch: int) -> None:
        del self.chunks[chunk:]
        self.epoch = epoch
        if self.state == "ended":
            self.state, self.why, self._playing = "playing", "", True
        for viewer in self.viewers:
            viewer.epoch, viewer.shown = epoch, chunk - 1
            viewer.tell({"type": "rewound", "chunk": chunk, "epoch": epoch})
        self._watched()

    def _receipt(self, order: _Order, kind: str, told: Json) -> None:
        self._waiting -= 1
        order.viewer.tell({"type": kind, "ref": order.request.ref, **told})

    def _applied(self, order: _Order, chunk: int, direction: Json) -> None:
        self.direction = direction
        self._receipt(order, "applied", {"chunk": chunk})
        self._tell_state()

    def _forked(self, order: _Order, session: Session, chunk: int, origin: Origin, kept: KeptTake) -> None:
        try:
            told = self._place.forked(Take(origin, session, kept, self._place, tuple(self.chunks[:chunk])))
        except NearstepError as error:
            kept.remove()
            self._place.worker.call(session.close)
            self._receipt(order, "refused", {"why": str(error)})
            return
        self._receipt(order, "applied", {"chunk": chunk, **told})

    def _tell_state(self) -> None:
        for viewer in self.viewers:
            viewer.tell({"type": "state", **self.facts(steers=viewer.steers)})

    def _end(self, state: State, why: str, code: int = Close.GONE) -> None:
        self.state, self.why, self._playing = state, why, False
        self._tell_state()
        if state == "closed":
            for viewer in self.viewers:
                viewer.end(code)
        self._place.noted(state, self, {"why": why})


def _direction(session: Session) -> Json:
    """What its next chunk is made of."""
    return {"prompt": session.prompt, "plan": session.plan, "seed": session.seed}
