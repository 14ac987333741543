"""The video network in a weights file: found in what is around it, its numbers given back, under our names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nearstep.errors import NearstepError
from nearstep.models.lora_names import is_adapter
from nearstep.models.quantised import dequantised
from nearstep.models.wan import ROLES, bare, is_official, our_name, starts_of
from nearstep.models.weights import Weights, open_weights, some


def open_network(path: Path, role: str | None = None, *, usual: str | None = None) -> Weights:
    """A video network's weights under our names, from a file or a folder of one network.

    Args:
        path: a weights file, or a folder with .safetensors or one pickle.
        role: what the checkpoint nests the network under; by default the first of models/wan.py:ROLES that is there, or
            nothing.
        usual: what is looked for before those.

    Raises:
        NearstepError: one line that names the file and what is wrong with it.
    """
    roles = ROLES if usual is None else (usual, *ROLES)
    found = open_weights(path, role, roles=roles)
    if is_adapter(found.shapes):
        raise NearstepError(f"{path} is a LoRA, not a network: convert the network it changes, with --lora {path}")
    weights = dequantised(_alone(found, roles).renamed(bare).only(_is_weight))
    return weights.renamed(our_name) if is_official(weights) else weights


def _alone(weights: Weights, roles: Sequence[str]) -> Weights:
    """The network without what stands before its names, and without what else lies in the file (codec, text)."""
    starts = starts_of(weights)
    if not starts or any(not bare(start).strip(".") for start in starts):  # wrappers alone come off by themselves
        return weights
    ranks = {start: roles.index(first) for start in starts if (first := start.split(".")[0]) in roles}
    if len(starts) > 1 and not ranks:
        raise NearstepError(f"{weights.source} holds {len(starts)} networks ({some(starts)}): name one with --role")
    start = min(ranks, key=lambda each: ranks[each]) if len(starts) > 1 else starts[0]
    return weights.only(lambda name: name.startswith(start)).renamed(lambda name: name.removeprefix(start))


def _is_weight(name: str) -> bool:
    """Whether a name is no table that a network computes for itself: the rotary frequencies, which some save too."""
    return name.split(".")[0] not in ("freqs", "rope")
