"""The loop: resume equals uninterrupted, signals save, what is not finite stops first, recipes do not mix."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.files import host_number, part_name
from nearstep.train import loop
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.loop import LoopConfig, Stopped
from nearstep.train.optim import NonFiniteError, OptimConfig, Optimizer
from nearstep.train.preview import write_grid

RECIPE = {"lr": 0.01, "steps": 12}


def run(stage: Fit, config: LoopConfig, recipe: dict) -> Path:
    return loop.run(lambda: stage, config, recipe)


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
def test_a_signal_ends_the_step_saves_it_and_exports_nothing(tmp_path: Path, number: int, capfd):
    whole, cut = Fit(), Fit(at={3: lambda: os.kill(os.getpid(), number)})
    run(whole, config(tmp_path / "whole"), RECIPE)
    with pytest.raises(Stopped) as ended:
        run(cut, config(tmp_path / "cut"), RECIPE)
    assert ended.value.code == 128 + number
    assert cut.state.step == 4
    assert not (tmp_path / "cut" / "model").exists()
    said = capfd.readouterr().err
    assert "this step is made and saved" in said
    assert f"stopped by {signal.Signals(number).name} after step 4 of 12, which is saved in {tmp_path / 'cut'}" in said
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
        run(Fit(), config(tmp_path, steps=13), {**RECIPE, "steps": 13})


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"step": "x", "recipe": {}}', '{"step": 1, "recipe": 3}', "[" * 10**5]
)
def test_a_damaged_recipe_is_named(tmp_path: Path, content: str):
    run(Fit(), config(tmp_path), RECIPE)
    (tmp_path / "checkpoint-0000012" / "recipe.json").write_text(content)
    with pytest.raises(NearstepError, match=r"checkpoint-0000012 is no readable checkpoint \(.*recipe\.json"):
        run(Fit(), config(tmp_path), RECIPE)


def test_a_finished_run_may_become_longer_and_not_shorter(tmp_path: Path, capsys):
    run(Fit(), config(tmp_path), RECIPE)
    longer = Fit(steps=20)
    run(longer, config(tmp_path, steps=20), {**RECIPE, "steps": 20})
    assert longer.state.step == 20
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 12, 16, 20]
    said = capsys.readouterr().err
    assert "checkpoint-0000012, 12 of 20 steps; rates follow the new length from here on" in said
    with pytest.raises(NearstepError, match="steps was 20 and is now 12"):
        run(Fit(), config(tmp_path), RECIPE)


def test_what_changes_only_cost_or_reporting_may_change(tmp_path: Path):
    whole = Fit()
    run(whole, config(tmp_path / "whole"), RECIPE)
    run(Fit(), config(tmp_path / "cut", minutes=1e-9), {**RECIPE, "micro": 1, "compile": False, "text_cache": None})
    resumed = Fit()
    changed = config(tmp_path / "cut", log_every=1, save_every=1, preview_every=2)
    run(resumed, changed, {**RECIPE, "micro": 2, "compile": True, "text_cache": "text", "checkpointing": True})
    assert same(whole, resumed)


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


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_signal_in_the_last_step_leaves_a_finished_model_and_its_exit_code(tmp_path: Path):
    stage = Fit(at={11: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(Stopped) as ended:
        run(stage, config(tmp_path), RECIPE)
    assert ended.value.code == 143
    assert (tmp_path / "model" / "weights.pt").exists()
    assert (tmp_path / "previews" / "0000012.png").exists()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(Fit(at={3: twice}), config(tmp_path), RECIPE)
    assert not (tmp_path / "model").exists()


def test_without_a_terminal_a_line_a_log_step_and_in_the_end_where_the_model_is(tmp_path: Path, capsys):
    run(Fit(), config(tmp_path), RECIPE)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["4/12", "8/12", "12/12"]
    assert all("loss " in line and " s/step, " in line and line.endswith(" left") for line in lines[:-1])
    assert lines[-1] == f"nearstep: finished after 12 steps: the model is {tmp_path / 'model'}"


def test_a_finished_folder_says_so_and_loads_nothing(tmp_path: Path, capsys):
    run(Fit(), config(tmp_path), RECIPE)
    made = (tmp_path / "model" / "weights.pt").stat().st_mtime_ns

    def refuse() -> Fit:
        raise AssertionError("nothing is to be loaded")

    assert loop.run(refuse, config(tmp_path), RECIPE) == tmp_path / "model"
    assert f"{tmp_path} is finished: {tmp_path / 'model'} is made, after 12 steps" in capsys.readouterr().err
    assert (tmp_path / "model" / "weights.pt").stat().st_mtime_ns == made


def test_a_model_that_a_kill_left_unwritten_is_written_by_the_same_command(tmp_path: Path):
    run(Fit(), config(tmp_path), RECIPE)
    shutil.rmtree(tmp_path / "model")
    run(Fit(), config(tmp_path), RECIPE)
    assert (tmp_path / "model" / "weights.pt").exists()


def test_time_that_is_over_gives_an_unfinished_model_under_its_own_name(tmp_path: Path):
    made = run(Fit(), config(tmp_path, minutes=1e-9), RECIPE)
    assert made == tmp_path / "unfinished"
    assert not (tmp_path / "model").exists()
    assert run(Fit(), config(tmp_path), RECIPE) == tmp_path / "model"
    assert not made.exists()


def test_rows_and_previews_that_a_kill_lost_or_doubled(tmp_path: Path):
    def die():
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(Fit(at={9: die}), config(tmp_path, log_every=1), RECIPE)  # rows of 6 to 9 are made again
    assert [row["step"] for row in rows(tmp_path)] == [*range(1, 10)]
    run(Fit(), config(tmp_path, log_every=1), RECIPE)
    assert [row["step"] for row in rows(tmp_path)] == [*range(1, 13)]
    (tmp_path / "finished.json").unlink()
    (tmp_path / "previews" / "0000012.png").unlink()
    run(Fit(), config(tmp_path, log_every=1), RECIPE)
    assert (tmp_path / "previews" / "0000012.png").exists()


def test_rows_of_a_run_that_was_cut_are_those_of_one_that_was_not(tmp_path: Path):
    def die():
        raise RuntimeError("killed")

    run(Fit(), config(tmp_path / "whole"), RECIPE)
    with pytest.raises(RuntimeError, match="killed"):  # the checkpoint of step 5 lies between the rows of 4 and 8
        run(Fit(at={6: die}), config(tmp_path / "cut"), RECIPE)
    run(Fit(), config(tmp_path / "cut"), RECIPE)
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    assert [row | {"seconds_per_step": 0} for row in cut] == [row | {"seconds_per_step": 0} for row in whole]


def test_two_trainings_do_not_share_a_folder(tmp_path: Path):
    def again():
        with pytest.raises(NearstepError, match=rf"is being trained in by process {os.getpid()} on "):
            run(Fit(), config(tmp_path), RECIPE)

    run(Fit(at={3: again}), config(tmp_path), RECIPE)
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 12]


def test_a_lock_of_a_dead_process_is_taken_over_and_another_hosts_never(tmp_path: Path):
    dead = "import os, sys; from pathlib import Path; from nearstep.lock import held\n"
    dead += "with held(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", dead, tmp_path], check=False)
    assert json.loads((tmp_path / ".lock").read_text())["host"] == socket.gethostname()
    run(Fit(), config(tmp_path), RECIPE)
    (tmp_path / ".lock").write_text(json.dumps({"host": "far-away", "process": 7}))
    with pytest.raises(NearstepError, match=r"process 7 on another host, far-away, .* delete .*\.lock"):
        run(Fit(), config(tmp_path, steps=13), {**RECIPE, "steps": 13})
    assert json.loads((tmp_path / ".lock").read_text()) == {"host": "far-away", "process": 7}


def test_left_overs_of_this_hosts_dead_go_and_another_hosts_stay(tmp_path: Path):
    ours, theirs, old = (
        tmp_path / name
        for name in (part_name("a", 2**22 + 1, host_number()), part_name("a", 2**22 + 1, 1), ".4194305.a.part")
    )
    living = tmp_path / part_name("a", os.getppid(), host_number())
    for part in (ours, theirs, old, living):
        part.mkdir()
    run(Fit(), config(tmp_path), RECIPE)
    assert [part.exists() for part in (ours, theirs, old, living)] == [False, True, False, True]


@pytest.mark.parametrize("kind", ["file", "under a file", "lock is a link"])
def test_a_folder_that_cannot_be_written_is_a_line(tmp_path: Path, kind: str):
    (tmp_path / "file").touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ".lock").symlink_to(tmp_path / "victim")
    folder = {"file": "file", "under a file": "file/run", "lock is a link": "linked"}[kind]
    with pytest.raises(NearstepError, match=r"cannot train in .*; name a folder that can be written"):
        run(Fit(), config(tmp_path / folder), RECIPE)
    assert not (tmp_path / "victim").exists()


@contextmanager
def no_room(room: int = 64) -> Iterator[Callable[[], None]]:
    """Files cannot grow over ``room`` bytes once the function is called, until the body ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Pictured(Fit):
    """Its previews and results are files that need room."""

    fill: Callable[[], None] | None = None

    def preview(self, path: Path) -> None:
        write_grid(torch.rand(1, 1, 3, 16, 16), path)

    def export(self, folder: Path) -> None:
        if self.fill:
            self.fill()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_bytes(bytes(1000))


