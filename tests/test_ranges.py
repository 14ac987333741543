"""Numbers that no run can be made with are refused where they are asked for, by name, value and what is allowed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import usual_runs

from nearstep.data.prompts import PromptsConfig
from nearstep.errors import NearstepError
from nearstep.ranges import check_count, check_number
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.phases import Phase

NAN, INF = math.nan, math.inf
LOOP = LoopConfig(folder=Path("run"), steps=3)
OPTIM = OptimConfig(lr=1e-3)
FORCING, DISTILL = usual_runs.forcing(), usual_runs.distill()
PROMPTS = PromptsConfig(files=(Path("p.txt"),), frames=3, channels=4, height=4, width=4)

WRONG = [
    (LOOP, "minutes", (NAN, INF, 0.0, -1.0)),
    (LOOP, "steps", (0, -1, 10**12)),
    (LOOP, "save_every", (0,)),
    (OPTIM, "lr", (NAN, INF, -1.0, 1e30)),
    (OPTIM, "warmup", (-1,)),
    (OPTIM, "decay", (NAN, -0.1, 1.5)),
    (OPTIM, "betas", ((2.0, 3.0), (0.9, 1.0), (NAN, 0.9), (-0.1, 0.9))),
    (OPTIM, "weight_decay", (NAN, -1.0, INF)),
    (OPTIM, "clip", (NAN, 0.0, -1.0)),
    (FORCING, "batch", (0, -3, 10**9)),
    (FORCING, "micro", (0, -1, 3)),
    (FORCING, "chunk_frames", (0, -1)),
    (FORCING, "shift", (0.0, -1.0, NAN, INF)),
    (FORCING, "ema", (0.0, 1.0, 1.5, 2.0, -0.5, NAN)),
    (FORCING, "caption_dropout", (-0.1, 1.1, NAN)),
    (FORCING, "guidance", (NAN, INF)),
    (DISTILL, "batch", (0, -3)),
    (DISTILL, "chunk_frames", (0,)),
    (DISTILL, "shift", (0.0, NAN)),
    (DISTILL, "ema", (1.0, 2.0, NAN)),
    (DISTILL, "t_min", (0.98, 2.0, NAN, -1.0)),
    (DISTILL, "t_max", (0.02, 0.0, 1.5, NAN)),
    (DISTILL, "warmup", (-1,)),
    (DISTILL.adversary, "gamma", (-1.0, NAN)),
    (DISTILL.adversary, "shift", (0.0, NAN)),
    (DISTILL.adversary, "penalty_every", (0,)),
    (DISTILL.adversary, "penalty_step", (0, -0.1, 2.0, float("nan"))),
    (PROMPTS, "frames", (0, -1, 10**8)),
    (PROMPTS, "height", (0,)),
    (Phase(10, 9, 2), "clips", (0,)),
    (Phase(10, 9, 2), "draws", (0,)),
    (Phase(10, 9, 2), "frames", (0, 2)),
]


@pytest.mark.parametrize(("config", "name", "value"), [(c, n, value) for c, n, values in WRONG for value in values])
def test_a_number_out_of_its_range_is_named_with_its_value(config: Any, name: str, value: Any):
    with pytest.raises(NearstepError) as caught:
        replace(config, **{name: value})
    said = str(caught.value)
    assert name in said.replace("clips of a phase", "clips") or "frames" in said
    assert "\n" not in said


def test_bounds_are_what_they_say():
    check_number("x", 1.0, least=1, most=1)
    check_number("x", -1e300)
    check_count("n", None)
    check_count("n", 1)
    for options in ({"above": 1}, {"below": 1}, {"least": 1.5}, {"most": 0.5}):
        with pytest.raises(NearstepError, match=r"^x=1\.0; give a number (above|below|at least|at most) "):
            check_number("x", 1.0, **options)
    with pytest.raises(NearstepError, match=r"^x=nan; give a number that is finite$"):
        check_number("x", NAN)
    with pytest.raises(NearstepError, match=r"^n=7; give at most 6$"):
        check_count("n", 7, most=6)
