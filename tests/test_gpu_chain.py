"""The chain of trainings that a GPU is asked for (``benchmarks/gpu/chain.py``), at its smallest size on the CPU."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.chain import STAGES, fitted, unpack, wider
from benchmarks.gpu.chain import run as run_chain
from benchmarks.gpu.task import Record, Task
from nearstep.nets.transformer import VideoTransformer
from nearstep.recipes import playground
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.health import read_metrics


@pytest.mark.timeout(400)
def test_the_chain_leaves_runs_that_go_on_elsewhere(tmp_path: Path) -> None:
    out, scratch, runs = (tmp_path / name for name in ("out", "scratch", "runs"))
    out.mkdir()
    task = Task(
        size="tiny", device=torch.device("cpu"), scratch=scratch, out=out,
        record=Record(out / "lines.jsonl", "chain"), until=time.monotonic() + 6,
    )  # fmt: skip
    run_chain(task)
    rows = {row["name"]: row for row in map(json.loads, (out / "lines.jsonl").read_text().splitlines())}
    assert [*rows] == [*STAGES] and not any("error" in row for row in rows.values()), rows
    assert {path.name for path in out.glob("*.tar")} == {f"chain-{name}.tar" for name in STAGES}

    made = unpack(out, runs)
    assert [folder.name for folder in made] == [*STAGES]
    for folder in made:
        rows_made = read_metrics(folder / "metrics.jsonl")
        assert 0 < rows_made[-1]["step"] <= rows[folder.name]["steps"] and len([*folder.glob("previews/*.png")]) == 1
        assert (folder / "model" / "text_encoder").is_dir() and (folder / "model" / "tokenizer").is_dir()
        assert (folder / "model" / "vae").is_dir() == (folder.name != "text")
    last, start = (VideoTransformer.from_pretrained(folder / "model" / "transformer") for folder in made[:1:-1])
    assert any(not torch.equal(a, b) for a, b in zip(last.parameters(), start.parameters(), strict=True))
    # What a stage took over is in the first file alone.
    assert (out / "chain-forcing.tar").stat().st_size < (out / "chain-teacher.tar").stat().st_size


def test_phases_keep_their_proportions_in_the_time_there_is() -> None:
    recipe = wider(playground.teacher(), 8)
    spent = [0.01, 0.02, 0.04][: len(recipe.phases)]
    fits = fitted(recipe, spent, 100.0)
    assert sum(phase.steps * each for phase, each in zip(fits.phases, spent, strict=True)) == pytest.approx(100, 0.01)
    ratios = [fit.steps / phase.steps for fit, phase in zip(fits.phases, recipe.phases, strict=True)]
    assert max(ratios) / min(ratios) < 1.01 and fits.loop.steps == sum(phase.steps for phase in fits.phases)
    assert [phase.clips for phase in recipe.phases] == [8 * phase.clips for phase in playground.teacher().phases]
    student = fitted(playground.self_forcing(), [0.5], 60.0)
    assert student.loop.steps == 120 and student.loop.minutes is not None


def test_a_wider_step_has_wider_lessons() -> None:
    recipe = playground.self_forcing()
    wide = wider(recipe, 2)
    assert isinstance(wide, DistillConfig) and isinstance(recipe.lessons[0].batch, int)
    assert (wide.batch, wide.lessons[0].batch) == (2 * recipe.batch, 2 * recipe.lessons[0].batch)
