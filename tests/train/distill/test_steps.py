"""What a step does, and its plan, are functions of (seed, step), and n is as likely as it should be."""

from __future__ import annotations

from collections import Counter

import torch

from nearstep import rng
from nearstep.flow.plan import prefix, respaced
from nearstep.train.distill.steps import opening_chunks, schedule_of, step_plan, training_plan

OPTIONS = {"seed": 3, "step_counts": (1, 2, 3, 4), "warmup": 20, "adversary_delay": 5}


def test_a_step_is_named_by_seed_and_number_alone():
    torch.manual_seed(0)
    first = [step_plan(step, **OPTIONS) for step in range(40)]
    torch.manual_seed(1)
    assert [step_plan(step, **OPTIONS) for step in range(40)] == first
    assert [step_plan(step, **{**OPTIONS, "seed": 4}) for step in range(40)] != first


def test_the_discriminator_waits_then_learns_before_the_student_listens():
    plans = [step_plan(step, **OPTIONS) for step in range(40)]
    assert [step for step, plan in enumerate(plans) if plan.discriminator_learns] == list(range(20, 40))
    assert [step for step, plan in enumerate(plans) if plan.student_listens] == list(range(25, 40))


def test_step_counts_are_equally_likely():
    counts = Counter(step_plan(step, **OPTIONS).steps for step in range(20_000))
    assert set(counts) == {1, 2, 3, 4}
    assert max(counts.values()) / min(counts.values()) < 1.1


def test_kinds_of_schedules():
    draw = rng.generator("test")
    for steps in (1, 2, 3, 4):
        assert schedule_of(steps, "prefix", shift=3.0, draw=draw) == prefix(steps, shift=3.0)
        assert schedule_of(steps, "respaced", shift=3.0, draw=draw) == respaced(steps, shift=3.0)
    seen = {schedule_of(2, "subset", shift=1.0, draw=draw).times for _ in range(60)}
    assert seen == {(1.0, 0.75), (1.0, 0.5), (1.0, 0.25)}


def test_the_first_chunk_can_have_its_own_list():
    plan = training_plan(1, "prefix", (3, 3, 3), shift=3.0, draw=rng.generator("test"), first=4)
    assert [len(schedule) for schedule in plan.schedules] == [4, 1, 1]
    assert plan.schedules[0] == respaced(4, shift=3.0)


def test_each_scene_can_begin_with_its_own_list():
    plan = training_plan(2, "prefix", (1, 3, 3, 3), shift=3.0, draw=rng.generator("test"), first=4, starts=(4, 9))
    assert [len(schedule) for schedule in plan.schedules] == [4, 2, 4, 4]
    assert opening_chunks((1, 3, 3, 3), (4, 9)) == (0, 2, 3)  # a scene that begins within a chunk begins with it
