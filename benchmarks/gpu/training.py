"""One update of each of Wan's distillations with one clip: seconds by part, memory, operations.

The first update of a kind is counted by torch (recomputed blocks included) and warms up; the second is timed. Its share
of the floor is that of products in bfloat16. What the memory planner says of the same runs is planner.py's.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

from transformers.utils.logging import disable_progress_bar

from benchmarks.gpu.sizes import SIZES, Size, write_model
from benchmarks.gpu.task import Task
from benchmarks.gpu.update import config
from nearstep.cost.clock import Clock, Span, peak_memory
from nearstep.cost.flops import counter
from nearstep.recipes import wan
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import turn_at

RECIPES: Mapping[str, Callable[[], DistillConfig]] = {
    "wan.distill": wan.distill,
    "wan.self_forcing": wan.self_forcing,
    "wan.distill_small": wan.distill_small,
}
PARTS = {
    "_samples": "rollouts",
    "_student": "student: gradients at the sample, backward",
    "_add_adversarial": "student: adversarial gradient",
    "_assistant": "assistant",
    "_discriminator": "discriminator",
    "_move": "optimizers",
}
"""Method of the stage -> what it is; each without those inside it."""
ELSE = "all else"


def run(task: Task) -> None:
    """n = 1 of every recipe, then the other n of wan.distill."""
    disable_progress_bar()
    size, began = SIZES[task.size], time.perf_counter()
    write_model(size, task.scratch / "model", task.device)
    task.record("writing a model folder", seconds=time.perf_counter() - began)
    rate = task.floor().rate
    for name in RECIPES:
        if task.enough(20 if task.cuda else 0, f"{name}, n = 1"):
            with task.record.trying(f"{name}, n = 1"):
                _updates(task, size, name, (1,), rate)
    if task.enough(40 if task.cuda else 0, "wan.distill, n = 4, 2, 3"):
        with task.record.trying("wan.distill, n = 4, 2, 3"):
            _updates(task, size, "wan.distill", (4, 2, 3), rate)


def asked(name: str, size: Size, task: Task) -> DistillConfig:
    """The recipe as it is timed."""
    made = config(RECIPES[name](), size, task.scratch, size.grid, size.latents)
    return replace(made, ratio=size.ratio)


def _updates(task: Task, size: Size, name: str, counts: Sequence[int], rate: float) -> None:
    settings = asked(name, size, task)
    clock = Clock(task.device)
    began = time.perf_counter()
    with peak_memory(task.device) as held:
        stage = DistillStage(settings)
    loading = {"loading_seconds": time.perf_counter() - began, "loading_peak_bytes": held[0].peak}
    for method, part in PARTS.items():
        setattr(stage, method, clock.timed(part, getattr(stage, method)))
    for steps in counts:
        index, what, began = first_of(steps, settings), f"{name}, n = {steps}", time.perf_counter()
        flops = None
        with task.record.trying(f"{what}, first update"):  # the second goes on if only the counting fails
            with counter() as counted, peak_memory(task.device) as memory:
                stage.step(index)
            flops = counted.get_total_flops()
            seconds = time.perf_counter() - began
            task.record(f"{what}, first update", seconds=seconds, flops=flops, peak_bytes=memory[0].peak)
        clock.spans()
        if not task.enough(time.perf_counter() - began, what):
            continue
        with peak_memory(task.device) as memory, clock.stage(ELSE):
            stage.step(index)
        task.record(
            what, n=steps, recipe=name, **spent(clock.spans(), flops, rate),
            peak_bytes=memory[0].peak, peak_by=memory[0].by, **loading,
        )  # fmt: skip
    del stage
    gc.collect()
    shutil.rmtree(settings.loop.folder, ignore_errors=True)


def first_of(steps: int, config: DistillConfig) -> int:
    """The first step of the run that draws n = steps."""
    return next(i for i in count() if turn_at(i, seed=config.seed, counts=config.counts, warmup=0).steps == steps)


def spent(spans: Sequence[Span], flops: int | None, rate: float) -> dict[str, Any]:
    """Seconds by part, FLOPs, and the part of the time in which they would be done at this rate."""
    parts = {part: sum(span.seconds for span in spans if span.stage == part) for part in (*PARTS.values(), ELSE)}
    seconds = sum(parts.values())
    share = None if flops is None else flops / rate / seconds
    return {"seconds": seconds, "parts": parts, "flops": flops, "share_of_floor": share}
