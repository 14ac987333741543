"""The playground, trained here by its own recipes in the time there is: text, teacher, causal start, student.

    bash benchmarks/gpu/run.sh --parts chain --budget 240
    python -m benchmarks.gpu.chain gpu-results runs       # afterwards: the runs as if made here

The codec is the package's. A step takes more clips than the recipe's, and there are as many steps as the time allows:
some of every kind are timed first. What comes out is a file a stage, with the metrics, the last picture, and what of
the model folder differs from the stage before.
"""

from __future__ import annotations

import filecmp
import math
import os
import shutil
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.gpu.task import Task
from nearstep.cost.clock import synchronise
from nearstep.data.latents import LatentsConfig
from nearstep.playground.playground import Playground
from nearstep.playground.world import WorldConfig
from nearstep.recipes import playground
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.lessons import Lesson
from nearstep.train.loop import MODEL, Stage
from nearstep.train.phases import Phase
from nearstep.train.stages.causal import CausalConfig, CausalStage
from nearstep.train.stages.teacher import TeacherConfig, TeacherStage
from nearstep.train.stages.text import TextConfig, TextStage

Config = TextConfig | TeacherConfig | CausalConfig | DistillConfig

STAGES: dict[str, tuple[Callable[[], Config], float, int]] = {
    "text": (playground.text, 0.04, 2),
    "teacher": (playground.teacher, 0.46, 8),
    "forcing": (playground.forcing, 0.2, 8),
    "self_forcing": (playground.self_forcing, 0.3, 2),
}
"""Name -> recipe, its part of the time, and how many times the recipe's clips a step takes."""
_TIMED = 4
"""Steps of a kind that are timed, at least; the first one of each course warms up and is not counted."""
_LATE = 1.1
"""Of its time a stage may take so much; then it stops where it is."""
_TINY = Playground(WorldConfig(size=16, frames=9, things=2))


def run(task: Task) -> None:
    """All stages, each from the one before."""
    disable_progress_bar()
    whole = task.left()
    before: Path | None = None
    for name, (recipe, part, times) in STAGES.items():
        made: list[Path] = []
        with task.record.trying(name):
            config = placed(recipe(), task, name, before)
            config = shrunk(config, task) if task.size == "tiny" else wider(config, times)
            made.append(_trained(task, name, config, part * whole, before))
        if not made:
            return
        before = made[0]


def placed(config: Config, task: Task, name: str, before: Path | None) -> Config:
    """The recipe with its files in the scratch folder and its model that of the stage before."""
    loop = replace(config.loop, folder=task.scratch / name, tensorboard=False, save_every=10**6, preview_every=10**6)
    loop = replace(loop, workers=max(0, (os.cpu_count() or 1) - 2) if task.cuda else 0)
    if isinstance(config, TextConfig):
        return replace(config, loop=loop)
    changes: dict[str, Any] = {"loop": loop, "lessons": (), "compile": False}
    changes["latents"] = _here(config.latents, task)
    if isinstance(config, TeacherConfig):
        changes |= {"pictures": config.pictures and _here(config.pictures, task), "words": before}
    elif before is not None:
        changes["model"] = before
    if isinstance(config, DistillConfig):
        changes |= {"network": "transformer", "teacher": "transformer"}  # as the stage before calls it
    if not isinstance(config, TeacherConfig):
        # The teacher's pictures are there; clips of other lessons would have to be encoded first.
        kept = (lesson for lesson in config.lessons if lesson.latents.frames == 1)
        changes["lessons"] = tuple(replace(lesson, latents=_here(lesson.latents, task)) for lesson in kept)
    return replace(config, **changes)


def wider(config: Config, times: int) -> Config:
    """With so many times the clips a step."""
    if isinstance(config, TeacherConfig):
        return replace(config, phases=tuple(replace(each, clips=times * each.clips) for each in config.phases))
    if isinstance(config, TextConfig):
        return replace(config, batch=times * config.batch)
    lessons = tuple(replace(each, batch=each.batch and times * each.batch) for each in config.lessons)
    return replace(config, batch=times * config.batch, lessons=lessons)


