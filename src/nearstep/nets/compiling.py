"""Blocks compiled one by one: they are alike, so one compilation serves all of them (regional compilation)."""

from __future__ import annotations

import torch

from nearstep.nets.transformer import VideoTransformer

_GRAPHS = 64


def compile_blocks(network: VideoTransformer) -> None:
    """Compile every block in place; parameter names stay as they are."""
    # One graph per shape, per mode of gradients and per length of the past: a distillation has some twenty.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    for block in network.blocks:
        block.compile(dynamic=False)
