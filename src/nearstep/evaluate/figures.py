"""Pictures of results. Needs matplotlib (the extra "train")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nearstep.evaluate.pooled import clips, pooled
from nearstep.files import replacing
from nearstep.plots import new_figure


def draw_totals(cells: Mapping[str, Sequence[dict[str, Any]]], path: Path) -> Path:
    """Total against network calls (commits included), a line per recipe through its plans, with 95 % intervals.

    Args:
        cells: recipe -> what evaluate.run.measure wrote for each of its seeds.
        path: PNG.
    """
    figure = new_figure(8, 5)
    axis = figure.subplots()
    for number, (name, results) in enumerate(cells.items()):
        plans = sorted(results[0]["plans"], key=lambda plan: results[0]["plans"][plan]["calls"])
        calls = [results[0]["plans"][plan]["calls"] + 0.04 * number for plan in plans]  # apart, where they coincide
        found = [pooled(clips(results, plan, "total")) for plan in plans]
        middle = [100 * interval.value for interval in found]
        below = [100 * (interval.value - interval.low) for interval in found]
        above = [100 * (interval.high - interval.value) for interval in found]
        style = ("-", "--", ":")[number // 10 % 3]
        axis.errorbar(calls, middle, yerr=[below, above], marker=".", capsize=2, linestyle=style, label=name)
    axis.set_xscale("log")
    axis.set_xlabel("network calls a clip, commits included")
    axis.set_ylabel("total")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small", ncols=2)
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)
    return path
