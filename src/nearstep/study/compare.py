"""Systems compared by answers: rates with intervals, strengths of three or more, and how far raters agree.

Votes of one rater, and votes on one prompt, are alike, so an interval that takes all votes for independent (Wilson's)
is too narrow. The other one is Wilson's of as many votes as they are worth (study/clusters.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import Interval
from nearstep.study.answers import Answer
from nearstep.study.clusters import spreads, student
from nearstep.study.rates import even_odds, wilson

RESAMPLES, STRENGTH_RESAMPLES = 1000, 200
PRIOR = 0.01
"""Of a vote, given to each side of each pair, so that a system that never lost has a strength, too."""
MISSING = 'needs {package}; install it with: pip install "nearstep[study]"'


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems."""

    first: int
    second: int
    wins: int
    """Votes for the first."""
    losses: int
    ties: int
    independent: Interval
    """(wins + ties / 2) / votes, with Wilson's interval."""
    clustered: Interval
    """The same, with Wilson's interval of as many votes as they are worth with raters and prompts resampled."""
    design_effect: float
    """How many votes here are worth one independent vote."""
    sign_p: float
    """Exact two-sided sign test of wins against losses, without ties, all votes independent."""
    raters: int
    prompts: int

    @property
    def votes(self) -> int:
        """All of them."""
        return self.wins + self.losses + self.ties


def comparisons(answers: Sequence[Answer], *, seed: int = 0, resamples: int = RESAMPLES) -> list[Comparison]:
    """Every two systems of which there are answers."""
    found: dict[tuple[int, int], list[Answer]] = {}
    for answer in answers:
        found.setdefault((answer.first, answer.second), []).append(answer)
    return [_comparison(pair, found[pair], seed, resamples) for pair in sorted(found)]


def _comparison(pair: tuple[int, int], answers: Sequence[Answer], seed: int, resamples: int) -> Comparison:
    values = torch.tensor([answer.value for answer in answers], dtype=torch.float64)
    wins, losses = int((values == 1).sum()), int((values == 0).sum())
    total, count = float(values.sum()), len(answers)
    (spread,) = spreads(answers, partial(_rate, values), seed=seed, resamples=resamples)
    worth = count / (spread.design_effect * spread.reach**2)
    return Comparison(
        first=pair[0],
        second=pair[1],
        wins=wins,
        losses=losses,
        ties=len(answers) - wins - losses,
        independent=wilson(total, count),
        clustered=wilson(total / count * worth, worth),
        design_effect=spread.design_effect,
        sign_p=even_odds(wins, wins + losses),
        raters=len({answer.rater for answer in answers}),
        prompts=len({answer.stem for answer in answers}),
    )


def _rate(values: Tensor, weights: Tensor) -> Tensor:
    """Preferences [R, 1] under weights [R, N]."""
    return (weights @ values / weights.sum(dim=1))[:, None]


def strengths(answers: Sequence[Answer], systems: int, *, seed: int = 0) -> list[Interval]:
    """Bradley and Terry's strengths of all systems, natural logarithms with mean 0; raters and prompts resampled.

    A system is preferred to another with the odds exp(difference of their strengths); a tie is half a vote for each.

    Raises:
        NearstepError: if choix is not installed.
    """
    measure = partial(_strengths, answers, systems)
    found = measure(torch.ones(1, len(answers), dtype=torch.float64))[0].tolist()
    around = spreads(answers, measure, seed=seed, resamples=STRENGTH_RESAMPLES)
    reach = [student(each.freedom) * math.sqrt(each.variance) for each in around]
    return [Interval(value, value - half, value + half) for value, half in zip(found, reach, strict=True)]


def _strengths(answers: Sequence[Answer], systems: int, weights: Tensor) -> Tensor:
    """Strengths [R, S] under weights [R, N]."""
    value = torch.tensor([answer.value for answer in answers], dtype=torch.float64)
    first = torch.tensor([answer.first for answer in answers])
    second = torch.tensor([answer.second for answer in answers])
    wins = torch.full((len(weights), systems * systems), PRIOR, dtype=torch.float64)
    wins.index_add_(1, first * systems + second, weights * value)
    wins.index_add_(1, second * systems + first, weights * (1 - value))
    wins = wins.view(-1, systems, systems) * (1 - torch.eye(systems, dtype=torch.float64))
    return torch.stack([_fitted(each) for each in wins])


def _fitted(wins: Tensor) -> Tensor:
    """Strengths [S] of a matrix [S, S] of wins."""
    try:
        import choix  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise NearstepError(f"the strengths of systems: {MISSING.format(package='choix')}") from error
    found = choix.ilsr_pairwise_dense(wins.numpy(), max_iter=10_000)
    return torch.from_numpy(found - found.mean())


def agreement(answers: Sequence[Answer]) -> float | None:
    """Krippendorff's alpha over all pairs, ordinal (first, tie, second); None where nothing can be compared.

    1 is full agreement, 0 is what chance gives.

    Raises:
        NearstepError: if krippendorff is not installed.
    """
    units = {unit: place for place, unit in enumerate(dict.fromkeys((a.first, a.second, a.stem) for a in answers))}
    raters = {name: place for place, name in enumerate(dict.fromkeys(answer.rater for answer in answers))}
    table = torch.full((len(raters), len(units)), torch.nan, dtype=torch.float64)
    for a in answers:
        table[raters[a.rater], units[a.first, a.second, a.stem]] = a.value
    shared = table[:, table.isfinite().sum(dim=0) > 1]
    if not shared.numel() or shared[shared.isfinite()].unique().numel() < 2:
        return None
    try:
        import krippendorff  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise NearstepError(f"the agreement of raters: {MISSING.format(package='krippendorff')}") from error
    return float(krippendorff.alpha(reliability_data=shared.numpy(), level_of_measurement="ordinal"))
