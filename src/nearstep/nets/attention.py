"""Self-attention over [past | present] and cross-attention to text, under diffusers' parameter names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from nearstep.nets.cache import KeysValues, Past
from nearstep.nets.kernels import written_out
from nearstep.nets.masks import Group, without_queries
from nearstep.nets.rope import RopeTable, advance, rotate
from nearstep.precision import wide


class WideRMSNorm(nn.RMSNorm):
    """RMS norm computed and returned in float32 for narrower inputs, in the input's dtype otherwise."""

    def forward(self, x: Tensor) -> Tensor:
        x = wide(x)
        return rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Projections of one attention, with RMS norm of queries and keys over the full width (Wan2.1).

    The parameters serve self- and cross-attention alike; which one it is follows from the method that is called.
    """

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = WideRMSNorm(dim, eps=eps)
        self.norm_k = WideRMSNorm(dim, eps=eps)

    def queries(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, heads, head_dim], normed."""
        return self._heads(self.norm_q(self.to_q(x)))

    def keys_values(self, x: Tensor) -> KeysValues:
        """[B, S, D] -> keys (normed) and values, each [B, S, heads, head_dim]."""
        return self._heads(self.norm_k(self.to_k(x))), self._heads(self.to_v(x))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, groups: Sequence[Group] = ()) -> Tensor:
        """Attention of queries [B, S, heads, head_dim] over keys and values [B, K, ...] -> [B, S, D].

        groups: who sees what (masks.py); empty where every token sees all. The values' dtype decides: under autocast
        norms and rotations leave float32, and attention wants one dtype.
        """
        q, k = queries.to(values.dtype), keys.to(values.dtype)
        if groups:
            own = q.split([group.end - group.first for group in groups], dim=1)
            key_runs, value_runs = runs_of(k, groups), runs_of(values, groups)
            parts = [
                attention(part, visible(key_runs, group, group.sink_shift), visible(value_runs, group))
                for part, group in zip(own, groups, strict=True)
            ]
            return self.to_out[0](torch.cat(parts, dim=1).flatten(2))
        return self.to_out[0](attention(q, k, values).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(Attention):
    """Attention of a call's tokens over those committed before and over themselves."""

    def forward(
        self, x: Tensor, rope: RopeTable, groups: Sequence[Group] = (), past: Past | None = None, keys_only: int = 0
    ) -> tuple[Tensor, KeysValues]:
        """x [B, S, D] -> output [B, S - keys_only, D] and x's rotated keys and values, each [B, S, heads, head_dim].

        keys_only: so many of the first tokens have no queries: others see them, and that is all.
        """
        keys, values = self.keys_values(x)
        keys = rotate(keys, rope)
        if keys_only == x.shape[1]:
            return x[:, keys_only:], (keys, values)
        if keys_only:
            x, rope = x[:, keys_only:], (rope[0][keys_only:], rope[1][keys_only:])
            groups = without_queries(groups, keys_only)
        queries = rotate(self.queries(x), rope)
        return self.attend(queries, *joined(past, keys, values), groups), (keys, values)


class CrossAttention(Attention):
    """Attention over a text whose keys and values were computed once (`keys_values`)."""

    def forward(self, x: Tensor, text: KeysValues) -> Tensor:
        """x [B, S, D] over text keys and values [B, L, heads, head_dim] -> [B, S, D]."""
        return self.attend(self.queries(x), *text)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, all [B, tokens, heads, head_dim].

    Training in bfloat16 on a CPU writes it out: torch's fused kernel takes four to ten times as long in its backward
    pass there (torch 2.13, 144 tokens).
    """
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if q.dtype == torch.bfloat16 and torch.is_grad_enabled() and written_out(q):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v).transpose(1, 2)
    return scaled_dot_product_attention(q, k, v).transpose(1, 2)


def runs_of(x: Tensor, groups: Sequence[Group]) -> dict[tuple[int, int], list[Tensor]]:
    """The tokens of x [B, K, heads, head_dim] in each run that a group sees, as parts that follow each other.

    A slice's gradient is as large as x, zeros but for the slice, and what groups see overlaps: where gradients are
    asked for, x is cut once wherever a run begins or ends, and a part's gradient is no larger than the part.
    """
    runs = [run for group in groups for run in group.keys]
    if not (torch.is_grad_enabled() and x.requires_grad):
        return {(first, end): [x[:, first:end]] for first, end in runs}
    edges = sorted({0, x.shape[1], *(edge for run in runs for edge in run)})
    parts = x.split([end - first for first, end in pairwise(edges)], dim=1)
    places = {edge: place for place, edge in enumerate(edges)}
    return {(first, end): [*parts[places[first] : places[end]]] for first, end in runs}


def visible(runs: Mapping[tuple[int, int], list[Tensor]], group: Group, sink_shift: int = 0) -> Tensor:
    """The tokens that the group sees; a view where they are one part.

    sink_shift: frames by which those of the first run, if they are keys, are rotated forward.
    """
    seen = [runs[run] for run in group.keys]
    if sink_shift:
        seen[0] = [advance(part, sink_shift) for part in seen[0]]
    parts = [part for run in seen for part in run]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def joined(past: Past | None, keys: Tensor, values: Tensor) -> KeysValues:
    """[past | present] along the tokens; in place where the past brings room for the present (cache.Past)."""
    if past is None:
        return keys, values
    if past.room:
        past.keys[:, -keys.shape[1] :].copy_(keys)
        past.values[:, -values.shape[1] :].copy_(values)
        return past.keys.to(values.dtype), past.values.to(values.dtype)
    return torch.cat([past.keys.to(values.dtype), keys.to(values.dtype)], 1), torch.cat(
        [past.values.to(values.dtype), values], 1
    )
