"""``nearstep compare``: the same prompts and noise under several plans, side by side."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nearstep.cli.options import NO_STUDENT, FlatStudent
from nearstep.errors import NearstepError
from nearstep.models.folder import EMBEDDED, ModelFolder
from nearstep.models.student import configs_of
from nearstep.stream.output import check_writable, safe_name, side_by_side, write_sheet, write_video

SHEET = "sheet.png"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Show what fewer steps cost: each prompt becomes one mp4 with a clip per plan beside each other.

    All clips of a prompt start from the same noise. A contact sheet of all of them is written beside the videos.
    """

    prompts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT ...")]
    """What to show."""
    plans: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PLAN ...")] = ("4", "4,2x", "4,1x", "1")
    """Steps per chunk; one clip of each."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER/")] = Path("compare")
    """Where to."""
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")] = EMBEDDED
    """"playground" (inside this package), a model folder, or a hub id."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: random, and printed)")] = None
    """Names all noise."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE", help_behavior_hint="(default: the CPU)")] = None
    """Where to run, such as cuda."""
    student: FlatStudent = NO_STUDENT
    """A student in a weights file."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the clips."""
    compare(tyro.cli(Compare, prog="nearstep compare", args=arguments))


def compare(asked: Compare) -> None:
    """Make, write and name every file, after all of what is asked has been checked."""
    from nearstep.stream.request import plan_clip

    files = _files(asked)
    folder = ModelFolder.open(asked.model)
    has = configs_of(folder, student=asked.student.chosen)
    calls = {
        plan: plan_clip(has.transformer, has.vae, has.scheduler, has.settings, plan=plan).plan.calls
        for plan in asked.plans
    }
    seed = secrets.randbits(32) if asked.seed is None else asked.seed
    print(f"seed {seed}; calls a clip: " + ", ".join(f"{calls[plan]} at {plan}" for plan in calls), file=sys.stderr)
    clips, labels = _make(asked, folder, files, seed, [f"{plan} ({calls[plan]} calls)" for plan in asked.plans])
    print(write_sheet(asked.output / SHEET, clips, labels=labels))


def _files(asked: Compare) -> dict[str, Path]:
    """Prompt -> its file, each of which can be written."""
    if not asked.prompts or not asked.plans:
        raise NearstepError('give a prompt and a plan: nearstep compare "a red ball slides left" --plans 4 1')
    for name, given in (("prompt", asked.prompts), ("plan", asked.plans)):
        if twice := [value for value in given if given.count(value) > 1]:
            raise NearstepError(f"{name} {twice[0]!r} is given twice; each makes a clip of its own")
    files = {prompt: asked.output / f"{safe_name(prompt)}.mp4" for prompt in asked.prompts}
    for path in (*files.values(), asked.output / SHEET):
        check_writable(path)
    return files


def _make(asked: Compare, folder: ModelFolder, files: dict[str, Path], seed: int, names: Sequence[str]) -> tuple:
    """Write every prompt's file; returns all clips and a label for each."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    from nearstep.stream.pipeline import CausalVideoPipeline

    disable_progress_bar()
    pipe = CausalVideoPipeline.from_pretrained(folder.path, student=asked.student.chosen, device=asked.device)
    wishes = {"seed": seed, "samples": [0]}
    requests = {prompt: [pipe.request(prompt, plan, **wishes) for plan in asked.plans] for prompt in files}
    clips, labels, began = [], [], time.perf_counter()
    for prompt, path in files.items():
        made = [torch.cat([f.video[0] for f in pipe.play(request)]).cpu() for request in requests[prompt]]
        metadata = {"model": asked.model, "prompt": prompt, "plans": list(asked.plans), "seed": seed}
        write_video(path, side_by_side(made, names), fps=pipe.settings.fps, metadata=metadata)
        print(path)
        clips += made
        labels += [f"{name}   {prompt}" for name in names]
    print(f"{len(clips)} clips in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return clips, labels
