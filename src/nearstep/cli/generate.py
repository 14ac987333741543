"""``nearstep generate``: prompts in, video files out."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.made import is_made
from nearstep.cli.options import (
    AS_IT_IS,
    OWN_SIZE,
    FlatClipSize,
    FlatLoading,
    Loading,
    Model,
    optional,
    place,
)
from nearstep.cli.pipe import check_pipe, is_pipe, standard_output
from nearstep.cli.text import note
from nearstep.cluster import Cluster, each
from nearstep.errors import NearstepError
from nearstep.files import path_of, sweep
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import EMBEDDED, ModelFolder
from nearstep.models.prompts import check_prompt, check_prompts
from nearstep.sampling.target import Target, by_prompt
from nearstep.stream.mp4 import piped_mp4
from nearstep.stream.output import (
    ENCODERS,
    check_video_path,
    pixels,
    safe_name,
    write_sheet,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nearstep.sampling.filming import Made, Record, System
    from nearstep.sampling.ours import Ours
    from nearstep.stream.pipeline import CausalVideoPipeline
    from nearstep.stream.request import Clip

MOST_CLIPS = 100_000  # of one call: each is planned, and named, before the first is made
PROMPT_SHOWN = 40  # characters of a prompt beside the progress bar


@dataclass(frozen=True, kw_only=True)
class Making:
    """How clips are made, whichever command asks for them."""

    model: Model = EMBEDDED
    plan: Annotated[str | None, optional("PLAN")] = None
    """Steps per chunk: "4" for all; "4,1x" for a first chunk of 4 and the rest 1."""
    size: FlatClipSize = OWN_SIZE
    """Size of a clip."""
    guidance: Annotated[float | None, optional("W", "1 for a student, a teacher's own")] = None
    """In v = u + w (c - u); 1 is none."""
    negative: Annotated[str, tyro.conf.arg(metavar="PROMPT")] = ""
    """What guidance leads away from."""
    seed: Annotated[int | None, optional("N", "random, and printed")] = None
    """Names all noise."""
    overwrite: bool = False
    """Replace files that are there already, whatever they show."""
    dry_run: bool = False
    """Check everything, say what would be made, and stop."""
    loading: FlatLoading = AS_IT_IS
    """Network, device, precision, decoder."""


@dataclass(frozen=True, kw_only=True)
class Generate(Making):
    """Make videos from prompts, chunk by chunk.

    One prompt with "-o apple.mp4" makes that file (the suffix names the format: mp4, gif, webp, or png for a contact
    sheet). Otherwise -o is a folder, and each clip becomes "PROMPT-INDEX.mp4" in it. Files that this request made
    already are skipped, so an interrupted run can be started again; others are not touched without --overwrite. A clip
    depends on its prompt, plan, seed and index alone.
    """

    prompts: Annotated[tyro.conf.Positional[tuple[str, ...]], optional("PROMPT ...", "none")] = ()
    """What to show; one clip each."""
    prompts_file: Annotated[Path | None, optional("FILE", "none")] = None
    """More prompts: a .txt with one a line, or a .jsonl or .csv with a caption, text or prompt column."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE|FOLDER/")] = "."
    """Where to; - is standard output, for one mp4."""
    samples: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Clips per prompt, with indices 0, 1, ..."""
    format: Annotated[Literal["mp4", "gif", "webp", "png"] | None, optional("{mp4,gif,webp,png}", "mp4")] = None
    """Format of the files in a folder."""
    sheet: Annotated[Path | None, optional("FILE.png", "none")] = None
    """One picture of all clips made, a row of frames each."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the clips."""
    generate(parsed(Generate, "nearstep generate", arguments))


def generate(options: Generate) -> None:
    """Make what is options, after checking all of it: prompts and outputs first, then sizes and plan, then the work."""
    prompts = _prompts(options)
    targets = _targets(options, list(prompts))
    _check_paths(options, targets)
    make(options, ours(options, *planned(options, prompts)), targets, sheet=options.sheet)


def planned(options: Making, prompts: Mapping[str, str]) -> tuple[ModelConfigs, Clip]:
    """The model's configurations and the clip that is asked of it; prompts (each and its place) are held against it."""
    options.loading.check()
    folder = ModelFolder.open(options.model)
    check_prompts(folder, {**prompts, options.negative: "--negative"})  # torch and diffusers are seconds away
    from nearstep.stream.request import check_guidance, plan_clip

    if options.guidance is not None:
        check_guidance(options.guidance)
    model = options.loading.open(folder)
    return model, plan_clip(model, plan=options.plan, **options.size.pixels)


