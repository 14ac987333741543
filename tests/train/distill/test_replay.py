"""Replayed rollouts: the gradients of those with a graph, in the memory of one chunk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nearstep.errors import NearstepError
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import StepPlan
from nearstep.train.loop import LoopConfig


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    loop = LoopConfig(folder=tmp_path / "run", steps=2, log_every=1, save_every=1, preview_every=100, tensorboard=False)
    return replace(model.distillation(loop), batch=2)


def learnt(config: DistillConfig, steps: int, window: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Samples, and the student's gradients, of one update."""
    stage = DistillStage(config)
    update, student = stage.update, stage.update.networks.student
    if window:
        student.register_to_config(window_frames=window, sink_frames=1)
    plan = StepPlan(steps=steps, discriminator_learns=True, student_listens=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
        batch = update.sample(plan, 0, range(2), graph=True)
        update.student(plan, batch, update.noise("test"))
    return batch.x_n.detach(), {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


OPTIONS = {
    "one step": (1, None, {}),
    "three steps": (3, None, {}),
    "a window": (2, 3, {}),
    "an excerpt": (2, None, {"excerpt_frames": 4}),
    "checkpointing": (2, None, {"checkpointing": True}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_those_of_a_rollout_with_a_graph(name: str, config: DistillConfig):
    steps, window, options = OPTIONS[name]
    config = replace(config, **options)
    samples, expected = learnt(config, steps, window)
    again, found = learnt(replace(config, replay=True), steps, window)
    torch.testing.assert_close(again, samples, rtol=0, atol=1e-6)
    assert found.keys() == expected.keys() and len(found) > 20
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for part, gradient in expected.items():
        torch.testing.assert_close(found[part], gradient, rtol=1e-3, atol=1e-5 * largest, msg=part)


def test_gradients_under_autocast_differ_by_rounding_alone(config: DistillConfig):
    config = replace(config, autocast=True)
    _, expected = learnt(config, 2)
    _, found = learnt(replace(config, replay=True), 2)
    assert found.keys() == expected.keys()
    one, other = (torch.cat([part.flatten() for part in found.values()]) for found in (expected, found))
    assert float((one - other).norm() / one.norm()) < 0.05


def test_a_run_may_turn_to_replay(config: DistillConfig):
    replace(config, loop=replace(config.loop, minutes=1e-9)).run()
    assert (replace(config, replay=True).run() / "transformer").is_dir()


def test_without_a_rollout_there_is_nothing_to_replay(config: DistillConfig):
    with pytest.raises(NearstepError, match="that could be replayed"):
        replace(config, replay=True, adversary=None, sampling="data")
    stage = DistillStage(replace(config, replay=True))
    plan = StepPlan(steps=1, discriminator_learns=True, student_listens=True)
    batch = stage.update.sample(plan, 0, range(2), graph=True)
    assert batch.replay is not None
    with pytest.raises(ValueError, match="no gradient"):
        batch.replay.backward()
    assert batch.detached().replay is None
