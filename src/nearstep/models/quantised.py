"""Quantised weights: given back their numbers where the scales are in the file, else refused by that name.

    w = s q                     one scale for a tensor, or one for each row or column
    w = s[i / b, j / b] q       one for each block of b x b, b = 128 (``weight_scale_inv``)

Scales go by the names that ComfyUI (``scale_weight`` and the marker ``scaled_fp8``), LightX2V, compressed-tensors
(``weight_scale``), optimum-quanto and DeepSeek (``weight_scale_inv``) give them. Eight-bit floats without any scale are
numbers as they stand. Bit-packed kinds (GGUF, bitsandbytes, GPTQ, AWQ, SVDQuant, nvfp4) are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.models.weights import Weights
from nearstep.nets.fp8 import Scaled

FLOATS = ("float64", "float32", "float16", "bfloat16")
NARROW = ("float8_e4m3fn", "float8_e5m2")
BLOCK = 128
_MARKER = "scaled_fp8"
_SCALES = (
    *("{0}scale_weight", "{0}weight_scale", "{0}weight_scale_inv", "{0}weight_scales", "{0}scale"),
    *("{0}weight.scale", "{0}weight._scale", "{0}weight.scales"),
)
_UNUSED = re.compile(r"(?:^|\.)(?:scaled_fp8|comfy_quant|scale_input|input_scale|output_scale)$")
_PACKED = {
    r"\.(?:absmax|quant_map|nested_absmax|quant_state.*|SCB)$": "bitsandbytes",
    r"\.(?:qweight|qzeros|g_idx|wscales|wzeros|smooth_factor)$": "GPTQ, AWQ or SVDQuant",
    r"\.(?:weight_scale_2|weight_packed|int8_weight|weight_zero_point|zero_point|zeros)$": "a packed or shifted kind",
}


def dequantised(weights: Weights) -> Weights:
    """The same weights with numbers that mean themselves; those that are not quantised as they are.

    Raises:
        NearstepError: for weights whose scales are not there, or are of a kind that is not read here.
    """
    for name in weights:
        for pattern, kind in _PACKED.items():
            if re.search(pattern, name):
                raise _refused(weights, f"{name} belongs to {kind}")
    kept = weights.only(lambda name: not _UNUSED.search(name))
    coded = [name for name, kind in kept.types.items() if kind not in FLOATS and kept.shapes[name]]
    coded = [name for name in coded if not _is_scale(name, kept)]
    scales = {name: scale for name in coded if (scale := _scale_of(name, kept))}
    for name in coded:
        if kept.types[name] not in (*NARROW, "int8"):
            raise _refused(weights, f"{name} is of {kept.types[name]}")
        if name not in scales and kept.types[name] == "int8":
            raise _refused(weights, f"{name} is of int8, and its scale is not in the file")
    if not coded:
        return kept
    without = [name for name in coded if name not in scales]
    if scales and without and _MARKER not in weights.shapes:  # with the marker, what has no scale counts once
        raise _refused(weights, f"{without[0]} has no scale, {next(iter(scales))} has one")
    return _read(kept, coded, scales)


def is_quantised(weights: Weights) -> bool:
    """Whether any weight is other than a plain float."""
    return any(kind not in FLOATS for kind in weights.types.values())


def check_types(types: Mapping[str, str], source: object) -> None:
    """Refuse a model folder's component whose weights are quantised.

    Raises:
        NearstepError: naming the first such weight.
    """
    for name, kind in types.items():
        if kind not in FLOATS:
            raise NearstepError(f"{source} is quantised ({name} is of {kind}); nearstep convert gives its numbers back")


def _read(weights: Weights, coded: Sequence[str], scales: Mapping[str, str]) -> Weights:
    used = {*scales.values()}
    sizes: Counter[str] = Counter()
    for name, kind in weights.types.items():
        if kind in FLOATS and name not in used:
            sizes[kind] += torch.Size(weights.shapes[name]).numel()
    plain = sizes.most_common(1)[0][0] if sizes else "bfloat16"
    for name, scale in scales.items():
        _spread(weights, name, scale)  # whose shape is looked at before anything is read

    these = frozenset(coded)

    def numbers(name: str, value: Tensor) -> Tensor:
        if name not in these:
            return value
        scaled = value.float() * _spread(weights, name, scales[name]) if name in scales else value.float()
        return scaled.to(getattr(torch, plain))

    def as_stored(name: str) -> Scaled | None:
        """Of what is scaled as a whole or by rows; other kinds are numbers alone."""
        if name not in these or weights.types[name] != "float8_e4m3fn" or len(weights.shapes[name]) != 2:
            return None
        factor = _spread(weights, name, scales[name]) if name in scales else torch.ones(())
        rows = weights.shapes[name][0]
        if factor.numel() not in (1, rows) or (factor.ndim and factor.shape[0] != rows):
            return None
        return weights[name], factor.reshape(-1, 1).expand(rows, 1).contiguous()

    read = weights.mapped(numbers, dict.fromkeys(coded, plain), as_stored)
    return read.only(lambda name: name not in used)


def _scale_of(name: str, weights: Weights) -> str | None:
    stem = name.removesuffix("weight")
    return next((found for form in _SCALES if (found := form.format(stem)) in weights.shapes and found != name), None)


def _is_scale(name: str, weights: Weights) -> bool:
    return any(
        name == form.format(stem) and f"{stem}weight" in weights.shapes
        for form in _SCALES
        if (stem := name.removesuffix(form.format(""))) != name
    )


def _spread(weights: Weights, name: str, scale: str) -> Tensor:
    """A scale as it is multiplied with its weight, float32."""
    shape, value = weights.shapes[name], weights.shapes[scale]
    count = torch.Size(value).numel()
    rest = (1,) * (len(shape) - 1)
    if count == 1:
        return weights[scale].float().reshape(())
    if count == shape[0] and (len(value) == 1 or value[0] == shape[0]):
        return weights[scale].float().reshape(shape[0], *rest)
    if len(shape) == 2 and value == (1, shape[1]):
        return weights[scale].float()
    if len(shape) == 2 and value == tuple(-(-side // BLOCK) for side in shape):
        blocks = weights[scale].float().repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return blocks[: shape[0], : shape[1]]
    raise _refused(weights, f"{scale} is {list(value)} for a weight of {list(shape)}, a kind of blocks unknown here")


def _refused(weights: Weights, what: str) -> NearstepError:
    return NearstepError(
        f"{weights.source} is quantised in a way that is not read: {what}; use the file in float32, bfloat16 or float16"
    )
