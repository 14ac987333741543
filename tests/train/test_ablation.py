"""The ablation: a cell is run and measured once, and a run that was stopped is not measured."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.protocols import World
from nearstep.recipes import ablation, playground
from nearstep.recipes.ablation import AblationConfig
from nearstep.recipes.rivals import RIVALS, rival
from nearstep.train.distill import stage as distill

PLANS = ("1", "4")


@pytest.fixture
def measured(model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny recipe as the only cell; its evaluation writes a result and notes the model that it was given."""
    seen: list[str] = []

    def evaluate(world: World, student: str, *, plans: tuple[str, ...], captions: int, out: Path) -> str:
        seen.append(student)
        marks = torch.linspace(0, 1, captions).tolist()
        sums, half = ("total", "quality", "semantic", "correct"), {"value": 0.5, "low": 0.4, "high": 0.6}
        found = {
            **dict.fromkeys(sums, half), "agreement": {}, "figures": {}, "course": [0.5], "calls": 5,
            "frechet": {"value": 3.0, "low": 2.0, "high": 4.0}, "clips": dict.fromkeys(sums, marks),
        }  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(
            json.dumps({"settings": {"captions": captions, "world": world.name}, "plans": dict.fromkeys(plans, found)})
        )
        return ""

    def change(base):
        small = replace(base, latents=model.latents, lessons=(), batch=2, ratio=1, chunk_frames=3)
        return replace(rival(small, "distill"), adversary_delay=0)

    monkeypatch.setattr(ablation, "CELLS", {"asd": change})
    monkeypatch.setattr(ablation, "NETWORKS", {})
    monkeypatch.setattr(ablation, "evaluate", evaluate)
    monkeypatch.setattr(AblationConfig, "_similarity", lambda _: None)
    return seen


@pytest.fixture
def config(model, measured, tmp_path: Path) -> AblationConfig:
    folders = {"runs": tmp_path / "runs", "out": tmp_path / "out"}
    return AblationConfig(
        cells=("asd",),
        seeds=(0, 1),
        model=model.folder,
        network="transformer",
        steps=2,
        captions=8,
        plans=PLANS,
        **folders,
    )


def test_every_seed_is_run_and_measured_once(config: AblationConfig, measured: list[str]):
    tables = config.run()
    assert [Path(model).parent.name for model in measured] == ["asd-0", "asd-1"]
    assert "| asd | 2 | 4 | 5 |" in tables.read_text()
    assert (config.out / "totals.png").exists()
    config.run()
    assert len(measured) == 2


def test_a_run_that_was_stopped_is_not_measured_and_goes_on(config, measured: list[str], monkeypatch):
    step = distill.DistillStage.step

    def stopped(stage, index):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(stage, index)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(distill.DistillStage, "step", stopped)
        config.run()
    assert ended.value.code == 128 + signal.SIGTERM
    assert not measured
    config.run()
    assert len(measured) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(captions=0), "captions=0; give at least 1"),
        (dict(steps=0), "steps=0; give at least 1"),
        (dict(plans=("abc",)), "'abc' does not parse"),
        (dict(plans=()), "plans is empty"),
        (dict(seeds=()), "seeds is empty"),
        (dict(seeds=(-1,)), "seeds=-1; give at least 0"),
        (dict(cells=("adsd",)), "there is no cell adsd: did you mean asd"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(options: dict, said: str) -> None:
    with pytest.raises(NearstepError, match=said):
        AblationConfig(**options)


@pytest.mark.parametrize("cell", ablation.CELLS)
def test_every_cell_is_a_run(cell: str) -> None:
    base = playground.self_forcing()
    run = ablation.CELLS[cell](base)
    steps = base.loop.steps * (1.45 if cell.endswith("longer") else 1)
    assert (run.loop.steps, run.teacher, run.latents) == (steps, base.teacher, base.latents)
    assert run.student.lr == base.student.lr / (4 if cell.endswith("slow") else 1)
    assert (run == base) == (cell == "self_forcing")


def test_a_cell_is_what_sets_it_apart() -> None:
    base = playground.self_forcing()
    moved = ablation.CELLS["asd_late"](base)
    apart = {each.name for each in fields(base) if getattr(base, each.name) != getattr(moved, each.name)}
    assert apart == {"adversary", "warmup", "adversary_delay", "loop"}
    assert moved.warmup + moved.adversary_delay == base.loop.steps // 2


def test_rivals_of_the_playground_are_its_recipes() -> None:
    base = playground.self_forcing()
    made = {name: getattr(playground, name)() for name in RIVALS}
    streams = made.pop("distill")  # a student for streams, too
    assert streams == replace(rival(base, "distill"), lessons=streams.lessons, lesson_every=1, loop=streams.loop)
    assert all(run == rival(base, name) for name, run in made.items())


def test_what_is_missing_is_known_before_it_is_run(config: AblationConfig) -> None:
    assert config.missing == [("asd", 0), ("asd", 1)]
    config.run()
    assert config.missing == [] and replace(config, plans=("2",)).missing == [("asd", 0), ("asd", 1)]


def test_results_of_other_captions_are_refused_before_anything_runs(config: AblationConfig, measured: list[str]):
    replace(config, seeds=(1,)).run()
    with pytest.raises(NearstepError, match="asd-1.json holds results with captions 8, not 4; .* --out"):
        replace(config, captions=4).run()
    assert len(measured) == 1 and not (config.runs / "asd-0").exists()
    worlds = json.loads((config.out / "asd-1.json").read_text())
    worlds["settings"]["world"] = "things"
    (config.out / "asd-1.json").write_text(json.dumps(worlds))
    with pytest.raises(NearstepError, match="holds results with world things, not playground"):
        config.run()


def test_a_plan_of_a_run_that_is_gone_is_refused_before_it_is_trained_again(
    config: AblationConfig, measured: list[str]
):
    replace(config, seeds=(1,)).run()
    elsewhere = replace(config, runs=config.runs.with_name("others"), plans=(*PLANS, "2"))
    with pytest.raises(NearstepError, match="asd-1.json holds results of a run that is not in .*others/, so plan 2"):
        elsewhere.run()
    assert len(measured) == 1 and not elsewhere.runs.exists()


def test_a_device_that_is_not_here_is_refused_before_anything_runs(config: AblationConfig) -> None:
    with pytest.raises(NearstepError, match="device 'warp' is not here"):
        replace(config, device="warp").run()
    assert not config.runs.exists()
