"""Read adapter files: one reader for conversion, generation, the pipeline and training.

A file's scale is looked for where writers state it: alpha tensors beside a layer, safetensors metadata
(diffusers' lora_adapter_metadata, kohya's ss_network_alpha, plain lora_alpha), peft's adapter_config.json. What is in a
file is applied in closed form (models/lora.py) or refused by the name of its kind; nothing is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nearstep.errors import NearstepError, first_line
from nearstep.json_files import parsed_object
from nearstep.models.folder import read_json
from nearstep.models.lora import (
    Change,
    Changes,
    Decomposed,
    Difference,
    Hadamard,
    Kronecker,
    Update,
    strengthened,
    summed,
)
from nearstep.models.lora_choice import LoraFile
from nearstep.models.lora_names import ALPHA, DIFF, DIFF_BIAS, DOWN, MAGNITUDE, UP, UP_BIAS, place_of
from nearstep.models.weights import Weights, open_weights

ROLES = ("generator_lora", "lora", "state_dict", "model", "module")
"""What a pickle may nest an adapter under; LongLive's is the first (NVlabs/LongLive v1.0, utils/lora_utils.py)."""
CONFIG = "adapter_config.json"
_ALPHAS = ("lora_alpha", "alpha", "network_alpha", "ss_network_alpha")
_UNSTATED = ("none", "", "dynamic")  # the last where layers differ, each with an alpha of its own
_RANKS = ("r", "rank", "lora_rank", "ss_network_dim")


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What a file says about its scale, apart from the alpha tensors inside."""

    asked: float | None = None
    """The alpha that was asked for, in place of all others."""
    alpha: float | None = None
    patterns: Mapping[str, float] = field(default_factory=dict)
    """peft's alpha_pattern: layer, or regular expression of layers -> alpha."""
    rank: float | None = None
    """For what has no rank of its own: a Kronecker product of whole matrices."""
    by_root: bool = False
    """alpha / sqrt(r), rank-stabilised."""

    def of(self, spellings: Sequence[str], rank: int | None, tensor: float | None) -> float:
        """The scale of a layer.

        Args:
            spellings: its name in the file, and ours.
            rank: its r, where it has one.
            tensor: the alpha that lies beside it.
        """
        alpha = tensor if tensor is not None else self._patterned(spellings, self.alpha)
        if self.asked is not None:
            alpha = self.asked
        r = self.rank if rank is None else rank
        if r is None or (rank is None and tensor is not None):
            if self.asked is not None:
                raise NearstepError(f"{spellings[-1]} is changed without a rank, so that no alpha counts; leave it out")
            return 1.0
        return 1.0 if alpha is None else alpha / (r**0.5 if self.by_root else r)

    def _patterned(self, spellings: Sequence[str], otherwise: float | None) -> float | None:
        for key, alpha in self.patterns.items():
            if any(re.fullmatch(_pattern(key), name) for name in spellings):
                return alpha
        return otherwise


def _pattern(key: str) -> str:
    """peft's key of a pattern as an expression of whole names."""
    return rf"(?:.*\.)?(?:{key.removeprefix('^')})"


def open_lora(file: LoraFile) -> dict[str, Change]:
    """What an adapter file does, by our names of the weights that it changes.

    Raises:
        NearstepError: one line that names the file and the key or kind that cannot be applied.
    """
    weights, scaling = _weights(file.path), _scaling(file)
    try:
        return strengthened(changes_in(weights, scaling), file.strength)
    except NearstepError as error:
        raise NearstepError(f"{file.path}: {error}") from None


def open_loras(files: Sequence[LoraFile], shapes: Mapping[str, Sequence[int]]) -> dict[str, Change]:
    """What several adapter files do together to a network's weights of these shapes."""
    opened = []
    for file in files:
        changes = open_lora(file)
        check_fit(changes, shapes, file.path)
        opened.append(changes)
    return summed(opened)


def check_fit(changes: Changes, shapes: Mapping[str, Sequence[int]], source: Path) -> None:
    """Refuse an adapter that was made for another network.

    Raises:
        NearstepError: naming a weight that is not there or has another shape.
    """
    for name, change in changes.items():
        if name not in shapes:
            raise NearstepError(f"{source} does not fit: it changes {name}, and this network has none")
        if not change.fits(shapes[name]):
            made = f" of {list(change.shape)}" if change.shape else ""
            raise NearstepError(
                f"{source} does not fit: it changes {name}{made}, here it is {list(shapes[name])}; "
                "is it made for another size?"
            )


