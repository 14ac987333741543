"""One viewer's stream: chunks without end, and anything may change between two of them.

    with pipe.open("a large red apple slides left on snow", plan="4,1x", seed=7) as session:
        for chunk in session:
            show(chunk.video)
            if chunk.index == 10:
                session.change(prompt="a large red apple slides up on snow")

A session holds what is its own: cache, decoder's state, newest latents (state.py). The model is shared, so any number
may be open. Memory does not grow: chunks look back a window of frames and at the first ones, the sink (nets/masks.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.flow.live_plan import ChunkSteps
from nearstep.flow.plan import Schedule
from nearstep.rollout.rollout import Chunk, PlannedChunk, unroll
from nearstep.stream.decoding import DecoderThread
from nearstep.stream.finite import check_finite
from nearstep.stream.recording import Changes, ChunkEntry, Log, Recording
from nearstep.stream.request import seed_of
from nearstep.stream.results import ChunkVideo
from nearstep.stream.setup import Script, Setup
from nearstep.stream.state import Ended, PendingChunk, Standing, State, continued, first_state

T = TypeVar("T")


class Session:
    """An endless stream of chunks; iterate over it. Made by ``CausalVideoPipeline.open`` and ``replay``.

    Whatever breaks off in it (an error, Ctrl-C) leaves it as it was, bit for bit; the call may be made again.

    Args:
        setup: what holds from beginning to end.
        script: what to make again; the stream ends with it.
        log: a file that follows the recording as it grows.
        standing: where to go on; by default at the beginning.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        script: Script | None = None,
        log: Path | None = None,
        standing: Standing | None = None,
    ) -> None:
        self._setup, self._model, self._script = setup, setup.model, script
        self._gate = threading.Lock()
        self._claim: object | None = None
        """Of whoever makes something now."""
        self._decoder = DecoderThread(setup.model.decoder_device, beside=setup.prefetch)
        self._later = None if setup.codec is None else DecoderThread(setup.model.decoder_device, beside=True)
        """Makes the final pixels, in its own time."""
        self._at: Standing | Ended = standing or Standing(state=self._beginning(), recording=Recording(setup.opening))
        self._log = None if log is None else Log(log, self.recording)

    # --- what there is to see --------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        where = "closed" if not isinstance(self._at, Standing) else f"chunk {self.index} comes next"
        return f"Session({where}; {self.prompt!r}, plan {self.plan}, seed {self.seed})"

    @property
    def recording(self) -> Recording:
        """What has been made, and how to make it again."""
        return self._at.recording

    @property
    def index(self) -> int:
        """Number of the chunk that comes next."""
        return len(self.recording.chunks)

    @property
    def prompt(self) -> str:
        """What the next chunk will show."""
        return self._at.direction.prompt

    @property
    def plan(self) -> str:
        """What decides its steps."""
        return self._at.direction.plan

    @property
    def seed(self) -> int:
        """What names its noise."""
        return self._at.direction.seed

    # --- wholly or not at all --------------------------------------------------------------------------------------

    def _whole(self, step: Callable[[Standing], tuple[Standing | Ended, T]]) -> T:
        """Go from one standing to the next, one thing at a time; what breaks off has not happened.

        Args:
            step: standing -> the next one, and what the caller gets. It changes neither the session nor the standing.
        """
        claim = object()
        try:
            with self._gate:
                if isinstance(at := self._at, Ended):
                    raise NearstepError("this session is closed; open another")
                if self._claim is not None:
                    raise NearstepError("a chunk of this session is being made; ask again between chunks")
                self._claim = claim
            after, result = step(at)
            if self._log is not None:
                self._log.follow(after.recording)
            # Python looks for signals in calls: from here to the caller there are none, so no chunk is lost to Ctrl-C.
            self._at = after
            return result
        finally:
            if self._claim is claim:
                self._claim = None

    # --- making chunks ---------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[ChunkVideo]:
        return self

    def __next__(self) -> ChunkVideo:
        """The next chunk, decoded.

        Raises:
            NearstepError: if the session is closed, or another thread is making a chunk of it.
        """
        return self._whole(self._next)

    def _next(self, at: Standing) -> tuple[Standing, ChunkVideo]:
        state, waiting = replace(at.state, plan=at.state.plan.copy()), list(at.waiting)
        undo = at.undo
        if not waiting:
            state, undo = self._begun(state, undo, waiting)
        # The first chunk is handed out at once: nothing is begun beside it.
        if self._setup.prefetch and waiting[0].index and len(waiting) < 2 and not self._script_ended(state):
            # A second chunk may be begun at once only in the first call, or after a rewind: there is one branch.
            state, undo = self._begun(state if at.waiting else state.copy(), undo, waiting)
        first, *rest = waiting
        video = first.finish(state.plan)
        recording = at.recording.then(first.entry)
        return Standing(state=state, recording=recording, waiting=tuple(rest), undo=undo), video

    def _begun(
        self, state: State, undo: tuple[State, ...], waiting: list[PendingChunk]
    ) -> tuple[State, tuple[State, ...]]:
        """Begin the next chunk, to be handed out after those that wait; the state after it, and what to go back to."""
        if self._script is None:
            state, pending = self._advanced(state, self._planned(state))
        elif self._script_ended(state):
            raise StopIteration
        else:
            entry = self._script.chunks[state.index]
            state, pending = self._made_again(state, entry, keep_times=self._script.keep_times)
        waiting.append(pending)
        return state, self._kept(undo, state)

    def _kept(self, undo: tuple[State, ...], state: State) -> tuple[State, ...]:
        """With one more state to go back to, where that is wanted."""
        depth = self._setup.undo_depth
        return (*undo, state.copy())[-depth - 1 :] if depth else ()

    def _script_ended(self, state: State) -> bool:
        """Whether all of a script has been begun."""
        return self._script is not None and state.index == len(self._script.chunks)

    def _made_again(self, state: State, entry: ChunkEntry, *, keep_times: bool = True) -> tuple[State, PendingChunk]:
        """A chunk of a recording."""
        state = self._changed(state, entry.changes)
        return self._advanced(state, ChunkSteps(Schedule(entry.times)) if keep_times else self._planned(state))

    @staticmethod
    def _planned(state: State) -> ChunkSteps:
        return state.plan.next(state.since, state.before)

    @torch.no_grad()
    def _advanced(self, before: State, steps: ChunkSteps) -> tuple[State, PendingChunk]:
        """The state after the next chunk [1, F, C, h, w], which is on its way to be decoded."""
        began, state = self._now(), before.branch()
        chunk = self._denoised(state, PlannedChunk(self._model.chunk_frames, *steps))
        check_finite(chunk.latents, f"the latents of chunk {chunk.index}")
        seconds = self._now() - began
        decoded, final, later = self._decoder.start(state.decoded, chunk.latents), None, None
        if self._later is not None and state.final is not None:
            final = self._later.start(state.final, chunk.latents)
            later = self._later.pixels(final)
        # The times that were run, not those that were planned: a replay need not know why a chunk stopped.
        entry = ChunkEntry(times=steps.schedule.times[: chunk.steps], changes=state.changes)
        pending = PendingChunk(
            chunk=chunk, start=state.pixels, seconds=seconds, decoded=decoded, entry=entry, later=later
        )
        return state.after(chunk.latents, decoded, final, self._setup.reach), pending

    def _denoised(self, state: State, planned: PlannedChunk) -> Chunk:
        def draw(chunk: int, frames: int, step: int) -> Tensor:
            conditioning = state.conditioning
            return rng.noise(
                (frames, *self._setup.frame),
                seed=conditioning.seed,
                samples=conditioning.samples,
                chunk=chunk,
                step=step,
                device=self._model.network_device,
            )

        (chunk,) = unroll(
            state.denoiser,
            [planned],
            draw,
            cache=state.cache,
            first=state.index,
            start=state.start,
            before=state.before,
            fused=True,
        )
        return chunk

    # --- between chunks --------------------------------------------------------------------------------------------

    def change(self, *, prompt: str | None = None, plan: str | None = None, seed: int | None = None) -> None:
        """Go on otherwise from the next chunk on; nothing that was made before changes.

        A new prompt holds for what comes; whether the frames in sight are also committed anew, as if they had been made
        under it, is what the session was opened with (``recommit``).

        Raises:
            NearstepError: for what the model cannot do, or while a chunk is being made.
        """
        changes = Changes(prompt=prompt, plan=plan, seed=seed)
        self._whole(lambda at: (replace(at, state=self._changed(at.state, changes)), None))

    def _changed(self, state: State, changes: Changes) -> State:
        if not changes.named():
            return state
        conditioning, plan, denoiser = state.conditioning, state.plan, state.denoiser
        stale, earlier = state.stale, state.earlier
        if changes.plan is not None:
            plan = self._model.live_plan(changes.plan)
        if changes.seed is not None:
            conditioning = replace(conditioning, seed=seed_of(changes.seed, None))
        if changes.prompt is not None:
            conditioning = self._model.conditioning(
                changes.prompt,
                negative_prompt=conditioning.negative,
                guidance_scale=conditioning.guidance,
                seed=conditioning.seed,
                samples=conditioning.samples,
            )
            denoiser = self._model.denoiser(conditioning)
            if self._setup.opening.recommit:
                stale = True
            elif state.index:  # a picture to go on from was made under none
                earlier = earlier or state.denoiser
        return replace(
            state,
            conditioning=conditioning,
            plan_text=state.plan_text if changes.plan is None else changes.plan,
            denoiser=denoiser,
            plan=plan,
            changes=state.changes.then(changes),
            since=state.since if changes.prompt is changes.plan is None else 0,
            stale=stale,
            earlier=earlier,
        )

    def warm_up(self) -> None:
        """Make and throw away a stream like this one, so that nothing is compiled or allocated first in mid-stream.

        It goes on until calls have the sizes that they keep, and then through a change of prompt.
        """
        self._whole(self._warmed)

    def _warmed(self, at: Standing) -> tuple[Standing, None]:
        direction, opening = at.direction, replace(self._setup.opening, plan=at.direction.plan)
        conditioning = at.state.conditioning
        kept = {"opening": opening, "conditioning": conditioning}
        setup = replace(self._setup, **kept, undo_depth=0, prefetch=False, codec=None)
        reach = setup.reach
        chunks = -(-((reach.window or 0) + reach.sink) // self._model.chunk_frames) + 1
        with Session(setup) as trial:
            for index in range(chunks + 2):
                if index == chunks:
                    trial.change(prompt=direction.prompt)
                next(trial)
        return at, None

    def rewind(self, chunk: int) -> None:
        """Back to where chunk ``chunk`` came next, as it was then, bit for bit.

        At once for the last chunks that ``undo_depth`` keeps; else the chunks up to there are made again, beside what
        is there until they are.

        Raises:
            NearstepError: for a chunk that was not made.
        """
        self._whole(lambda at: (self._rewound(at, chunk), None))

    def _rewound(self, at: Standing, chunk: int) -> Standing:
        entries = at.recording.chunks
        if isinstance(chunk, bool) or not isinstance(chunk, int) or not 0 <= chunk <= len(entries):
            raise NearstepError(f"cannot rewind to chunk {chunk!r}: {len(entries)} were made, so give 0 to that")
        # Back to the newest state that was kept before the chunk, else to the beginning.
        undo = tuple(state for state in at.undo if state.index <= chunk)
        state = undo[-1].copy() if undo else self._beginning()
        # From there on the recording says what changed and which times were run: named noise makes the same chunks.
        for entry in entries[state.index : chunk]:
            state, pending = self._made_again(state, entry)
            pending.decoded.result()
            undo = self._kept(undo, state)
        return Standing(state=state, recording=at.recording.until(chunk), undo=undo)

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
        other = self._whole(lambda at: (at, Session(self._setup, standing=replace(at, state=at.state.copy()))))
        if chunk is not None and chunk != other.index:
            other.rewind(chunk)
        other.change(prompt=prompt, plan=plan, seed=seed)
        return other

    def close(self) -> None:
        """Let go of all memory that is the session's own, at once."""
        if isinstance(self._at, Standing):
            self._whole(self._ended)
        for thread in filter(None, (self._decoder, self._later)):
            thread.close()
        vars(self).pop("_setup", None)

    def _ended(self, at: Standing) -> tuple[Ended, None]:
        self._model.maybe_free_model_hooks()
        return Ended(recording=at.recording, direction=at.direction), None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- helpers ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _beginning(self) -> State:
        setup, model = self._setup, self._model
        state = first_state(
            setup.conditioning,
            setup.opening.plan,
            model.denoiser(setup.conditioning),
            model.live_plan(setup.opening.plan),
            model.latent_stream(),
            None if setup.codec is None else setup.codec.stream(),
            frame=setup.frame,
            reach=setup.reach,
        )
        return state if setup.context is None else continued(state, setup.context, model.chunk_frames, setup.reach)

    def _now(self) -> float:
        if self._model.network_device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.perf_counter()
