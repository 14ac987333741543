"""Several runs of one recipe as one result: means and intervals over seeds and clips, and differences of recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.evaluate.report import markdown
from nearstep.evaluate.statistics import LEVEL, RESAMPLES, Interval

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
        counts = sorted({len(row) for row in rows})
        raise NearstepError(f"results on {counts} captions cannot be pooled; measure all seeds alike")
    return torch.tensor(rows, dtype=torch.float64)


def pooled(values: Tensor, *, seed: int = 0) -> Interval:
    """Mean of [S, N] with its interval: seeds and clips are both resampled, so both kinds of chance are in it."""
    return _bootstrap(values, seed)


def difference(first: Tensor, second: Tensor, *, seed: int = 0) -> Interval:
    """Mean of ``first`` minus mean of ``second``, each [S, N] on the same captions; seeds are resampled apart.

    Clips are paired, which removes that some captions are harder; runs are not, because a seed means nothing across
    recipes.
    """
    if first.shape[1] != second.shape[1]:
        raise NearstepError(f"{first.shape[1]} and {second.shape[1]} captions cannot be paired; measure both alike")
    draw = rng.generator("pooled difference", seed)
    picks = torch.randint(first.shape[1], (RESAMPLES, first.shape[1]), generator=draw)
    a, b = (_seed_means(values, picks, draw) for values in (first, second))
    return _interval(float(first.mean() - second.mean()), a - b)


def _bootstrap(values: Tensor, seed: int) -> Interval:
    draw = rng.generator("pooled", seed)
    picks = torch.randint(values.shape[1], (RESAMPLES, values.shape[1]), generator=draw)
    return _interval(float(values.mean()), _seed_means(values, picks, draw))


def _seed_means(values: Tensor, picks: Tensor, draw: torch.Generator) -> Tensor:
    # Mean of each resample [R]: clips by picks [R, N], seeds drawn anew.
    seeds = torch.randint(len(values), (len(picks), len(values)), generator=draw)
    counts = torch.zeros(len(picks), values.shape[1], dtype=torch.float64)
    counts.scatter_add_(1, picks, torch.ones(picks.shape, dtype=torch.float64))
    by_seed = counts @ values.T / values.shape[1]  # [R, S]
    return by_seed.gather(1, seeds).mean(dim=1)


def _interval(value: float, resampled: Tensor) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(resampled, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(value, low, high)


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
    """One row a named pair of [S, N]: how far the second lies above the first, and whether that is sure."""
    rows = []
    for name, low, high in pairs:
        gained = difference(high, low)
        mark = "yes" if gained.low > 0 else ("reversed" if gained.high < 0 else "no")
        rows.append([name, points(gained), mark])
    return markdown(["step up", "points of total", "sure"], rows)


def points(interval: Interval) -> str:
    """In points of a hundred."""
    return f"{100 * interval.value:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
