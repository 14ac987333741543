"""Tables in markdown from the results of evaluate/run.py: of one model, of two, and of several seeds of recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import Interval, difference, paired, pooled

HEADS = ("total", "quality", "semantic")
_HEADS = (*HEADS, "correct", "frechet")
Results = dict[str, Any]
"""What evaluate.run.measure wrote."""


def table(results: dict[str, Any]) -> str:
    """One row a plan: the sums, with the half width of their 95 % intervals."""
    rows = [
        [plan, found["calls"], *(_value(found[name], 1 if name == "frechet" else 100) for name in _HEADS)]
        for plan, found in results["plans"].items()
    ]
    return markdown(["plan", "calls", "total", "quality", "semantic", "all correct", "Fréchet"], rows)


def details(results: dict[str, Any]) -> str:
    """One row a plan: agreement of every attribute, then every figure of quality, in percent."""
    plans = results["plans"]
    parts = []
    for part in ("agreement", "figures"):
        names = list(next(iter(plans.values()))[part]) if plans else []
        rows = [[plan, *(f"{100 * found[part][name]['value']:.1f}" for name in names)] for plan, found in plans.items()]
        parts.append(markdown(["plan", *names], rows))
    return "\n\n".join(parts)


def compare(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Differences ``first - second`` of the plans both hold, clip by clip, in points of a hundred.

    Raises:
        NearstepError: where the two were not measured on the same captions.
    """
    for name in ("captions", "captions_seed"):
        ours, theirs = first["settings"][name], second["settings"][name]
        if ours != theirs:
            raise NearstepError(f"results with {name} {ours} and {theirs} cannot be paired; measure both alike")
    heads = ("total", "quality", "semantic", "correct")
    rows = []
    for plan in [plan for plan in first["plans"] if plan in second["plans"]]:
        clips = (torch.tensor([found["plans"][plan]["clips"][name] for name in heads]) for found in (first, second))
        differences = [paired(ours, theirs) for ours, theirs in zip(*clips, strict=True)]
        rows.append([plan, *(f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]" for d in differences)])
    return markdown(["plan", *heads], rows)


def _value(interval: dict[str, float], scale: float) -> str:
    half = (interval["high"] - interval["low"]) / 2
    return f"{scale * interval['value']:.2f} ± {scale * half:.2f}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


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
