"""Tables in markdown from the results of evaluate/run.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import paired

_HEADS = ("total", "quality", "semantic", "correct", "frechet")


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
