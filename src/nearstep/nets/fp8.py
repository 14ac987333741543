"""Linear layers whose weights are eight-bit floats (e4m3), with a factor of its own for each row.

    w = s q,    s = max |w| / 448 of a row,    q rounded to three bits of mantissa

A product is of wide numbers (``"weights"``: the weight becomes a matrix of the input's type in each call, which saves
memory and no time) or of eight-bit ones (``"products"``: inputs are rounded in the same way, row by row, and torch's
scaled product multiplies; Ada and Hopper cards do that at twice the rate of bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from nearstep.errors import NearstepError
from nearstep.nets.kernels import written_out
from nearstep.nets.transformer import VideoTransformer

FP8 = torch.float8_e4m3fn
Fp8 = Literal["weights", "products"]
"""What is in eight bits: the weights of the blocks' linear layers alone, or also what is multiplied with them."""
Scaled = tuple[Tensor, Tensor]
"""Eight-bit numbers [rows, columns] and the factor of each row, [rows, 1] in float32."""
_LEAST = (8, 9)
"""Compute capability from which there are products of eight-bit floats (Ada)."""
_SIDES = 16
"""torch's scaled product takes sides that are multiples of this."""


def by_rows(x: Tensor) -> Scaled:
    """A matrix [rows, columns] in eight bits, each row scaled to their range."""
    largest = torch.linalg.vector_norm(x, float("inf"), dim=1, keepdim=True)  # without a copy of x
    # A row of zeros, and one so small that its factor would vanish, become zeros.
    factor = (largest.float() / torch.finfo(FP8).max).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / factor).to(FP8), factor


def product(x: Scaled, weight: Scaled) -> Tensor:
    """x weight^T in bfloat16: torch's own scaled product, on a CPU written out (which is faster there)."""
    factors = x[1], weight[1].t()
    if written_out(x[0]):
        return (x[0].float() @ weight[0].float().t() * factors[0] * factors[1]).to(torch.bfloat16)
    multiply: Callable[..., Tensor] = torch._scaled_mm
    scales = dict(zip(("scale_a", "scale_b"), factors, strict=True))
    return multiply(x[0], weight[0].t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=True)


class Fp8Linear(nn.Linear):
    """A frozen linear layer in eight bits. What turns a network into another type leaves these numbers as they are.

    Args:
        layer: the layer that it takes the place of, whose bias it keeps.
        how: what is in eight bits.
    """

    scale: Tensor
    """[out, 1] in float32."""

    def __init__(self, layer: nn.Linear, how: Fp8) -> None:
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


def fp8_layers(network: VideoTransformer) -> list[str]:
    """Names of the layers that go into eight bits: those of the blocks, which hold nearly all of the numbers."""
    found = network.blocks.named_modules(prefix="blocks")
    return [name for name, module in found if isinstance(module, nn.Linear)]


def to_fp8(network: VideoTransformer, how: Fp8) -> VideoTransformer:
    """Put the blocks' linear layers into eight bits, in place.

    Raises:
        NearstepError: if torch's scaled product does not take their sizes.
    """
    for name in fp8_layers(network):
        layer: Any = network.get_submodule(name)
        if how == "products" and (layer.in_features % _SIDES or layer.out_features % _SIDES):
            raise NearstepError(
                f"fp8='products' needs layers whose sides are multiples of {_SIDES}, and {name} is "
                f"{layer.in_features} -> {layer.out_features}; use fp8='weights'"
            )
        network.set_submodule(name, Fp8Linear(layer, how))
    return network


def check_wide(network: nn.Module, done: str) -> None:
    """Refuse a network in eight bits.

    Args:
        network: which.
        done: what cannot be done with it, and what to do.

    Raises:
        NearstepError: if any of its layers is in eight bits.
    """
    if any(isinstance(module, Fp8Linear) for module in network.modules()):
        raise NearstepError(f"a network in eight bits cannot be {done}")


def find_fp8(how: str | None, device: torch.device | None) -> Fp8 | None:
    """What is meant to go into eight bits; refuses what there is not, before anything is loaded.

    Args:
        how: as asked for; None for no eight-bit numbers.
        device: where the network will be, if that is known.

    Raises:
        NearstepError: for another word than those of :data:`Fp8`, or a device that cannot do it.
    """
    if how is None:
        return None
    if how not in get_args(Fp8):
        raise NearstepError(f"fp8={how!r}; use {' or '.join(map(repr, get_args(Fp8)))}, or leave it out")
    known: Fp8 = "products" if how == "products" else "weights"
    if device is None or device.type == "cpu":
        return known
    if device.type != "cuda":
        raise NearstepError(f"fp8={how!r} runs on CUDA and on CPUs, and not on {device}; leave it out")
    if how == "products" and (found := torch.cuda.get_device_capability(device)) < _LEAST:
        stated, least = (".".join(map(str, each)) for each in (found, _LEAST))
        raise NearstepError(
            f"fp8='products' needs a card of compute capability {least} (Ada, Hopper), and {device} is of {stated}; "
            "use fp8='weights'"
        )
    return known
