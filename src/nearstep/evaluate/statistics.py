"""How sure a mean is: percentile bootstrap of clips, seeded and vectorised; Student's t where runs differ, too.

Clips are the unit of resampling. Two models or plans judged on the same captions are compared by the differences of
their clips (:func:`paired`), which is much sharper than comparing two intervals. Several seeds of one recipe are
pooled: the chance of captions and that of runs are in the interval. Three runs are too few to be resampled (what says
95 % then holds 81 %), so their part is a standard error with its degrees of freedom, by Welch and Satterthwaite.
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
    """Mean of [S, N], S runs judged on N captions, with its interval; of one run, by the chance of captions alone."""
    if len(values) == 1:
        return mean(values[0], seed=seed)
    return _by_t(values.mean(), [values], values.mean(dim=0))


def difference(first: Tensor, second: Tensor, *, same_runs: bool = False, seed: int = 0) -> Interval:
    """Mean of ``first`` minus mean of ``second``, each [S, N] on the same captions.

    Clips are paired, which removes that some captions are harder. Runs are where both are of the same ones, as two
    plans of a recipe; not else, because a seed means nothing across recipes.

    Args:
        first: [S, N].
        second: [S, N], of as many runs where they are the same.
        same_runs: whether row by row both are of one run.
        seed: of the resamples, where neither has more than one run.
    """
    if first.shape[1] != second.shape[1]:
        raise NearstepError(f"{first.shape[1]} and {second.shape[1]} captions cannot be paired; measure both alike")
    if same_runs:
        return pooled(first - second, seed=seed)
    clips = first.mean(dim=0) - second.mean(dim=0)
    if len(first) == len(second) == 1:
        return mean(clips, seed=seed)
    return _by_t(clips.mean(), [values for values in (first, second) if len(values) > 1], clips)


def _by_t(value: Tensor, runs: Sequence[Tensor], clips: Tensor) -> Interval:
    """Around a mean: the chance of each recipe's runs [S, N], and that of captions, by the mean of each [N]."""
    # The second holds a part of the first once more (a run's own noise on each clip): a little too wide, if anything.
    parts = [(values.mean(dim=1), len(values)) for values in runs] + [(clips, len(clips))]
    squares = [(float(means.var()) / count, count - 1) for means, count in parts if count > 1]
    variance = sum(square for square, _ in squares)
    if variance == 0:
        return Interval(float(value), float(value), float(value))
    freedom = variance**2 / sum(square**2 / count for square, count in squares)
    half = student_t(freedom) * variance**0.5
    return Interval(float(value), float(value) - half, float(value) + half)


def student_t(freedom: float, level: float = LEVEL) -> float:
    """The t that ``level`` of Student's distribution with so many degrees of freedom (1 or more) lies within."""
    # t = sqrt(freedom) tan(angle) has a density of cos(angle)^(freedom - 1).
    angles = torch.linspace(0, min(torch.pi / 2, 40 / freedom**0.5), 200_001, dtype=torch.float64)
    density = angles.cos().clamp_min(0) ** (freedom - 1)
    within = torch.cumulative_trapezoid(density, angles)
    index = int(torch.searchsorted(within, level * within[-1])) + 1
    return freedom**0.5 * float(angles[index].tan())
