"""The tables of an ablation, in the paper's shape, from the results of its cells.

"None" is one student trained with mixed n by distribution matching alone and run with fewer steps; first-frame
enhancement (FFE) is the plan ``4,1x`` in place of ``1``, so it needs no run of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nearstep.evaluate.results import Results, read_results
from nearstep.evaluate.statistics import pooled
from nearstep.evaluate.table import Table
from nearstep.evaluate.tables import HEADS, clips, difference_table, points, pooled_table
from nearstep.files import replacing

Cells = Mapping[str, Sequence[Results]]
"""Cell -> what evaluate.run.measure wrote for each of its seeds."""

Place = tuple[str, str]
"""A cell and a plan."""

ABLATION: dict[str, tuple[Place, Place]] = {
    "none": (("self_forcing", "2"), ("self_forcing", "1")),
    "ASD": (("asd", "2"), ("asd", "1")),
    "FFE": (("self_forcing", "4,2x"), ("self_forcing", "4,1x")),
    "both": (("asd", "4,2x"), ("asd", "4,1x")),
    "Self Forcing retrained": (("self_forcing_2", "2"), ("self_forcing_1", "1")),
    "the same with FFE": (("self_forcing_2", "4,2x"), ("self_forcing_1", "4,1x")),
}
"""The paper's Table 2, and what it leaves out: row -> where its 2-step and its 1-step figure come from."""

PAPER_ABLATION = {
    "none": ("82.61", "78.13"),
    "ASD": ("83.28", "80.65"),
    "FFE": ("83.80", "83.04"),
    "both": ("84.32", "83.89"),
    "Self Forcing retrained": ("83.49", "80.62"),
    "the same with FFE": ("-", "-"),
}
"""Its VBench totals at 2 and at 1 step (Wan2.1-1.3B); "retrained" is from its Table 1."""

LADDER: tuple[tuple[str, Place, Place], ...] = (
    ("ASD at 1 step", ("self_forcing", "1"), ("asd", "1")),
    ("ASD at 1 step, over 1.45 times the updates", ("self_forcing_longer", "1"), ("asd", "1")),
    ("FFE at 1 step", ("self_forcing", "1"), ("self_forcing", "4,1x")),
    ("both over FFE at 1 step", ("self_forcing", "4,1x"), ("asd", "4,1x")),
    ("both over FFE at 1 step, over 1.45 times the updates", ("self_forcing_longer", "4,1x"), ("asd", "4,1x")),
    ("both over ASD at 1 step", ("asd", "1"), ("asd", "4,1x")),
    ("ASD over Self Forcing retrained at 1", ("self_forcing_1", "1"), ("asd", "1")),
    ("the same with FFE", ("self_forcing_1", "4,1x"), ("asd", "4,1x")),
    ("ASD, both retrained at 1", ("self_forcing_1", "1"), ("asd_1", "1")),
    ("ASD with FFE, both retrained at 1", ("self_forcing_1", "4,1x"), ("asd_1", "4,1x")),
    ("ASD, one step favoured in both", ("self_forcing_favour_1", "1"), ("asd_favour_1", "1")),
    ("the same with FFE, one step favoured", ("self_forcing_favour_1", "4,1x"), ("asd_favour_1", "4,1x")),
    ("ASD favouring one step over Self Forcing retrained at 1", ("self_forcing_1", "1"), ("asd_favour_1", "1")),
    ("ASD at 1 step, slow student", ("self_forcing_slow", "1"), ("asd_slow", "1")),
    ("both over FFE at 1 step, slow student", ("self_forcing_slow", "4,1x"), ("asd_slow", "4,1x")),
    ("ASD at 4 steps, slow student", ("self_forcing_slow", "4"), ("asd_slow", "4")),
    ("ASD in place of DMD below 4, at 1 step", ("self_forcing_largest_slow", "1"), ("asd_largest_slow", "1")),
    ("the same at 4 steps", ("self_forcing_largest_slow", "4"), ("asd_largest_slow", "4")),
    ("ASD at 2 steps", ("self_forcing", "2"), ("asd", "2")),
    ("ASD at 2 steps, over 1.45 times the updates", ("self_forcing_longer", "2"), ("asd", "2")),
    ("FFE at 2 steps", ("self_forcing", "2"), ("self_forcing", "4,2x")),
    ("both over FFE at 2 steps", ("self_forcing", "4,2x"), ("asd", "4,2x")),
    ("ASD over Self Forcing retrained at 2", ("self_forcing_2", "2"), ("asd", "2")),
    ("ASD at 4 steps", ("self_forcing", "4"), ("asd", "4")),
    ("the paper's adversary at 1 step, fresh samples in both", ("self_forcing_fresh", "1"), ("asd_paper", "1")),
    ("the same with FFE", ("self_forcing_fresh", "4,1x"), ("asd_paper", "4,1x")),
    ("ASD over One-Forcing at 1 step", ("one_forcing", "1"), ("asd", "1")),
    ("the same with FFE", ("one_forcing", "4,1x"), ("asd", "4,1x")),
    ("ASD in the second half alone, over 1.45 times the updates", ("self_forcing_longer", "1"), ("asd_late", "1")),
    ("the same with FFE", ("self_forcing_longer", "4,1x"), ("asd_late", "4,1x")),
    ("ASD in the second half alone over all along", ("asd", "1"), ("asd_late", "1")),
    ("ASD with FFE, first chunks of four steps in training", ("asd", "4,1x"), ("asd_first_4", "4,1x")),
)
"""What is compared: name, (cell, plan) below, (cell, plan) above."""

