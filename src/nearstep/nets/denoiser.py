"""A network and a text as a causal denoiser (protocols.CausalDenoiser)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.nets.cache import KVCache
from nearstep.nets.masks import block_causal
from nearstep.nets.script import Script, TextKeys
from nearstep.nets.transformer import VideoTransformer
from nearstep.reach import Reach

LARGEST_FUSED = 256
"""Tokens of a chunk up to which a CPU gains by fusing its commit: above, what a call works on no longer stays in the
processor's caches, and two calls are faster than one of twice the size (benchmarks/gains.py)."""


class TextDenoiser:
    """Binds a network to a batch of prompts.

    The text's keys and values are computed here, once. They belong to the weights as they are now, and made under grad
    they carry a graph: in training, bind anew for every backward pass.

    Args:
        net: the network.
        text: [B, L, text_dim], a script (script.py), or the network's `text_keys` of either.
    """

    def __init__(self, net: VideoTransformer, text: Float[Tensor, "B L D"] | Script | TextKeys) -> None:
        self.net = net
        self.text = text if isinstance(text, TextKeys) else net.text_keys(text)

    def __call__(
        self,
        x: Float[Tensor, "B F C H W"],
        t: Float[Tensor, "B ..."],
        *,
        cache: KVCache | None = None,
        start: int = 0,
    ) -> Float[Tensor, "B F C H W"]:
        """Velocity of the frames from `start` on, given what `cache` holds; never writes."""
        return self.net(x, t, self.text, cache=cache, start=start)

    def commit(self, x: Float[Tensor, "B F C H W"], *, cache: KVCache, start: int) -> None:
        """Write the clean frames x to the cache: one call at t = 0, without grad."""
        with torch.no_grad():
            self.net(x, x.new_zeros(x.shape[0]), self.text, cache=cache, start=start, commit=x.shape[1])

    def commit_then(
        self,
        clean: Float[Tensor, "B P C H W"],
        x: Float[Tensor, "B F C H W"],
        t: Float[Tensor, "B F"],
        *,
        cache: KVCache,
        start: int,
    ) -> Float[Tensor, "B F C H W"]:
        """`commit` of the clean frames before `start`, and then the call on x (docs/stream.md).

        One network call, unless two are faster.
        """
        before = clean.shape[1]
        if not fuses(before * cache.tokens_per_frame, clean.device):
            self.commit(clean, cache=cache, start=start - before)
            return self(x, t, cache=cache, start=start)
        with torch.no_grad():
            return self.net(
                torch.cat([clean, x], dim=1),
                torch.cat([t.new_zeros(t.shape[0], before), t], dim=1),
                self.text,
                visibility=block_causal((before, x.shape[1]), cache.reach),
                cache=cache,
                start=start - before,
                commit=before,
            )

    def new_cache(
        self,
        batch: int,
        frames: int | None,
        height: int,
        width: int,
        *,
        reach: Reach | None = None,
        append_only: bool = False,
    ) -> KVCache:
        """An empty cache (transformer.py); `append_only` for training: the backward pass may read frames again."""
        if batch != self.text.batch:
            raise NearstepError(f"a cache for batch {batch} needs {batch} prompts, not {self.text.batch}")
        return self.net.new_cache(batch, frames, height, width, reach=reach, append_only=append_only)


def fuses(tokens: int, device: torch.device) -> bool:
    """Whether the commit of a chunk of so many tokens is one network call with the call after it."""
    return device.type != "cpu" or tokens <= LARGEST_FUSED
