"""Deeper networks from shallower ones: a run goes on with more layers than it began with.

Block expansion (LLaMA Pro, 2024): behind some blocks stands a copy of them whose three branches end in zeros. A copy
adds nothing to the residual stream at first, so the deeper network makes what the shallower one made, and learns on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_ENDS = ("attn1.to_out.0.", "attn2.to_out.0.", "ffn.net.2.")
"""The last layers of a block's branches: what they make is added to the stream."""


def deepened(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Weights of a network of ``layers`` blocks that makes what the network of ``state`` makes.

    The new blocks are spread evenly; each follows the block that it copies.

    Args:
        state: a VideoTransformer's weights, of as many blocks or fewer.
        layers: blocks of the network that is to hold them.
    """
    blocks = 1 + max(int(found[1]) for name in state if (found := _BLOCK.fullmatch(name)))
    before = [layer * blocks // layers for layer in range(layers)] if layers > blocks else [*range(blocks)]
    made = {name: value for name, value in state.items() if not _BLOCK.fullmatch(name)}
    for layer, source in enumerate(before):
        new = layer > 0 and before[layer - 1] == source
        for name, value in state.items():
            if (found := _BLOCK.fullmatch(name)) and int(found[1]) == source:
                ends = new and found[2].startswith(_ENDS)
                made[f"blocks.{layer}.{found[2]}"] = torch.zeros_like(value) if ends else value.clone()
    return made
