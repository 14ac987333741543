"""All takes of a server: opened, found by their ids, forked, closed when nobody looks, and kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearstep.errors import NearstepError
from nearstep.files import link_or_copy
from nearstep.server.kept import CONTEXT, KeptTake, kept_takes
from nearstep.server.names import NAME, new_name
from nearstep.server.protocol import Close, Json
from nearstep.server.refusals import absent, full
from nearstep.server.take import Origin, Take
from nearstep.server.worker import Worker
from nearstep.stream.recording import Recording
from nearstep.stream.session import Session

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a server takes."""

    sessions: int = 8
    """Takes that are open at once."""
    viewers: int = 50
    """Connections that look at them."""
    idle: float = 600
    """Seconds after which a take that nobody watches is closed."""
    longest: int = 5000
    """Chunks of a take."""
    kept: int = 200
    """Closed takes that are kept; the oldest go."""
    jobs: int = 100
    """Videos that wait to be made (`/v1/videos`)."""

    def __post_init__(self) -> None:
        for name in ("sessions", "viewers", "longest", "kept", "jobs"):
            if not 1 <= getattr(self, name) <= 10**6:
                raise NearstepError(f"--{name} {getattr(self, name)}: give 1 to a million")
        if not 1 <= self.idle <= 10**7:
            raise NearstepError(f"--idle {self.idle:g}s: give at least a second")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a take begins with: a prompt, or a recording to make again."""

    prompt: str = ""
    plan: str | None = None
    seed: int | None = None
    recording: Recording | None = None
    parent: str | None = None
    context: Json = field(default_factory=dict)
    """image= or video= of the pipeline, from an upload."""


Told = Callable[[str, Json], None]
"""Takes an event and its facts, for logs and counters."""


class Studio:
    """The takes of one model.

    Args:
        pipe: the model.
        worker: the thread that uses it.
        folder: where takes are kept.
        limits: how much is taken.
        undo_depth: chunks that are taken back at once.
        told: is told of what happens.
        replica: the rank of this server among several; None: it is the only one.
    """

    def __init__(
        self,
        pipe: CausalVideoPipeline,
        worker: Worker,
        folder: Path,
        limits: Limits,
        *,
        undo_depth: int = 0,
        told: Told = lambda event, facts: None,
        replica: int | None = None,
    ) -> None:
        self.pipe, self.limits, self._replica = pipe, limits, replica
        self._worker, self._folder, self._undo_depth, self._told = worker, folder, undo_depth, told
        self._takes: dict[str, Take] = {}
        self._watched: dict[str, str] = {}
        """Watch id -> id, of open takes and of those that are kept."""
        self._opening = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        for kept, facts in kept_takes(folder):
            self._watched[facts["watch"]] = kept.folder.name

    # --- what a take needs (take.py:Place) -------------------------------------------------------------------------

    @property
    def worker(self) -> Worker:
        """Who makes chunks."""
        return self._worker

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where viewers are."""
        assert self._loop is not None, "bind() comes first"
        return self._loop

    @property
    def fps(self) -> float:
        """Frames a second."""
        return self.pipe.settings.fps

    @property
    def longest(self) -> int:
        """Chunks of the longest take."""
        return self.limits.longest

    def noted(self, event: str, take: Take, facts: Json) -> None:
        """Something happened in a take."""
        self._told(event, {"take": take.origin.id, **facts})

    def branch(self, take: Take, chunk: int) -> tuple[Origin, KeptTake]:
        """Name and folder of a fork, with the chunks before this one."""
        origin = self._origin(take.origin.id)
        kept = KeptTake(self._folder / origin.id)
        try:
            kept.take_over(take.kept, chunk)
        except OSError:
            kept.remove()
            raise
        return origin, kept

    def forked(self, fork: Take) -> Json:
        """A fork has begun."""
        try:
            self._check_room()
        except Exception as refusal:
            raise NearstepError(str(refusal)) from refusal
        self._join(fork)
        return {"take": fork.origin.id, "watch": fork.origin.watch}

    # --- the takes -------------------------------------------------------------------------------------------------

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say which loop its viewers are in; once."""
        self._loop = loop

    @property
    def takes(self) -> tuple[Take, ...]:
        """Those that are open, in order of their opening."""
        return tuple(self._takes.values())

    @property
    def viewers(self) -> int:
        """Connections that look at one."""
        return sum(len(take.viewers) for take in self._takes.values())

    async def open(self, ask: Ask, context: Path | None = None) -> Take:
        """Begin a take.

        Args:
            ask: what with.
            context: the file of the picture or clip that it goes on from, to be kept with it.

        Raises:
            NearstepError: for what the model cannot do.
            Refusal: if there are as many as there may be.
        """
        self._check_room()
        self._opening += 1
        origin = self._origin(ask.parent)
        try:
            session = await asyncio.wrap_future(self._worker.call(lambda: self._session(ask)))
            kept = KeptTake(self._folder / origin.id)
            if context is not None and context.is_file():
                link_or_copy(context, kept.folder / CONTEXT)
            take = Take(origin, session, kept, self)
        finally:
            self._opening -= 1
        self._join(take)
        return take

    def find(self, name: str, *, watch: bool = False) -> Take:
        """An open take, by its id or by the one that it is watched under.

        Raises:
            Refusal: if there is none.
        """
        take = self._takes.get(self._watched.get(name, "") if watch else name)
        if take is None:
            raise absent("take", name)
        return take

    def find_kept(self, name: str, *, watch: bool = False) -> KeptTake:
        """What is kept of a take, open or closed.

        Raises:
            Refusal: if there is none.
        """
        if watch:
            name = self._watched.get(name, "")
        if not NAME.fullmatch(name) or not (self._folder / name / "take.json").is_file():
            raise absent("take", name)
        return KeptTake(self._folder / name)

    def listing(self) -> list[Json]:
        """Open takes, then those that are kept, the newest first."""
        there = [take.facts(steers=True) for take in reversed(self.takes)]
        old = [
            {**facts, "state": "closed"} for kept, facts in kept_takes(self._folder) if facts["id"] not in self._takes
        ]
        return there + old

    async def close(self, take: Take, code: int, why: str) -> None:
        """End a take; it is kept."""
        if self._takes.pop(take.origin.id, None) is None:
            return
        self._worker.leave(take)
        take.end(code, why)
        await asyncio.wrap_future(self._worker.call(take.close))
        self._clear_out()

    async def sweep(self) -> None:
        """Close the takes that nobody has looked at for too long."""
        now = time.monotonic()
        for take in self.takes:
            if not take.viewers and now - take.last_watched > self.limits.idle:
                await self.close(take, Close.IDLE, f"nobody watched it for {self.limits.idle:g} s")

    async def close_all(self) -> None:
        """The server ends."""
        for take in self.takes:
            await self.close(take, 1001, "the server ends")

    def remove(self, kept: KeptTake) -> None:
        """Delete what is kept of a closed take."""
        for watch in [watch for watch, name in self._watched.items() if name == kept.folder.name]:
            del self._watched[watch]
        kept.remove()

    # --- helpers ---------------------------------------------------------------------------------------------------

    def _check_room(self) -> None:
        if len(self._takes) + self._opening >= self.limits.sessions:
            raise full("takes open", self.limits.sessions, "--sessions")

    def _origin(self, parent: str | None) -> Origin:
        name, watch = new_name(self._replica), new_name(self._replica)
        return Origin(id=name, watch=watch, opened=time.time(), parent=parent)

    def _session(self, ask: Ask) -> Session:
        """On the worker's thread."""
        depth: dict[str, Any] = {"undo_depth": self._undo_depth, **ask.context}
        if ask.recording is not None:
            return self.pipe.replay(ask.recording, ask.plan, **depth)
        return self.pipe.open(ask.prompt, ask.plan, seed=ask.seed, **depth)

    def _join(self, take: Take) -> None:
        take.kept.describe({**take.origin._asdict(), "prompt": take.direction["prompt"]})
        self._takes[take.origin.id] = take
        self._watched[take.origin.watch] = take.origin.id
        self._worker.join(take)
        self.noted("opened", take, {"parent": take.origin.parent, "prompt": take.direction["prompt"]})

    def _clear_out(self) -> None:
        """The oldest closed takes go, where there are too many."""
        closed = [kept for kept, facts in kept_takes(self._folder) if facts["id"] not in self._takes]
        for kept in closed[self.limits.kept :]:
            self.remove(kept)
