"""VBench tables in markdown: the sums and the 16 dimensions with intervals, and differences of two systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import Interval
from nearstep.evaluate.table import Table
from nearstep.evaluate.tables import markdown
from nearstep.evaluate.vbench.aggregate import Drawn, Estimate, apart, draw, paired
from nearstep.evaluate.vbench.dimensions import DIMENSIONS, HEADS
from nearstep.evaluate.vbench.published import ROWS
from nearstep.evaluate.vbench.results import System

_NONE = "-"
_FEW = 10
"""Fewer prompts than this make nothing sure: resamples of so few are too alike."""


def vbench_table(systems: Sequence[System], *, allow_missing: bool = False, published: bool = False) -> str:
    """Sums, dimensions, differences of two systems, and what a reader must know, one after the other.

    Args:
        systems: at least one; of two, the second is also subtracted from the first.
        allow_missing: whether a system may lack dimensions; its sums are then means of those it has, and say so.
        published: whether published totals stand beside ours.

    Raises:
        NearstepError: naming the dimensions that a system lacks, unless it may.
    """
    for system in systems:
        if system.missing and not allow_missing:
            there = len(DIMENSIONS) - len(system.missing)
            raise NearstepError(
                f"{system.name} has {there} of VBench's {len(DIMENSIONS)} dimensions and lacks "
                f"{', '.join(system.missing)}; score them, or add up what is there with --allow-missing"
            )
    drawn = [draw(system.scores) for system in systems]
    parts = [_sums(systems, drawn, published=published), _dimensions(systems, drawn)]
    if len(systems) == 2:
        parts.append(_differences(*systems))
    notes = [note for system, values in zip(systems, drawn, strict=True) for note in _notes(system, values)]
    return "\n\n".join([*parts, *(["\n".join(f"- {note}" for note in notes)] if notes else [])])


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a clip of a system takes; None where nobody noted it, or clips differ."""

    calls: int | None
    """Passes through a denoising network, commits included."""
    seconds: float | None
    """From its prompt to its pixels, the median."""
    rate: float | None
    """Its frames over those seconds."""


def systems_table(rows: Sequence[tuple[System, Cost]]) -> Table:
    """What systems cost and reach, side by side: sums only where all dimensions are there."""
    lines: list[list[str]] = []
    for system, cost in rows:
        heads = draw(system.scores).heads() if system.scores and not system.missing else {}
        calls = _NONE if cost.calls is None else str(cost.calls)
        costs = [calls, _short(cost.seconds), _short(cost.rate)]
        marks = [_points(heads[head]) if head in heads else _NONE for head in HEADS]
        there = f"{len(DIMENSIONS) - len(system.missing)}/{len(DIMENSIONS)}"
        lines.append([system.name, str(system.record.get("plan", _NONE)), *costs, *marks, there, system.label])
    costs = ["calls", "seconds", "frames a second, prompt to pixels"]
    return Table(["system", "plan", *costs, *HEADS, "dimensions", "prompts"], lines)


def _short(number: float | None) -> str:
    return _NONE if number is None else f"{number:.3g}"


def _sums(systems: Sequence[System], drawn: Sequence[Drawn], *, published: bool) -> str:
    rows: list[list[str]] = []
    for system, values in zip(systems, drawn, strict=True):
        heads = values.heads()
        marks = [_points(heads[head]) if head in heads else _NONE for head in HEADS]
        there = f"{len(DIMENSIONS) - len(system.missing)}/{len(DIMENSIONS)}"
        rows.append(
            [system.name, str(system.record.get("plan", _NONE)), *marks, there, f"ours; prompts: {system.label}"]
        )
    if published:
        for row in ROWS:
            marks = [f"{value:.2f}" for value in (row.total, row.quality, row.semantic)]
            rows.append([row.system, row.steps, *marks, "16/16", row.protocol])
    return markdown(["system", "steps", *HEADS, "dimensions", "protocol"], rows)


def _dimensions(systems: Sequence[System], drawn: Sequence[Drawn]) -> str:
    names = dict.fromkeys([*DIMENSIONS, *(name for system in systems for name in system.scores)])
    rows: list[list[str]] = []
    for name in (name for name in names if any(name in system.scores for system in systems)):
        cells = [name.replace("_", " ")]
        for system, values in zip(systems, drawn, strict=True):
            if name in system.scores:
                cells += [
                    f"{system.scores[name].score:.4f}",
                    _points(values.dimension(name), bounded=name in DIMENSIONS),
                ]
            else:
                cells += ["missing", "missing"]
        rows.append(cells)
    return markdown(["dimension", *(head for each in systems for head in (each.name, "normalised"))], rows)


def _points(estimate: Estimate, *, bounded: bool = True) -> str:
    interval = estimate.interval
    ends = "" if interval is None else f" [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
    outside = " (outside 0-100)" if bounded and estimate.outside else ""
    return f"{100 * estimate.value:.2f}{ends}{outside}"


def _differences(first: System, second: System) -> str:
    try:
        return str(differences(first, second))
    except NearstepError as error:
        return f"No differences: {error}."


def differences(first: System, second: System) -> Table:
    """Differences of two systems on the prompts that both have, and which of them are sure.

    Raises:
        NearstepError: if they share none.
    """
    found, prompts = paired(first, second)
    fewest = min(prompts.values())
    rows = [
        [name.replace("_", " "), str(prompts.get(name, _NONE)), _signed(each), _sure(each, prompts.get(name, fewest))]
        for name, each in found.items()
    ]
    heads = [f"{first.name} - {second.name}", "prompts", "points, on the same prompts", "sure"]
    return Table(heads, rows)


def _signed(interval: Interval) -> str:
    return f"{100 * interval.value:+.2f} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"


def _sure(interval: Interval, prompts: int) -> str:
    if prompts < _FEW:
        return "too few prompts"
    return "yes" if interval.excludes_zero else "no"


def _notes(system: System, drawn: Drawn) -> list[str]:
    found = [f"{system.name}: {note}" for note in system.notes]
    if system.missing:
        there = len(DIMENSIONS) - len(system.missing)
        found.append(
            f"{system.name}: {there}/{len(DIMENSIONS)} dimensions; its sums are of those alone and no VBench total. "
            f"Missing: {', '.join(system.missing)}"
        )
    for name, score in system.scores.items():
        if name in DIMENSIONS and drawn.dimension(name).outside:
            found.append(f"{system.name}: {name} {score.score:.4f} is outside of the range that counts from 0 to 1")
        if not score.videos:
            found.append(f"{system.name}: {name} comes without values of videos, so nothing with it has an interval")
        elif line := apart(score):
            found.append(f"{system.name}: {line}; the interval is moved to what is stated")
    return found
