"""nearstep bench's measurement of every plan at the clip's true size: as it is, then with blocks compiled.

Everything is in bfloat16; the tiny decoder makes the pixels and the codec decodes beside it, so that all definitions of
frames a second apply. The file is written only where PyAV is at hand.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping

import torch

from benchmarks.gpu.sizes import SIZES, pipeline, prompt, tiny_decoder
from benchmarks.gpu.task import NARROW, Task, named
from nearstep.cost.bench import floors, measure, time_clip
from nearstep.cost.clock import Clock, Floor
from nearstep.cost.rates import RATES
from nearstep.nets.compiling import compile_blocks
from nearstep.stream.pipeline import CausalVideoPipeline
from nearstep.stream.request import Request

PLANS = {"4,1x": 2, "4": 1, "1": 1, "4,2x": 1}
"""Plan -> timed clips of each way to commit; the most telling first."""
SHARED = ("steady", "clip", "no decoding, fused")
"""Definitions that need no separate commits and no second decoder."""


def run(task: Task) -> None:
    """Plans as they are, then compiled: ``4,1x`` and ``1`` share their shapes, and the others come last."""
    size = SIZES[task.size]
    began = time.perf_counter()
    pipe = pipeline(size, task.device, NARROW)
    pipe.tiny_decoder = tiny_decoder(size, task.device, NARROW)
    task.record("building the networks", seconds=time.perf_counter() - began)
    known = floors(pipe)
    for dtype, floor in known.items():
        task.record(f"floor, {named(dtype)}", rate=floor.rate, side=floor.side)
    words, taken = prompt(size.prompt), 0.0
    for plan, repeats in PLANS.items():
        name, began = f"plan {plan}, as it is", time.perf_counter()
        if task.enough(taken, name):
            with task.record.trying(name):
                _measured(task, pipe, known, pipe.request(words, plan, seed=0), name, repeats)
            taken = time.perf_counter() - began
    if "compile" in task.skip:
        return
    compile_blocks(pipe.transformer)
    for plan in size.compiled:
        name = f"plan {plan}, compiled"
        if task.enough(taken, name):
            with task.record.trying(name):
                _compiled(task, pipe, pipe.request(words, plan, seed=0), name)


def _measured(
    task: Task, pipe: CausalVideoPipeline, known: Mapping[torch.dtype, Floor], asked: Request, name: str, repeats: int
) -> None:
    found = measure(pipe, asked, repeats=repeats, floors=known, file=_has_av())
    task.record(
        name,
        fps={rate["name"]: rate["fps"] for rate in found["fps"]},
        first_frame_seconds=found["fused"]["first_frame_seconds"],
        peak_bytes=found["memory"]["peak_bytes"],
        measured=found,
    )


@torch.no_grad()
def _compiled(task: Task, pipe: CausalVideoPipeline, asked: Request, name: str) -> None:
    """As the pipeline makes it, with fused commits: half of the shapes to compile, each a minute's share."""
    clock, began = Clock(task.device), time.perf_counter()
    time_clip(pipe, asked, clock)
    warm = time.perf_counter() - began
    chunks = [time_clip(pipe, asked, clock)[0].chunks for _ in range(2)]
    best = min(chunks, key=lambda some: sum(chunk.wall for chunk in some))
    found = {rate.name: rate.of(best) for rate in RATES if rate.name in SHARED}
    task.record(name, fps=found, first_frame_seconds=best[0].wall, warm_up_seconds=warm)


def _has_av() -> bool:
    try:
        importlib.import_module("av")
    except ImportError:
        return False
    return True
