"""Low-rank updates, merged: W + (alpha / r) B A, with names as peft saves them (Hu et al., arXiv 2106.09685, eq. 3).

LongLive trains such an update on all linear layers of its blocks and publishes it beside the base (NVlabs/LongLive
v1.0, utils/lora_utils.py: official names under ``generator_lora``; r = alpha = 256, configs/longlive_inference.yaml).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.models.wan import bare, is_official, our_name

ROLE = "generator_lora"
_DOWN, _UP = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is added to one weight [out, in]."""

    down: Tensor
    """A, [r, in]."""
    up: Tensor
    """B, [out, r]."""
    alpha: float | None = None
    """None: as large as r, so that the update is B A."""

    def merged(self, weight: Tensor) -> Tensor:
        """The weight with the update added, in the weight's type; summed in float32."""
        rank = self.down.shape[0]
        scale = 1.0 if self.alpha is None else self.alpha / rank
        return (weight.float() + scale * (self.up.float() @ self.down.float())).to(weight.dtype)


def is_lora(names: Mapping[str, object]) -> bool:
    """Whether weights are low-rank updates: all of them come in pairs A and B."""
    return bool(names) and all("lora_" in name for name in names)


def updates_in(state: Mapping[str, Tensor], *, alpha: float | None = None) -> dict[str, Update]:
    """Our weights' names -> their updates, from a peft state dict under official or our names.

    Raises:
        NearstepError: naming a key that is no low-rank pair.
    """
    plain = {_plain(name): value for name, value in state.items()}
    stems = {name.removesuffix(_DOWN) for name in plain if name.endswith(_DOWN)}
    paired = {stem + end for stem in stems for end in (_DOWN, _UP)}
    if not stems or (odd := sorted(paired ^ plain.keys())):
        what = f"{odd[0]!r} has no partner or is no low-rank weight" if stems else "it holds no lora_A weights"
        raise NearstepError(f"not a LoRA as peft saves it: {what}")
    official = is_official(f"{stem}.weight" for stem in stems)
    return {
        our_name(f"{stem}.weight") if official else f"{stem}.weight": Update(
            down=plain[stem + _DOWN], up=plain[stem + _UP], alpha=alpha
        )
        for stem in sorted(stems)
    }


def _plain(name: str) -> str:
    """Without peft's, diffusers' and wrappers' prefixes and the adapter's own name."""
    name = bare(name).removeprefix("base_model.").removeprefix("transformer.")
    return name.replace("lora_A.default.", "lora_A.").replace("lora_B.default.", "lora_B.")
