"""How sure a mean is: percentile bootstrap, seeded and vectorised.

Clips are the unit of resampling. Two models or plans judged on the same captions are compared by the differences of
their clips (:func:`paired`), which is much sharper than comparing two intervals. Several seeds of one recipe are
pooled: seeds and clips are resampled together, so that both kinds of chance are in the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its interval of confidence."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """A difference this sure is no accident of the clips."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def mean(values: Tensor, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> Interval:
    """Mean of [N] values with its bootstrap interval; values that are not numbers are left out."""
    return mean_rows(values[None], seed=seed, resamples=resamples, level=level)[0]


def mean_rows(values: Tensor, *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL) -> list[Interval]:
    """The same for every row of [K, N]; all rows share their resamples, and each leaves out its own missing values."""
    there = values.isfinite()
    if not there.any(dim=1).all():
        raise NearstepError("an interval needs at least one value, got none; judge more clips")
    weights = counts(values.shape[1], seed=seed, resamples=resamples)  # [R, N]
    numbers = torch.where(there, values, 0.0).double()
    means = (weights @ numbers.T) / (weights @ there.double().T)  # [R, K]; nan where a resample has no value
    low, high = tails(means, level)
    centre = numbers.sum(dim=1) / there.sum(dim=1)
    return [Interval(*row) for row in torch.stack([centre, low, high], dim=1).tolist()]


def paired(first: Tensor, second: Tensor, *, seed: int = 0) -> Interval:
    """Mean of ``first - second`` over the same N clips."""
    if first.shape != second.shape:
        raise NearstepError(f"{len(first)} and {len(second)} clips cannot be paired; judge both on the same captions")
    return mean(first - second, seed=seed)


def statistic(
    rows: Tensor, measure: Callable[[Tensor], float], *, seed: int = 0, resamples: int = 200, level: float = LEVEL
) -> Interval:
    """Any statistic of the rows of [N, D], such as a Fréchet distance.

    A resample repeats rows, which biases distances upwards; the resampled values are therefore moved so that their mean
    is the value itself, and only their spread is used.
    """
    found = statistics(len(rows), lambda pick: {"": measure(rows[pick])}, seed=seed, resamples=resamples, level=level)
    return found[""]


def statistics(
    size: int,
    measure: Callable[[Tensor], Mapping[str, float]],
    *,
    seed: int = 0,
    resamples: int = 200,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Several at once of ``size`` things, by their numbers [size]: as :func:`statistic`.

    What a resample says nothing of is left out of its spread.
    """
    whole = measure(torch.arange(size))
    picks = torch.randint(size, (resamples, size), generator=rng.generator("bootstrap rows", seed))
    drawn = [measure(pick) for pick in picks]
    return {
        name: _around(value, [each[name] for each in drawn if name in each], level) for name, value in whole.items()
    }


def _around(value: float, again: Sequence[float], level: float) -> Interval:
    if not again:
        return Interval(value, value, value)
    values = torch.tensor(again, dtype=torch.float64)
    low, high = tails((values - values.mean() + value)[:, None], level)
    return Interval(value, float(low), float(high))


def counts(size: int, *, seed: int, resamples: int) -> Tensor:
    """How often each of ``size`` clips is drawn in each resample, [R, N] float64; rows sum to N."""
    picks = torch.randint(size, (resamples, size), generator=rng.generator("bootstrap", seed))
    return torch.zeros(resamples, size, dtype=torch.float64).scatter_add_(
        1, picks, torch.ones(resamples, size, dtype=torch.float64)
    )


def tails(values: Tensor, level: float = LEVEL) -> tuple[Tensor, Tensor]:
    """Bounds, [K] each, that hold ``level`` of resampled values [R, K] between them; nan is no value."""
    tail = (1 - level) / 2
    low, high = torch.nanquantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype), dim=0)
    return low, high


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's: the correlation of the ranks of two vectors [N]; equal values share their mean rank."""
    return float(torch.corrcoef(torch.stack([_ranks(first), _ranks(second)]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    ends = count.cumsum(0).double()
    return (ends - (count - 1) / 2)[place]


def pooled(values: Tensor, *, seed: int = 0) -> Interval:
    """Mean of [S, N] with its interval: seeds and clips are both resampled, so both kinds of chance are in it."""
    draw = rng.generator("pooled", seed)
    return _interval(values.mean(), _resampled(values, counts(values.shape[1], seed=seed, resamples=RESAMPLES), draw))


def difference(first: Tensor, second: Tensor, *, seed: int = 0) -> Interval:
    """Mean of ``first`` minus mean of ``second``, each [S, N] on the same captions; seeds are resampled apart.

    Clips are paired, which removes that some captions are harder; runs are not, because a seed means nothing across
    recipes.
    """
    if first.shape[1] != second.shape[1]:
        raise NearstepError(f"{first.shape[1]} and {second.shape[1]} captions cannot be paired; measure both alike")
    weights = counts(first.shape[1], seed=seed, resamples=RESAMPLES)
    draw = rng.generator("pooled difference", seed)
    a, b = (_resampled(values, weights, draw) for values in (first, second))
    return _interval(first.mean() - second.mean(), a - b)


def _resampled(values: Tensor, weights: Tensor, draw: torch.Generator) -> Tensor:
    # Mean of each resample [R]: clips by their counts [R, N], seeds drawn anew.
    seeds = torch.randint(len(values), (len(weights), len(values)), generator=draw)
    by_seed = weights @ values.T / values.shape[1]  # [R, S]
    return by_seed.gather(1, seeds).mean(dim=1)


def _interval(value: Tensor, resampled: Tensor) -> Interval:
    low, high = tails(resampled[:, None])
    return Interval(float(value), float(low), float(high))
