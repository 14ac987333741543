"""What an evaluation says: means of verdicts with their intervals, and the values of each clip for paired differences.

Results are one JSON file. Names of attributes and figures are those that the world's verdicts have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, TypeVar

import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.evaluate import statistics
from nearstep.evaluate.statistics import Interval
from nearstep.files import write_json
from nearstep.json_files import (
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    check_fields,
    count,
    either,
    list_of,
    map_of,
    object_of,
    optional,
    read_object,
)
from nearstep.protocols import SurveyWorld, Verdict, World

Head = Literal["total", "quality", "semantic", "correct"]
Name = TypeVar("Name", bound=str)
SUMS: tuple[Head, ...] = ("total", "quality", "semantic", "correct")
"""What every verdict has one number for."""

EvaluationSettings = dict[str, str | int]
"""What was measured; only results of the same settings stand in one file."""
CONTENT = "content"
"""Of the settings: what the model's files held, which a path does not say."""


class Bounds(TypedDict):
    """An interval in JSON."""

    value: float
    low: float
    high: float


class Summary(TypedDict):
    """Verdicts of a set of clips in JSON."""

    total: Bounds
    quality: Bounds
    semantic: Bounds
    correct: Bounds
    agreement: dict[str, Bounds]
    """Attribute -> over the clips whose prompts state it."""
    figures: dict[str, Bounds]
    course: list[float]
    """Mean look of each part of a clip."""
    clips: dict[str, list[float]]
    """Sum -> its value for each clip."""


class PlanResults(Summary):
    """What is known of the clips of one plan."""

    frechet: Bounds
    """On the world's own features."""
    perceptual: NotRequired[Bounds]
    """The same distance on VGG16's (evaluate/vgg.py), where they were asked for."""
    survey: NotRequired[dict[str, Bounds]]
    """Figures of the clips as a set, where their world knows any."""
    calls: int | None
    """Network calls of a clip, commits included; None where nothing says so."""
    seconds_per_clip: NotRequired[float]


class Results(TypedDict):
    """What a file holds."""

    settings: EvaluationSettings
    plans: dict[str, PlanResults]


_BOUNDS = object_of({"value": NUMBER, "low": NUMBER, "high": NUMBER})
_PLAN: dict[str, Kind] = {
    **dict.fromkeys((*SUMS, "frechet"), _BOUNDS),
    **dict.fromkeys(("agreement", "figures", "survey"), map_of(_BOUNDS)),
    "course": list_of(NUMBER),
    "clips": object_of(dict.fromkeys(SUMS, list_of(NUMBER))),
    "calls": optional(count(least=0)),
    "seconds_per_clip": NUMBER,
    "perceptual": _BOUNDS,
}
_OPTIONAL = {"seconds_per_clip", "perceptual", "survey"}
_RESULTS: dict[str, Kind] = {"settings": map_of(either(TEXT, WHOLE)), "plans": map_of(OBJECT)}
"""What a file of results may say."""


def summarise(verdicts: Sequence[Verdict]) -> Summary:
    """Means with intervals; an attribute or figure that a clip has not is left out of its mean."""
    columns: dict[Head, list[float]] = {name: [float(getattr(v, name)) for v in verdicts] for name in SUMS}
    sums = _bounds(columns)
    return {
        "total": sums["total"],
        "quality": sums["quality"],
        "semantic": sums["semantic"],
        "correct": sums["correct"],
        "agreement": _bounds(_columns([verdict.agreement for verdict in verdicts])),
        "figures": _bounds(_columns([verdict.figures for verdict in verdicts])),
        "course": torch.tensor([list(verdict.course) for verdict in verdicts]).mean(dim=0).tolist(),
        "clips": {name: [round(value, 4) for value in values] for name, values in columns.items()},
    }


def plan_results(
    world: World, verdicts: Sequence[Verdict], distances: Mapping[str, Interval], *, calls: int | None
) -> PlanResults:
    """The summary of a world's clips, their Fréchet distances to real ones by name, and what they show as a set."""
    found = {name: bounds(distance) for name, distance in distances.items()}
    results: PlanResults = {"calls": calls, **summarise(verdicts), **found}  # pyright: ignore[reportAssignmentType]
    if isinstance(world, SurveyWorld):

        def survey(pick: Tensor) -> Mapping[str, float]:
            return world.survey([verdicts[row] for row in pick.tolist()])

        surveyed = statistics.statistics(len(verdicts), survey)
        results["survey"] = {name: _within(bounds(interval)) for name, interval in surveyed.items()}
    return results


def bounds(interval: Interval) -> Bounds:
    """An interval for JSON."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _within(found: Bounds) -> Bounds:
    # What lies in [0, 1] by definition; a resample's spread, moved around the value, may reach further.
    return {**found, "low": max(0.0, found["low"]), "high": min(1.0, found["high"])}


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    # The fullest row comes first, so that all names stand in its order.
    names = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    return {name: [float(row.get(name, math.nan)) for row in rows] for name in names}


def _bounds(columns: Mapping[Name, Iterable[float]]) -> dict[Name, Bounds]:
    intervals = statistics.mean_rows(torch.tensor(list(columns.values()), dtype=torch.float64))
    return {name: bounds(interval) for name, interval in zip(columns, intervals, strict=True)}


def open_results(out: Path, settings: EvaluationSettings) -> Results:
    """What ``out`` holds, or nothing yet.

    Raises:
        NearstepError: if it holds results of other settings.
    """
    if not out.exists():
        return {"settings": settings, "plans": {}}
    results = read_results(out)
    found, name = results["settings"], settings["name"]
    if {**found, CONTENT: ""} != {**settings, CONTENT: ""}:
        raise NearstepError(f"{out} holds results of {found}, not {settings}; name another file")
    if (was := found.get(CONTENT)) != settings.get(CONTENT):
        told = f"what {name} was before its files changed" if was else f"{name} and does not say what its files held"
        raise NearstepError(f"{out} holds results of {told}; name another file, or remove it")
    return results


def read_results(file: Path) -> Results:
    """The results that a file holds.

    Raises:
        NearstepError: if it holds none, or numbers that are none.
    """
    content = read_object(file, "name another file, or remove it")
    check_fields(content, _RESULTS, file)
    for plan, found in content["plans"].items():
        check_fields(found, _PLAN, f"{file}, plan {plan}", needed=_PLAN.keys() - _OPTIONAL)
        if len({len(found["clips"][name]) for name in SUMS}) > 1:
            raise NearstepError(f"{file} is damaged: the clips of plan {plan} do not have a value each")
    return content  # type: ignore[return-value]


def write_results(out: Path, results: Results) -> None:
    """Write them, whole or not at all."""
    write_json(out, results, indent=1)
