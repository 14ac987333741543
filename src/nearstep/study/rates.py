"""Closed forms about rates: intervals, exact tests against even odds, and how many votes tell a difference."""

from __future__ import annotations

import math
from statistics import NormalDist

from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import LEVEL, Interval
from nearstep.ranges import check_number

POWER = 0.8


def wilson(successes: float, count: float, *, level: float = LEVEL) -> Interval:
    """A rate and Wilson's score interval; ties may count as half a success, which makes it a little too wide.

    (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n), for independent votes.
    """
    rate, z = successes / count, _normal(level)
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def even_odds(successes: int, count: int) -> float:
    """The exact two-sided p of so many successes of ``count`` under even odds: the sign test; 1 of no votes."""
    fewer = min(successes, count - successes)
    if 2 * fewer >= count - 1:
        return 1.0
    logs = (math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(math.exp(each - count * math.log(2)) for each in logs))


def votes_needed(rate: float, *, level: float = LEVEL, power: float = POWER) -> int:
    """Independent votes without ties that tell a rate from one half: 134 for 62 % at 5 %, two-sided, power 80 %.

    n = ((z_(1 - a/2) / 2 + z_power sqrt(p (1 - p))) / (p - 1/2))², the normal approximation with the variance of each
    hypothesis.

    Raises:
        NearstepError: for a rate outside of (0, 1), or one half.
    """
    check_number("rate", rate, above=0, below=1)
    if rate == 0.5:
        raise NearstepError("rate=0.5 is no preference, which no number of votes tells from one half; give another")
    away = abs(rate - 0.5)
    root = (_normal(level) / 2 + NormalDist().inv_cdf(power) * math.sqrt(rate * (1 - rate))) / away
    return math.ceil(root * root)


def _normal(level: float) -> float:
    """z of a two-sided level."""
    return NormalDist().inv_cdf((1 + level) / 2)