def shrunk(config: Config, task: Task) -> Config:
    """The smallest of the kind: a world of two things on nine frames, by a codec that knows nothing."""
    text = replace(playground.TEXT, d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1)
    if isinstance(config, TextConfig):
        return replace(config, world=_TINY, text=text, batch=4, loop=replace(config.loop, steps=2))
    latents = replace(config.latents, clips=8, world=_TINY, seed=0)
    if not isinstance(config, TeacherConfig):
        pictures = [replace(lesson.latents, clips=8, world=_TINY) for lesson in config.lessons]
        lessons = tuple(Lesson(latents=each, batch=4) for each in pictures)
        return replace(config, latents=latents, lessons=lessons, batch=2, loop=replace(config.loop, steps=2))
    network = replace(config.network, num_attention_heads=2, attention_head_dim=12, ffn_dim=16, num_layers=1)
    phases = (Phase(1, 1, 2, draws=2), Phase(1, 9, 2))
    settings = playground.settings_of(_TINY)
    return replace(
        config, latents=latents, pictures=None, network=network, text=text, phases=phases, settings=settings,
        loop=replace(config.loop, steps=2),
    )  # fmt: skip


def fitted(config: Config, spent: Sequence[float], seconds: float) -> Config:
    """With as many steps as take these seconds, its phases in the proportions that they have.

    Args:
        config: a recipe.
        spent: seconds of a step, for each phase.
        seconds: that there are.
    """
    phases = config.phases if isinstance(config, TeacherConfig) else ()
    lengths = [phase.steps for phase in phases] or [config.loop.steps]
    factor = seconds / sum(steps * each for steps, each in zip(lengths, spent, strict=True))
    lengths = [max(1, round(factor * steps)) for steps in lengths]
    changes: dict[str, Any] = {"loop": replace(config.loop, steps=sum(lengths), minutes=_LATE * seconds / 60)}
    if phases:
        changes["phases"] = tuple(replace(each, steps=steps) for each, steps in zip(phases, lengths, strict=True))
    return replace(config, **changes)


def _trained(task: Task, name: str, config: Config, seconds: float, before: Path | None) -> Path:
    until = time.monotonic() + seconds
    spent = list(_step_seconds(config, task.device))
    fits = fitted(config, spent, max(1.0, until - time.monotonic()))
    began = time.monotonic()
    model = fits.run()
    task.record(
        name, steps=fits.loop.steps, step_seconds=spent, seconds=time.monotonic() - began,
        whole=model.name == MODEL, phases=[vars(phase) for phase in getattr(fits, "phases", ())],
    )  # fmt: skip
    pack(fits.loop.folder, model, before, task.out / f"chain-{name}.tar")
    return model


def _step_seconds(config: Config, device: torch.device) -> Iterator[float]:
    """Seconds of a step of each phase; what a stage lacks is made on the way."""
    phases = config.phases if isinstance(config, TeacherConfig) else ()
    cycle = 1 if isinstance(config, TextConfig) or not config.lessons else config.lesson_every
    timed = cycle * math.ceil(_TIMED / cycle)  # whole cycles: a lesson's steps cost more or less than others
    steps = timed * max(1, len(phases))
    changes: dict[str, Any] = {"loop": replace(config.loop, steps=steps)}
    if phases:
        changes["phases"] = tuple(replace(each, steps=timed) for each in phases)
    stage = _stage(replace(config, **changes))
    for first in range(0, steps, timed):
        taken = []
        for index in range(first, first + timed):
            began = time.perf_counter()
            stage.step(index)
            synchronise(device)
            taken.append(time.perf_counter() - began)
        yield statistics.mean(taken[cycle:])


def _stage(config: Config) -> Stage:
    if isinstance(config, TextConfig):
        return TextStage(config)
    if isinstance(config, TeacherConfig):
        return TeacherStage(config)
    return CausalStage(config) if isinstance(config, CausalConfig) else DistillStage(config)


def _here(latents: Any, task: Task) -> LatentsConfig:
    return replace(latents, folder=task.scratch / latents.folder.name)


# --- what comes out ------------------------------------------------------------------------------------------------


def pack(run: Path, model: Path, before: Path | None, target: Path) -> None:
    """Write a stage's file: its metrics, its last picture, and what of its model is not that of the stage before."""
    files = [run / "metrics.jsonl", *sorted((run / "previews").glob("*.png"))[-1:]]
    with tarfile.open(target, "w") as archive:
        for file in files:
            archive.add(file, file.relative_to(run))
        for file in sorted(path for path in model.rglob("*") if path.is_file()):
            inner = file.relative_to(model)
            if before is None or not _same(file, before / inner):
                archive.add(file, Path(MODEL) / inner)


def unpack(results: Path, runs: Path) -> list[Path]:
    """The run folders again, each with its whole model."""
    made: list[Path] = []
    for name in STAGES:
        source, folder = results / f"chain-{name}.tar", runs / name
        if not source.is_file():
            break
        if made:
            shutil.copytree(made[-1] / MODEL, folder / MODEL)
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        made.append(folder)
    return made


def _same(file: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(file, other, shallow=False)


if __name__ == "__main__":
    print("\n".join(map(str, unpack(Path(sys.argv[1]), Path(sys.argv[2])))))
