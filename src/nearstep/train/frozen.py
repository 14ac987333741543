"""Frozen weights: held once by all networks that read them, in a narrower type if need be, and never saved again.

Networks that share weights are modules of their own (``twin``), so none has a mode to be switched, and a graph that is
recomputed sees what it saw. ``Ranks.place`` cuts each of them into its own slices where there are many processes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nearstep.nets.transformer import VideoTransformer

Module = TypeVar("Module", bound=nn.Module)


class HeldLinear(nn.Linear):
    """A frozen layer held in a narrower type than it computes in: that of its input, or autocast's."""

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        return linear(input, self.weight.to(dtype), self.bias.to(dtype))


def hold(network: VideoTransformer, names: Iterable[str], dtype: torch.dtype) -> VideoTransformer:
    """Freeze a network, in place, and narrow the weights of the linear layers called ``names`` to ``dtype``.

    Whatever else there is stays as it is, so that the network computes in the type that it was loaded in.
    """
    network.requires_grad_(False)
    for name in names:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        narrow = HeldLinear(layer.in_features, layer.out_features, device="meta")
        narrow.weight, narrow.bias = nn.Parameter(layer.weight.to(dtype), requires_grad=False), layer.bias
        network.set_submodule(name, narrow)
    return network


def twin(module: Module) -> Module:
    """A copy that has its frozen parameters in common with the original."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters() if not p.requires_grad})


def view(module: Module) -> Module:
    """A frozen module on the original's own numbers, for as long as neither changes them."""
    return copy.deepcopy(module, {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()})


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that do not train, a tied one's second name included."""
    return frozenset(name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad)


class Trained:
    """What a run changes in a module, to save and to load: all but ``frozen``, which lies in the model folder.

    Args:
        module: the module.
        frozen: names to leave out; by default the parameters that do not train now.
    """

    def __init__(self, module: nn.Module, frozen: frozenset[str] | None = None) -> None:
        self.module = module
        self.frozen = frozen_names(module) if frozen is None else frozen

    def state_dict(self) -> dict[str, Any]:
        """Name -> tensor."""
        return {name: value for name, value in self.module.state_dict().items() if name not in self.frozen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.module.load_state_dict({**self.module.state_dict(), **state})
