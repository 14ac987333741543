"""Where a session is between two chunks: all that its next chunk depends on, and what it has made and kept.

Nothing here changes. A session goes from one :class:`Standing` to the next in a single assignment, so whatever breaks
off on the way leaves it where it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from nearstep.flow.live_plan import LivePlan
from nearstep.flow.plan import chunk_lengths
from nearstep.nets.cache import KVCache
from nearstep.protocols import CausalDenoiser, LatentStream
from nearstep.reach import Reach
from nearstep.rollout.rollout import Chunk
from nearstep.shapes import pixel_frames
from nearstep.stream.decoding import Decoded, Deferred
from nearstep.stream.recording import Changes, ChunkEntry, Recording
from nearstep.stream.request import Conditioning
from nearstep.stream.results import ChunkVideo


@dataclass(frozen=True, kw_only=True)
class PendingChunk:
    """A chunk whose pixels may still be in the making."""

    chunk: Chunk
    start: int
    """Its first pixel frame."""
    seconds: float
    """In the network."""
    decoded: Deferred[Decoded]
    entry: ChunkEntry
    """Its line in the recording."""
    later: Deferred[Tensor] | None = None
    """Its final pixels."""

    @property
    def index(self) -> int:
        """Its number."""
        return self.chunk.index

    def finish(self, plan: LivePlan) -> ChunkVideo:
        """The chunk, once it is decoded; ``plan`` observes what it took."""
        began = time.perf_counter()
        video = self.decoded.result().video
        plan.observe(self.chunk.steps, self.seconds, time.perf_counter() - began)
        return ChunkVideo(
            index=self.index,
            start=self.start,
            video=video,
            latents=self.chunk.latents,
            steps=self.chunk.steps,
            later=self.later,
        )


class Direction(NamedTuple):
    """What the next chunk is to show, and what it gets, in words: what a change changes."""

    prompt: str
    plan: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class State:
    """All that the next chunk depends on; a session goes on from it as another would."""

    conditioning: Conditioning
    plan_text: str
    denoiser: CausalDenoiser[KVCache]
    """The network with the conditioning's text bound."""
    plan: LivePlan
    """What ``plan_text`` says, with what it has observed."""
    cache: KVCache
    decoded: Deferred[Decoded]
    """What the decoder has made of all before, or will have."""
    final: Deferred[Decoded] | None = None
    """What the codec has, where a tiny decoder makes the preview."""
    changes: Changes = field(default_factory=Changes)
    """What has changed since the last chunk."""
    index: int = 0
    """Number of the next chunk."""
    start: int = 0
    """Its first latent frame."""
    since: int = 0
    """Chunks since the start, or since prompt or plan changed."""
    before: Tensor | None = None
    """The clean frames before it, which are committed together with its first call."""
    clean: tuple[tuple[int, Tensor], ...] = ()
    """Clean frames that later chunks see, with the first one's number: to be committed anew under another prompt."""
    stale: bool = False
    """Whether the cache is to hold the past under another prompt: the next chunk begins with committing ``clean``."""
    earlier: CausalDenoiser[KVCache] | None = None
    """The network under an earlier prompt, where ``before`` is to be committed as what that made."""

    def copy(self) -> State:
        """A state of its own; tensors that are never written to are shared."""
        return replace(self, cache=self.cache.copy(), plan=self.plan.copy())

    def branch(self) -> State:
        """This state to make a chunk on, which shows here no more than it would in a copy.

        It costs no memory, and ends when it is branched in its turn.
        """
        cache, before = (self._committed_anew() if self.stale else self.cache).branch(), self.before
        if self.earlier is not None and before is not None:
            self.earlier.commit(before, cache=cache, start=self.start - before.shape[1])
            before = None
        return replace(self, cache=cache, before=before, plan=self.plan.copy(), stale=False, earlier=None)

    @property
    def direction(self) -> Direction:
        """Where the stream goes from here."""
        return Direction(self.conditioning.prompts[0], self.plan_text, self.conditioning.seed)

    @property
    def pixels(self) -> int:
        """First pixel frame of the next chunk."""
        return pixel_frames(self.start) if self.start else 0

    def after(
        self, latents: Tensor, decoded: Deferred[Decoded], final: Deferred[Decoded] | None, reach: Reach
    ) -> State:
        """The state after this chunk [B, F, C, h, w], which ``decoded`` and ``final`` make pixels of."""
        length, start = latents.shape[1], self.start
        clean = (*self.clean, (start, latents))
        return replace(
            self,
            decoded=decoded,
            final=final,
            changes=Changes(),
            index=self.index + 1,
            start=start + length,
            since=self.since + 1,
            before=latents,
            clean=tuple(part for part in clean if _in_sight(*part, start + 2 * length, reach)),
        )

    def _committed_anew(self) -> KVCache:
        """What later chunks see, in the place of what the cache holds; the newest frames follow with the next call."""
        cache, newest = self.cache.emptied(), 0 if self.before is None else self.before.shape[1]
        for start, latents in self.clean:
            cache.skip_to(start)
            if start + latents.shape[1] < self.start:
                self.denoiser.commit(latents, cache=cache, start=start)
        cache.skip_to(self.start - newest)  # in a window of one chunk nobody sees the newest frames
        return cache


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a session is between two calls."""

    state: State
    recording: Recording
    """What has been handed out."""
    waiting: tuple[PendingChunk, ...] = ()
    """Chunks that are begun and not handed out; ``state`` comes after them."""
    undo: tuple[State, ...] = ()
    """The newest states, that can be gone back to at once."""

    @property
    def direction(self) -> Direction:
        """Where the stream goes from here."""
        return self.state.direction


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What is left of a session that is closed."""

    recording: Recording
    direction: Direction


