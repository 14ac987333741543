"""One viewer's stream: chunks without end, and anything may change between two of them.

    with pipe.open("a large red ball slides left on snow", plan="4,1x", seed=7) as session:
        for chunk in session:
            show(chunk.video)
            if chunk.index == 10:
                session.change(prompt="a large red ball slides up on snow")

A session holds what is its own: cache, decoder's state, newest latents. The model is shared, so any number may be open.
Memory does not grow: chunks look back a window of frames and at the first ones, the sink (nets/masks.py Reach).
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.flow.live_plan import ChunkSteps, LivePlan, live_plan
from nearstep.flow.plan import Schedule
from nearstep.models.folder import shift_of
from nearstep.nets.devices import device_of
from nearstep.nets.masks import Reach
from nearstep.protocols import CausalDenoiser
from nearstep.rollout.rollout import Chunk, PlannedChunk, unroll
from nearstep.shapes import TEMPORAL_STRIDE
from nearstep.stream.decoding import Decoding
from nearstep.stream.recording import CHANGES, Record
from nearstep.stream.request import Request
from nearstep.stream.state import Begun, Frames, State, beginning, going_on

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline


class Session:
    """An endless stream of chunks; iterate over it. Made by ``CausalVideoPipeline.open`` and ``replay``.

    Args:
        pipe: the model.
        asked: prompt, size, guidance and seed, checked.
        plan: what each chunk gets (flow/live_plan.py).
        reach: how far back chunks look.
        given: latents [1, F, C, h, w] of a picture or a clip to go on from.
        opening: what a record begins with.
        script: chunks of a record to make again; the stream ends with them.
        keep_times: whether those get the steps they had, or what ``plan`` gives.
        undo: so many of the newest chunks can be taken back at once; each costs a copy of the cache.
        ahead: make the next chunk while one is decoded, from the second on. The frames are the same and come faster;
            a change acts one chunk later.
        log: a file that follows the record as it grows.
    """

    def __init__(
        self,
        pipe: CausalVideoPipeline,
        asked: Request,
        plan: str,
        reach: Reach,
        *,
        given: Tensor | None = None,
        opening: Mapping[str, Any],
        script: Sequence[Mapping[str, Any]] | None = None,
        keep_times: bool = True,
        undo: int = 0,
        ahead: bool = False,
        log: Path | None = None,
    ) -> None:
        self._pipe, self._reach, self._given, self._log = pipe, reach, given, log
        self._script, self._keep_times = script, keep_times
        self._making, self._closed = threading.Lock(), False
        self._undo: deque[State] = deque(maxlen=undo + 1 if undo else 0)
        self._ahead, self._decoding = ahead, Decoding(device_of(pipe.vae), beside=ahead)
        self._waiting: deque[Begun] = deque()
        self.record = Record(opening)
        self._asked = asked
        self._changes: dict[str, Any] = {}
        self._plan_text, self._plan = plan, self._live(plan)
        self._denoiser = self._bound(asked)
        self._state = self._beginning()
        self._write()

    # --- what there is to see --------------------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """Number of the chunk that comes next."""
        return len(self.record.chunks)

    @property
    def prompt(self) -> str:
        """What the next chunk will show."""
        return self._asked.prompts[0]

    @property
    def plan(self) -> str:
        """What decides its steps."""
        return self._plan_text

    @property
    def seed(self) -> int:
        """What names its noise."""
        return self._asked.seed

    # --- making chunks ---------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Frames]:
        return self

    def __next__(self) -> Frames:
        """The next chunk, decoded.

        Raises:
            NearstepError: if the session is closed, or another thread is making a chunk of it.
        """
        with self._alone():
            if not self._waiting:
                self._waiting.append(self._begin())
            if self._ahead and self._waiting[0].index and len(self._waiting) < 2 and not self._over:
                self._waiting.append(self._begin())
            made = self._waiting[0].frames(self._plan)
            self._note(self._waiting.popleft())
            return made

    def _note(self, begun: Begun) -> None:
        """Into the record."""
        self.record.chunks.append(begun.entry)
        self._write(last=True)

    @property
    def _over(self) -> bool:
        """Whether all of a script has been begun."""
        return self._script is not None and self._state.index == len(self._script)

    def _begin(self) -> Begun:
        if self._script is None:
            return self._make(self._next())
        if self._over:
            raise StopIteration
        return self._again(self._script[self._state.index], keep_times=self._keep_times)

    def _again(self, entry: Mapping[str, Any], *, keep_times: bool = True) -> Begun:
        """A chunk of a record."""
        self._change({name: entry[name] for name in CHANGES if name in entry})
        return self._make(ChunkSteps(Schedule(tuple(entry["times"]))) if keep_times else self._next())

    def _next(self) -> ChunkSteps:
        return self._plan.next(self._state.since, self._state.before)

    @torch.no_grad()
    def _make(self, steps: ChunkSteps) -> Begun:
        state, began = self._state, self._now()
        chunk = self._denoised(PlannedChunk(self._pipe.transformer.config["chunk_frames"], *steps))
        called = self._now() - began
        decoded = self._decoding.start(state.decoded, chunk.latents)
        entry, self._changes = {"times": [*steps[0].times[: chunk.steps]], **self._changes}, {}
        begun = Begun(chunk=chunk, start=state.pixels, calls=called, decoded=decoded, entry=entry)
        self._state = state.made(chunk.latents, begun.decoded, self._reach)
        if self._undo.maxlen:
            self._undo.append(self._state.copy())
        return begun

    def _denoised(self, planned: PlannedChunk) -> Chunk:
        state = self._state
        # A chunk that was broken off may have committed the one before it already.
        before = state.before if state.cache.end < state.start else None
        (chunk,) = unroll(
            self._denoiser,
            [planned],
            self._draw,
            cache=state.cache,
            first=state.index,
            start=state.start,
            before=before,
            fused=True,
        )
        return chunk

    def _draw(self, chunk: int, frames: int, step: int) -> Tensor:
        asked = self._asked
        return rng.noise(
            (frames, *asked.clip.shape.frame),
            seed=asked.seed,
            samples=asked.samples,
            chunk=chunk,
            step=step,
            device=device_of(self._pipe.transformer),
        )

    # --- between chunks --------------------------------------------------------------------------------------------

    def change(self, *, prompt: str | None = None, plan: str | None = None, seed: int | None = None) -> None:
        """Go on otherwise from the next chunk on; nothing that was made before changes.

        A new prompt also commits the frames in sight anew, as if they had been made under it: else the old one would
        linger in what they remember.

        Raises:
            NearstepError: for what the model cannot do, or while a chunk is being made; the session goes on as it was.
        """
        with self._alone():
            wishes = {"prompt": prompt, "plan": plan, "seed": seed}
            self._change({name: value for name, value in wishes.items() if value is not None})

    def _change(self, wishes: Mapping[str, Any]) -> None:
        asked, plan = self._asked, wishes.get("plan", self._plan_text)
        live = self._live(plan) if "plan" in wishes else self._plan
        wish = {"prompt": wishes.get("prompt", self.prompt), "seed": wishes.get("seed", asked.seed)}
        checked = self._pipe.request(
            wish["prompt"], "1", negative_prompt=asked.negative, guidance_scale=asked.guidance, seed=wish["seed"],
            samples=asked.samples,
        )  # fmt: skip
        checked = replace(checked, clip=asked.clip)
        denoiser = self._bound(checked) if "prompt" in wishes else self._denoiser
        self._asked, self._denoiser, self._plan_text, self._plan = checked, denoiser, plan, live
        if "prompt" in wishes:
            self._state.commit_anew(denoiser)
        if "prompt" in wishes or "plan" in wishes:
            self._state.since = 0
        self._changes |= wishes

    def warm_up(self) -> None:
        """Make and throw away a stream like this one, so that nothing is compiled or allocated first in mid-stream.

        It goes on until calls have the sizes that they keep, and then through a change of prompt.
        """
        with self._alone():
            chunk, reach = self._pipe.transformer.config["chunk_frames"], self._reach
            chunks = -(-((reach.window or 0) + reach.sink) // chunk) + 1
            trial = Session(self._pipe, self._asked, self._plan_text, reach, given=self._given, opening={})
            with trial:
                for index in range(chunks + 2):
                    if index == chunks:
                        trial.change(prompt=self.prompt)
                    next(trial)

    def rewind(self, chunk: int) -> None:
        """Back to where chunk ``chunk`` came next, as it was then, bit for bit.

        At once for the last chunks that ``undo`` keeps; else the take is made again up to there.

        Raises:
            NearstepError: for a chunk that was not made.
        """
        with self._alone():
            self._rewind(chunk)

    def _rewind(self, chunk: int) -> None:
        if not 0 <= chunk <= self.index:
            raise NearstepError(f"cannot rewind to chunk {chunk}: {self.index} were made, so give 0 to that")
        self._waiting.clear()
        take, kept = self.record.until(chunk), [state for state in self._undo if state.index <= chunk]
        self._undo = deque(kept, maxlen=self._undo.maxlen)
        self.record, self._changes = take.until(kept[-1].index if kept else 0), {}
        wishes = self.record.wishes()
        self._asked = replace(self._asked, prompts=(wishes["prompt"],), seed=wishes["seed"])
        self._plan_text, self._plan = wishes["plan"], self._live(wishes["plan"])
        self._denoiser = self._bound(self._asked)
        self._state = kept[-1].copy() if kept else self._beginning()
        for entry in take.chunks[self._state.index :]:
            begun = self._again(entry)
            begun.decoded.result()
            self._note(begun)
        self._write()

    def fork(self, chunk: int | None = None, **changes: Any) -> Session:
        """Another session that shares this one's past up to chunk ``chunk`` (all of it by default).

        Args:
            chunk: which chunk comes next in the fork.
            changes: as for :meth:`change`.
        """
        with self._alone():
            other = copy.copy(self)
            other._making, other._undo = threading.Lock(), deque(maxlen=self._undo.maxlen)
            other._state, other._changes, other._waiting = self._state.copy(), {**self._changes}, self._waiting.copy()
            other._decoding = Decoding(device_of(self._pipe.vae), beside=self._ahead)
            other.record, other._script, other._log = self.record.until(self.index), None, None
        if chunk is not None and chunk != other.index:
            other.rewind(chunk)
        other.change(**changes)
        return other

    def close(self) -> None:
        """Let go of all memory that is the session's own, at once."""
        if not self._closed:
            with self._alone():
                self._closed = True
                self._undo.clear()
                self._waiting.clear()
                self._decoding.close()
                del self._state, self._denoiser, self._given
                self._pipe.maybe_free_model_hooks()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- helpers ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thing at a time, and nothing after the end."""
        if self._closed:
            raise NearstepError("this session is closed; open another")
        if not self._making.acquire(blocking=False):
            raise NearstepError("a chunk of this session is being made; ask again between chunks")
        try:
            yield
        finally:
            self._making.release()

    @torch.no_grad()
    def _bound(self, asked: Request) -> CausalDenoiser:
        """The network with this text; under grad its keys would hold on to all that made them."""
        return self._pipe.denoiser(asked)

    def _live(self, text: str) -> LivePlan:
        pipe = self._pipe
        return live_plan(
            text,
            shift=shift_of(pipe.scheduler.config),
            grid=pipe.settings.grid,
            frames=TEMPORAL_STRIDE * pipe.transformer.config["chunk_frames"],
            levels=pipe.settings.agreement,
        )

    @torch.no_grad()
    def _beginning(self) -> State:
        state = beginning(self._denoiser, self._pipe.decoder.stream(), self._asked.clip.shape.frame, self._reach)
        if self._given is None:
            return state
        chunk = self._pipe.transformer.config["chunk_frames"]
        return going_on(state, self._denoiser, self._given, chunk, self._reach)

    def _now(self) -> float:
        if device_of(self._pipe.transformer).type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.perf_counter()

    def _write(self, *, last: bool = False) -> None:
        """Bring the log up to date: one more line, or all of them."""
        if self._log is None:
            return
        if not last:
            self.record.save(self._log)
            return
        with self._log.open("a", encoding="utf-8") as file:
            file.write(f"{[*self.record.lines()][-1]}\n")
