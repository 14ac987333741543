"""``nearstep compare``: the same prompts and noise under several plans, side by side."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.made import is_made
from nearstep.cli.options import AS_IT_IS, OWN_SIZE, FlatClipSize, FlatLoading, Model, optional, place
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import EMBEDDED, ModelFolder
from nearstep.models.prompts import check_prompt, check_prompts
from nearstep.stream.output import check_video_path, safe_name, side_by_side, write_sheet, write_video

if TYPE_CHECKING:
    from nearstep.stream.request import Clip

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
    model: Model = EMBEDDED
    size: FlatClipSize = OWN_SIZE
    """Size of a clip."""
    guidance: Annotated[float | None, optional("W", "1 for a student, a teacher's own")] = None
    """In v = u + w (c - u); 1 is none."""
    seed: Annotated[int | None, optional("N", "random, and printed")] = None
    """Names all noise."""
    overwrite: bool = False
    """Replace files that are there already, whatever they show."""
    loading: FlatLoading = AS_IT_IS
    """Network, device, precision, decoder."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the clips."""
    compare(parsed(Compare, "nearstep compare", arguments))


def compare(options: Compare) -> None:
    """Make, write and name every file, after all of what is asked has been checked."""
    options.loading.check()
    files = _files(options)
    folder = ModelFolder.open(options.model)
    check_prompts(folder, dict.fromkeys(options.prompts, ""))  # torch and diffusers are seconds away
    from nearstep.stream.request import check_guidance, own_guidance, plan_clip

    if options.guidance is not None:
        check_guidance(options.guidance)
    model = options.loading.open(folder)
    clips = {plan: plan_clip(model, plan=plan, **options.size.pixels) for plan in options.plans}
    said = {
        "model": options.model,
        **model.origin,
        **options.loading.departures,
        "plans": list(options.plans),
        "latents": list(dataclasses.astuple(next(iter(clips.values())).shape)),
        "guidance": float(own_guidance(model) if options.guidance is None else options.guidance),
    }
    if _is_made(options, files, said):
        note(f"skipped, made by this request already: {options.output} (--overwrite makes it again)")
        return
    seed = secrets.randbits(32) if options.seed is None else options.seed
    calls = ", ".join(f"{clip.plan.calls} at {plan}" for plan, clip in clips.items())
    note(f"seed {seed}; calls a clip: {calls}")
    said["seed"] = seed
    videos, labels = _write(options, model, clips, files, said)
    said["prompts"] = list(options.prompts)
    print(write_sheet(options.output / SHEET, videos, labels=labels, metadata=said))


def _is_made(options: Compare, files: dict[str, Path], said: Mapping[str, Any]) -> bool:
    """Whether all of it is there; a file that shows something else is refused."""
    if options.overwrite:
        return False
    seed = {} if options.seed is None else {"seed": options.seed}
    wanted = {path: {**said, **seed, "prompt": prompt} for prompt, path in files.items()}
    wanted[options.output / SHEET] = {**said, **seed, "prompts": list(options.prompts)}
    made = {path: is_made(path, told) for path, told in wanted.items()}
    if any(made.values()) and not all(made.values()) and options.seed is None:
        missing = next(path for path, is_there in made.items() if not is_there)
        raise NearstepError(f"{missing} is missing beside others; give their --seed to make it, or --overwrite for all")
    return all(made.values())


def _files(options: Compare) -> dict[str, Path]:
    """Prompt -> its file, each of which can be written."""
    if not options.prompts or not options.plans:
        raise NearstepError('give a prompt and a plan: nearstep compare "a red apple slides left" --plans 4 1')
    for prompt in options.prompts:
        check_prompt(prompt)
    if options.output.suffix and not options.output.is_dir():
        raise NearstepError(f"-o {options.output}: files go into a folder, whose name has no suffix")
    for name, given in (("prompt", options.prompts), ("plan", options.plans)):
        if twice := [value for value, times in Counter(given).items() if times > 1]:
            raise NearstepError(f"{name} {twice[0]!r} is given twice; each makes a clip of its own")
    files = {prompt: options.output / f"{safe_name(prompt, '.mp4')}.mp4" for prompt in options.prompts}
    for path in (*files.values(), options.output / SHEET):
        check_video_path(path)
    return files


def _write(
    options: Compare, model: ModelConfigs, clips: dict[str, Clip], files: dict[str, Path], said: Mapping[str, Any]
) -> tuple[list, list[str]]:
    """Write every prompt's file; returns all clips and a label for each."""
    import torch

    from nearstep.stream.request import Request

    pipe = options.loading.pipeline(model)
    names = [f"{plan} ({clip.plan.calls} calls)" for plan, clip in clips.items()]
    conditionings = {
        prompt: pipe.conditioning(prompt, guidance_scale=options.guidance, seed=said["seed"]) for prompt in files
    }
    note(place(pipe))
    videos, labels, began = [], [], time.perf_counter()
    for prompt, path in files.items():
        denoiser, row = pipe.denoiser(conditionings[prompt]), []
        for clip in clips.values():
            chunks = pipe.play(Request.of(conditionings[prompt], clip), denoiser=denoiser)
            row.append(torch.cat([chunk.video[0] for chunk in chunks]).cpu())
        metadata = {**said, "prompt": prompt}
        write_video(path, side_by_side(row, names), fps=pipe.settings.fps, metadata=metadata)
        print(path)
        videos += row
        labels += [f"{name}   {prompt}" for name in names]
    note(f"{len(videos)} clip{'s' * (len(videos) > 1)} in {time.perf_counter() - began:.1f} s")
    return videos, labels
