"""An adapter file as peft keeps it beside a network, so that it can come off again (``pipe.load_lora_weights``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nearstep.errors import NearstepError, first_line
from nearstep.files import path_of
from nearstep.models.lora import Changes
from nearstep.models.lora_choice import NAMES, LoraFile
from nearstep.models.lora_files import changes_in, lowrank_in, open_lora

_COMPONENT = "transformer."
_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")


def peft_adapter(
    source: str | Path | Mapping[str, Tensor], options: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter's tensors and peft's arguments about them, as diffusers takes them; the scale is in B.

    Args:
        source: a file, a folder, a hub id, or a state dict.
        options: diffusers' ``weight_name``, ``subfolder`` and what the hub is asked.

    Raises:
        NearstepError: for what is not low-rank alone, by its kind.
    """
    changes = changes_in(source) if isinstance(source, Mapping) else open_lora(_file(source, options))
    return _peft(changes)


def _file(source: str | Path, options: Mapping[str, Any]) -> LoraFile:
    path, inside = path_of(source), options.get("subfolder") or ""
    name = options.get("weight_name")
    if path.is_file():
        return LoraFile.of(path)
    if path.is_dir() or not isinstance(source, str) or source.count("/") != 1:
        return LoraFile.of(path / inside / name if name else path / inside)
    return LoraFile.of(_downloaded(source, f"{inside}/{name or NAMES[0]}".lstrip("/"), options))


def _downloaded(hub_id: str, name: str, options: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download

    asked = {key: options[key] for key in _HUB if options.get(key) is not None}
    try:
        return Path(hf_hub_download(hub_id, name, **asked))
    except OSError as error:  # the hub's own errors are OSErrors
        raise NearstepError(f"{hub_id} is no folder, and the hub did not give {name}: {first_line(error)}") from error


def _peft(changes: Changes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, update in lowrank_in(changes, "load_lora_weights").items():
        layer = name.removesuffix(".weight")
        ranks[layer] = update.rank
        state[f"{_COMPONENT}{layer}.lora_A.weight"] = update.down
        state[f"{_COMPONENT}{layer}.lora_B.weight"] = (
            update.up if update.scale == 1 else (update.scale * update.up.float()).to(update.up.dtype)
        )
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    own = {f"^{layer}": rank for layer, rank in ranks.items() if rank != common}
    arguments = {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": own,
        "alpha_pattern": own,
        "target_modules": sorted(ranks),
    }
    return state, {f"{_COMPONENT}{key}": value for key, value in arguments.items()}
