"""Fits a thing to its frames: place in every frame and one size, by Gauss-Newton on the picture's error.

The model of a frame is w (L + (1 - a) B): the thing's colours L and coverage a, what is behind it (B) and what lets it
through from the front (w), as in bank.py. Derivatives are differences of exact drawings half a pixel apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.playground.judge.bank import View
from nearstep.playground.sprites import Layer, place_things, windows

_STEP = 0.5
"""Pixels between the drawings that a derivative is the difference of."""
_LARGEST = 1.0
"""Pixels that one iteration moves a thing at most."""
_GROW = 0.06
"""Part by which one iteration changes the size at most."""
_SIDES = (0.8, 1.25)
"""The size's range, in the size it was found with."""
_DAMPING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One thing in each clip, as it fits best."""

    thing: Int[Tensor, " B"]
    """Index into THINGS."""
    centre: Float[Tensor, "B T 2"]
    side: Float[Tensor, " B"]
    gain: Float[Tensor, "B T"]
    """Squared error that the thing takes away in each frame."""
    energy: Float[Tensor, "B T"]
    """The same if it fitted perfectly; 0 where it is hidden."""
    open_energy: Float[Tensor, "B T"]
    """The same if nothing lay in front of it."""

    def layer(self, size: int) -> Layer:
        """The thing, drawn."""
        return place_things(self.thing, self.centre, self.side[:, None].expand(self.centre.shape[:2]), size)

    def rows(self, index: Tensor) -> Fit:
        """These clips."""
        return Fit(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def put(self, index: Tensor, other: Fit) -> Fit:
        """With these clips from ``other``."""
        return Fit(
            **{
                name: getattr(self, name).index_put((index,), getattr(other, name))
                for name in self.__dataclass_fields__
            }
        )


def fit(
    view: View,
    thing: Int[Tensor, " B"],
    centre: Float[Tensor, "B T 2"],
    side: Float[Tensor, " B"],
    *,
    iterations: int = 4,
) -> Fit:
    """Fit each clip's thing, starting from a place and size near the right ones."""
    size = view.picture.shape[-1]
    least, most = side * _SIDES[0], side * _SIDES[1]
    held, shift, best = centre, torch.zeros_like(centre), torch.full(centre.shape[:2], -torch.inf)
    iteration = 0
    while True:
        wide = side[:, None].expand(centre.shape[:2])
        where = windows(centre, wide * 1.05, size)
        here = place_things(thing, centre, wide, size, where)
        through, behind, picture = here.cut(view.through), here.cut(view.behind), here.cut(view.picture)
        change = _change(here, through, behind)
        error = picture - through * behind
        energy = change.square().sum(dim=(2, 3, 4))
        gain = 2 * (error * change).sum(dim=(2, 3, 4)) - energy
        if iteration == iterations:
            break
        slopes = _slopes(thing, centre, wide, size, where, through, behind, change)
        new_shift, grow = _solve(slopes, (error - change).flatten(2))
        # A frame that has become worse goes back half of its way; the others go on from where they are.
        worse = (gain < best)[..., None]
        held = torch.where(worse, held, centre)
        shift = torch.where(worse, shift / 2, new_shift.clamp(-_LARGEST, _LARGEST) / size)
        best = torch.maximum(best, gain)
        centre = (held + shift).clamp(0.0, 1.0)
        iteration += 1
        side = (side * (1 + (2 * grow / size / side).clamp(-_GROW, _GROW))).clamp(least, most)
    open_energy = _change(here, torch.ones_like(through), behind).square().sum(dim=(2, 3, 4))
    return Fit(thing=thing, centre=centre, side=side, gain=gain, energy=energy, open_energy=open_energy)


def _slopes(
    thing: Tensor,
    centre: Tensor,
    wide: Tensor,
    size: int,
    where: tuple,
    through: Tensor,
    behind: Tensor,
    change: Tensor,
) -> Tensor:
    # Change of the model per pixel along x and y, and per two pixels of size, [B, T, 3, pixels].
    step = _STEP / size
    moved = (
        (centre + torch.tensor([step, 0.0]), wide),
        (centre + torch.tensor([0.0, step]), wide),
        (centre, wide + 2 * step),
    )
    drawn = [_change(place_things(thing, *at, size, where), through, behind) for at in moved]
    return torch.stack([(picture - change).flatten(2) / _STEP for picture in drawn], dim=2)


def _change(layer: Layer, through: Tensor, behind: Tensor) -> Tensor:
    # What the thing changes in the model.
    return through * (layer.pixels[:, :, :3] - layer.pixels[:, :, 3:] * behind)


def _solve(slopes: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    # Places [B, T, 2] and the size's change [B]: the size is the same in all frames, so places are eliminated first.
    product = slopes @ slopes.mT
    right = (slopes @ residual[..., None])[..., 0]
    place = product[..., :2, :2] + torch.eye(2) * (
        _DAMPING + _DAMPING * product[..., :2, :2].diagonal(0, -2, -1).amax()
    )
    mixed = torch.linalg.solve(place, torch.cat([product[..., :2, 2:], right[..., :2, None]], dim=-1))
    along = product[..., 2, :2]
    curve = (product[..., 2, 2] - (along * mixed[..., 0]).sum(-1)).sum(1)
    force = (right[..., 2] - (along * mixed[..., 1]).sum(-1)).sum(1)
    grow = force / curve.clamp(min=_DAMPING)
    return mixed[..., 1] - mixed[..., 0] * grow[:, None, None], grow
