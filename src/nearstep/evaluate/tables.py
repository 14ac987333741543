"""Tables in markdown from the results of evaluations: of one model, of two, and of several seeds of recipes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.evaluate.results import SUMS, Bounds, Head, PlanResults, Results
from nearstep.evaluate.statistics import Interval, difference, paired, pooled
from nearstep.evaluate.table import Table

_DISTANCES: dict[Literal["frechet", "perceptual"], str] = {"frechet": "Fréchet", "perceptual": "Fréchet on VGG16"}
HEADS: tuple[Head, ...] = ("total", "quality", "semantic")
_SAME = ("world", "captions", "captions_seed", "prompts")
"""What two results must have in common for their clips to be paired."""


def table(results: Results) -> Table:
    """One row a plan: the sums, with the half width of their 95 % intervals."""
    return _sums([(plan, found) for plan, found in results["plans"].items()], ["plan"])


def systems(named: Mapping[str, Results]) -> Table:
    """One row a system and plan, those with more calls first: as :func:`table`."""
    return _sums(_ordered(named), ["system", "plan"])


def attributes(named: Mapping[str, Results], part: Literal["agreement", "figures"]) -> Table:
    """One row a system and plan: agreement of every attribute, or every figure of quality, in percent."""
    return _percents([(place, found[part]) for place, found in _ordered(named)], ["system", "plan"])


def _ordered(named: Mapping[str, Results]) -> list[tuple[tuple[str, str], PlanResults]]:
    found = [((name, plan), each) for name, results in named.items() for plan, each in results["plans"].items()]
    names = [*named]
    return sorted(found, key=lambda row: (names.index(row[0][0]), -(row[1]["calls"] or 0), row[0][1]))


def _sums(plans: Sequence[tuple[str | tuple[str, str], PlanResults]], named: Sequence[str]) -> Table:
    distances = [name for name in _DISTANCES if any(name in found for _, found in plans)]
    figures = _surveyed([found for _, found in plans])
    rows = [
        [
            *([place] if isinstance(place, str) else place),
            "-" if found["calls"] is None else found["calls"],
            *(_value(found[name], 100) for name in SUMS),
            *(_value(found[name], 1) if name in found else "-" for name in distances),
            *(_value(each[name], 100) if name in (each := found.get("survey", {})) else "-" for name in figures),
        ]
        for place, found in plans
    ]
    heads = [head for name, head in _DISTANCES.items() if name in distances]
    return Table([*named, "calls", "total", "quality", "semantic", "all correct", *heads, *figures], rows)


def _surveyed(plans: Sequence[PlanResults]) -> list[str]:
    """Figures of sets of clips that any of them has."""
    return list(dict.fromkeys(name for found in plans for name in found.get("survey", {})))


def details(results: Results) -> str:
    """One row a plan: agreement of every attribute, then every figure of quality, in percent."""
    plans = results["plans"].items()
    parts = [[(plan, found[part]) for plan, found in plans] for part in ("agreement", "figures")]
    return "\n\n".join(str(_percents(part, ["plan"])) for part in parts)


def _percents(plans: Sequence[tuple[str | tuple[str, str], Mapping[str, Bounds]]], named: Sequence[str]) -> Table:
    names = list(dict.fromkeys(name for _, found in plans for name in found))
    rows = [
        [
            *([place] if isinstance(place, str) else place),
            *(f"{100 * found[name]['value']:.1f}" if name in found else "-" for name in names),
        ]
        for place, found in plans
    ]
    return Table([*named, *names], rows)


def compare(first: Results, second: Results) -> Table:
    """Differences ``first - second`` of the plans both hold, clip by clip, in points of a hundred.

    Raises:
        NearstepError: where the two were not measured on the same captions, or with no plan in common.
    """
    for name in _SAME:
        ours, theirs = (results["settings"].get(name) for results in (first, second))
        if ours != theirs:
            raise NearstepError(f"results with {name} {ours} and {theirs} cannot be paired; measure both alike")
    shared = [plan for plan in first["plans"] if plan in second["plans"]]
    if not shared:
        ours, theirs = (", ".join(results["plans"]) or "none" for results in (first, second))
        raise NearstepError(f"results of plans {ours} and {theirs} have none in common; measure both with the same")
    rows = []
    for plan in shared:
        clips = (torch.tensor([found["plans"][plan]["clips"][name] for name in SUMS]) for found in (first, second))
        differences = [paired(ours, theirs) for ours, theirs in zip(*clips, strict=True)]
        rows.append([plan, *(f"{100 * d.value:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]" for d in differences)])
    return Table(["plan", *SUMS], rows)


def _value(interval: Bounds, scale: float) -> str:
    half = (interval["high"] - interval["low"]) / 2
    return f"{scale * interval['value']:.2f} ± {scale * half:.2f}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table with one line for its head and one for each row."""
    return str(Table(heads, rows))


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


def pooled_table(cells: Mapping[str, Sequence[Results]]) -> Table:
    """One row a recipe and plan: sums in points of a hundred with intervals.

    Fréchet distances, and figures of clips as a set, are means over seeds.
    """
    rows = []
    figures = _surveyed([plan for results in cells.values() for each in results for plan in each["plans"].values()])
    for name, results in cells.items():
        for plan in results[0]["plans"]:
            found = [result["plans"][plan] for result in results]
            marks = [points(pooled(clips(results, plan, head))) for head in HEADS]
            distance = sum(entry["frechet"]["value"] for entry in found) / len(found)
            rows.append(
                [name, len(results), plan, found[0]["calls"], *marks, f"{distance:.2f}", *_means(found, figures)]
            )
    return Table(["recipe", "seeds", "plan", "calls", *HEADS, "Fréchet", *figures], rows)


def _means(found: Sequence[PlanResults], figures: Sequence[str]) -> list[str]:
    surveys = [each.get("survey", {}) for each in found]
    there = {name: [survey[name]["value"] for survey in surveys if name in survey] for name in figures}
    return [f"{100 * sum(values) / len(values):.1f}" if values else "-" for values in there.values()]


def difference_table(pairs: Sequence[tuple[str, Tensor, Tensor]], same_runs: Collection[str] = ()) -> Table:
    """One row a named pair of [S, N]: how far the second lies above the first, and whether that is sure.

    Those named in ``same_runs`` are of the same runs, row by row. Where one of a pair has a single seed, the interval
    holds the chance of the other's seeds and of clips alone, and nothing is sure.
    """
    rows = []
    for name, low, high in pairs:
        gained = difference(high, low, same_runs=name in same_runs)
        mark = "yes" if gained.low > 0 else ("reversed" if gained.high < 0 else "no")
        mark = f"{mark}, of one seed" if min(len(low), len(high)) < 2 else mark
        rows.append([name, points(gained), mark])
    return Table(["step up", "points of total", "sure"], rows)


def points(interval: Interval) -> str:
    """An interval in points of a hundred."""
    return f"{100 * interval.value:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