def ours(options: Making, model: ModelConfigs, clip: Clip) -> Ours:
    """The model as a system; nothing of it is loaded yet."""
    from nearstep.flow.guidance import check_negative
    from nearstep.sampling.ours import Ours
    from nearstep.stream.request import own_guidance

    guidance = own_guidance(model) if options.guidance is None else options.guidance
    check_negative([options.negative], guidance)
    return Ours(
        open=partial(_loaded, options.loading, model),
        clip=clip,
        origin={"model": options.model, **model.origin, **options.loading.departures},
        guidance=float(guidance),
        negative=options.negative,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
    )


def _loaded(loading: Loading, model: ModelConfigs) -> CausalVideoPipeline:
    pipe = loading.pipeline(model)
    note(place(pipe))
    return pipe


def make(
    options: Making,
    system: System,
    targets: Sequence[Target],
    *,
    sheet: Path | None = None,
    done: Callable[[Record], object] = id,
    cluster: Cluster | None = None,
) -> None:
    """Make the clips that are not there yet, and a sheet of them where one is asked for.

    Args:
        options: what is overwritten, and whether anything is made.
        system: makes the clips.
        targets: all of them.
        sheet: a picture of those that were made.
        done: called with what each clip took.
        cluster: makes them, prompt by prompt; None is this process. No sheet is made there.
    """
    targets = pending(options, system, targets)
    if sheet and targets and sheet.is_file() and not options.overwrite:
        raise NearstepError(f"--sheet {sheet} is there already; --overwrite replaces it, or name another file")
    if not targets:
        return
    if cluster is None:
        system.load()
    note(system.summary(len(targets)))
    if options.dry_run:
        for target in targets:
            print(target.path)
        return
    if cluster is not None:
        _film_there(system, targets, done, cluster)
        return
    clips = _film(system, targets, done, keep=sheet is not None)
    if sheet:
        print(write_sheet(sheet, clips, labels=[target.prompt for target in targets]))


def pending(options: Making, system: System, targets: Sequence[Target]) -> list[Target]:
    """The clips that are still to be made: those without a file, for one that shows something else is refused."""
    if options.overwrite:
        return [*targets]
    kept, skipped = [], []
    unasked = ("seed",) if options.seed is None else ()
    for target in targets:
        made = not is_pipe(target.path) and is_made(target.path, system.said(target), ignoring=unasked)
        (skipped if made else kept).append(target)
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        note(f"skipped, made by this request already: {skipped[0].path}{more} (--overwrite makes them again)")
    return kept


def _check_paths(options: Generate, targets: Sequence[Target]) -> None:
    """Each file can be written."""
    sheet = options.sheet
    if sheet and sheet.suffix.lower() != ".png":
        raise NearstepError(f"--sheet {sheet}: a contact sheet ends in .png")
    if any(is_pipe(target.path) for target in targets):
        check_pipe()
        if sheet:
            raise NearstepError("--sheet and -o -: a clip alone goes to standard output; name a file for it")
        return
    for path in [target.path for target in targets] + ([sheet] if sheet else []):
        check_video_path(path)
    if sheet and sheet.resolve() in {target.path.resolve() for target in targets}:
        raise NearstepError(f"--sheet {sheet} is a clip's file, too; give it another name")


def _prompts(options: Generate) -> dict[str, str]:
    """Each prompt, and where it stands in a file."""
    if twice := [prompt for prompt, times in Counter(options.prompts).items() if times > 1]:
        note(f"a prompt that is given more than once is made once ({twice[0][:60]!r}); --samples 2 makes two of each")
    prompts = {**dict.fromkeys(options.prompts, ""), **(_in_file(options.prompts_file) if options.prompts_file else {})}
    if not prompts:
        raise NearstepError('no prompt; try: nearstep generate "a red apple slides left", or --prompts-file FILE')
    for prompt in prompts:
        check_prompt(prompt)
    return prompts


