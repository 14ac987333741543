"""How sure a number is when votes come in clusters: those of one rater are alike, and so are those on one prompt.

Raters are resampled, prompts are resampled, and single votes are. The variance over raters and prompts is the sum of
the first two less the third, which is in both; resampling raters and prompts at once would count the chance of a vote
three times. It is never less than any of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from nearstep.evaluate.statistics import LEVEL, counts
from nearstep.study.answers import Answer

Measure = Callable[[Tensor], Tensor]
"""How often each answer counts, [R, N] -> K numbers of each resample, [R, K]."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far a number would be from itself in another study."""

    variance: float
    """With other raters and prompts; with one rater, of other prompts alone."""
    independent: float
    """If all votes were independent."""
    freedom: float
    """Degrees of freedom of the variance, as Satterthwaite has them."""

    @property
    def design_effect(self) -> float:
        """How many votes are worth one independent vote."""
        return max(1.0, self.variance / self.independent) if self.independent > 0 else 1.0

    @property
    def reach(self) -> float:
        """How many times wider than a normal's an interval is, because the variance itself is a guess."""
        return student(self.freedom) / NormalDist().inv_cdf((1 + LEVEL) / 2)


def spreads(answers: Sequence[Answer], measure: Measure, *, seed: int, resamples: int) -> list[Spread]:
    """The spread of each number of a measure."""
    clusters = [_numbered([answer.rater for answer in answers]), _numbered([answer.stem for answer in answers])]
    found, sizes = [], []
    for place, (size, member) in enumerate(clusters):
        if size > 1:
            weights = counts(size, seed=3 * seed + place, resamples=resamples)[:, member]
            found.append(_variance(measure(weights)) * size / (size - 1))
            sizes.append(size)
    single = _variance(measure(counts(len(answers), seed=3 * seed + 2, resamples=resamples)))
    if not found:
        found, sizes = [single], [len(answers)]
    return [_spread([float(each[k]) for each in found], float(single[k]), sizes) for k in range(len(single))]


def _spread(clustered: Sequence[float], single: float, sizes: Sequence[int]) -> Spread:
    both = sum(clustered) - single if len(clustered) > 1 else 0.0
    shares = sum(each * each / max(1, size - 1) for each, size in zip(clustered, sizes, strict=True))
    freedom = sum(clustered) ** 2 / shares if shares > 0 else math.inf
    return Spread(variance=max(both, single, *clustered), independent=single, freedom=freedom)


def _variance(measured: Tensor) -> Tensor:
    """Of each number [K] over the resamples [R, K]; a resample without a vote says nothing."""
    there = measured.isfinite().all(dim=1)
    return measured[there].var(dim=0)


def _numbered(names: Sequence[str]) -> tuple[int, Tensor]:
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return len(number), torch.tensor([number[name] for name in names])


def student(freedom: float, level: float = LEVEL) -> float:
    """Student's t of a two-sided level, by Cornish and Fisher's series; within 1 % from 3 degrees of freedom on."""
    z, v = NormalDist().inv_cdf((1 + level) / 2), max(1.0, freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3
