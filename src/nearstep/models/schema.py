"""What the configurations of a model folder may say, checked as they are read: a row for each file.

Sizes have a most as well: a configuration of 10^5 layers would keep a machine busy long before it is found not to fit
its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearstep.errors import NearstepError
from nearstep.json_files import (
    FLAG,
    NUMBER,
    TEXT,
    Kind,
    above,
    check_fields,
    count,
    list_of,
    optional,
)

_WIDTH, _LAYERS = count(2**20), count(1000)

NETWORK: dict[str, Kind] = {
    "patch_size": list_of(count(64), 3),
    "num_attention_heads": count(4096),
    "attention_head_dim": count(4096),
    "in_channels": count(4096),
    "out_channels": count(4096),
    "text_dim": _WIDTH,
    "freq_dim": _WIDTH,
    "ffn_dim": _WIDTH,
    "num_layers": _LAYERS,
    "rope_max_seq_len": count(2**20),
    "eps": above(0),
    "cross_attn_norm": FLAG,
    "qk_norm": optional(TEXT),
    "chunk_frames": optional(count(10**5)),
    "window_frames": optional(count(10**6)),
    "sink_frames": optional(count(10**6, least=0)),
}
_NETWORK_NEEDED = list(NETWORK)[:10]

CODEC: dict[str, Kind] = {
    "z_dim": count(4096),
    "dim_mult": list_of(count(64)),
    "latents_mean": list_of(NUMBER),
    "latents_std": list_of(above(0)),
    "base_dim": count(2**16),
    "num_res_blocks": count(100),
    "temperal_downsample": list_of(FLAG),
    "attn_scales": list_of(NUMBER),
    "dropout": NUMBER,
    "patch_size": optional(count(64)),
    "in_channels": count(4096),
    "out_channels": count(4096),
    "decoder_base_dim": optional(count(2**16)),
    "is_residual": FLAG,
    "scale_factor_temporal": optional(count(64)),
    "scale_factor_spatial": optional(count(64)),
}
_CODEC_NEEDED = list(CODEC)[:4]

TEXT_ENCODER: dict[str, Kind] = {
    "d_model": _WIDTH,
    "d_kv": _WIDTH,
    "d_ff": _WIDTH,
    "num_layers": _LAYERS,
    "num_heads": count(4096),
    "vocab_size": count(10**7),
    "relative_attention_num_buckets": count(2**16),
    "relative_attention_max_distance": count(2**20),
    "layer_norm_epsilon": above(0),
    "dropout_rate": NUMBER,
}
_TEXT_NEEDED = ("d_model",)

SCHEDULER: dict[str, Kind] = {"shift": optional(above(0)), "flow_shift": optional(above(0))}

_COMPONENTS: dict[str, tuple[dict[str, Kind], list[str]]] = {
    "vae": (CODEC, _CODEC_NEEDED),
    "text_encoder": (TEXT_ENCODER, [*_TEXT_NEEDED]),
    "scheduler": (SCHEDULER, []),
}
"""Component -> what its configuration may say, and what it must; all others are networks."""


def check_component(name: str, config: Mapping[str, Any], where: object) -> None:
    """Refuse a component's configuration that nothing can be built from.

    Args:
        name: the component's sub-folder.
        config: what its file says.
        where: the file, for errors.

    Raises:
        NearstepError: naming the value that is missing or wrong, and what it may be.
    """
    schema, needed = _COMPONENTS.get(name, (NETWORK, _NETWORK_NEEDED))
    check_fields(config, schema, where, needed=needed)
    if schema is CODEC:
        _check_codec(config, where)


def _check_codec(config: Mapping[str, Any], where: object) -> None:
    levels = len(config["dim_mult"])
    wanted = {"latents_mean": config["z_dim"], "latents_std": config["z_dim"], "temperal_downsample": levels - 1}
    for name, length in wanted.items():
        if name in config and len(config[name]) != length:
            raise NearstepError(f"{where} is damaged: its {name!r} has {len(config[name])} entries, not {length}")
    if levels < 1:
        raise NearstepError(f"{where} is damaged: its 'dim_mult' is empty")