def _targets(options: Generate, prompts: Sequence[str]) -> list[Target]:
    if not 1 <= options.samples <= MOST_CLIPS // len(prompts):
        raise NearstepError(
            f"--samples {options.samples} of {len(prompts)} prompts; at least 1, and {MOST_CLIPS:,} clips at most"
        )
    clips = [(prompt, index) for prompt in prompts for index in range(options.samples)]
    if is_pipe(options.output):
        if len(clips) > 1 or options.format not in (None, "mp4"):
            raise NearstepError("-o - takes one clip, as mp4; name a folder for more, or a file for another format")
        return [Target(prompt=clips[0][0], index=0, path=path_of(options.output))]
    if _is_folder(options.output):
        folder, ending = path_of(options.output), options.format or "mp4"
        files = (folder / _named(prompt, f"-{index}.{ending}") for prompt, index in clips)
        return [Target(prompt=p, index=i, path=file) for (p, i), file in zip(clips, files, strict=True)]
    if len(clips) > 1:
        raise NearstepError(f"{len(clips)} clips do not fit into the file {options.output}; give -o a folder")
    path = path_of(options.output)
    if options.format and path.suffix.lower() != f".{options.format}":
        raise NearstepError(f"--format {options.format} and -o {path} name two formats; leave one out")
    return [Target(prompt=clips[0][0], index=clips[0][1], path=path)]


def _named(prompt: str, ending: str) -> str:
    return safe_name(prompt, ending) + ending


def _is_folder(output: str) -> bool:
    """A folder ends in a slash, is there already, or has no suffix."""
    path = path_of(output)
    if output.endswith("/") or path.is_dir() or not path.suffix:
        return True
    if path.suffix.lower() not in ENCODERS:
        raise NearstepError(f"-o {output}: a file ends in {', '.join(ENCODERS)}; a folder's name in /")
    return False


def _in_file(file: Path) -> dict[str, str]:
    from nearstep.data.prompts import read_prompts

    found = read_prompts([file])
    if found.repeated:
        note(f"prompts that are there more than once are made once ({len(found.repeated)}): {found.repeated[0]!r}")
    return dict(zip(found.texts, found.places, strict=True))


def _film(system: System, targets: Sequence[Target], done: Callable[[Record], object], *, keep: bool) -> list[Tensor]:
    """Make and write every clip, with a bar of its parts; the clips, where they are to be kept."""
    from tqdm import tqdm

    from nearstep.sampling.filming import film

    began, kept = time.perf_counter(), []
    with tqdm(total=len(targets) * system.parts, unit="part", disable=None, dynamic_ncols=True) as bar:

        def shown(target: Target) -> None:
            bar.set_description(target.prompt[:PROMPT_SHOWN])

        for target, made, record in film(system, targets, began=shown, told=bar.update, write=_write):
            done(record)
            if not is_pipe(target.path):
                bar.write(str(target.path), file=sys.stdout)
            if keep:
                kept.append(made.video)
    seconds = time.perf_counter() - began
    note(f"{len(targets)} clip{'s' * (len(targets) > 1)} in {seconds:.1f} s")
    return kept


def _film_there(system: System, targets: Sequence[Target], done: Callable[[Record], object], cluster: Cluster) -> None:
    """Have a cluster make the clips, an item a prompt; its workers write them, and what they took comes back."""
    from tqdm import tqdm

    from nearstep.sampling.filming import records

    began, folder = time.perf_counter(), targets[0].path.parent
    groups = by_prompt(targets)
    with tqdm(total=len(targets), unit="clip", disable=None, dynamic_ncols=True) as bar:
        for found in each(partial(records, system), groups, cluster):
            for record in found:
                done(record)
                bar.update()
                bar.write(str(folder / record.name), file=sys.stdout)
    sweep(folder)  # what killed workers have left
    note(f"{len(targets)} clip{'s' * (len(targets) > 1)} in {time.perf_counter() - began:.1f} s")


def _write(target: Target, made: Made, said: Mapping[str, Any]) -> None:
    """To its file, or to standard output."""
    from nearstep.sampling.filming import write

    if not is_pipe(target.path) or isinstance(made.video, bytes):
        write(target, made, said)
        return
    with (
        standard_output() as file,
        piped_mp4(file, height=made.height, width=made.width, fps=made.fps, comment=json.dumps(dict(said))) as grow,
    ):
        grow(pixels(made.video))
