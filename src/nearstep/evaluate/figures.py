"""Pictures of results. Needs matplotlib (the extra "train")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nearstep.evaluate.results import Results
from nearstep.evaluate.statistics import pooled
from nearstep.evaluate.tables import clips
from nearstep.files import replacing
from nearstep.plots import new_figure


def draw_totals(cells: Mapping[str, Sequence[Results]], path: Path) -> Path:
    """Total of every plan, a colour per recipe, with 95 % intervals; plans in order of their calls.

    Args:
        cells: recipe -> what evaluate.run.measure wrote for each of its seeds.
        path: PNG.
    """
    calls = {plan: found["calls"] or 0 for results in cells.values() for plan, found in results[0]["plans"].items()}
    order = sorted(calls, key=lambda plan: (calls[plan], plan))
    figure = new_figure(3.5 + 1.2 * len(order), 5)
    axis = figure.subplots()
    for number, (name, results) in enumerate(cells.items()):
        plans = [plan for plan in order if plan in results[0]["plans"]]
        aside = 0.7 * ((number + 0.5) / len(cells) - 0.5)
        found = [pooled(clips(results, plan, "total")) for plan in plans]
        axis.errorbar(
            [order.index(plan) + aside for plan in plans],
            [100 * interval.value for interval in found],
            yerr=[
                [100 * (interval.value - interval.low) for interval in found],
                [100 * (interval.high - interval.value) for interval in found],
            ],
            fmt="os^D"[number // 10 % 4],
            capsize=2,
            label=f"{name} ({len(results)})",
        )
    axis.set_xticks(range(len(order)), [f"{plan}\n{calls[plan]} calls" for plan in order])
    axis.set_ylabel("total")
    axis.grid(alpha=0.3, axis="y")
    axis.legend(
        fontsize="x-small", title="recipe (seeds)", title_fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1)
    )
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110, bbox_inches="tight")
    return path
