"""``nearstep sample``: clips of the same prompts from any system, into folders of one layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.generate import Making, make, ours, planned
from nearstep.cli.options import NO_CLUSTER, FlatCluster, Loading, check_device, optional
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.models.folder import EMBEDDED
from nearstep.sampling.target import Target
from nearstep.stream.output import check_video_path, safe_name

if TYPE_CHECKING:
    from nearstep.sampling.filming import System

MOST_SAMPLES = 25
"""Of a prompt: a clip's noise is named by 25 times its prompt's place, plus its own number."""
_SAME = ("system", "model", "plan", "request", "command", "seed", "wording")
"""What all clips of a folder share."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Making):
    """Which system makes clips, and where they go, whichever command names the prompts."""

    system: Annotated[
        Literal["ours", "wan", "skyreels", "anyflow", "ltx", "command"],
        tyro.conf.arg(metavar="{ours,wan,skyreels,anyflow,ltx,command}"),
    ] = "ours"
    """ours: --model, any student of it (--student), any plan. wan, skyreels, anyflow, ltx: diffusers' own pipeline,
    loaded from the folder or hub id that --model names. command: any program."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER/")]
    """Gets videos/, sample.json, which says what they are, and clips.jsonl: calls and seconds of each."""
    steps: Annotated[int | None, optional("N", "the pipeline's own")] = None
    """Denoising steps of a system that is not ours."""
    option: Annotated[tuple[str, ...], optional("NAME=VALUE ...", "none")] = ()
    """Further arguments of a diffusers pipeline's call, such as ar_step=5 causal_block_size=5 of skyreels."""
    command: Annotated[str | None, optional("TEMPLATE", "none")] = None
    """The program of --system command, run once a clip without a shell: {prompt} or {prompt_file}, {seed} and {output},
    an mp4, and where their options are given {height}, {width}, {frames}, {steps}."""
    part: Annotated[str, tyro.conf.arg(metavar="K/N")] = "1/1"
    """Only every Nth prompt from the Kth on, for N of these commands beside each other."""
    seed: Annotated[int | None, optional("N", "0")] = 0
    """Names all noise."""
    cluster: FlatCluster = NO_CLUSTER
    """Who makes them."""


