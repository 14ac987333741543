"""Wan2.1's official text encoder and codec: their weights' names, and their sizes (method.md section 8).

The release (Wan-Video/Wan2.1, wan/modules/t5.py and vae.py) stores both as pickled state dicts under names of its own;
transformers' UMT5EncoderModel and diffusers' AutoencoderKLWan hold the same weights under theirs, which are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nearstep.errors import NearstepError

Shapes = Mapping[str, Sequence[int]]

_TEXT_BLOCK = {
    "norm1": "layer.0.layer_norm",
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",  # UMT5: one in every block
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_TEXT_OUTSIDE = {"token_embedding": "shared", "norm": "encoder.final_layer_norm"}

_RESNET = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_CODEC_SIDE = {
    "conv1": "conv_in",
    "head.0": "norm_out",
    "head.2": "conv_out",
    **{f"middle.1.{part}": f"mid_block.attentions.0.{part}" for part in ("norm", "to_qkv", "proj")},
    **{f"middle.{i}.{a}": f"mid_block.resnets.{i // 2}.{b}" for i in (0, 2) for a, b in _RESNET.items()},
}
_CODEC_OUTSIDE = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_RESNETS_UP = 3  # of a decoder level; an upsampler follows them
_CODEC_CHANNELS = 16


def text_name(official: str) -> str:
    """An official text encoder weight's name as UMT5EncoderModel's."""
    stem, _, kind = official.rpartition(".")
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", stem):
        if match[2] in _TEXT_BLOCK:
            return f"encoder.block.{match[1]}.{_TEXT_BLOCK[match[2]]}.{kind}"
    elif stem in _TEXT_OUTSIDE:
        return f"{_TEXT_OUTSIDE[stem]}.{kind}"
    raise NearstepError(f"weight {official!r} is no part of Wan2.1's text encoder")


def codec_name(official: str) -> str:
    """An official codec weight's name as AutoencoderKLWan's."""
    stem, _, kind = official.rpartition(".")
    side, _, rest = stem.partition(".")
    if stem in _CODEC_OUTSIDE:
        return f"{_CODEC_OUTSIDE[stem]}.{kind}"
    if side in ("encoder", "decoder"):
        if rest in _CODEC_SIDE:
            return f"{side}.{_CODEC_SIDE[rest]}.{kind}"
        if match := re.fullmatch(r"(down|up)samples\.(\d+)\.(.+)", rest):
            return f"{side}.{_level(match[1], int(match[2]), _RESNET.get(match[3], match[3]))}.{kind}"
    raise NearstepError(f"weight {official!r} is no part of Wan2.1's codec")


def _level(way: str, index: int, part: str) -> str:
    """Encoder levels are one list in both; decoder levels are one in the release and nested here."""
    if way == "down":
        return f"down_blocks.{index}.{part}"
    level, place = divmod(index, _RESNETS_UP + 1)
    inside = f"resnets.{place}" if place < _RESNETS_UP else "upsamplers.0"
    return f"up_blocks.{level}.{inside}.{part}"


def text_config(shapes: Shapes) -> dict[str, Any]:
    """UMT5Config's sizes, read off the shapes of weights under our names; the rest is UMT5's own (t5.py umt5_xxl).

    Raises:
        NearstepError: if these are no text encoder's weights.
    """
    block = "encoder.block.0.layer"
    needed = (
        "shared.weight",
        f"{block}.0.SelfAttention.relative_attention_bias.weight",
        f"{block}.0.SelfAttention.q.weight",
        f"{block}.1.DenseReluDense.wi_0.weight",
    )
    if missing := [name for name in needed if name not in shapes]:
        raise NearstepError(f"no text encoder of Wan2.1: {missing[0]} is missing")
    (vocabulary, width), (buckets, heads), (inner, _), (hidden, _) = (shapes[name] for name in needed)
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": hidden,
        "num_heads": heads,
        "num_layers": 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": False,
    }


def codec_config(shapes: Shapes) -> dict[str, Any]:
    """AutoencoderKLWan's sizes, read off the shapes of weights under our names; the rest is its default, Wan2.1's.

    Raises:
        NearstepError: if these are no Wan2.1 codec's weights.
    """
    if missing := [name for name in ("encoder.conv_in.weight", "post_quant_conv.weight") if name not in shapes]:
        raise NearstepError(f"no codec of Wan2.1: {missing[0]} is missing")
    channels = shapes["post_quant_conv.weight"][0]
    if channels != _CODEC_CHANNELS:  # the latents' mean and deviation are in no weight; those of Wan2.1 are known
        raise NearstepError(f"a codec of {channels} latent channels is not Wan2.1's, which has {_CODEC_CHANNELS}")
    return {
        "_class_name": "AutoencoderKLWan",
        "base_dim": shapes["encoder.conv_in.weight"][0],
        "z_dim": channels,
    }