def changes_in(state: Mapping[str, Tensor], scaling: Scaling | None = None) -> dict[str, Change]:
    """What an adapter's state dict does, by our names of the weights that it changes.

    Raises:
        NearstepError: naming a key that cannot be used, or a layer whose parts are not whole.
    """
    scaling, layers, spelled = scaling or Scaling(), dict[str, dict[str, Tensor]](), dict[str, str]()
    for key, value in state.items():
        layer, part = place_of(key)
        if part in layers.setdefault(layer, {}):
            raise NearstepError(f"it changes {layer} twice, as {key!r} and as {spelled[layer]!r}; keep one adapter")
        layers[layer][part], spelled[layer] = _checked(key, value), key
    changes: dict[str, Change] = {}
    for layer in sorted(layers):
        found = _of_layer(layer, layers[layer], scaling, (spelled[layer].split(".lora_")[0], layer))
        changes |= {name: change for name, change in found.items()}
    if not changes:
        raise NearstepError("it holds no LoRA: none of its weights changes a layer")
    return changes


def lowrank_in(changes: Changes, what: str) -> dict[str, Update]:
    """The changes, all of them low-rank.

    Args:
        changes: of an adapter.
        what: takes low-rank ones alone; for the error.

    Raises:
        NearstepError: naming a change of another kind.
    """
    for name, change in changes.items():
        if not isinstance(change, Update):
            raise NearstepError(
                f"{name} is changed by {_kind(change)}, and {what} takes low-rank updates alone: "
                "merge this one (nearstep convert --lora, or from_pretrained(lora=...))"
            )
    return {name: change for name, change in changes.items() if isinstance(change, Update)}


def ranks_in(path: Path) -> set[int]:
    """The ranks of an adapter file's low-rank updates; only names and shapes are read."""
    weights = _weights(path)
    try:
        return {weights.shapes[name][0] for name in weights if place_of(name)[1] == DOWN}
    except NearstepError as error:
        raise NearstepError(f"{path}: {error}") from None


def stated_alpha(file: LoraFile) -> float | None:
    """The alpha that a file itself states, the first where layers differ."""
    weights, scaling = _weights(file.path), _scaling(file)
    alphas = [name for name in weights if name.endswith((".alpha", "_alpha")) and weights.shapes[name] in ((), (1,))]
    inside = [float(weights[name]) for name in alphas]
    return next(iter([*inside, *scaling.patterns.values()]), scaling.alpha)


# --- one layer ------------------------------------------------------------------------------------------------------


def _of_layer(layer: str, parts: dict[str, Tensor], scaling: Scaling, spellings: Sequence[str]) -> dict[str, Change]:
    weight = layer if layer.endswith("scale_shift_table") else f"{layer}.weight"
    if ALPHA in parts and parts[ALPHA].numel() != 1:
        raise NearstepError(f"{layer} has an alpha of {[*parts[ALPHA].shape]}; it is one number")
    alpha = float(parts.pop(ALPHA)) if ALPHA in parts else None
    scale_of = partial(scaling.of, spellings, tensor=alpha)
    found: list[tuple[str, Change]] = []
    bias = parts.pop(UP_BIAS, None)
    if (change := _product(layer, parts, scale_of)) is not None:
        if (magnitude := parts.pop(MAGNITUDE, None)) is not None:
            change = Decomposed(inner=change, magnitude=magnitude)
        found.append((weight, change))
        if bias is not None:
            scale = change.inner.scale if isinstance(change, Decomposed) else change.scale
            found.append((f"{layer}.bias", Difference(value=bias, scale=scale)))
    if DIFF in parts:
        found.append((weight, Difference(value=parts.pop(DIFF))))
    if DIFF_BIAS in parts:
        found.append((f"{layer}.bias", Difference(value=parts.pop(DIFF_BIAS))))
    if parts or not found:
        left = " and ".join(_spoken(part) for part in parts) or "an alpha"
        raise NearstepError(f"{layer} has {left} and no partner to it: the adapter is not whole")
    return summed([{name: change} for name, change in found])


def _product(layer: str, parts: dict[str, Tensor], scale_of: Any) -> Change | None:
    """The low-rank, Kronecker or Hadamard product of a layer, its parts taken out."""
    if DOWN in parts and UP in parts:
        down, up = parts.pop(DOWN), parts.pop(UP)
        if down.ndim < 2 or up.ndim < 2 or up.flatten(1).shape[1] != down.shape[0] or not down.shape[0]:
            raise NearstepError(f"{layer} has A of {[*down.shape]} and B of {[*up.shape]}, which have no product")
        return Update(down=down, up=up, scale=scale_of(rank=down.shape[0]))
    hadamard = [f"hada_{which}" for which in ("w1_a", "w1_b", "w2_a", "w2_b")]
    if all(name in parts for name in hadamard):
        a, b, c, d = (parts.pop(name).float() for name in hadamard)
        first, second = _matmul(layer, a, b), _matmul(layer, c, d)
        if first.shape != second.shape:
            raise NearstepError(f"{layer} multiplies {[*first.shape]} and {[*second.shape]}, which are not alike")
        return Hadamard(first=first, second=second, scale=scale_of(rank=b.shape[0]))
    small, large = _factor(layer, parts, "lokr_w1"), _factor(layer, parts, "lokr_w2")
    if small is None or large is None:
        for name, value in (("lokr_w1", small), ("lokr_w2", large)):
            if value is not None:
                parts[name] = value[0]  # which the caller names as left over
        return None
    if small[0].ndim != 2 or large[0].ndim < 2:
        raise NearstepError(f"{layer} has factors of {[*small[0].shape]} and {[*large[0].shape]}; matrices are needed")
    rank = small[1] or large[1]
    return Kronecker(small=small[0], large=large[0], scale=scale_of(rank=rank))