@dataclass(frozen=True, kw_only=True)
class Sample(Sampling):
    """Make clips of prompts with any system: the same prompts, seeds that are written down, one layout of folders.

    What is there is skipped, so the same command goes on after an interruption. "nearstep vbench sample" does the same
    with VBench's prompts; "nearstep evaluate FOLDER/videos" and "nearstep vbench score FOLDER" judge what either made.
    """

    prompts_file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The prompts: a .txt with one a line, or a .jsonl or .csv with a caption, text or prompt column."""
    samples: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    """Clips of each prompt, with noise of their own."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The clips of one prompt."""

    text: str
    """What they are made of."""
    place: int
    """Of the prompt among all that there are, so that a subset has the clips of the whole."""
    names: tuple[str, ...]
    """Of their files."""

    def targets(self, videos: Path) -> list[Target]:
        """Where they go, and what names their noise."""
        first = self.place * MOST_SAMPLES
        return [Target(prompt=self.text, index=first + i, path=videos / name) for i, name in enumerate(self.names)]


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the clips."""
    asked = parsed(Sample, "nearstep sample", arguments)
    from nearstep.data.prompts import read_prompts

    if not 1 <= asked.samples <= MOST_SAMPLES:
        raise NearstepError(f"--samples {asked.samples}: from 1 to {MOST_SAMPLES}")
    texts = read_prompts([asked.prompts_file]).texts
    endings = [f"-{index}.mp4" for index in range(asked.samples)]
    wanted = [
        Wanted(text=text, place=place, names=tuple(safe_name(text, ending) + ending for ending in endings))
        for place, text in enumerate(texts)
    ]
    label = f"{asked.prompts_file.name}, all {len(texts)}"
    sample(asked, wanted, {"label": label, "wording": asked.prompts_file.name, "prompts": len(texts)})


def sample(asked: Sampling, wanted: Sequence[Wanted], prompts: Mapping[str, Any]) -> None:
    """Make the clips of prompts, after everything that can be checked without weights has been.

    Args:
        asked: how, and by which system.
        wanted: all prompts, also those of other parts.
        prompts: what the record says of them, with their label and wording.
    """
    from nearstep.sampling.folder import VIDEOS, check_same, claim, log_name, note_record

    (first, parts), cluster = _part(asked.part), asked.cluster.chosen(asked.loading.device)
    system, said = _system(asked, [each.text for each in wanted])  # every part refuses what one would refuse
    said = {**said, "seed": asked.seed, **prompts}
    check_same(asked.output, said, _SAME, overwrite=asked.overwrite)
    made = [target for each in wanted[first - 1 :: parts] for target in each.targets(asked.output / VIDEOS)]
    for target in made[:1]:
        check_video_path(target.path)
    note(f"{prompts['label']}: {len(made)} of {sum(len(each.names) for each in wanted)} videos")
    if not asked.dry_run:
        claim(asked.output, said, _SAME, overwrite=asked.overwrite)
    log = asked.output / log_name(first, parts)
    make(asked, system, made, done=lambda record: note_record(log, record), cluster=cluster)


def _part(text: str) -> tuple[int, int]:
    first, _, step = text.partition("/")
    if not (first.isdecimal() and step.isdecimal() and 1 <= int(first) <= int(step)):
        raise NearstepError(f"--part {text}: K/N with K from 1 to N, such as 2/8")
    return int(first), int(step)


def _system(asked: Sampling, prompts: Sequence[str]) -> tuple[System, dict[str, Any]]:
    """The system that is asked for, checked, and what the record says of it."""
    if asked.system == "ours":
        _refuse(asked, ("steps", "option", "command"), "a system that is not ours")
        model, clip = planned(asked, dict.fromkeys(prompts, ""))
        how = {"system": "ours", "model": asked.model, "plan": str(clip.plan), "calls": clip.plan.calls}
        return ours(asked, model, clip), {**how, **model.origin, **asked.loading.departures}
    _refuse(asked, ("plan",), "ours; a pipeline takes --steps")
    if asked.system == "command":
        return _command(asked)
    from nearstep.sampling.pipelines import Pipeline

    _refuse(asked, ("command",), "command")
    _refuse_loading(asked, ("device", "dtype"))
    if asked.model == EMBEDDED:
        raise NearstepError(f"--system {asked.system} needs --model: the folder or hub id of its pipeline")
    check_device(asked.loading.device)
    system = Pipeline(
        system=asked.system,
        model=asked.model,
        steps=asked.steps,
        height=asked.size.height,
        width=asked.size.width,
        frames=asked.size.frames,
        guidance=asked.guidance,
        negative=asked.negative,
        seed=asked.seed or 0,
        options=tuple(_option(text) for text in asked.option),
        dtype=asked.loading.dtype,
        device=asked.loading.device,
    )
    system.check()
    steps = system.request["num_inference_steps"]
    how = {"system": asked.system, "model": asked.model, "plan": f"{steps} steps", "request": system.request}
    return system, how


def _command(asked: Sampling) -> tuple[System, dict[str, Any]]:
    from nearstep.sampling.command import Command

    _refuse(asked, ("model", "guidance", "negative", "option"), "a pipeline; write it into the command")
    _refuse_loading(asked, ())
    if asked.command is None:
        raise NearstepError("--system command needs --command TEMPLATE, a program that makes one clip")
    system = Command(
        template=asked.command,
        seed=asked.seed or 0,
        height=asked.size.height,
        width=asked.size.width,
        frames=asked.size.frames,
        steps=asked.steps,
    )
    system.check()
    return system, {"system": "command", "command": asked.command, "plan": f"{asked.steps or '?'} steps"}


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise NearstepError(f"--option {text}: NAME=VALUE, such as ar_step=5")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _refuse(asked: Sampling, names: Sequence[str], whose: str) -> None:
    """Options that would be ignored."""
    defaults = {field.name: field.default for field in fields(Sampling)}
    for name in names:
        if getattr(asked, name) != defaults[name]:
            raise NearstepError(f"--{name} is about {whose}, and --system is {asked.system}; leave it out")


def _refuse_loading(asked: Sampling, kept: Sequence[str]) -> None:
    for field in fields(Loading):
        if field.name not in kept and getattr(asked.loading, field.name) != field.default:
            option = field.name.replace("_", "-")
            raise NearstepError(f"--{option} is about a model of ours, and --system is {asked.system}; leave it out")
