"""Where a session is between two chunks: all that its next chunk depends on."""

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
from nearstep.stream.recording import Changes, ChunkEntry
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
            index=self.index, start=self.start, video=video, latents=self.chunk.latents, steps=self.chunk.steps
        )


class Direction(NamedTuple):
    """What the next chunk is to show, and what it gets, in words: what a change changes."""

    prompt: str
    plan: str
    seed: int


@dataclass(kw_only=True)
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
    clean: list[tuple[int, Tensor]] = field(default_factory=list)
    """Clean frames that later chunks see, with the first one's number: to be committed anew under another prompt."""

    def copy(self) -> State:
        """A state of its own; tensors that are never written to are shared."""
        return replace(self, cache=self.cache.copy(), plan=self.plan.copy(), clean=[*self.clean])

    @property
    def direction(self) -> Direction:
        """Where the stream goes from here."""
        return Direction(self.conditioning.prompts[0], self.plan_text, self.conditioning.seed)

    @property
    def pixels(self) -> int:
        """First pixel frame of the next chunk."""
        return pixel_frames(self.start) if self.start else 0

    def after(self, latents: Tensor, decoded: Deferred[Decoded], reach: Reach) -> State:
        """The state after this chunk [B, F, C, h, w], which ``decoded`` makes pixels of."""
        length, start = latents.shape[1], self.start
        clean = [*self.clean, (start, latents)]
        return replace(
            self,
            decoded=decoded,
            changes=Changes(),
            index=self.index + 1,
            start=start + length,
            since=self.since + 1,
            before=latents,
            clean=[part for part in clean if _in_sight(*part, start + 2 * length, reach)],
        )

    def commit_anew(self) -> None:
        """Fill the cache again with what later chunks see; the newest frames follow with the next call."""
        self.cache.clear()
        for start, latents in self.clean:
            self.cache.skip_to(start)
            if start + latents.shape[1] < self.start:
                self.denoiser.commit(latents, cache=self.cache, start=start)


def first_state(
    conditioning: Conditioning,
    plan_text: str,
    denoiser: CausalDenoiser[KVCache],
    plan: LivePlan,
    decoder: LatentStream,
    *,
    frame: tuple[int, int, int],
    reach: Reach,
) -> State:
    """Before the first chunk of frames ``(C, h, w)``."""
    _, height, width = frame
    nothing = torch.empty(1, 0, 3, 0, 0)
    return State(
        conditioning=conditioning,
        plan_text=plan_text,
        denoiser=denoiser,
        plan=plan,
        cache=denoiser.new_cache(1, None, height, width, reach=reach),
        decoded=Deferred(lambda: Decoded(decoder, nothing)),
    )


def continued(state: State, context: Tensor, chunk: int, reach: Reach) -> State:
    """After the clean latents ``context`` [1, F, C, h, w], all committed but their last part."""
    state.decoded.result().stream.decode(context)
    for part in context.split(pieces(context.shape[1], chunk), 1):
        if state.before is not None:
            state.denoiser.commit(state.before, cache=state.cache, start=state.cache.end)
        clean, start = [*state.clean, (state.start, part)], state.start + part.shape[1]
        clean = [part for part in clean if _in_sight(*part, start + chunk, reach)]
        state = replace(state, start=start, before=part, clean=clean)
    return state


def _in_sight(start: int, latents: Tensor, end: int, reach: Reach) -> bool:
    """Whether a chunk that ends before frame ``end`` sees some of these frames."""
    return reach.covers(start + latents.shape[1] - 1, end) or reach.covers(start, end)


def pieces(frames: int, chunk: int) -> tuple[int, ...]:
    """A clip's frames as chunks: the odd ones first, as a single picture is."""
    odd = frames % chunk
    return ((odd,) if odd else ()) + chunk_lengths(frames - odd, chunk) if frames > odd else (odd,)
