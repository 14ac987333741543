"""VBench tables in markdown: the sums and the 16 dimensions with intervals, and differences of two systems."""

from __future__ import annotations

from collections.abc import Sequence

from nearstep.errors import NearstepError
from nearstep.evaluate.statistics import Interval
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
        found, prompts = paired(first, second)
    except NearstepError as error:
        return f"No differences: {error}."
    fewest = min(prompts.values())
    rows = [
        [name.replace("_", " "), str(prompts.get(name, _NONE)), _signed(each), _sure(each, prompts.get(name, fewest))]
        for name, each in found.items()
    ]
    heads = [f"{first.name} - {second.name}", "prompts", "points, on the same prompts", "sure"]
    return markdown(heads, rows)


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
