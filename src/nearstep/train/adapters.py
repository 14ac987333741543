"""Low-rank training through peft: W stays, and B A beside it learns (Hu et al., arXiv 2106.09685).

Adapters go on the layers that LoRAs of Wan change: every linear one of every block. The base is frozen and may be
shared (train/frozen.py). A result is written both ways: merged into the network, and by itself as diffusers reads it
(``pipe.load_lora_weights``). LongLive trains student and critic like this (NVlabs/LongLive,
configs/nvfp4/train_dmd_nvfp4_step4.yaml: r = alpha = 128, ``apply_to_critic``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.files import replacing
from nearstep.models.lora import Update
from nearstep.models.lora_choice import LoraFile
from nearstep.models.lora_files import lowrank_in, open_lora, ranks_in
from nearstep.nets.transformer import VideoTransformer, linear_layers
from nearstep.ranges import check_count, check_number
from nearstep.train.frozen import hold

FOLDER, FILE = "lora", "pytorch_lora_weights.safetensors"
"""Where a model folder has its adapter, and the name that diffusers looks for."""
_ADAPTER, _PREFIX = "default", "transformer."
_DOWN, _UP = f".lora_A.{_ADAPTER}.weight", f".lora_B.{_ADAPTER}.weight"


@dataclass(frozen=True, kw_only=True)
class LoraFields:
    """What a stage that trains by gradient is asked about adapters."""

    lora_rank: int | None = None
    """Train adapters of this rank (peft) and freeze what they stand on; None trains whole networks."""
    lora_alpha: float | None = None
    """The adapter counts alpha / rank times; by default once."""
    lora_start: Path | None = None
    """Folder or file of an adapter to go on from, such as an earlier stage's ``model/lora``: of the same rank, and made
    for the network in ``network``."""

    def __post_init__(self) -> None:
        if self.lora_rank is None:
            if self.lora_alpha is not None or self.lora_start is not None:
                raise NearstepError("lora_alpha and lora_start belong to an adapter; say its lora_rank too")
            return
        check_count("lora_rank", self.lora_rank, most=10**5)
        if self.lora_alpha is not None:
            check_number("lora_alpha", self.lora_alpha, above=0)
        if find_spec("peft") is None:
            raise NearstepError("lora_rank needs peft: pip install 'nearstep[lora]'")
        if self.lora_start is not None:
            _check_rank(self.lora_start, self.lora_rank)

    @property
    def lora_scale(self) -> float:
        """What B A is multiplied by."""
        assert self.lora_rank is not None
        return 1.0 if self.lora_alpha is None else self.lora_alpha / self.lora_rank


def _check_rank(path: Path, rank: int) -> None:
    """Refuse an adapter of another rank; only names and shapes are read."""
    file = LoraFile.of(path).path
    if (ranks := ranks_in(file)) != {rank}:
        what = f"is of rank {', '.join(map(str, sorted(ranks)))}" if ranks else "holds no low-rank updates"
        raise NearstepError(f"{file} {what}; lora_rank={rank} goes on from its own rank only")


def base(network: VideoTransformer, dtype: torch.dtype) -> VideoTransformer:
    """A network made ready to be shared and adapted, in place: frozen, its targets held in ``dtype``."""
    return hold(network, linear_layers(network), dtype)


def adapt(network: VideoTransformer, fields: LoraFields, *names: str | int) -> VideoTransformer:
    """Put an adapter on a frozen network, in place: float32, and it alone trains.

    B is zero, so that the network computes what it did before, to the bit; A is uniform in +-1/sqrt(inputs), peft's
    default.

    Args:
        network: a ``base``.
        fields: rank and alpha.
        names: of the draw of A.
    """
    from peft import LoraConfig

    rank = fields.lora_rank
    assert rank is not None
    alpha: Any = rank * fields.lora_scale  # peft's annotation says int, and it divides
    with torch.random.fork_rng(devices=[]):  # peft draws weights of its own
        network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=linear_layers(network)), _ADAPTER)
    for name, p in network.named_parameters():
        p.requires_grad_(name.endswith((_DOWN, _UP)))
        if p.is_meta:  # without numbers, where shapes alone are asked for
            continue
        if name.endswith(_DOWN):
            bound = p.shape[1] ** -0.5
            draw = rng.generator("adapter", *names, name)
            p.data = torch.empty(p.shape).uniform_(-bound, bound, generator=draw)
        elif name.endswith(_UP):
            p.data = torch.zeros(p.shape)
    return network


def start_from(network: VideoTransformer, fields: LoraFields) -> VideoTransformer:
    """Give a network's adapter the values in ``fields.lora_start``, in place; nothing where that is None.

    Raises:
        NearstepError: if the file's adapter is another network's.
    """
    if fields.lora_start is None:
        return network
    given = LoraFile.of(fields.lora_start)
    file, stored = given.path, lowrank_in(open_lora(given), f"training, which goes on from {given.path},")
    own = dict(network.named_parameters())
    wanted = {f"{name}.weight": _pair(own, name) for name in adapted_layers(own)}
    if stored.keys() != wanted.keys():
        odd = sorted(stored.keys() ^ wanted.keys())[0]
        raise NearstepError(f"{file} is no adapter of this network: they differ in {odd}")
    for name, (down, up) in wanted.items():
        if stored[name].down.shape != down.shape or stored[name].up.shape != up.shape:
            raise NearstepError(f"{file} is no adapter of this network: {name} has another shape here")
        down.data.copy_(stored[name].down)
        up.data.copy_(stored[name].scale * stored[name].up.float() / fields.lora_scale)
    return network


def adapted_layers(state: Mapping[str, object]) -> list[str]:
    """Layers with an adapter, by the names of a network's weights."""
    return [name.removesuffix(_DOWN) for name in state if name.endswith(_DOWN)]


def _pair(state: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    return state[layer + _DOWN], state[layer + _UP]


def merged(state: Mapping[str, Tensor], fields: LoraFields) -> dict[str, Tensor]:
    """An adapted network's weights as a plain network's: the adapter added, summed and kept in float32."""
    updates = {
        f"{layer}.weight": Update(down=down, up=fields.lora_scale * up)
        for layer in adapted_layers(state)
        for down, up in [_pair(state, layer)]
    }
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    return {name: updates[name].merged(value.float()) if name in updates else value for name, value in plain.items()}


def write_adapter(state: Mapping[str, Tensor], fields: LoraFields, folder: Path) -> None:
    """Write an adapted network's adapter to ``folder`` as diffusers writes one, float32.

    The scale is in B, so that whoever reads it needs no alpha.
    """
    tensors: dict[str, Tensor] = {}
    for layer in adapted_layers(state):
        down, up = _pair(state, layer)
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = down.contiguous()
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = (fields.lora_scale * up).contiguous()
    with replacing(folder / FILE) as part:
        save_file(tensors, part, metadata={"format": "pt"})
