"""Floating-point operations, from shapes alone: 2 for a multiply-add, products of matrices and convolutions counted.

A network call is counted in closed form, block by block as nets/transformer.py makes it, so that a whole plan, and an
update of training (update_flops.py), is known before anything runs. Equal to what torch's counter sees
(tests/cost/test_flops.py). Decoders are many small convolutions: those are counted by running them on the meta device,
where nothing is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from nearstep.nets.codec import VideoCodec
from nearstep.nets.masks import Visibility, block_causal
from nearstep.nets.tiny_decoder import TinyDecoder
from nearstep.reach import EVERYTHING, Reach


class CallFlops(NamedTuple):
    """Operations of one network call, by kind."""

    ends: int
    """Products with weights outside the blocks: patches, times and output head."""
    blocks: int
    """Products with weights in the blocks."""
    text: int
    """Attention to the text."""
    frames: int
    """Attention among frames, the committed ones included."""

    @property
    def linear(self) -> int:
        """Every product with weights."""
        return self.ends + self.blocks

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def call_flops(
    config: Mapping[str, Any],
    *,
    lengths: Sequence[int],
    start: int = 0,
    commit: int = 0,
    height: int,
    width: int,
    text: int,
    batch: int = 1,
    reach: Reach = EVERYTHING,
) -> CallFlops:
    """FLOPs of a call that generates, its text's keys and values at hand.

    Args:
        config: the network's.
        lengths: frames of each chunk in the call: one for a step or a commit, two for a fused call.
        start: absolute index of the first frame; those before it are committed.
        commit: how many of the first frames the call commits.
        height: latent rows.
        width: latent columns.
        text: text tokens.
        batch: samples, twice as many with guidance.
        reach: how far back chunks look.
    """
    visibility = block_causal(tuple(lengths), reach).shifted(start)
    return masked_flops(config, visibility, commit=commit, height=height, width=width, text=text, batch=batch)


def masked_flops(
    config: Mapping[str, Any],
    visibility: Visibility,
    *,
    commit: int = 0,
    height: int,
    width: int,
    text: int,
    batch: int = 1,
    rank: int = 0,
) -> CallFlops:
    """FLOPs of a call under any visibility: the one count that generation and training share.

    Args:
        config: the network's.
        visibility: who sees whom among the call's frames, and of the committed ones before them.
        commit: how many of the first frames the call commits.
        height: latent rows.
        width: latent columns.
        text: text tokens.
        batch: samples, twice as many with guidance.
        rank: of adapters beside the blocks' linear layers (train/adapters.py); 0 for none.
    """
    _, rows, columns = config["patch_size"]
    dim, hidden, layers = _width(config), config["ffn_dim"], config["num_layers"]
    in_sight = [sum(row) for row in visibility.rows(visibility.past())]  # frames that each frame of the call sees
    frames, per_frame = len(in_sight), height // rows * (width // columns)
    tokens, returned = frames * per_frame, (frames - commit) * per_frame
    times = 1 if commit == frames else frames  # a commit's frames share the time 0

    embedder = times * (config["freq_dim"] * dim + dim**2 + 6 * dim**2)
    ends = embedder + (tokens * config["in_channels"] + returned * config["out_channels"]) * rows * columns * dim
    keys, rest = 2 * dim**2, 4 * dim**2 + 2 * dim * hidden  # k and v; q, out, both of the text's, and feed-forward
    keys, rest = keys + rank * 4 * dim, rest + rank * (8 * dim + 2 * (dim + hidden))
    # The last block gives the frames that are only committed no more than their keys and values.
    blocks = layers * tokens * keys + ((layers - 1) * tokens + returned) * rest
    pairs = per_frame**2 * ((layers - 1) * sum(in_sight) + sum(in_sight[commit:]))
    read = ((layers - 1) * tokens + returned) * text
    return CallFlops(*(2 * batch * count for count in (ends, blocks, 2 * dim * read, 2 * dim * pairs)))


def text_keys_flops(config: Mapping[str, Any], tokens: int, batch: int = 1, rank: int = 0) -> int:
    """FLOPs of a prompt's keys and values in every block, which are made once; with adapters of a rank beside them."""
    dim = _width(config)
    keys = config["num_layers"] * (2 * dim**2 + rank * 4 * dim)
    return 2 * batch * tokens * (config["text_dim"] * dim + dim**2 + keys)


def text_encoder_flops(config: Mapping[str, Any], tokens: int, batch: int = 1) -> int:
    """FLOPs of UMT5's encoder on ``tokens`` tokens (its feed-forward is gated: three products)."""
    dim, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    layer = tokens * (4 * dim * inner + 3 * dim * config["d_ff"]) + 2 * tokens**2 * inner
    return 2 * batch * config["num_layers"] * layer


def decode_flops(
    decoder: VideoCodec | TinyDecoder, lengths: Sequence[int], *, channels: int, height: int, width: int
) -> list[int]:
    """FLOPs of decoding chunk after chunk of one clip, for each chunk.

    Args:
        decoder: as it decodes, its tiles set; its weights are not read.
        lengths: latent frames of each chunk.
        channels: of the latents.
        height: latent rows.
        width: latent columns.
    """
    stream, counted = on_meta(decoder).stream(), []
    known: dict[int, int] = {}  # by length, of chunks with two frames before them: the first two cost less
    before = 0
    with torch.no_grad():
        for frames in lengths:
            if before > 1 and frames in known:
                counted.append(known[frames])
                continue
            with counter() as count:
                stream.decode(torch.zeros(1, frames, channels, height, width, device="meta"))
            counted.append(count.get_total_flops())
            if before > 1:
                known[frames] = counted[-1]
            before += frames
    return counted


def on_meta(module: Any) -> Any:
    """A copy without weights, on the meta device: its calls give shapes and compute nothing."""
    tensors = [*module.parameters(), *module.buffers()]
    weightless = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for tensor in tensors:
        if isinstance(tensor, nn.Parameter):
            weightless[id(tensor)] = nn.Parameter(weightless[id(tensor)], requires_grad=False)
    return copy.deepcopy(module, weightless)


def counter() -> FlopCounterMode:
    """Torch's counter, which also counts the attention kernel that it does not know: the CPU's."""
    aten: Any = torch.ops.aten
    return FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
        },
    )


def _cpu_attention(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _cpu_attention_backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]
