"""A network in eight-bit floats (fp8.py): the weights of its linear layers, their products, its cache.

A product is of wide numbers (``"weights"``: the weight becomes a matrix of the input's type in each call, which saves
memory and no time) or of eight-bit ones (``"products"``: inputs are rounded like the weights, row by row, and torch's
scaled product multiplies; Ada and Hopper cards do that at twice the rate of bfloat16). In the cache (``"cache"``) keys
and values of finished frames are rounded, with a factor for each token and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nearstep.errors import NearstepError
from nearstep.nets.fp8 import by_rows, product
from nearstep.nets.transformer import VideoTransformer, linear_layers

InLayers = Literal["weights", "products"]
Part = Literal["weights", "products", "cache"]
_LEAST = (8, 9)
"""Compute capability from which there are products of eight-bit floats (Ada)."""
_SIDES = 16
"""torch's scaled product takes sides that are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class Fp8:
    """What of a network is in eight bits."""

    layers: InLayers | None = None
    """The weights of the blocks' linear layers alone, or also what is multiplied with them."""
    cache: bool = False
    """Keys and values of finished frames."""


class Fp8Linear(nn.Linear):
    """A frozen linear layer in eight bits. What turns a network into another type leaves these numbers as they are.

    Args:
        layer: the layer that it takes the place of, whose bias it keeps.
        how: what is in eight bits.
    """

    scale: Tensor
    """[out, 1] in float32."""

    def __init__(self, layer: nn.Linear, how: InLayers) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.products = how == "products"
        numbers, scale = by_rows(layer.weight.detach())
        self.weight, self.bias = nn.Parameter(numbers, requires_grad=False), layer.bias
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        if not self.products:
            return linear(input, (self.weight.float() * self.scale).to(input.dtype), self.bias)
        made = product(by_rows(input.flatten(0, -2)), (self.weight, self.scale))
        made = made.to(input.dtype).unflatten(0, input.shape[:-1])
        return made if self.bias is None else made + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fp8Linear:
        """Moves count; changes of type are the bias's alone, as the others' numbers mean nothing in another."""
        before = {name: getattr(self, name).detach() for name in ("weight", "scale")}
        super()._apply(fn, recurse)
        for name, held in before.items():
            if (now := getattr(self, name)).dtype != held.dtype:
                moved = held.to(now.device)
                setattr(self, name, nn.Parameter(moved, requires_grad=False) if name == "weight" else moved)
        return self


def to_fp8(network: VideoTransformer, how: InLayers) -> VideoTransformer:
    """Put the blocks' linear layers into eight bits, in place.

    Raises:
        NearstepError: if torch's scaled product does not take their sizes.
    """
    for name in linear_layers(network):
        layer: Any = network.get_submodule(name)
        if how == "products" and (layer.in_features % _SIDES or layer.out_features % _SIDES):
            raise NearstepError(
                f"fp8='products' needs layers whose sides are multiples of {_SIDES}, and {name} is "
                f"{layer.in_features} -> {layer.out_features}; use fp8='weights'"
            )
        network.set_submodule(name, Fp8Linear(layer, how))
    return network


def in_fp8(network: nn.Module) -> list[str]:
    """What of a network is in eight bits, in words."""
    layer = next((module for module in network.modules() if isinstance(module, Fp8Linear)), None)
    found = [] if layer is None else [f"its layers' {'products' if layer.products else 'weights'} in fp8"]
    return [*found, *(["its cache in fp8"] if getattr(network, "cache_fp8", False) else [])]


def check_wide(network: nn.Module, done: str) -> None:
    """Refuse a network whose layers are in eight bits.

    Args:
        network: which.
        done: what cannot be done with it, and what to do.

    Raises:
        NearstepError: if any of its layers is in eight bits.
    """
    if any(isinstance(module, Fp8Linear) for module in network.modules()):
        raise NearstepError(f"a network in eight bits cannot be {done}")


def narrow(network: VideoTransformer, fp8: Fp8 | None) -> VideoTransformer:
    """Put what is asked for into eight bits, in place.

    Raises:
        NearstepError: as ``to_fp8`` does.
    """
    if fp8 and fp8.layers:
        to_fp8(network, fp8.layers)
    network.cache_fp8 = bool(fp8 and fp8.cache)
    return network


def find_fp8(asked: str | Sequence[str] | None, device: torch.device | None) -> Fp8 | None:
    """What is meant to go into eight bits; refuses what there is not, before anything is loaded.

    Args:
        asked: one of :data:`Part`, or several; None, or none of them, for no eight-bit numbers.
        device: where the network will be, if that is known.

    Raises:
        NearstepError: for other words, or a device that cannot do it.
    """
    words = (asked,) if isinstance(asked, str) else tuple(asked or ())
    if not words:
        return None
    if unknown := [word for word in words if word not in get_args(Part)]:
        raise NearstepError(f"fp8={unknown[0]!r}; use {', '.join(map(repr, get_args(Part)))}, or leave it out")
    layers: InLayers | None = "products" if "products" in words else "weights" if "weights" in words else None
    found = Fp8(layers=layers, cache="cache" in words)
    if device is None or device.type == "cpu":
        return found
    if device.type != "cuda":
        raise NearstepError(f"fp8={' '.join(words)!r} runs on CUDA and on CPUs, and not on {device}; leave it out")
    if layers == "products" and (own := torch.cuda.get_device_capability(device)) < _LEAST:
        stated, least = (".".join(map(str, each)) for each in (own, _LEAST))
        raise NearstepError(
            f"fp8='products' needs a card of compute capability {least} (Ada, Hopper), and {device} is of {stated}; "
            "use fp8='weights'"
        )
    return found
