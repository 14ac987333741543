"""What the discriminator's penalty is computed in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearstep.errors import NearstepError
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import StepPlan
from nearstep.train.loop import LoopConfig


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    return model.distillation(LoopConfig(folder=tmp_path / "run", steps=6, tensorboard=False))


def penalties(config: DistillConfig, **options: object) -> torch.Tensor:
    """R1 of a first discriminator's update, whose samples and weights do not depend on the options."""
    update = DistillStage(replace(config, adversary=AdversaryConfig(**options))).update
    with torch.no_grad():
        batch = update.sample(StepPlan(steps=1, discriminator_learns=True, student_listens=True), 0, update.rows)
    adversary = update.networks.adversary
    pair = adversary.pair(1, batch.x_n, batch.x_next, batch.text, update.noise("a"))
    return adversary.discriminator_loss(pair, 1.0)[1]["r1"]


def test_a_penalty_multiplies_in_what_it_is_told_and_steps_as_far(config: DistillConfig):
    usual = penalties(config)
    assert usual == penalties(config, penalty_products="float32")  # a CPU has no TF32
    narrow = penalties(config, penalty_products="bfloat16", penalty_step=0.2)
    assert usual != narrow and 0.5 < narrow / usual < 2  # of heads that have learnt: benchmarks/penalty.py
    steps = [penalties(config, penalty_step=step) for step in (0.4, 0.1, 0.025)]
    assert abs(steps[1] - steps[2]) < abs(steps[0] - steps[2])  # it tends to the slope
    judged = AdversaryConfig(backbone="teacher")
    with pytest.raises(NearstepError, match="set teacher_dtype=float32, or penalty_products=bfloat16"):
        replace(config, adversary=judged, teacher_dtype="bfloat16")
    replace(config, adversary=replace(judged, penalty_products="bfloat16"), teacher_dtype="bfloat16")
