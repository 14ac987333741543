"""What a session hands out and what it holds; and how far back its chunks look."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.flow.live_plan import LivePlan
from nearstep.flow.plan import chunk_lengths
from nearstep.nets.cache import KVCache
from nearstep.nets.masks import Reach
from nearstep.protocols import CausalDenoiser, LatentStream
from nearstep.rollout.rollout import Chunk
from nearstep.shapes import latent_frames, pixel_frames
from nearstep.stream.decoding import Decoded, Later


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A finished chunk, decoded."""

    index: int
    start: int
    """Pixel frame of the clip that the chunk begins with."""
    video: Tensor
    """[B, T, 3, H, W] in [0, 1], float32."""
    latents: Tensor
    """[B, F, C, h, w]."""
    steps: int
    """Denoising calls it took."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A chunk whose pixels may still be in the making."""

    chunk: Chunk
    start: int
    """Its first pixel frame."""
    calls: float
    """Seconds in the network."""
    decoded: Later[Decoded]
    entry: dict[str, Any]
    """Its line in the record."""

    @property
    def index(self) -> int:
        """Its number."""
        return self.chunk.index

    def frames(self, plan: LivePlan) -> Frames:
        """The chunk, once it is decoded; ``plan`` learns what it took."""
        began = time.perf_counter()
        video = self.decoded.result().video
        plan.observe(self.chunk.steps, self.calls, time.perf_counter() - began)
        return Frames(
            index=self.index, start=self.start, video=video, latents=self.chunk.latents, steps=self.chunk.steps
        )


@dataclass(kw_only=True)
class State:
    """Where a session is: all that its next chunk depends on, but for what was asked."""

    cache: KVCache
    decoded: Later[Decoded]
    """What the decoder has made of all before, or will have."""
    index: int = 0
    """Of the next chunk."""
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
        return replace(self, cache=self.cache.copy(), clean=[*self.clean])

    @property
    def pixels(self) -> int:
        """First pixel frame of the next chunk."""
        return pixel_frames(self.start) if self.start else 0

    def made(self, latents: Tensor, decoded: Later[Decoded], reach: Reach) -> State:
        """The state after this chunk [B, F, C, h, w], which ``decoded`` makes pixels of."""
        length, start = latents.shape[1], self.start
        clean = [*self.clean, (start, latents)]
        return replace(
            self,
            decoded=decoded,
            index=self.index + 1,
            start=start + length,
            since=self.since + 1,
            before=latents,
            clean=[part for part in clean if _in_sight(*part, start + 2 * length, reach)],
        )

    def commit_anew(self, denoiser: CausalDenoiser) -> None:
        """Fill the cache again with what later chunks see; the newest frames follow with the next call."""
        self.cache.clear()
        for start, latents in self.clean:
            self.cache.skip_to(start)
            if start + latents.shape[1] < self.start:
                denoiser.commit(latents, cache=self.cache, start=start)


def beginning(denoiser: CausalDenoiser, decoder: LatentStream, frame: tuple[int, int, int], reach: Reach) -> State:
    """Before the first chunk."""
    _, height, width = frame
    nothing = torch.empty(1, 0, 3, 0, 0)
    cache = denoiser.new_cache(1, None, height, width, reach=reach)
    return State(cache=cache, decoded=Later(lambda: Decoded(decoder, nothing)))


def going_on(state: State, denoiser: CausalDenoiser, given: Tensor, chunk: int, reach: Reach) -> State:
    """After clean latents ``given`` [1, F, C, h, w], all committed but their last part."""
    state.decoded.result().stream.decode(given)
    for part in given.split(pieces(given.shape[1], chunk), 1):
        if state.before is not None:
            denoiser.commit(state.before, cache=state.cache, start=state.cache.end)
        clean, start = [*state.clean, (state.start, part)], state.start + part.shape[1]
        clean = [part for part in clean if _in_sight(*part, start + chunk, reach)]
        state = replace(state, start=start, before=part, clean=clean)
    return state


def _in_sight(start: int, latents: Tensor, end: int, reach: Reach) -> bool:
    """Whether a chunk that ends before frame ``end`` sees some of these frames."""
    return reach.window is None or start + latents.shape[1] > end - reach.window or start < reach.sink


def pieces(frames: int, chunk: int) -> tuple[int, ...]:
    """A given clip's frames as chunks: the odd ones first, as a single picture is."""
    odd = frames % chunk
    return ((odd,) if odd else ()) + chunk_lengths(frames - odd, chunk) if frames > odd else (odd,)


def reach_of(
    config: Mapping[str, Any], trained: int, window: int | None, sink: int | None, following: bool | None
) -> Reach:
    """How far a stream's chunks look back: as far as the network was made for, unless told otherwise.

    A network without a window of its own was trained on clips of ``trained`` pixel frames: it gets its first chunk as a
    sink, and a window such that both together are as long as those clips.
    """
    chunk, own = config["chunk_frames"], config["window_frames"]
    usual = config["sink_frames"] if own else min(chunk, max(0, latent_frames(trained) - chunk))
    kept = usual if sink is None else sink
    if kept < 0:
        raise NearstepError(f"sink={kept}; give 0 (none) or how many of the first frames every chunk sees")
    seen = (own or max(chunk, latent_frames(trained) - kept)) if window is None else window
    if seen < chunk:
        raise NearstepError(f"window={seen} is shorter than a chunk of {chunk} frames; give at least {chunk}")
    return Reach(window=seen, sink=kept, relative_sink=not config["sink_frames"] if following is None else following)


def digest(tensor: Tensor) -> str:
    """A short name for a tensor's content."""
    return hashlib.blake2b(tensor.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
