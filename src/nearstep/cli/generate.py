"""``nearstep generate``: prompts in, video files out."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.made import is_made
from nearstep.cli.options import AS_IT_IS, OWN_SIZE, FlatClipSize, FlatLoading, Model, check_paths, optional, place
from nearstep.cli.pipe import check_pipe, is_pipe, standard_output
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.files import check_name
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import EMBEDDED, ModelFolder
from nearstep.models.prompts import check_prompt, check_prompts
from nearstep.stream.output import (
    ENCODERS,
    check_video_path,
    piped_mp4,
    pixels,
    safe_name,
    write_sheet,
    write_video,
)

if TYPE_CHECKING:
    from torch import Tensor

    from nearstep.stream.pipeline import CausalVideoPipeline
    from nearstep.stream.request import Clip, Request

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

    One prompt with "-o ball.mp4" makes that file (the suffix names the format: mp4, gif, webp, or png for a contact
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


@dataclass(frozen=True, kw_only=True)
class Target:
    """One clip to make."""

    prompt: str
    index: int
    path: Path


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the clips."""
    generate(parsed(Generate, "nearstep generate", arguments))


def generate(options: Generate) -> None:
    """Make what is options, after checking all of it: prompts and outputs first, then sizes and plan, then the work."""
    check_paths(options)
    prompts = _prompts(options)
    targets = _targets(options, list(prompts))
    _check_paths(options, targets)
    model, clip = planned(options, prompts)
    make(options, model, clip, targets, sheet=options.sheet)


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


def make(
    options: Making, model: ModelConfigs, clip: Clip, targets: Sequence[Target], *, sheet: Path | None = None
) -> None:
    """Make the clips that are not there yet, and a sheet of them where one is asked for."""
    targets = pending(options, model, clip, targets)
    if sheet and targets and sheet.is_file() and not options.overwrite:
        raise NearstepError(f"--sheet {sheet} is there already; --overwrite replaces it, or name another file")
    if not targets:
        return
    pipe = options.loading.pipeline(model)
    requests = _requests(pipe, options, clip, targets)
    note(place(pipe))
    note(_summary(requests[0], len(targets)))
    if options.dry_run:
        for target in targets:
            print(target.path)
        return
    clips = _write(pipe, _origin(options, model), targets, requests, keep=sheet is not None)
    if sheet:
        print(write_sheet(sheet, clips, labels=[target.prompt for target in targets]))


def pending(options: Making, model: ModelConfigs, clip: Clip, targets: Sequence[Target]) -> list[Target]:
    """The clips that are still to be made: those without a file, for one that shows something else is refused."""
    from nearstep.stream.request import check_negative, clip_metadata, own_guidance

    guidance = own_guidance(model) if options.guidance is None else options.guidance
    check_negative([options.negative], guidance)
    if options.overwrite:
        return [*targets]
    kept, skipped, origin = [], [], _origin(options, model)
    for target in targets:
        said = clip_metadata(
            clip,
            prompt=target.prompt,
            negative=options.negative,
            guidance=float(guidance),
            seed=options.seed,
            sample=target.index,
        )
        unasked = ("seed",) if options.seed is None else ()
        made = not is_pipe(target.path) and is_made(target.path, {**origin, **said}, ignoring=unasked)
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
        raise NearstepError('no prompt; try: nearstep generate "a red ball slides left", or --prompts-file FILE')
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
        return [Target(prompt=clips[0][0], index=0, path=Path(options.output))]
    if _is_folder(options.output):
        folder, ending = Path(options.output), options.format or "mp4"
        files = (folder / _named(prompt, f"-{index}.{ending}") for prompt, index in clips)
        return [Target(prompt=p, index=i, path=file) for (p, i), file in zip(clips, files, strict=True)]
    if len(clips) > 1:
        raise NearstepError(f"{len(clips)} clips do not fit into the file {options.output}; give -o a folder")
    path = Path(options.output)
    if options.format and path.suffix.lower() != f".{options.format}":
        raise NearstepError(f"--format {options.format} and -o {path} name two formats; leave one out")
    return [Target(prompt=clips[0][0], index=clips[0][1], path=path)]


def _named(prompt: str, ending: str) -> str:
    return safe_name(prompt, ending) + ending


def _is_folder(output: str) -> bool:
    """A folder ends in a slash, is there already, or has no suffix."""
    path = Path(output)
    check_name(path)
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


def _origin(options: Making, model: ModelConfigs) -> dict[str, Any]:
    """What a clip comes from besides its request."""
    return {"model": options.model, **model.origin, **options.loading.decoding}


def _requests(pipe: CausalVideoPipeline, options: Making, clip: Clip, targets: Sequence[Target]) -> list[Request]:
    """One for each target; a prompt is looked at once, however many samples of it there are."""
    from nearstep.stream.request import Request

    seed = secrets.randbits(32) if options.seed is None else options.seed
    conditionings = {
        prompt: pipe.conditioning(
            prompt, negative_prompt=options.negative, guidance_scale=options.guidance, seed=seed, samples=[0]
        )
        for prompt in dict.fromkeys(target.prompt for target in targets)
    }
    return [Request.of(replace(conditionings[each.prompt], samples=(each.index,)), clip) for each in targets]


def _write(
    pipe: CausalVideoPipeline,
    origin: dict[str, Any],
    targets: Sequence[Target],
    requests: Sequence[Request],
    *,
    keep: bool,
) -> list[Tensor]:
    """Make and write every clip; the clips, where they are to be kept."""
    import torch
    from tqdm import tqdm

    began, chunks = time.perf_counter(), len(requests[0].clip.plan.lengths)
    kept, shown, denoiser = [], None, None
    with tqdm(total=len(targets) * chunks, unit="chunk", disable=None, dynamic_ncols=True) as bar:
        for target, request in zip(targets, requests, strict=True):
            bar.set_description(target.prompt[:PROMPT_SHOWN])
            if denoiser is None or target.prompt != shown:  # samples of a prompt share its text's keys and values
                shown, denoiser = target.prompt, pipe.denoiser(request)
            parts = []
            for chunk in pipe.play(request, denoiser=denoiser):
                parts.append(chunk.video[0])
                bar.update()
            clip = torch.cat(parts).cpu()
            _write_clip(target.path, clip, pipe.settings.fps, {**origin, **request.metadata(0)})
            if not is_pipe(target.path):
                bar.write(str(target.path), file=sys.stdout)
            if keep:
                kept.append(clip)
    seconds = time.perf_counter() - began
    note(f"{len(targets)} clip{'s' * (len(targets) > 1)} in {seconds:.1f} s")
    return kept


def _write_clip(path: Path, clip: Tensor, fps: float, metadata: dict[str, Any]) -> None:
    if not is_pipe(path):
        write_video(path, clip, fps=fps, metadata=metadata)
        return
    height, width = clip.shape[-2:]
    with (
        standard_output() as file,
        piped_mp4(file, height=height, width=width, fps=fps, comment=json.dumps(metadata)) as grow,
    ):
        grow(pixels(clip))


def _summary(request: Request, count: int) -> str:
    plan, shape = request.clip.plan, request.clip.shape
    size = f"{count} x {shape.frames} latent frames in {len(plan.lengths)} chunks"
    guided = f", guidance {request.guidance:g} (each call twice as wide)" if request.guidance != 1 else ""
    return f"plan {plan}: {plan.steps} steps + {plan.commits} commits a clip{guided}; {size}; seed {request.seed}"
