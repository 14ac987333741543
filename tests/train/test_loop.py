"""The loop: resume equals uninterrupted, signals save, what is not finite stops first, recipes do not mix."""

from __future__ import annotations

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.loop import LoopConfig, run
from nearstep.train.optim import NonFiniteError, OptimConfig, Optimizer

RECIPE = {"lr": 0.01, "steps": 12}


class Fit:
    """A stage that fits a small net (with a matrix that Muon takes) to noise."""

    def __init__(self, steps: int = 12, at: dict | None = None) -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))})
        self.optimizer = Optimizer([self.net], OptimConfig(lr=0.01, warmup=2, muon=True), steps)
        self.ema = Ema(self.net, 0.9)
        self.state = TrainState({"net": self.net, "optimizer": self.optimizer, "ema": self.ema})
        self.at = at or {}

    def step(self, index: int) -> dict[str, torch.Tensor]:
        self.at.get(index, lambda: None)()
        x = torch.randn(8, 4, generator=rng.generator("fit", index))
        loss = (self.net["blocks"](x) - x.flip(0)).square().mean()
        if self.at.get("nan") == index:
            loss = loss * float("nan")
        moved = self.optimizer.step(loss, index)
        self.ema.update(self.net)
        return {"loss": loss, **moved}

    def preview(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def export(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.ema.module.state_dict(), folder / "weights.pt")


def config(folder: Path, **changes) -> LoopConfig:
    options = {"steps": 12, "log_every": 4, "save_every": 5, "preview_every": 6, "tensorboard": False}
    return LoopConfig(folder=folder, **{**options, **changes})


def weights(stage: Fit) -> list[torch.Tensor]:
    return [*stage.net.state_dict().values(), *stage.ema.module.state_dict().values()]


def same(one: Fit, other: Fit) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def test_a_killed_run_that_is_started_again_equals_one_that_was_not(tmp_path: Path):
    whole = Fit()
    run(whole, config(tmp_path / "whole"), RECIPE)

    def die():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):  # after the checkpoint of step 5, two steps are lost
        run(Fit(at={7: die}), config(tmp_path / "cut"), RECIPE)
    resumed = Fit()
    run(resumed, config(tmp_path / "cut"), RECIPE)
    assert resumed.state.step == 12
    assert same(whole, resumed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_and_saves_it(tmp_path: Path, number: int):
    whole, cut = Fit(), Fit(at={3: lambda: os.kill(os.getpid(), number)})
    run(whole, config(tmp_path / "whole"), RECIPE)
    run(cut, config(tmp_path / "cut"), RECIPE)
    assert cut.state.step == 4
    resumed = Fit()
    run(resumed, config(tmp_path / "cut"), RECIPE)
    assert same(whole, resumed)


def test_what_is_not_finite_stops_before_any_weight_moves(tmp_path: Path):
    stage, reference = Fit(at={"nan": 6}), Fit(steps=12)
    with pytest.raises(NonFiniteError, match="step 6"):
        run(stage, config(tmp_path / "nan"), RECIPE)
    for index in range(6):
        reference.step(index)
    assert same(stage, reference)


def test_another_recipe_is_refused_by_the_field_that_differs(tmp_path: Path):
    run(Fit(), config(tmp_path), RECIPE)
    with pytest.raises(NearstepError, match=r"lr was 0\.01 and is now 0\.02"):
        run(Fit(), config(tmp_path), {**RECIPE, "lr": 0.02})


def test_a_checkpoint_of_another_version_is_refused_by_the_fields_that_are_no_more(tmp_path: Path):
    run(Fit(), config(tmp_path), {**RECIPE, "counts": [1, 2], "alone": 15})
    with pytest.raises(NearstepError, match=r"another version of nearstep: its recipe says alone, counts, which"):
        run(Fit(), config(tmp_path), {**RECIPE, "step_counts": [1, 2], "adversary_delay": 15})


def test_a_damaged_checkpoint_is_named(tmp_path: Path):
    run(Fit(), config(tmp_path), RECIPE)
    path = next((tmp_path / "checkpoint-0000012").glob("*.distcp"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NearstepError, match=r"checkpoint-0000012 is no readable checkpoint"):
        run(Fit(), config(tmp_path), RECIPE)


def test_only_the_newest_checkpoint_stays(tmp_path: Path):
    run(Fit(), config(tmp_path), RECIPE)
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-0000012"]
    assert json.loads((tmp_path / "checkpoint-0000012" / "recipe.json").read_text()) == {"step": 12, "recipe": RECIPE}


def test_metrics_are_means_between_flushes(tmp_path: Path):
    run(Fit(), config(tmp_path), RECIPE)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [4, 8, 12]
    stage = Fit()
    losses = [float(stage.step(index)["loss"].detach()) for index in range(4)]
    assert rows[0]["loss"] == pytest.approx(sum(losses) / 4)
    assert {path.name for path in (tmp_path / "previews").iterdir()} == {"0000006.png", "0000012.png"}


def test_the_rate_rises_stays_and_falls():
    law = OptimConfig(lr=1.0, warmup=10, decay=0.5)
    rates = [law.rate(step, 100) for step in range(100)]
    assert rates[0] == 0.1
    assert rates[9:51] == [1.0] * 42
    assert all(a > b for a, b in pairwise(rates[50:]))
    assert rates[-1] == pytest.approx(0.02)
    assert OptimConfig(lr=1.0, warmup=1, decay=0).rate(99, 100) == 1.0


def test_the_average_forgets_its_start():
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    ema = Ema(net, 0.9)
    nn.init.ones_(net.weight)
    for _ in range(50):
        ema.update(net)
    assert float(ema.module.weight) == pytest.approx(1.0, abs=0.01)