FILLED = {
    "checkpoint": {"log_every": 100, "preview_every": 100},
    "metrics": {"log_every": 1, "save_every": 100},
    "previews": {"log_every": 100, "save_every": 100},
    "model": {},
}


@pytest.mark.parametrize("where", FILLED)
def test_a_disk_that_fills_up_is_a_line_and_the_run_goes_on_bit_for_bit_when_there_is_room(tmp_path: Path, where: str):
    whole, cut = Pictured(), tmp_path / "cut"
    run(whole, config(tmp_path / "whole"), RECIPE)
    run(Pictured(), config(cut, minutes=1e-9), RECIPE)  # a checkpoint of step 1
    with no_room() as fill, pytest.raises(NearstepError, match=rf"^cannot write \S*{where}\S*: ") as caught:
        broken = Pictured(at={} if where == "model" else {3: fill})
        broken.fill = fill if where == "model" else None
        run(broken, config(cut, **FILLED[where]), RECIPE)
    assert "\n" not in str(caught.value)
    assert not list(cut.rglob("*.part"))
    assert len(list(cut.glob("checkpoint-*"))) == 1
    resumed = Pictured()
    run(resumed, config(cut), RECIPE)
    assert same(whole, resumed)
    steps = [row["step"] for row in rows(cut)]
    assert steps == sorted(set(steps))


def test_a_ctrl_c_while_a_checkpoint_is_written_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystem.create_stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(Fit(), config(tmp_path), RECIPE)
    assert not list(tmp_path.rglob("*.part"))
