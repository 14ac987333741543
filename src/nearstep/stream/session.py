"""One viewer's stream: chunks without end, and anything may change between two of them.

    with pipe.open("a large red ball slides left on snow", plan="4,1x", seed=7) as session:
        for chunk in session:
            show(chunk.video)
            if chunk.index == 10:
                session.change(prompt="a large red ball slides up on snow")

A session holds what is its own: cache, decoder's state, newest latents (state.py). The model is shared, so any number
may be open. Memory does not grow: chunks look back a window of frames and at the first ones, the sink (nets/masks.py).
"""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.flow.live_plan import ChunkSteps
from nearstep.flow.plan import Schedule
from nearstep.rollout.rollout import Chunk, PlannedChunk, unroll
from nearstep.stream.decoding import DecoderThread
from nearstep.stream.finite import check_finite
from nearstep.stream.recording import Changes, ChunkEntry, Recording
from nearstep.stream.request import seed_of
from nearstep.stream.results import ChunkVideo
from nearstep.stream.setup import Script, Setup
from nearstep.stream.state import PendingChunk, State, continued, first_state


class Session:
    """An endless stream of chunks; iterate over it. Made by ``CausalVideoPipeline.open`` and ``replay``.

    Args:
        setup: what holds from beginning to end.
        script: what to make again; the stream ends with it.
        log: a file that follows the recording as it grows.
        state: where to go on; by default at the beginning.
        recording: what led to ``state``.
        waiting: chunks that are begun and not handed out; ``state`` comes after them.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        script: Script | None = None,
        log: Path | None = None,
        state: State | None = None,
        recording: Recording | None = None,
        waiting: Sequence[PendingChunk] = (),
    ) -> None:
        self._setup, self._model, self._script, self._log = setup, setup.model, script, log
        self._making, self._closed = threading.Lock(), False
        self._decoder = DecoderThread(setup.model.decoder_device, beside=setup.prefetch)
        self._undo: deque[State] = deque(maxlen=setup.undo_depth + 1 if setup.undo_depth else 0)
        self._waiting = deque(waiting)
        self.recording = recording or Recording(setup.opening)
        self._go_on_from(state or self._beginning())
        if log is not None:
            self.recording.save(log)

    # --- what there is to see --------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        where = "closed" if self._closed else f"chunk {self.index} comes next"
        return f"Session({where}; {self.prompt!r}, plan {self.plan}, seed {self.seed})"

    @property
    def index(self) -> int:
        """Number of the chunk that comes next."""
        return len(self.recording.chunks)

    @property
    def prompt(self) -> str:
        """What the next chunk will show."""
        return self._direction.prompt

    @property
    def plan(self) -> str:
        """What decides its steps."""
        return self._direction.plan

    @property
    def seed(self) -> int:
        """What names its noise."""
        return self._direction.seed

    # --- making chunks ---------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[ChunkVideo]:
        return self

    def __next__(self) -> ChunkVideo:
        """The next chunk, decoded.

        Raises:
            NearstepError: if the session is closed, or another thread is making a chunk of it.
        """
        with self._exclusive():
            if not self._waiting:
                self._waiting.append(self._begin())
            # The first chunk is handed out at once: nothing is begun beside it.
            if self._setup.prefetch and self._waiting[0].index and len(self._waiting) < 2 and not self._script_ended:
                self._waiting.append(self._begin())
            video = self._waiting[0].finish(self._state.plan)
            self._note(self._waiting.popleft())
            return video

    def _note(self, pending: PendingChunk) -> None:
        """Into the recording."""
        self.recording.chunks.append(pending.entry)
        self._write(last=True)

    @property
    def _script_ended(self) -> bool:
        """Whether all of a script has been begun."""
        return self._script is not None and self._state.index == len(self._script.chunks)

    def _begin(self) -> PendingChunk:
        if self._script is None:
            return self._advance(self._planned())
        if self._script_ended:
            raise StopIteration
        return self._again(self._script.chunks[self._state.index], keep_times=self._script.keep_times)

    def _again(self, entry: ChunkEntry, *, keep_times: bool = True) -> PendingChunk:
        """A chunk of a recording."""
        self._change(entry.changes)
        return self._advance(ChunkSteps(Schedule(entry.times)) if keep_times else self._planned())

    def _planned(self) -> ChunkSteps:
        return self._state.plan.next(self._state.since, self._state.before)

    @torch.no_grad()
    def _advance(self, steps: ChunkSteps) -> PendingChunk:
        """Make the next chunk [1, F, C, h, w], and go on to the state after it.

        The state is replaced only when the chunk is there: one that breaks off is made anew, with the same noise.
        """
        state, began = self._state, self._now()
        chunk = self._denoised(PlannedChunk(self._model.chunk_frames, *steps))
        check_finite(chunk.latents, f"the latents of chunk {chunk.index}")
        seconds = self._now() - began
        decoded = self._decoder.start(state.decoded, chunk.latents)
        # The times that were run, not those that were planned: a replay need not know why a chunk stopped.
        entry = ChunkEntry(times=steps.schedule.times[: chunk.steps], changes=state.changes)
        self._go_on_from(state.after(chunk.latents, decoded, self._setup.reach))
        if self._undo.maxlen:
            self._undo.append(self._state.copy())
        return PendingChunk(chunk=chunk, start=state.pixels, seconds=seconds, decoded=decoded, entry=entry)

    def _denoised(self, planned: PlannedChunk) -> Chunk:
        state = self._state
        # A chunk that was broken off may have committed the one before it already.
        before = state.before if state.cache.end < state.start else None
        (chunk,) = unroll(
            state.denoiser,
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
        conditioning = self._state.conditioning
        return rng.noise(
            (frames, *self._setup.frame),
            seed=conditioning.seed,
            samples=conditioning.samples,
            chunk=chunk,
            step=step,
            device=self._model.network_device,
        )

    # --- between chunks --------------------------------------------------------------------------------------------

    def change(self, *, prompt: str | None = None, plan: str | None = None, seed: int | None = None) -> None:
        """Go on otherwise from the next chunk on; nothing that was made before changes.

        A new prompt also commits the frames in sight anew, as if they had been made under it: else the old one would
        linger in what they remember.

        Raises:
            NearstepError: for what the model cannot do, or while a chunk is being made; the session goes on as it was.
        """
        with self._exclusive():
            self._change(Changes(prompt=prompt, plan=plan, seed=seed))

    def _change(self, changes: Changes) -> None:
        state, conditioning = self._state, self._state.conditioning
        # All that can be refused comes first, and then the text encoder: until here the session is as it was.
        plan = state.plan if changes.plan is None else self._model.live_plan(changes.plan)
        conditioning = conditioning if changes.seed is None else replace(conditioning, seed=seed_of(changes.seed, None))
        if changes.prompt is not None:
            conditioning = self._model.conditioning(
                changes.prompt,
                negative_prompt=conditioning.negative,
                guidance_scale=conditioning.guidance,
                seed=conditioning.seed,
                samples=conditioning.samples,
            )
        denoiser = state.denoiser if changes.prompt is None else self._model.denoiser(conditioning)
        again = changes.prompt is not None or changes.plan is not None
        self._go_on_from(
            replace(
                state,
                conditioning=conditioning,
                plan_text=state.plan_text if changes.plan is None else changes.plan,
                denoiser=denoiser,
                plan=plan,
                changes=state.changes.then(changes),
                since=0 if again else state.since,
            )
        )
        if changes.prompt is not None:
            self._state.commit_anew()

    def warm_up(self) -> None:
        """Make and throw away a stream like this one, so that nothing is compiled or allocated first in mid-stream.

        It goes on until calls have the sizes that they keep, and then through a change of prompt.
        """
        with self._exclusive():
            conditioning, opening = self._state.conditioning, replace(self._setup.opening, plan=self.plan)
            setup = replace(self._setup, opening=opening, conditioning=conditioning, undo_depth=0, prefetch=False)
            reach = setup.reach
            chunks = -(-((reach.window or 0) + reach.sink) // self._model.chunk_frames) + 1
            with Session(setup) as trial:
                for index in range(chunks + 2):
                    if index == chunks:
                        trial.change(prompt=self.prompt)
                    next(trial)

    def rewind(self, chunk: int) -> None:
        """Back to where chunk ``chunk`` came next, as it was then, bit for bit.

        At once for the last chunks that ``undo_depth`` keeps; else the chunks up to there are made again.

        Raises:
            NearstepError: for a chunk that was not made.
        """
        with self._exclusive():
            self._rewind(chunk)

    def _rewind(self, chunk: int) -> None:
        if not 0 <= chunk <= self.index:
            raise NearstepError(f"cannot rewind to chunk {chunk}: {self.index} were made, so give 0 to that")
        # Back to the newest state that was kept before the chunk, else to the beginning.
        kept = [state for state in self._undo if state.index <= chunk]
        recording = self.recording.until(chunk)
        self._waiting.clear()
        self._undo = deque(kept, maxlen=self._undo.maxlen)
        self._go_on_from(kept[-1].copy() if kept else self._beginning())
        # From there on the recording says what changed and which times were run: named noise makes the same chunks.
        self.recording = recording.until(self._state.index)
        for entry in recording.chunks[self._state.index :]:
            pending = self._again(entry)
            pending.decoded.result()
            self._note(pending)
        self._write()

    def fork(
        self, chunk: int | None = None, *, prompt: str | None = None, plan: str | None = None, seed: int | None = None
    ) -> Session:
        """Another session that shares this one's past up to a chunk.

        Args:
            chunk: which chunk comes next in the fork; by default the one that comes next here.
            prompt: what it shows from there on, as for :meth:`change`.
            plan: what its chunks get.
            seed: what names their noise.
        """
        with self._exclusive():
            other = Session(
                self._setup,
                state=self._state.copy(),
                recording=self.recording.until(self.index),
                waiting=self._waiting,
            )
        if chunk is not None and chunk != other.index:
            other.rewind(chunk)
        other.change(prompt=prompt, plan=plan, seed=seed)
        return other

    def close(self) -> None:
        """Let go of all memory that is the session's own, at once."""
        if not self._closed:
            with self._exclusive():
                self._closed = True
                self._undo.clear()
                self._waiting.clear()
                self._decoder.close()
                del self._state, self._setup
                self._model.maybe_free_model_hooks()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- helpers ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One thing at a time, and nothing after the end."""
        if self._closed:
            raise NearstepError("this session is closed; open another")
        if not self._making.acquire(blocking=False):
            raise NearstepError("a chunk of this session is being made; ask again between chunks")
        try:
            yield
        finally:
            self._making.release()

    def _go_on_from(self, state: State) -> None:
        self._state = state
        self._direction = state.direction

    @torch.no_grad()
    def _beginning(self) -> State:
        setup, model = self._setup, self._model
        state = first_state(
            setup.conditioning,
            setup.opening.plan,
            model.denoiser(setup.conditioning),
            model.live_plan(setup.opening.plan),
            model.latent_stream(),
            frame=setup.frame,
            reach=setup.reach,
        )
        return state if setup.context is None else continued(state, setup.context, model.chunk_frames, setup.reach)

    def _now(self) -> float:
        if self._model.network_device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.perf_counter()

    def _write(self, *, last: bool = False) -> None:
        """Bring the log up to date: one more line, or all of them."""
        if self._log is None:
            return
        try:
            if not last:
                self.recording.save(self._log)
            else:
                self.recording.append_last(self._log)
        except (OSError, NearstepError) as error:  # a full disk stops the log, and not what is watched
            warnings.warn(f"the log {self._log} ends at chunk {self.index - last}: {error}", stacklevel=2)
            self._log = None
