"""``nearstep bench``: what a clip costs on this machine, and the same clip restated as others count FPS."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from nearstep.cli.arguments import parsed
from nearstep.cli.options import AS_IT_IS, OWN_SIZE, FlatClipSize, FlatLoading, ModelArgument, optional
from nearstep.cli.text import short, table
from nearstep.errors import NearstepError
from nearstep.files import check_writable, write_json
from nearstep.models.folder import EMBEDDED, ModelFolder
from nearstep.models.prompts import check_prompts

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline
    from nearstep.stream.request import Request

PLANS = ("4", "4,2x", "4,1x", "1")
_PROMPT = "a small ball slides left on snow"  # words that the playground knows


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure a model: stages, time to the first frame, frame rates, memory, FLOPs.

    The pipeline makes clips as it always does while a clock looks on. A frame rate is only as good as its definition:
    each is printed with what it counts and who counts so, all of the same clip. The floor is the rate at which this
    machine, asked before and after, multiplies square matrices in a stage's dtype; "floor" is the part of a stage's
    time in which its FLOPs would be done at that rate.
    """

    model: ModelArgument = EMBEDDED
    plans: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--plan"], metavar="PLAN ...", help_behavior_hint="")] = ()
    """Steps per chunk of each clip (default: 4 4,2x 4,1x 1; a bidirectional network's own)."""
    prompt: str = _PROMPT
    """What to show; it matters to the text's time alone."""
    size: FlatClipSize = OWN_SIZE
    """Size of a clip."""
    guidance: Annotated[float | None, optional("W", "1 for a student, a teacher's own")] = None
    """In v = u + w (c - u); 1 is none."""
    repeats: int = 3
    """Clips of each plan and way to commit that count, after one to warm up."""
    threads: Annotated[int | None, optional("N", "torch's own choice")] = None
    """Threads of a CPU. With other work beside this, threads that wait for each other take far longer: use fewer."""
    json: Annotated[Path | None, optional("FILE", "none")] = None
    """Everything measured, as JSON."""
    loading: FlatLoading = AS_IT_IS
    """Network, device, precision, decoder."""


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments, measure, print, and write the JSON."""
    options = parsed(Bench, "nearstep bench", arguments)
    _check(options)
    options.loading.check()
    folder = ModelFolder.open(options.model)
    check_prompts(folder, {options.prompt: "--prompt"})  # torch and diffusers are seconds away
    from nearstep.stream.request import Request, check_guidance, plan_clip

    if options.guidance is not None:
        check_guidance(options.guidance)
    model = options.loading.open(folder)
    own = PLANS if model.transformer.get("chunk_frames") else (None,)
    clips = [plan_clip(model, plan=plan, **options.size.pixels) for plan in options.plans or own]
    pipe = options.loading.pipeline(model)
    conditioning = pipe.conditioning(options.prompt, guidance_scale=options.guidance, seed=0)
    measured = _measure(options, pipe, [Request.of(conditioning, clip) for clip in clips])
    measured["command"] = shlex.join(["nearstep", "bench", *arguments])
    if options.json:
        write_json(options.json, measured)


def _check(options: Bench) -> None:
    """What needs no model."""
    if options.repeats < 1:
        raise NearstepError(f"--repeats {options.repeats}; at least 1")
    if options.threads is not None and options.threads < 1:
        raise NearstepError(f"--threads {options.threads}; at least 1")
    if twice := [plan for plan in options.plans if options.plans.count(plan) > 1]:
        raise NearstepError(f"plan {twice[0]!r} is given twice; --repeats measures it more often")
    if options.json:
        check_writable(options.json)


def _measure(options: Bench, pipe: CausalVideoPipeline, requests: Sequence[Request]) -> dict[str, Any]:
    """Measure each request, and print it at once."""
    import torch

    from nearstep.cost.bench import dtypes, floors, measure
    from nearstep.cost.clock import machine

    if options.threads:
        torch.set_num_threads(options.threads)
    device, known = pipe.transformer.device, floors(pipe)
    shape, stages = requests[0].clip.shape, dtypes(pipe)
    facts = {
        "model": options.model,
        "machine": machine(device),
        "dtypes": {stage: _name(dtype) for stage, dtype in stages.items()},
        "compiled": options.loading.compile,
        "prompt": options.prompt,
        "latents": [shape.frames, *shape.frame],
    }
    print("\n".join(_heading(facts)))
    plans = []
    for request in requests:
        plans.append(measure(pipe, request, repeats=options.repeats, floors=known))
        print("\n" + "\n".join(_plan(plans[-1])))
    after = floors(pipe)
    print("\n" + _floor_line(known, after))
    best = {_name(dtype): max(floor, after[dtype]) for dtype, floor in known.items()}
    return {**facts, "floor": {name: floor._asdict() for name, floor in best.items()}, "plans": plans}


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _heading(facts: dict[str, Any]) -> list[str]:
    has, (frames, _, height, width) = facts["machine"], facts["latents"]
    threads = f", {has['threads']} thread{'s' * (has['threads'] > 1)}" if has["device"] == "cpu" else ""
    compiled = ", blocks compiled" if facts["compiled"] else ""
    return [
        f"{facts['model']}: network in {facts['dtypes']['step']}, decoder in {facts['dtypes']['decode']}{compiled}",
        f"on {has['device']}: {has['name']}{threads}, torch {has['torch']}",
        f"{frames} latent frames of {height}x{width}; prompt {facts['prompt']!r}",
    ]


def _plan(clip: dict[str, Any]) -> list[str]:
    fused, separate = clip["fused"], clip.get("separate")
    lines = [
        f"plan {clip['plan']}: {clip['steps']} steps + {clip['commits']} commits in {fused['calls']} calls; "
        f"{clip['pixel_frames']} frames in {clip['chunks']} chunks",
        *_indented(table(_stages(fused, fused["stages"]))),
        f"  first frame after {_digits(fused['first_frame_seconds'])} s; a later chunk takes "
        f"{_digits(fused['chunk_seconds']['p50'])} s, p95 {_digits(fused['chunk_seconds']['p95'])} s; "
        f"warming up took {_digits(clip['warm_up_seconds'])} s",
        f"  memory {short(clip['memory']['peak_bytes'])}B, {short(clip['memory']['before_bytes'])}B of it before "
        f"({clip['memory']['by']})",
    ]
    if separate:
        own = {name: separate["stages"][name] for name in ("step", "commit")}
        lines += [f"  with commits of their own, {separate['calls']} calls:"]
        lines += _indented(table(_stages(separate, own)))
    rows = [("fps", "", "counts", "as does")]
    rows += [(rate["name"], _digits(rate["fps"]), rate["counts"], rate["whose"]) for rate in clip["fps"]]
    return lines + _indented(table(rows))


def _stages(clip: dict[str, Any], stages: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("stage", "times", "seconds", "p50 ms", "p95 ms", "FLOP", "floor")]
    for name, has in stages.items():
        spread = [_digits(1000 * has[key]) if key in has else "" for key in ("p50", "p95")]
        share = f"{has['share_of_floor']:.1%}" if "share_of_floor" in has else ""
        work = short(has["flops"]).strip() if "flops" in has else ""
        rows.append((name, str(has["times"]), _digits(has["seconds"]), *spread, work, share))
    if stages is clip["stages"]:
        inside = sum(has["seconds"] for name, has in stages.items() if name != "codec decode")
        rows.append(("all else", "", _digits(clip["wall_seconds"] - inside), "", "", "", ""))
        rows.append(("wall", "", _digits(clip["wall_seconds"]), "", "", short(clip["flops"]).strip(), ""))
    return rows


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _floor_line(before: dict[Any, Any], after: dict[Any, Any]) -> str:
    rates = [
        f"{_name(dtype)} {short(floor.rate)}FLOP/s (side {floor.side}), {short(after[dtype].rate)}FLOP/s at the end"
        for dtype, floor in before.items()
    ]
    return "floor: products of square matrices in " + "; ".join(rates)
