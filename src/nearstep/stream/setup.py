"""What a session is made of: the model that it needs, what holds from beginning to end, and what to make again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.flow.live_plan import LivePlan
from nearstep.nets.cache import KVCache
from nearstep.protocols import CausalDenoiser, Codec, LatentStream
from nearstep.reach import Reach
from nearstep.stream.recording import ChunkEntry, Opening, Recording
from nearstep.stream.request import Conditioning


@runtime_checkable
class StreamModel(Protocol):
    """What a session needs of a model; a pipeline is one."""

    @property
    def chunk_frames(self) -> int:
        """Latent frames of a chunk."""
        ...

    @property
    def network_device(self) -> torch.device:
        """Where noise and latents are."""
        ...

    @property
    def decoder_device(self) -> torch.device:
        """Where the decoder is."""
        ...

    def conditioning(
        self,
        prompt: str,
        *,
        negative_prompt: str | Sequence[str],
        guidance_scale: float | None,
        seed: int | None,
        samples: Sequence[int] | None,
    ) -> Conditioning:
        """What is to be shown, checked."""
        ...

    def denoiser(self, conditioning: Conditioning) -> CausalDenoiser[KVCache]:
        """The network with this text bound."""
        ...

    def live_plan(self, text: str) -> LivePlan:
        """What a plan string means for a stream of it."""
        ...

    def latent_stream(self) -> LatentStream:
        """A fresh stream of the decoder."""
        ...

    def maybe_free_model_hooks(self) -> None:
        """A stream has ended: what was brought to the device for it may go."""
        ...


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What holds for a session from beginning to end, and for its forks."""

    model: StreamModel
    opening: Opening
    conditioning: Conditioning
    """The opening's, checked."""
    frame: tuple[int, int, int]
    """(C, h, w) of a latent frame."""
    context: Tensor | None = None
    """Latents [1, F, C, h, w] of a picture or a clip to go on from."""
    undo_depth: int = 0
    """So many of the newest chunks can be taken back at once; each costs a copy of the cache."""
    prefetch: bool = False
    """Make the next chunk while one is decoded, from the second on. The frames are the same and come faster; a change
    acts one chunk later."""
    codec: Codec | None = None
    """Makes the final pixels, where another decoder makes the preview."""

    def __post_init__(self) -> None:
        if isinstance(self.undo_depth, bool) or not isinstance(self.undo_depth, int) or self.undo_depth < 0:
            raise NearstepError(f"undo_depth={self.undo_depth!r}; give 0 (none) or how many chunks can be taken back")
        if not isinstance(self.prefetch, bool):
            raise NearstepError(f"prefetch={self.prefetch!r:.60}; give True or False")

    @property
    def reach(self) -> Reach:
        """How far back chunks look."""
        opening = self.opening
        return Reach(window=opening.window, sink=opening.sink, relative_sink=opening.relative_sink)


@dataclass(frozen=True, kw_only=True)
class Script:
    """A recording's chunks, to be made again."""

    chunks: Sequence[ChunkEntry]
    keep_times: bool = True
    """Whether they get the steps they had, or what the plan gives."""

    @classmethod
    def of(cls, recording: Recording, *, keep_times: bool) -> Script:
        """A recording's; changes of plan count only where chunks keep the steps they had."""
        if keep_times:
            return cls(chunks=recording.chunks)
        return cls(
            chunks=[replace(entry, changes=replace(entry.changes, plan=None)) for entry in recording.chunks],
            keep_times=False,
        )
