"""What adapter files add to a network's weights, in closed form.

    LoRA   W + s B A                          Hu et al., arXiv 2106.09685, eq. 3; s = alpha / r, rslora: alpha / sqrt(r)
    LoHa   W + s (A1 B1) * (A2 B2)            Hyeon-Woo et al., arXiv 2108.06098, eq. 3
    LoKr   W + s kron(C, D)                   Yeh et al., arXiv 2309.14859, section 3.3
    diff   W + D
    DoRA   m V / |V|, V = W + s B A           Liu et al., arXiv 2402.09353, eq. 5

Which of them a file holds is read in models/lora_files.py, under which names in models/lora_names.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nearstep.errors import NearstepError

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Change(ABC):
    """What is done to one weight."""

    scale: float = 1.0
    """What the file says its product counts, s."""

    @property
    @abstractmethod
    def shape(self) -> Shape | None:
        """Shape of the weight that it fits, flattened to [out, inputs]; None where any of its size does."""

    @abstractmethod
    def product(self) -> Tensor:
        """What is added before the scale, [out, inputs] or the weight's own shape; float32."""

    def merged(self, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The weight with the change made, in the weight's type or another; summed in float32."""
        return (weight.float() + self.delta(weight.float())).to(dtype or weight.dtype)

    def merged_into(self, name: str, weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``merged``, of the weight called ``name``.

        Raises:
            NearstepError: if finite factors make a weight that is not.
        """
        made = self.merged(weight, dtype)
        if not (made.is_meta or made.isfinite().all()):
            raise NearstepError(
                f"{name} with its LoRA holds NaN or infinity in {str(made.dtype).removeprefix('torch.')}, which is not "
                f"finite: the adapter is too strong (FILE:0.1) or damaged, or the weight is"
            )
        return made

    def delta(self, weight: Tensor) -> Tensor:
        """What the change adds to a float32 weight."""
        return (self.scale * self.product()).reshape(weight.shape)

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight of this shape can be changed so."""
        return self.shape == flattened(shape)


@dataclass(frozen=True, kw_only=True)
class Update(Change):
    """A low-rank product."""

    down: Tensor
    """A, [r, in], or a convolution's [r, in, ...]."""
    up: Tensor
    """B, [out, r], or [out, r, 1, ...]."""

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    @property
    def shape(self) -> Shape:
        return (self.up.shape[0], self.down.flatten(1).shape[1])

    def product(self) -> Tensor:
        return self.up.float().flatten(1) @ self.down.float().flatten(1)


@dataclass(frozen=True, kw_only=True)
class Hadamard(Change):
    """The elementwise product of two low-rank ones."""

    first: Tensor
    """[out, in]."""
    second: Tensor

    @property
    def shape(self) -> Shape:
        return flattened(self.first.shape)

    def product(self) -> Tensor:
        return self.first * self.second


@dataclass(frozen=True, kw_only=True)
class Kronecker(Change):
    """The Kronecker product of a small matrix and a larger one."""

    small: Tensor
    """[a, b]."""
    large: Tensor
    """[c, d], or a convolution's [c, d, ...]."""

    @property
    def shape(self) -> Shape:
        (a, b), (c, d, *rest) = self.small.shape, self.large.shape
        return flattened((a * c, b * d, *rest))

    def product(self) -> Tensor:
        ones = (1,) * (self.large.ndim - 2)
        return torch.kron(self.small.float().reshape(*self.small.shape, *ones), self.large.float())


@dataclass(frozen=True, kw_only=True)
class Difference(Change):
    """The difference itself, of a weight or a bias."""

    value: Tensor

    @property
    def shape(self) -> None:
        return None

    def product(self) -> Tensor:
        return self.value.float()

    def fits(self, shape: Sequence[int]) -> bool:
        own = tuple(self.value.shape)
        return own == tuple(shape) or (self.value.ndim != len(shape) and _sides(own) == _sides(shape))


@dataclass(frozen=True, kw_only=True)
class Decomposed(Change):
    """A change whose result is given other lengths: those of its rows, or of its columns."""

    inner: Change
    magnitude: Tensor
    """m: [out] or [out, 1] for rows, [1, in] for columns."""

    @property
    def shape(self) -> Shape | None:
        return self.inner.shape

    def product(self) -> Tensor:
        return self.inner.product()

    def delta(self, weight: Tensor) -> Tensor:
        changed = (weight + self.inner.delta(weight)).flatten(1)
        by_column = self.magnitude.ndim > 1 and self.magnitude.shape[0] == 1
        length = changed.norm(dim=0 if by_column else 1, keepdim=True)
        scaled = changed * (self.magnitude.float().reshape(length.shape) / length)
        return self.scale * (scaled.reshape(weight.shape) - weight)

    def fits(self, shape: Sequence[int]) -> bool:
        sizes = {(shape[0],), (shape[0], 1), (1, flattened(shape)[1])}
        return self.inner.fits(shape) and flattened_or_own(self.magnitude.shape) in sizes


@dataclass(frozen=True, kw_only=True)
class Sum(Change):
    """Several changes of one weight, each made to the weight as it was."""

    parts: tuple[Change, ...]

    @property
    def shape(self) -> Shape | None:
        return next((part.shape for part in self.parts if part.shape), None)

    def product(self) -> Tensor:
        raise NotImplementedError("a sum has no product of its own")

    def delta(self, weight: Tensor) -> Tensor:
        total = torch.zeros_like(weight)
        for part in self.parts:
            total += part.delta(weight)
        return self.scale * total

    def fits(self, shape: Sequence[int]) -> bool:
        return all(part.fits(shape) for part in self.parts)


Changes = Mapping[str, Change]
"""Our weights' names -> what is done to them."""


def summed(several: Sequence[Changes]) -> dict[str, Change]:
    """The changes of several files together: order does not matter."""
    parts: dict[str, tuple[Change, ...]] = {}
    for changes in several:
        for name, change in changes.items():
            parts[name] = (*parts.get(name, ()), change)
    return {name: own[0] if len(own) == 1 else Sum(parts=own) for name, own in parts.items()}


def strengthened(changes: Changes, strength: float) -> dict[str, Change]:
    """The same changes, ``strength`` times what each adds."""
    return {name: replace(change, scale=strength * change.scale) for name, change in changes.items()}


def flattened(shape: Sequence[int]) -> Shape:
    """A weight's shape as [out, inputs]."""
    out, *rest = shape
    inputs = 1
    for side in rest:
        inputs *= side
    return (out, inputs)


def flattened_or_own(shape: Sequence[int]) -> Shape:
    """[n] and a single number stay; all else becomes [out, inputs]."""
    return tuple(shape) if len(shape) < 2 else flattened(shape)


def _sides(shape: Sequence[int]) -> Shape:
    return tuple(side for side in shape if side > 1)
