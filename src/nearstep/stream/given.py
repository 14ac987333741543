"""Tensors that a caller hands over in the place of what would be made: starting noise, and features of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.shapes import LatentShape
from nearstep.stream.finite import check_finite
from nearstep.stream.opening import digest


@dataclass(frozen=True, eq=False, repr=False)
class GivenTensor:
    """A tensor that is compared by its numbers and shown by its shape, so that a request can hold it."""

    tensor: Tensor

    @cached_property
    def digest(self) -> str:
        """A short name for its numbers."""
        return digest(self.tensor)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenTensor) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"GivenTensor{(*self.tensor.shape,)}"

    @property
    def names(self) -> tuple[tuple[int, ...], str]:
        """What it is compared by."""
        return (*self.tensor.shape,), self.digest


def given_latents(latents: Tensor, shape: LatentShape, count: int) -> GivenTensor:
    """The noise [B, F, C, h, w] that ``count`` clips start from.

    Args:
        latents: that, or with WanPipeline's axes [B, C, F, h, w]; where F and C are one number, the first is meant.
        shape: of a clip.
        count: of clips.

    Raises:
        NearstepError: for another shape or type, or for numbers that are not finite.
    """
    wanted = (count, shape.frames, *shape.frame)
    _check_floating("latents", latents)
    if tuple(latents.shape) == wanted:
        return GivenTensor(latents.detach().float())
    turned = latents.transpose(1, 2) if latents.ndim == len(wanted) else latents
    if tuple(turned.shape) != wanted:
        wans = (wanted[0], wanted[2], wanted[1], *wanted[3:])
        raise NearstepError(
            f"latents of shape {tuple(latents.shape)}: this clip starts from {wanted}, [B, F, C, h, w], "
            f"or {wans}, as diffusers has them"
        )
    return GivenTensor(turned.detach().float())


def given_features(name: str, embeds: Tensor, *, width: int, count: int | None = None) -> GivenTensor:
    """What a text encoder made of prompts, [B, L, D].

    Args:
        name: of the argument.
        embeds: the features.
        width: D, as the network takes them.
        count: B, where the other arguments say it.

    Raises:
        NearstepError: for another shape or type, or for numbers that are not finite.
    """
    _check_floating(name, embeds)
    shape = tuple(embeds.shape)
    if len(shape) != 3 or 0 in shape or shape[2] != width or count not in (None, shape[0]):
        rows = "B" if count is None else count
        raise NearstepError(f"{name} of shape {shape}: this network takes [{rows}, L, {width}], a row for each prompt")
    return GivenTensor(embeds.detach())


def each_times(given: GivenTensor | None, times: int) -> GivenTensor | None:
    """Every row so many times, one after the other."""
    return given if given is None or times == 1 else GivenTensor(given.tensor.repeat_interleave(times, 0))


def _check_floating(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = f"a tensor of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise NearstepError(f"{name} is {kind}; give a tensor of floating-point numbers")
    check_finite(tensor, name)
