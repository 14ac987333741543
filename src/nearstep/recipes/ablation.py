"""The paper's tables in miniature: every rival and every sensitivity, several seeds each, one command.

nearstep ablate
nearstep ablate --cells self_forcing asd --seeds 0 1 2

A cell is a run and its evaluation. Both resume: a cell whose results are there is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearstep.errors import NearstepError
from nearstep.evaluate.pooled import clips, difference_table, pooled_table
from nearstep.evaluate.run import evaluate
from nearstep.files import replacing
from nearstep.recipes import playground as recipes
from nearstep.train.adversary import AdversaryConfig
from nearstep.train.stages.distill import DistillConfig

PLANS = ("1", "4,1x", "2", "4,2x", "4")


def _asd(**changes: Any) -> Callable[[], DistillConfig]:
    return lambda: replace(recipes.distill(), adversary=AdversaryConfig(**changes))


CELLS: dict[str, Callable[[], DistillConfig]] = {
    "self_forcing": recipes.self_forcing,
    "asd": recipes.distill,
    "self_forcing_1": recipes.self_forcing_1,
    "self_forcing_2": recipes.self_forcing_2,
    "causvid": recipes.causvid,
    "one_forcing": recipes.one_forcing,
    "asd_alpha_0.1": _asd(weight=0.1),
    "asd_alpha_1": _asd(weight=1.0),
    "asd_balanced": _asd(weight=0.3, balance=True),
    "asd_gamma_0.01": _asd(gamma=0.01),
    "asd_gamma_1": _asd(gamma=1.0),
    "asd_teacher": _asd(backbone="teacher"),
    "asd_joint": _asd(backbone="joint"),
    "asd_chain": _asd(reference="both"),
}
"""Cell -> the recipe of its runs."""

LADDER = (
    ("ASD at 1 step", ("self_forcing", "1"), ("asd", "1")),
    ("FFE at 1 step", ("self_forcing", "1"), ("self_forcing", "4,1x")),
    ("both over FFE at 1 step", ("self_forcing", "4,1x"), ("asd", "4,1x")),
    ("both over ASD at 1 step", ("asd", "1"), ("asd", "4,1x")),
    ("ASD over Self Forcing retrained at 1", ("self_forcing_1", "1"), ("asd", "1")),
    ("the same with FFE", ("self_forcing_1", "4,1x"), ("asd", "4,1x")),
    ("ASD at 2 steps", ("self_forcing", "2"), ("asd", "2")),
    ("FFE at 2 steps", ("self_forcing", "2"), ("self_forcing", "4,2x")),
    ("both over FFE at 2 steps", ("self_forcing", "4,2x"), ("asd", "4,2x")),
    ("ASD at 4 steps", ("self_forcing", "4"), ("asd", "4")),
)
"""The steps of the paper's ablation: name, (cell, plan) below, (cell, plan) above."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Which cells to run, and where their runs and results go."""

    cells: tuple[str, ...] = tuple(CELLS)
    seeds: tuple[int, ...] = (0, 1, 2)
    model: Path = Path("playground")
    """Model folder of the initialisation, or "playground", the embedded one."""
    steps: int = 450
    """Iterations of a run."""
    captions: int = 512
    plans: tuple[str, ...] = PLANS
    runs: Path = Path("runs/ablation")
    out: Path = Path("docs/results/ablation")

    def __post_init__(self) -> None:
        if unknown := [cell for cell in self.cells if cell not in CELLS]:
            raise NearstepError(f"there is no cell {', '.join(unknown)}; cells are {', '.join(CELLS)}")

    def run(self) -> Path:
        """Run what is missing, seed by seed over all cells, and write the tables; returns their file."""
        for seed in self.seeds:
            for cell in self.cells:
                self._cell(cell, seed)
        return write_tables(self.out)

    def _cell(self, cell: str, seed: int) -> None:
        result = self.out / f"{cell}-{seed}.json"
        if result.exists() and set(self.plans) <= json.loads(result.read_text(encoding="utf-8"))["plans"].keys():
            return
        recipe = CELLS[cell]()
        loop = replace(recipe.loop, folder=self.runs / f"{cell}-{seed}", steps=self.steps)
        warmup = round(recipe.warmup * self.steps / recipe.loop.steps)
        student = replace(recipe, loop=loop, seed=seed, warmup=warmup, model=_folder(self.model)).run()
        evaluate(str(student), plans=self.plans, captions=self.captions, out=result)


def write_tables(folder: Path) -> Path:
    """Write tables.md beside the results in ``folder``: every cell, and the steps of the ladder that are there."""
    cells: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*-*.json")):
        cells.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text(encoding="utf-8")))
    cells = {name: cells[name] for name in CELLS if name in cells}
    steps = [
        (name, clips(cells[low[0]], low[1], "total"), clips(cells[high[0]], high[1], "total"))
        for name, low, high in LADDER
        if all(cell in cells and plan in cells[cell][0]["plans"] for cell, plan in (low, high))
    ]
    target = folder / "tables.md"
    with replacing(target) as part:
        part.write_text(f"{pooled_table(cells)}\n\n{difference_table(steps)}\n", encoding="utf-8")
    return target


def playground() -> AblationConfig:
    """Every cell of the ablation, three seeds each."""
    return AblationConfig()


def _folder(model: Path) -> Path:
    from nearstep.stream.folder import ModelFolder

    return ModelFolder.open(str(model)).path
