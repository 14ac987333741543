"""How two things lie to each other, as conditions on their exact paths.

*In front of* and *behind* are told where the things meet: for a good part of the clip one must cover the other, and
neither may be hidden. The four *sides* hold in every frame.
"""

from __future__ import annotations

from torch import Tensor

OVERLAPS: tuple[str, ...] = ("in front of", "behind")
SIDES: dict[str, tuple[int, float]] = {
    "left of": (0, 1.0),
    "right of": (0, -1.0),
    "above": (1, 1.0),
    "below": (1, -1.0),
}
"""Relation -> axis (0 x, 1 y) and the sign of (second - first) along it."""

RELATIONS: tuple[str, ...] = (*OVERLAPS, *SIDES)
OPPOSITES: dict[str, str] = {
    "in front of": "behind",
    "behind": "in front of",
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
"""Relation of the first thing to the second -> of the second to the first."""

_MET = 0.2
"""Part of the smaller thing's square that the larger one's must cover for the two to meet."""
_MEETING = 0.3
"""Part of the frames in which things meet whose order is told."""
_HIDDEN = 0.6
"""Largest part of the rear thing's square that may be covered in any frame of a told order."""
_APART = 0.3
"""Largest part that may be covered in any frame where no order is told."""
_STEEP = 1.2
"""Distance along the axis of a side, in distances across it."""
_CLEAR = 0.4
"""Distance along the axis of a side, in the sum of both extents."""
_CLOSE = 1e-4
"""More than rounding makes of any of these, as parts of the frame's side or area."""


def covered(first: Tensor, second: Tensor, side: float, other: float) -> Tensor:
    """Area that both squares share in each frame, [T].

    Args:
        first: [T, 2] centres.
        second: [T, 2] centres.
        side: of the first square.
        other: of the second square.
    """
    low = (first - second).sub(side / 2).clamp(min=-other / 2)
    high = (first - second).add(side / 2).clamp(max=other / 2)
    return (high - low).clamp(min=0.0).prod(dim=-1)


def holds(relation: str, first: Tensor, second: Tensor, side: float, other: float) -> bool:
    """Whether the paths show the relation.

    Args:
        relation: one of RELATIONS.
        first: [T, 2] centres of the thing in front, or of the one that lies on the named side.
        second: [T, 2] centres of the other.
        side: extent of the first.
        other: extent of the second.
    """
    if relation in OVERLAPS:
        shared = covered(first, second, side, other)
        met = shared > _MET * min(side, other) ** 2
        return bool(met.float().mean() >= _MEETING and shared.max() <= _HIDDEN * other**2)
    axis, sign = SIDES[relation]
    along = sign * (second - first)[:, axis]
    across = (second - first)[:, 1 - axis].abs()
    return bool((along >= _STEEP * across).all() and (along >= _CLEAR * (side + other)).all())


def undisturbed(first: Tensor, second: Tensor, side: float, other: float) -> bool:
    """Whether the two hardly cover each other, so that both can be told without their order."""
    return bool(covered(first, second, side, other).max() <= _APART * min(side, other) ** 2)


def surely_broken(
    relation: str | None, first: tuple[float, float], second: tuple[float, float], side: float, other: float
) -> bool:
    """Whether one frame alone, with the things at these centres, rules the relation out: most pairs of paths fail so.

    What is close is left to :func:`holds` and :func:`undisturbed`, which decide. None: that they are apart.
    """
    if relation in SIDES:
        axis, sign = SIDES[relation]
        along, across = sign * (second[axis] - first[axis]), abs(second[1 - axis] - first[1 - axis])
        return along < max(_STEEP * across, _CLEAR * (side + other)) - _CLOSE
    spans = [
        min(a + side / 2, b + other / 2) - max(a - side / 2, b - other / 2) for a, b in zip(first, second, strict=True)
    ]
    most = _APART * min(side, other) ** 2 if relation is None else _HIDDEN * other**2
    return max(spans[0], 0.0) * max(spans[1], 0.0) > most + _CLOSE
