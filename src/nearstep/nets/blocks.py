"""The transformer block: modulation, self-attention, text, feed-forward (Wan2.1), under diffusers' parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm

from nearstep.nets.attention import CrossAttention, SelfAttention
from nearstep.nets.cache import KeysValues, Past
from nearstep.nets.masks import Group
from nearstep.nets.rope import RopeTable
from nearstep.nets.script import Turn, turn_of
from nearstep.precision import wide


class WideLayerNorm(nn.LayerNorm):
    """Layer norm computed and returned in float32 for narrower inputs, in the input's dtype otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        x = wide(input)
        weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        return layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class GELUProjection(nn.Module):
    """Linear, then tanh-approximated GELU; a module of its own because its weights are called `proj`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linears around a GELU. The middle entry keeps the place of the dropout that diffusers numbers."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GELUProjection(dim, hidden), nn.Identity(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to text and feed-forward on a residual stream of [B, F, N, D].

    The stream keeps its dtype; norms and modulation are computed in float32 at least. Modulation is one row per frame,
    broadcast over the frame's N tokens and never expanded to them.
    """

    def __init__(self, dim: int, ffn_dim: int, heads: int, *, cross_attn_norm: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = WideLayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = SelfAttention(dim, heads, eps)
        self.attn2 = CrossAttention(dim, heads, eps)
        self.norm2 = WideLayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, ffn_dim)
        self.norm3 = WideLayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def text_keys(self, text: Tensor) -> KeysValues:
        """Keys and values of the embedded text [B, L, D] for this block's cross-attention."""
        return self.attn2.keys_values(text)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: KeysValues,
        rope: RopeTable,
        groups: Sequence[Group] = (),
        past: Past | None = None,
        keep: bool = False,
        keys_only: int = 0,
        turns: Sequence[Turn] = (),
    ) -> tuple[Tensor, KeysValues | None]:
        """One block.

        Args:
            x: [B, F, N, D].
            modulation: [B, F or 1, 6, D], of the frames' times.
            text: this block's text keys and values.
            rope: rotary table of the F * N tokens.
            groups: which tokens see what of [past | x] (masks.py); empty where all see all.
            past: committed keys and values to read before x's own.
            keep: also return x's own keys and values, for a commit.
            keys_only: so many of x's first frames are wanted for their keys and values alone, and are not returned.
            turns: which of the others read which prompt of a script; empty where one prompt holds.
        """
        dtype = x.dtype
        rows = wide(self.scale_shift_table + modulation).unsqueeze(-2)
        shift_a, scale_a, *_ = rows.unbind(2)
        if keys_only and rows.shape[1] > 1:
            rows = rows[:, keys_only:]
        *_, gate_a, shift_f, scale_f, gate_f = rows.unbind(2)

        normed = (self.norm1(x) * (1 + scale_a) + shift_a).to(dtype)
        attended, own = self.attn1(normed.flatten(1, 2), rope, groups, past, keys_only * x.shape[2])
        if keys_only:
            x = x[:, keys_only:]
        if not (frames := x.shape[1]):
            return x, own
        x = (x + attended.unflatten(1, (frames, -1)) * gate_a).to(dtype)

        x = x + self._read(self.norm2(x).to(dtype), text, turns).to(dtype)

        normed = (self.norm3(x) * (1 + scale_f) + shift_f).to(dtype)
        x = (x + self.ffn(normed) * gate_f).to(dtype)
        return x, own if keep else None

    def _read(self, x: Tensor, text: KeysValues, turns: Sequence[Turn]) -> Tensor:
        """Cross-attention of frames [B, F, N, D], each to the prompt that holds at it."""
        if not turns:
            return self.attn2(x.flatten(1, 2), text).unflatten(1, (x.shape[1], -1))
        own = x.split([turn.end - turn.first for turn in turns], dim=1)
        parts = [
            self.attn2(part.flatten(1, 2), turn_of(text, turn, len(x))).unflatten(1, part.shape[1:3])
            for part, turn in zip(own, turns, strict=True)
        ]
        return torch.cat(parts, dim=1)
