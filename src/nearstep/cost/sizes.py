"""The shapes that decide what a run costs: networks, clips and text, without a single weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from torch import nn

from nearstep.models.empty import empty_network, empty_text_encoder
from nearstep.models.wan import SIZES
from nearstep.nets.transformer import kept_in_float32, linear_layers

UMT5_XXL: Mapping[str, Any] = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
}  # fmt: skip
"""Wan2.1's text encoder (google/umt5-xxl, config.json)."""
SINGLE = 4
"""Bytes of a float32."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a run's model folder says; the defaults are Wan2.1's at 81 frames of 832x480."""

    student: Mapping[str, Any]
    """VideoTransformer's arguments."""
    teacher: Mapping[str, Any]
    """VideoTransformer's arguments of the teacher, which the assistant shares."""
    clip: tuple[int, int, int, int] = (21, 16, 60, 104)
    """[F, C, H, W] of latents."""
    starts: tuple[int, ...] = ()
    """Latent frames where later scenes of a clip begin."""
    first_chunk: int | None = None
    """Latent frames of the first chunk, which a student then takes as it is; None: as all others."""
    lessons: tuple[tuple[int, int, int, int], ...] = ()
    """Those of each of the run's lessons."""
    text_length: int = 512
    """Tokens L that a prompt is padded to."""
    codec: Mapping[str, Any]
    """AutoencoderKLWan's arguments."""
    encoder: Mapping[str, Any]
    """UMT5Config's arguments."""

    @property
    def text_bytes(self) -> int:
        """Bytes of a prompt's features, float32."""
        return self.text_length * self.student["text_dim"] * SINGLE

    @property
    def clip_bytes(self) -> int:
        """Bytes of a clip's latents, float32."""
        return prod(self.clip) * SINGLE


def wan(student: str, teacher: str) -> Sizes:
    """Wan2.1 at two of its sizes (models/wan.py SIZES)."""
    return Sizes(student=SIZES[student], teacher=SIZES[teacher], codec={}, encoder=UMT5_XXL)


@dataclass(frozen=True, kw_only=True)
class Count:
    """Parameters of a network."""

    all: int
    block: int
    """Parameters of one block."""
    wide: int
    """Parameters that stay in float32 where the network is loaded in bfloat16."""
    linear: tuple[int, int]
    """Numbers and rows of the blocks' linear layers (nets/transformer.py)."""

    def bytes(self, dtype: str, *, fp8: bool = False) -> int:
        """Bytes of the network when it is loaded as ``dtype``, its linear layers in eight bits where ``fp8``."""
        size = SINGLE * self.all if dtype == "float32" else 2 * (self.all + self.wide)
        return size - self.saved(dtype) if fp8 else size

    def saved(self, dtype: str) -> int:
        """Bytes that eight-bit layers save."""
        (numbers, rows), narrow = self.linear, SINGLE if dtype == "float32" else 2
        return (narrow - 1) * numbers - SINGLE * rows


def count_network(config: Mapping[str, Any]) -> Count:
    """Parameters of a transformer, counted on its own modules."""
    return _count_network(tuple(sorted((key, _frozen(value)) for key, value in config.items() if key[0] != "_")))


@cache
def _count_network(config: tuple[tuple[str, Any], ...]) -> Count:
    network = empty_network(dict(config))
    wide = sum(p.numel() for name, p in network.named_parameters() if kept_in_float32(name))
    shapes = [network.get_parameter(f"{name}.weight").shape for name in linear_layers(network)]
    linear = sum(shape.numel() for shape in shapes), sum(shape[0] for shape in shapes)
    return Count(all=parameters(network), block=parameters(network.blocks[0]), wide=wide, linear=linear)


def count_encoder(config: Mapping[str, Any]) -> int:
    """Parameters of a text encoder."""
    return parameters(empty_text_encoder(config))


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(p.numel() for p in module.parameters())


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