def first_state(
    conditioning: Conditioning,
    plan_text: str,
    denoiser: CausalDenoiser[KVCache],
    plan: LivePlan,
    decoder: LatentStream,
    final: LatentStream | None = None,
    *,
    frame: tuple[int, int, int],
    reach: Reach,
) -> State:
    """Before the first chunk of frames ``(C, h, w)``."""
    _, height, width = frame
    nothing = torch.empty(1, 0, 3, 0, 0)

    def begun(stream: LatentStream) -> Deferred[Decoded]:
        return Deferred(lambda: Decoded(stream, nothing))

    return State(
        conditioning=conditioning,
        plan_text=plan_text,
        denoiser=denoiser,
        plan=plan,
        cache=denoiser.new_cache(1, None, height, width, reach=reach),
        decoded=begun(decoder),
        final=None if final is None else begun(final),
    )


def continued(state: State, context: Tensor, chunk: int, reach: Reach) -> State:
    """After the clean latents ``context`` [1, F, C, h, w], all committed but their last part."""
    for decoded in filter(None, (state.decoded, state.final)):
        decoded.result().stream.decode(context)
    for part in context.split(pieces(context.shape[1], chunk), 1):
        if state.before is not None:
            state.denoiser.commit(state.before, cache=state.cache, start=state.cache.end)
        clean, start = (*state.clean, (state.start, part)), state.start + part.shape[1]
        clean = tuple(part for part in clean if _in_sight(*part, start + chunk, reach))
        state = replace(state, start=start, before=part, clean=clean)
    return state


def _in_sight(start: int, latents: Tensor, end: int, reach: Reach) -> bool:
    """Whether a chunk that ends before frame ``end`` sees some of these frames."""
    return reach.covers(start + latents.shape[1] - 1, end) or reach.covers(start, end)


def pieces(frames: int, chunk: int) -> tuple[int, ...]:
    """A clip's frames as chunks: the odd ones first, as a single picture is."""
    odd = frames % chunk
    return ((odd,) if odd else ()) + chunk_lengths(frames - odd, chunk) if frames > odd else (odd,)