def _factor(layer: str, parts: dict[str, Tensor], name: str) -> tuple[Tensor, int | None] | None:
    """A factor of a Kronecker product, whole or low-rank itself, and its rank."""
    if name in parts:
        return parts.pop(name), None
    if f"{name}_a" in parts and f"{name}_b" in parts:
        a, b = parts.pop(f"{name}_a").float(), parts.pop(f"{name}_b").float()
        return _matmul(layer, a, b), b.shape[0]
    return None


def _matmul(layer: str, a: Tensor, b: Tensor) -> Tensor:
    if a.ndim != 2 or b.ndim < 2 or a.shape[1] != b.shape[0]:
        raise NearstepError(f"{layer} has factors of {[*a.shape]} and {[*b.shape]}, which have no product")
    return (a @ b.flatten(1)).reshape(a.shape[0], *b.shape[1:])


def _checked(key: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        if value.numel() == 1:  # an alpha
            return value.float()
        kind = str(value.dtype).removeprefix("torch.")
        raise NearstepError(f"{key!r} is quantised ({kind}): use the adapter as it was trained")
    if value.element_size() == 1:
        value = value.float()
    if not torch.isfinite(value).all():
        raise NearstepError(f"{key!r} holds NaN or inf: the adapter is damaged")
    return value


def _spoken(part: str) -> str:
    kind = {"hada": " of a LoHa", "lokr": " of a LoKr"}.get(part.split("_")[0], "")
    return f"{part}{kind}"


def _kind(change: Change) -> str:
    if isinstance(change, Decomposed):
        return "DoRA (a magnitude)"
    return {Kronecker: "LoKr", Hadamard: "LoHa", Difference: "a difference (diff, or a bias)"}.get(
        type(change), "several changes at once"
    )


# --- files ----------------------------------------------------------------------------------------------------------


def _weights(path: Path) -> Weights:
    weights = open_weights(path, roles=ROLES)
    if not weights:
        raise NearstepError(f"{path} holds no LoRA: it is empty")
    return weights


def _scaling(file: LoraFile) -> Scaling:
    stated = _metadata(file.path) or _configuration(file.path)
    stated = {key.removeprefix("transformer."): value for key, value in stated.items()}
    patterns = stated.get("alpha_pattern")
    patterns = patterns if isinstance(patterns, dict) else {}
    for key in patterns:
        try:
            re.compile(_pattern(key))
        except (re.error, RecursionError) as error:
            raise NearstepError(f"{file.path}: {key[:60]!r} in its alpha_pattern is no expression: {error}") from error
    return Scaling(
        asked=file.alpha,
        alpha=_first(stated, _ALPHAS, file.path),
        patterns={key: _number(alpha, file.path) for key, alpha in patterns.items()},
        rank=_first(stated, _RANKS, file.path),
        by_root=str(stated.get("use_rslora", stated.get("rs_lora", False))).lower() == "true",
    )


def _metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says about its scale; nothing where it says nothing of one."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            said: dict[str, Any] = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise NearstepError(f"{path} is no whole safetensors file ({first_line(error)}): fetch it again") from error
    for nested in ("lora_adapter_metadata", "ss_network_args"):
        if nested in said:
            said |= _json(said[nested], f"{path}: its metadata {nested}")
    known = (*_ALPHAS, *_RANKS)
    return said if any(key.removeprefix("transformer.") in known for key in said) else {}


def _configuration(path: Path) -> dict[str, Any]:
    """peft's configuration beside an adapter, where the file is the folder's only one or has peft's name."""
    config = path.parent / CONFIG
    alone = len([*path.parent.glob("*.safetensors"), *path.parent.glob("*.bin")]) == 1
    if not config.is_file() or not (alone or path.stem == "adapter_model"):
        return {}
    return read_json(config)


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        return parsed_object(text)
    except ValueError as error:
        raise NearstepError(f"{what} is damaged: {error}") from None


def _first(stated: Mapping[str, Any], names: Sequence[str], path: Path) -> float | None:
    for name in names:
        if str(stated.get(name)).lower() not in _UNSTATED:
            return _number(stated[name], path)
    return None


def _number(value: object, path: Path) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise NearstepError(f"{path} states an alpha or rank of {value!r}, which is no number") from None
    if not 0 < number < float("inf"):
        raise NearstepError(f"{path} states an alpha or rank of {value!r}; a number above 0 is needed")
    return number
