"""Wan2.1: its sizes, its parameter names, and its clock of a thousand ticks (method.md sections 2 and 5).

Weights go by two sets of names: official ones (Wan2.1's release, Self-Forcing's .pt files) and diffusers' ones, which
are ours. Both conversions read one table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from torch import Tensor

from nearstep.errors import NearstepError

_COMMON = {
    "patch_size": (1, 2, 2),
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "eps": 1e-6,
}

SIZES: Mapping[str, Mapping[str, Any]] = {
    "1.3B": {**_COMMON, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14B": {**_COMMON, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
"""Configuration of each Wan2.1 text-to-video network, as VideoTransformer's arguments."""

_ATTENTIONS = {"self_attn": "attn1", "cross_attn": "attn2"}
_PARTS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}

_IN_BLOCK = {
    **{f"{a}.{b}": f"{_ATTENTIONS[a]}.{_PARTS[b]}" for a, b in product(_ATTENTIONS, _PARTS)},
    "modulation": "scale_shift_table",
    "norm3": "norm2",  # the affine norm before cross-attention; the other two have no weights
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}

_IN_BLOCK_BACK, _OUTSIDE_BACK = ({ours: name for name, ours in table.items()} for table in (_IN_BLOCK, _OUTSIDE))

_NAME = re.compile(r"(?P<block>blocks\.\d+\.)?(?P<stem>.+?)(?P<kind>\.(?:weight|bias))?")
_FIRST_WEIGHT = "patch_embedding.weight"  # by both sets of names
_WRAPPERS = frozenset({"model", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official Wan2.1 names to diffusers' (ours). Wrappers' prefixes are dropped (`unwrapped`)."""
    return {our_name(key): value for key, value in unwrapped(state).items()}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers' names to official Wan2.1 ones."""
    return {official_name(key): value for key, value in state.items()}


def our_name(official: str) -> str:
    """One official name, without wrappers, as ours."""
    return _renamed(official, _IN_BLOCK, _OUTSIDE)


def official_name(ours: str) -> str:
    """One of our names as the official one."""
    return _renamed(ours, _IN_BLOCK_BACK, _OUTSIDE_BACK)


def layer_names(*, inside: bool) -> Mapping[str, str]:
    """Official names of layers, without weight or bias -> ours: those of a block, or those outside."""
    return _IN_BLOCK if inside else _OUTSIDE


def is_official(names: Iterable[str]) -> bool:
    """Whether a network's weights go by official names: the two sets share the patch embedding's alone."""
    return any(name.split(".")[-2:-1] == ["q"] or "text_embedding." in name or "head.head." in name for name in names)


def sizes_of(shapes: Mapping[str, Sequence[int]], *, head_dim: int = 128) -> dict[str, Any]:
    """VideoTransformer's arguments, read off the shapes of its weights under our names.

    All follow from the shapes but two that leave no trace there: ``eps`` and the width of a head, 128 in every Wan2.1.

    Raises:
        NearstepError: if these are no Wan network's weights, or heads of ``head_dim`` do not divide its width.
    """
    needed = ("patch_embedding.weight", "proj_out.weight", "blocks.0.ffn.net.0.proj.weight")
    text, time = (f"condition_embedder.{part}_embedder.linear_1.weight" for part in ("text", "time"))
    if missing := [name for name in (*needed, text, time) if name not in shapes]:
        raise NearstepError(f"no Wan2.1 network: {missing[0]} is missing; its weights begin {_first(shapes)}")
    dim, channels, *patch = shapes[needed[0]]
    if dim % head_dim:
        raise NearstepError(f"a network {dim} wide has no heads {head_dim} wide; say how wide a head is (head_dim)")
    return {
        "patch_size": tuple(patch),
        "num_attention_heads": dim // head_dim,
        "attention_head_dim": head_dim,
        "in_channels": channels,
        "out_channels": shapes[needed[1]][0] // prod(patch),
        "text_dim": shapes[text][1],
        "freq_dim": shapes[time][1],
        "ffn_dim": shapes[needed[2]][0],
        "num_layers": 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "eps": _COMMON["eps"],
    }


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without the name parts that FSDP, checkpointing, compile and `model` wrappers leave in keys."""
    return {bare(key): value for key, value in state.items()}


def bare(name: str) -> str:
    """A weight's name without the parts that wrappers leave."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


ROLES = (
    *("generator_ema", "generator", "ema", "model_ema", "ema_model", "model", "model_state_dict", "state_dict"),
    *("module", "net", "transformer"),
)
"""What checkpoints nest a network under, in the order in which they are looked for."""


def weights_in(checkpoint: Mapping[str, Any], roles: Sequence[str] = ROLES) -> Mapping[str, Any]:
    """The state dict in a checkpoint file: under the first of `roles` that holds anything, or the checkpoint itself.

    Self-Forcing's files hold `generator`, `generator_ema` and `critic` side by side; ask for another by `roles`. What
    is found may be nested again (`generator` > `model`), and an average that was never taken is empty: both are looked
    through.

    Raises:
        NearstepError: where the checkpoint holds dictionaries but none of the roles.
    """
    nested = {key: value for key, value in checkpoint.items() if isinstance(value, Mapping) and value}
    for role in roles:
        if role in nested:
            return weights_in(nested[role])
    if nested:
        raise NearstepError(f"this checkpoint holds {[*nested]} and none of {list(roles)}; name the one to use")
    return checkpoint


def starts_of(names: Iterable[str]) -> list[str]:
    """What stands before the names of each network among these weights, "" for none; each has a patch embedding."""
    return [name.removesuffix(_FIRST_WEIGHT) for name in names if f".{name}".endswith(f".{_FIRST_WEIGHT}")]


def _first(names: Iterable[str], count: int = 3) -> str:
    return ", ".join([*names][:count]) or "with nothing"


def _renamed(key: str, inside: Mapping[str, str], outside: Mapping[str, str]) -> str:
    match = _NAME.fullmatch(key)
    block, stem, kind = match.group("block", "stem", "kind") if match else (None, key, None)
    table = inside if block else outside
    if stem not in table:
        raise NearstepError(f"weight {key!r} is no part of a Wan2.1 text-to-video network; convert only such networks")
    return f"{block or ''}{table[stem]}{kind or ''}"
