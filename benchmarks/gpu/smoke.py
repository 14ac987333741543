"""The package works here: one clip of the playground, made on the device, against the CPU's (on a CPU: float64's)."""

from __future__ import annotations

import importlib
import time

import torch

from benchmarks.gpu.task import Task, named
from nearstep.stream.output import write_sheet
from nearstep.stream.pipeline import CausalVideoPipeline

CAPTION = "a large red apple slides left slowly on snow"
PLANS = ("4,1x", "1")
ALLOWED = 0.01
"""Of the pixels' range, at the pixel that differs most: float32 rounds in another order there."""


def run(task: Task) -> None:
    """The imports, and a clip by each plan."""
    task.record("av", version=_version("av"))
    exact = torch.float64 if task.device.type == "cpu" else torch.float32
    reference = CausalVideoPipeline.from_pretrained("playground", torch_dtype=exact, vae_dtype=exact)
    began = time.perf_counter()
    pipe = CausalVideoPipeline.from_pretrained(
        "playground", torch_dtype=torch.float32, vae_dtype=torch.float32, device=task.device
    )
    task.record("loading the playground", seconds=time.perf_counter() - began)
    clips = []
    for plan in PLANS:
        truth = reference(CAPTION, plan=plan, seed=7, output_type="pt")[0]
        began = time.perf_counter()
        made = pipe(CAPTION, plan=plan, seed=7, output_type="pt")[0].cpu()
        error = (made - truth).abs()
        task.record(
            f"playground, plan {plan}, against the CPU in {named(exact)}",
            error=error.max().item(),
            mean=error.mean().item(),
            allowed=ALLOWED,
            passed=error.max().item() <= ALLOWED,
            seconds=time.perf_counter() - began,
        )
        clips.append(made[0])
    write_sheet(task.out / "playground.png", clips, PLANS)


def _version(name: str) -> str | None:
    try:
        return importlib.import_module(name).__version__
    except ImportError:
        return None
