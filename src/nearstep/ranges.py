"""What a number may be, checked where it is asked for: NaN, infinity and absurd sizes are refused before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral, Real

from nearstep.errors import NearstepError


def check_number(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a number that is not finite, or outside of its bounds.

    Args:
        name: as the user wrote it.
        value: what was given.
        least: the smallest that is allowed.
        above: a bound that it must exceed.
        most: the largest that is allowed.
        below: a bound that it must stay under.

    Raises:
        NearstepError: naming the option, its value, and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise NearstepError(f"{name}={value!r:.60}; give a number")
    low = least if least is not None else above if above is not None else -math.inf
    high = most if most is not None else below if below is not None else math.inf
    on_bound = (above is not None and value == above) or (below is not None and value == below)
    if math.isfinite(value) and low <= value <= high and not on_bound:
        return
    bounds = [
        text
        for text, bound in (
            (f"at least {least}", least),
            (f"above {above}", above),
            (f"at most {most}", most),
            (f"below {below}", below),
        )
        if bound is not None
    ]
    raise NearstepError(f"{name}={value}; give a number{' ' + ' and '.join(bounds) if bounds else ' that is finite'}")


def check_count(name: str, value: int | None, *, least: int = 1, most: int = 10**9) -> None:
    """Refuse a count outside of its bounds; None is what a config says where nothing is asked for.

    Raises:
        NearstepError: naming the option, its value, and what is allowed.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise NearstepError(f"{name}={value!r:.60}; give a whole number")
    if not least <= value <= most:
        wanted = f"at least {least}" if value < least else f"at most {most}"
        raise NearstepError(f"{name}={value}; give {wanted}")


def grows(numbers: Sequence[int]) -> bool:
    """Whether the numbers lie above 0 and each above the one before."""
    return all(before < after for before, after in pairwise((0, *numbers)))