SYSTEMS: tuple[tuple[str, Place], ...] = (
    ("teacher, many steps", ("teacher", "20")),
    ("causal, many steps", ("causal", "12")),
    ("CausVid", ("causvid", "4")),
    ("Self Forcing", ("self_forcing", "4")),
    ("One-Forcing (DMD2)", ("one_forcing", "4")),
    ("ASD", ("asd", "4")),
    ("Self Forcing retrained at 2", ("self_forcing_2", "2")),
    ("ASD", ("asd", "2")),
    ("ASD, 2*", ("asd", "4,2x")),
    ("CausVid", ("causvid", "1")),
    ("Self Forcing", ("self_forcing", "1")),
    ("Self Forcing retrained at 1", ("self_forcing_1", "1")),
    ("One-Forcing (DMD2)", ("one_forcing", "1")),
    ("ASD", ("asd", "1")),
    ("ASD retrained at 1", ("asd_1", "1")),
    ("ASD, one step favoured", ("asd_favour_1", "1")),
    ("ASD, 1*", ("asd", "4,1x")),
    ("ASD, one step favoured, 1*", ("asd_favour_1", "4,1x")),
    ("ASD retrained at 1, 1*", ("asd_1", "4,1x")),
)
"""The paper's Table 1: row -> where its figures come from."""


def read_cells(folder: Path, known: Sequence[str]) -> dict[str, list[Results]]:
    """The results in ``folder``, files ``CELL-SEED.json``, in the order of ``known``; plans that every seed has."""
    found: dict[str, list[Results]] = {}
    for path in sorted(folder.glob("*-*.json")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(read_results(path))
    return {name: _shared_plans(found[name]) for name in known if name in found}


def write_tables(cells: Cells, target: Path) -> Path:
    """Write every table whose cells are there."""
    parts = {
        "The paper's ablation": ablation_table(cells),
        "What is sure": sure_table(cells),
        "Systems": systems_table(cells),
        "Every recipe and plan": pooled_table(cells),
    }
    with replacing(target) as part:
        text = "\n\n".join(f"## {head}\n\n{body}" for head, body in parts.items())
        part.write_text(f"# Tables\n\n{text}\n", encoding="utf-8")
    return target


def sure_table(cells: Cells) -> Table:
    """Every comparison whose cells are there."""
    steps = [
        (name, clips(cells[low[0]], low[1], "total"), clips(cells[high[0]], high[1], "total"))
        for name, low, high in LADDER
        if _holds(cells, low) and _holds(cells, high)
    ]
    return difference_table(steps, {name for name, low, high in LADDER if low[0] == high[0]})


def ablation_table(cells: Cells) -> Table:
    """The paper's Table 2 in totals, ours with intervals beside the paper's."""
    heads = ["", "2 steps", "paper", "1 step", "paper"]
    rows = []
    for name, places in ABLATION.items():
        ours = [points(pooled(clips(cells[p[0]], p[1], "total"))) if _holds(cells, p) else "-" for p in places]
        rows.append([name, ours[0], PAPER_ABLATION[name][0], ours[1], PAPER_ABLATION[name][1]])
    return Table(heads, rows)


def systems_table(cells: Cells) -> Table:
    """The paper's Table 1: one row a system, calls with commits beside it."""
    rows = []
    for name, (cell, plan) in SYSTEMS:
        if _holds(cells, (cell, plan)):
            calls = cells[cell][0]["plans"][plan]["calls"]
            marks = [points(pooled(clips(cells[cell], plan, head))) for head in HEADS]
            rows.append([name, plan, calls, len(cells[cell]), *marks])
    return Table(["system", "plan", "calls", "seeds", *HEADS], rows)


def _shared_plans(results: list[Results]) -> list[Results]:
    # A seed whose evaluation is still going on lacks some.
    shared = [plan for plan in results[0]["plans"] if all(plan in result["plans"] for result in results)]
    return [{**result, "plans": {plan: result["plans"][plan] for plan in shared}} for result in results]


def _holds(cells: Cells, place: Place) -> bool:
    cell, plan = place
    return cell in cells and all(plan in result["plans"] for result in cells[cell])
