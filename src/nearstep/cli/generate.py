"""``nearstep generate``: prompts in, video files out."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearstep.cli.options import AS_IT_IS, OWN_SIZE, FlatClipSize, FlatLoading, Model, optional, place
from nearstep.cli.text import note
from nearstep.errors import NearstepError
from nearstep.models.configs import ModelConfigs
from nearstep.models.folder import EMBEDDED
from nearstep.stream.output import ENCODERS, check_video_path, safe_name, write_sheet, write_video

if TYPE_CHECKING:
    from torch import Tensor

    from nearstep.stream.pipeline import CausalVideoPipeline
    from nearstep.stream.request import Clip, Request

MOST_CLIPS = 100_000  # of one call: each is planned, and named, before the first is made
PROMPT_SHOWN = 40  # characters of a prompt beside the progress bar


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Make videos from prompts, chunk by chunk.

    One prompt with "-o ball.mp4" makes that file (the suffix names the format: mp4, gif, webp, or png for a contact
    sheet). Otherwise -o is a folder, and each clip becomes "PROMPT-INDEX.mp4" in it; files that are there already are
    skipped, so an interrupted run can be started again. A clip depends on its prompt, plan, seed and index alone.
    """

    prompts: Annotated[tyro.conf.Positional[tuple[str, ...]], optional("PROMPT ...", "none")] = ()
    """What to show; one clip each."""
    prompts_file: Annotated[Path | None, optional("FILE", "none")] = None
    """More prompts: a .txt with one a line, or a .jsonl or .csv with a caption, text or prompt column."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE|FOLDER/")] = "."
    """Where to."""
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
    samples: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Clips per prompt, with indices 0, 1, ..."""
    format: Literal["mp4", "gif", "webp", "png"] = "mp4"
    """Format of the files in a folder."""
    sheet: Annotated[Path | None, optional("FILE.png", "none")] = None
    """One picture of all clips made, a row of frames each."""
    overwrite: bool = False
    """Make files again that are there already."""
    dry_run: bool = False
    """Check everything, say what would be made, and stop."""
    loading: FlatLoading = AS_IT_IS
    """Network, device, precision, decoder."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One clip to make."""

    prompt: str
    index: int
    path: Path


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and make the clips."""
    generate(tyro.cli(Generate, prog="nearstep generate", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)))


def generate(options: Generate) -> None:
    """Make what is options, after checking all of it: outputs, sizes and plan first, then prompts, then the work."""
    from nearstep.stream.request import check_guidance, plan_clip

    if options.guidance is not None:
        check_guidance(options.guidance)
    targets = pending(options)
    if not targets:
        return
    model = options.loading.open(options.model)
    clip = plan_clip(model, plan=options.plan, **options.size.pixels)
    pipe = options.loading.pipeline(model)
    requests = _requests(pipe, options, clip, targets)
    note(place(pipe))
    note(_summary(requests[0], len(targets)))
    if options.dry_run:
        for target in targets:
            print(target.path)
        return
    clips = _write(pipe, _origin(options, model), targets, requests, keep=options.sheet is not None)
    if options.sheet:
        print(write_sheet(options.sheet, clips, labels=[target.prompt for target in targets]))


def pending(options: Generate) -> list[Target]:
    """The clips whose files are still to be made, each of which can be written."""
    targets = _targets(options)
    kept = [target for target in targets if options.overwrite or not target.path.is_file()]
    if skipped := [target for target in targets if target not in kept]:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        note(f"skipped, already there: {skipped[0].path}{more} (--overwrite makes them again)")
    if options.sheet and options.sheet.suffix.lower() != ".png":
        raise NearstepError(f"--sheet {options.sheet}: a contact sheet ends in .png")
    for path in [target.path for target in kept] + ([options.sheet] if options.sheet else []):
        check_video_path(path)
    return kept


def _targets(options: Generate) -> list[Target]:
    prompts = [*options.prompts, *(_in_file(options.prompts_file) if options.prompts_file else ())]
    if not prompts:
        raise NearstepError('no prompt; try: nearstep generate "a red ball slides left", or --prompts-file FILE')
    if twice := [prompt for prompt in prompts if prompts.count(prompt) > 1]:
        raise NearstepError(f"prompt {twice[0]!r} is given twice; --samples 2 makes two clips of each prompt")
    if not 1 <= options.samples <= MOST_CLIPS // len(prompts):
        raise NearstepError(
            f"--samples {options.samples} of {len(prompts)} prompts; at least 1, and {MOST_CLIPS:,} clips at most"
        )
    clips = [(prompt, index) for prompt in prompts for index in range(options.samples)]
    if _is_folder(options.output):
        folder = Path(options.output)
        names = [f"{safe_name(prompt)}-{index}.{options.format}" for prompt, index in clips]
        return [Target(prompt=p, index=i, path=folder / name) for (p, i), name in zip(clips, names, strict=True)]
    if len(clips) > 1:
        raise NearstepError(f"{len(clips)} clips do not fit into the file {options.output}; give -o a folder")
    return [Target(prompt=clips[0][0], index=clips[0][1], path=Path(options.output))]


def _is_folder(output: str) -> bool:
    """A folder ends in a slash, is there already, or has no suffix."""
    path = Path(output)
    if output.endswith("/") or path.is_dir() or not path.suffix:
        return True
    if path.suffix.lower() not in ENCODERS:
        raise NearstepError(f"-o {output}: a file ends in {', '.join(ENCODERS)}; a folder's name in /")
    return False


def _in_file(file: Path) -> list[str]:
    from nearstep.data.prompts import read_prompts

    found = read_prompts([file])
    return [*found.texts, *found.repeated]


def _origin(options: Generate, model: ModelConfigs) -> dict[str, Any]:
    """What a clip comes from besides its request."""
    tiny = {"tiny_decoder": options.loading.tiny_decoder.name} if options.loading.tiny_decoder else {}
    return {"model": options.model, **model.origin, **tiny}


def _requests(pipe: CausalVideoPipeline, options: Generate, clip: Clip, targets: Sequence[Target]) -> list[Request]:
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
            write_video(target.path, clip, fps=pipe.settings.fps, metadata={**origin, **request.metadata(0)})
            bar.write(str(target.path), file=sys.stdout)
            if keep:
                kept.append(clip)
    seconds = time.perf_counter() - began
    note(f"{len(targets)} clip{'s' * (len(targets) > 1)} in {seconds:.1f} s")
    return kept


def _summary(request: Request, count: int) -> str:
    plan, shape = request.clip.plan, request.clip.shape
    size = f"{count} x {shape.frames} latent frames in {len(plan.lengths)} chunks"
    guided = f", guidance {request.guidance:g} (each call twice as wide)" if request.guidance != 1 else ""
    return f"plan {plan}: {plan.steps} steps + {plan.commits} commits a clip{guided}; {size}; seed {request.seed}"
