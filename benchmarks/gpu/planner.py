"""What the memory planner says of the updates that training.py measures; on the CPU, beside the other parts."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from benchmarks.gpu.sizes import SIZES, TEXT
from benchmarks.gpu.task import Task
from benchmarks.gpu.training import RECIPES, asked
from nearstep.cost.memory import estimate
from nearstep.cost.sizes import Sizes
from nearstep.models.empty import empty_network


def run(task: Task) -> None:
    """An estimate for each recipe."""
    torch.set_num_threads(1)  # the other parts want the rest
    size = SIZES[task.size]
    network = dict(empty_network(size.network).config)
    sizes = Sizes(
        student=network, teacher=network, clip=(size.latents, 16, *size.grid), text_length=TEXT,
        codec=size.codec, encoder=size.text,
    )  # fmt: skip
    for name in RECIPES:
        config, began = asked(name, size, task), time.perf_counter()
        if config.lora_rank is not None:
            task.record(f"plan of {name}", skipped="the planner plans whole networks, not adapters")
            continue
        found = estimate(replace(config, step_counts=(1,)), sizes)
        task.record(
            f"plan of {name}", peak_bytes=found.peak, phase=found.worst, phases=dict(found.phases),
            resident=dict(found.resident), flops=sum(part.all for part in found.flops.values()),
            planned_in_seconds=time.perf_counter() - began,
        )  # fmt: skip
