"""The discriminators D_n: one small head on the features of a denoiser, one logit per step count.

A denoiser that has learnt scores of noised clips knows what they look like; the heads read its features at some blocks
and say, for each n, whether the clip looks like n + 1 steps rather than n. Every logit is one number per clip, over all
frames: a bidirectional backbone judges motion too (AAD-1). Their losses are in method.md section 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from nearstep.errors import NearstepError
from nearstep.nets.attention import CrossAttention
from nearstep.nets.blocks import WideLayerNorm
from nearstep.nets.transformer import sinusoid

DEPTHS = (0.45, 0.7, 1.0)
"""Where the features are taken, as shares of the depth."""
_TIME_WIDTH = 64
_EPS = 1e-6


def tap_blocks(num_layers: int, depths: Sequence[float] = DEPTHS) -> tuple[int, ...]:
    """Indices of the blocks at these shares of the depth: 30 layers -> (13, 20, 29)."""
    return tuple(sorted({max(1, round(depth * num_layers)) - 1 for depth in depths}))


Pool = Literal["attention", "mean"]
"""``attention``: a learnt token gathers each block's tokens, and the logit is made of what it found. ``mean``: every
token gets a logit of its own, and the clip's is their mean (as patch discriminators do)."""


class Tap(nn.Module):
    """Reads one block's features: each token alone through a small MLP, then, asked to, one learnt token gathers them.

    The MLP comes first because flaws are local, and a mean over tokens that were not yet looked at hides them.
    """

    def __init__(self, width: int, dim: int, heads: int, pool: Pool) -> None:
        super().__init__()
        self.norm = WideLayerNorm(width, _EPS, elementwise_affine=False)
        self.hidden = nn.Linear(width, dim)
        self.pool = pool
        if pool == "attention":
            self.query = nn.Parameter(torch.zeros(1, 1, dim))
            self.attention = CrossAttention(dim, heads, _EPS)
            nn.init.normal_(self.query, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """[B, S, width] -> [B, 1, D], or [B, S, D] where tokens stay by themselves."""
        tokens = gelu(self.hidden(self.norm(features)), approximate="tanh")
        if self.pool == "mean":
            return tokens
        query = self.query.expand(features.shape[0], -1, -1)
        return self.attention(query, self.attention.keys_values(tokens))


class Discriminator(nn.Module):
    """Features of a denoiser at some blocks, and the time they were taken at -> one logit per step count.

    Args:
        dim: width of the heads, and of the features unless ``widths`` says otherwise.
        heads: attention heads of a tap.
        blocks: indices of the blocks that are read (``tap_blocks``).
        pairs: N, the number of logits.
        pool: how one logit is made of the tokens.
        timed: whether the logits depend on the time beyond what the features tell of it.
        widths: of each block's features.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        blocks: Sequence[int],
        pairs: int,
        *,
        pool: Pool = "attention",
        timed: bool = True,
        widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if pairs < 1 or not blocks:
            raise NearstepError(f"pairs={pairs}, blocks={tuple(blocks)}; a discriminator needs at least one of each")
        self.blocks, self.pairs = tuple(blocks), pairs
        widths = (dim,) * len(self.blocks) if widths is None else widths
        self.taps = nn.ModuleList(Tap(width, dim, heads, pool) for width in widths)
        self.time = nn.Linear(_TIME_WIDTH, dim) if timed else None
        self.mix = nn.Linear(dim * (len(self.blocks) + timed), dim)
        self.logits = nn.Linear(dim, pairs)

    def forward(
        self, features: Mapping[int, Float[Tensor, "B _ _"]], t: Float[Tensor, " B"]
    ) -> Float[Tensor, "B {self.pairs}"]:
        """Logits [B, N] in float32; column n - 1 is D_n, large where the clip looks like n + 1 steps.

        Args:
            features: block index -> [B, S, width], as VideoTransformer gives them; where tokens stay by themselves,
                all blocks have as many.
            t: time of each clip's noise.
        """
        weight = self.logits.weight
        with torch.autocast(weight.device.type, enabled=False):
            read = [tap(features[block].to(weight.dtype)) for block, tap in zip(self.blocks, self.taps, strict=True)]
            if self.time is not None:
                time = gelu(self.time(sinusoid(t, _TIME_WIDTH).to(weight.dtype)), approximate="tanh")
                read.append(time[:, None].expand(-1, read[0].shape[1], -1))
            mixed = gelu(self.mix(torch.cat(read, dim=-1)), approximate="tanh")
            return self.logits(mixed).mean(1)
