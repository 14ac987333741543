"""Several runs of one recipe as one result: means and intervals over seeds and clips, and differences of recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.evaluate.report import markdown
from nearstep.evaluate.statistics import RESAMPLES, Interval, counts, tails

HEADS = ("total", "quality", "semantic")
Results = dict[str, Any]
"""What evaluate.run.measure wrote."""


def clips(results: Sequence[Results], plan: str, head: str) -> Tensor:
    """Values of every seed and clip, [S, N].

    Raises:
        NearstepError: where the seeds were not measured on the same captions.
    """
    rows = [result["plans"][plan]["clips"][head] for result in results]
    if len({len(row) for row in rows}) > 1:
        sizes = sorted({len(row) for row in rows})
        raise NearstepError(f"results on {sizes} captions cannot be pooled; measure all seeds alike")
    return torch.tensor(rows, dtype=torch.float64)


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


def pooled_table(cells: Mapping[str, Sequence[Results]]) -> str:
    """One row a recipe and plan: totals in points of a hundred with intervals, Fréchet distance as a mean of seeds."""
    rows = []
    for name, results in cells.items():
        for plan in results[0]["plans"]:
            found = [result["plans"][plan] for result in results]
            marks = [points(pooled(clips(results, plan, head))) for head in HEADS]
            distance = sum(entry["frechet"]["value"] for entry in found) / len(found)
            rows.append([name, len(results), plan, found[0]["calls"], *marks, f"{distance:.2f}"])
    return markdown(["recipe", "seeds", "plan", "calls", *HEADS, "Fréchet"], rows)


def difference_table(pairs: Sequence[tuple[str, Tensor, Tensor]]) -> str:
    """One row a named pair of [S, N]: how far the second lies above the first, and whether that is sure.

    Where one of them has a single seed, the interval holds the chance of clips alone and nothing is sure.
    """
    rows = []
    for name, low, high in pairs:
        gained = difference(high, low)
        mark = "yes" if gained.low > 0 else ("reversed" if gained.high < 0 else "no")
        mark = f"{mark}, of one seed" if min(len(low), len(high)) < 2 else mark
        rows.append([name, points(gained), mark])
    return markdown(["step up", "points of total", "sure"], rows)


def points(interval: Interval) -> str:
    """In points of a hundred."""
    return f"{100 * interval.value:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
