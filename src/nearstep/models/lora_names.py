"""How adapter files name what they change: every writer's spelling of a layer, and of the part of an adapter it holds.

Writers: peft and diffusers (``base_model.model.``, ``transformer.``, lora_A / lora_B, an adapter's own name inside),
kohya and musubi (``lora_unet_`` and underscores, lora_down / lora_up, alpha), ComfyUI, ai-toolkit and diffusion-pipe
(``diffusion_model.``, diff, diff_b), LyCORIS (lokr_, hada_, dora_scale). Layers go by official names or by ours.
Nothing here needs torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from nearstep.errors import NearstepError
from nearstep.models.wan import bare, layer_names

_PREFIX = re.compile(
    r"(?:base_model|model|transformer|diffusion_model|generator|generator_ema|unet|dit|pipe|net|default)\."
    r"|(?:lora_unet_|lora_transformer_|lycoris_)_?"
)
_BLOCK = re.compile(r"blocks[._](?P<index>\d+)[._](?P<layer>.+)")
_ELSEWHERE = {
    re.compile(r"^(?:lora_te\d*_|text_encoders?[._]|te\d*\.|cond_stage_model\.)"): "the text encoder",
    re.compile(r"^transformer_2\."): "a second network, as Wan2.2 has",
    re.compile(r"\.?(?:k_img|v_img|norm_k_img|add_k_proj|add_v_proj)\b|img_emb|image_embedder"): (
        "the picture input of an image-to-video network"
    ),
    re.compile(r"vace_|control_adapter|motion_encoder|face_adapter|audio_"): "another input (VACE, control)",
}

DOWN, UP, UP_BIAS, ALPHA, MAGNITUDE, DIFF, DIFF_BIAS = "down", "up", "up_bias", "alpha", "magnitude", "diff", "diff_b"
_ADAPTER = r"(?:\.(?!weight$|bias$)[^.]+)?"
_PARTS = {
    DOWN: rf"\.lora_A{_ADAPTER}(?:\.weight)?|[._]lora[._]down(?:\.weight)?",
    UP: rf"\.lora_B{_ADAPTER}(?:\.weight)?|[._]lora[._]up(?:\.weight)?",
    UP_BIAS: rf"\.lora_B{_ADAPTER}\.bias|[._]lora[._]up\.bias",
    ALPHA: r"\.(?:lora_|network_)?alpha",
    MAGNITUDE: rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?|\.dora_scale|\.magnitude",
    DIFF: r"\.diff|\.w_norm",
    DIFF_BIAS: r"\.diff_b|\.b_norm",
    "modulation": r"\.diff_m",
    **{
        part: rf"\.{part}{_ADAPTER}(?:\.weight)?"
        for part in (
            *("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        )
    },
}
_PART = {part: re.compile(rf"(?P<layer>.+?)(?:{ending})$") for part, ending in _PARTS.items()}
_OTHER_KINDS = {
    r"lora_mid|lokr_t\d|hada_t\d": "a convolution in Tucker form",
    r"oft_|boft_": "OFT (orthogonal)",
    r"vera_lambda": "VeRA",
    r"\.ia3_|on_input": "IA3",
    r"glora|\.a[12]\.weight$|\.b[12]\.weight$": "GLoRA",
    r"lora_ga|\.hra_": "Householder reflections",
    r"lora_embedding_": "a LoRA of an embedding",
    r"lora_edit|reshape_weight|set_weight": "a layer of another size or value",
    r"modules_to_save|base_layer": "whole weights beside the LoRA",
    r"sora_|lora_E|lora_\w+$": "another kind of adapter",
}


def is_adapter(names: Iterable[str]) -> bool:
    """Whether weights are an adapter's: none of them is a layer's own weight."""
    listed = list(names)
    return bool(listed) and all(_split(name) is not None or _kind(name) is not None for name in listed)


def place_of(name: str) -> tuple[str, str]:
    """A key of an adapter file as (our name of the layer, the part of the adapter).

    Raises:
        NearstepError: naming what the key changes, if that is no layer of ours, or its kind, if that is unknown.
    """
    for pattern, what in _ELSEWHERE.items():
        if pattern.search(name):
            raise NearstepError(f"{name!r} changes {what}, which this network lacks; use one made for Wan2.1 T2V")
    if (split := _split(name)) is None:
        kind = _kind(name)
        what = f"it is {kind}, which cannot be applied" if kind else "it is no part of a known kind of adapter"
        raise NearstepError(f"cannot use {name!r}: {what}")
    layer, part = split
    if part == "modulation":
        layer, part = f"{layer}.modulation", DIFF
    return _layer(layer, name), part


def _split(name: str) -> tuple[str, str] | None:
    for part, pattern in _PART.items():
        if match := pattern.match(name):
            return match["layer"], part
    return None


def _kind(name: str) -> str | None:
    return next((kind for pattern, kind in _OTHER_KINDS.items() if re.search(pattern, name)), None)


def _layer(spelled: str, key: str) -> str:
    """Our name of a layer in any spelling: dots or underscores, half renamed, official or ours."""
    name = bare(spelled)
    while match := _PREFIX.match(name):
        name = name[match.end() :]
    block, flat = "", name
    if match := _BLOCK.fullmatch(name):
        block, flat = f"blocks.{match['index']}.", match["layer"]
    flat = flat.replace(".processor", "").replace(".", "_")
    if (found := _flat_names(bool(block)).get(flat)) is None:
        raise NearstepError(f"{key!r} changes {name!r}, which is no layer of a Wan2.1 text-to-video network")
    return block + found


@cache
def _flat_names(inside: bool) -> dict[str, str]:
    """Layers with underscores for dots, by both sets of names -> our names."""
    flat = {}
    for official, ours in layer_names(inside=inside).items():
        for spelling in (official, ours, ours.removesuffix(".0")):
            flat[spelling.replace(".", "_")] = ours
    return flat
