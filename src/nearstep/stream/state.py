"""What a session hands out and what it holds; and how far back its chunks look."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.flow.plan import chunk_lengths
from nearstep.nets.cache import KVCache
from nearstep.nets.masks import Reach
from nearstep.protocols import CausalDenoiser, LatentStream
from nearstep.shapes import latent_frames


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


@dataclass(kw_only=True)
class State:
    """Where a session is: all that its next chunk depends on, but for what was asked."""

    cache: KVCache
    decoder: LatentStream
    index: int = 0
    """Of the next chunk."""
    start: int = 0
    """Its first latent frame."""
    pixels: int = 0
    """Its first pixel frame."""
    since: int = 0
    """Chunks since the start, or since prompt or plan changed."""
    before: Tensor | None = None
    """The clean frames before it, which are committed together with its first call."""
    clean: list[tuple[int, Tensor]] = field(default_factory=list)
    """Clean frames that later chunks see, with the first one's number: to be committed anew under another prompt."""

    def copy(self) -> State:
        """A state of its own; tensors that are never written to are shared."""
        return replace(self, cache=self.cache.copy(), decoder=self.decoder.copy(), clean=[*self.clean])

    def made(self, frames: Frames, decoder: LatentStream, reach: Reach) -> State:
        """The state after this chunk, and after ``decoder`` has decoded it."""
        length, start = frames.latents.shape[1], self.start
        clean = [*self.clean, (start, frames.latents)]
        return replace(
            self,
            decoder=decoder,
            index=self.index + 1,
            start=start + length,
            pixels=self.pixels + frames.video.shape[1],
            since=self.since + 1,
            before=frames.latents,
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
    return State(cache=denoiser.new_cache(1, None, height, width, reach=reach), decoder=decoder)


def going_on(state: State, denoiser: CausalDenoiser, given: Tensor, chunk: int, reach: Reach) -> State:
    """After clean latents ``given`` [1, F, C, h, w], all committed but their last part."""
    state = replace(state, pixels=state.decoder.decode(given).shape[1])
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
    return Reach(window=seen, sink=kept, following=not config["sink_frames"] if following is None else following)


def digest(tensor: Tensor) -> str:
    """A short name for a tensor's content."""
    return hashlib.blake2b(tensor.detach().float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
