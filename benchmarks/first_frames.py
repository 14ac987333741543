"""Where a causal network of the playground loses: in the first frames that it draws, or in what it makes of them.

    python benchmarks/first_frames.py playground --plans 1 4 --captions 96
    python benchmarks/first_frames.py playground --network causal --plans 12 --guidance 1.5 --captions 96

The same captions and noise twice: once from nothing, and once with the first chunk of each caption's real clip in the
place of the network's own. What real first frames add is what no way of making the first chunk (first-frame enhancement
among them) can exceed. Clips of one thing and of two are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from nearstep import CausalVideoPipeline
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.results import Bounds, bounds
from nearstep.evaluate.statistics import Interval, mean, paired
from nearstep.evaluate.table import Table
from nearstep.evaluate.tables import points
from nearstep.files import write_json
from nearstep.playground import PLAYGROUND
from nearstep.playground.judge.judge import Verdict
from nearstep.rollout.rollout import generate
from nearstep.shapes import pixel_frames

OWN, REAL = "its own", "real"
SHOWN = ("count", "thing", "size", "motion", "direction", "speed", "relation")
"""What a caption states and a table shows."""
KINDS: dict[str, Callable[[Verdict], bool]] = {
    "all": lambda one: True,
    "one thing": lambda one: len(one.stated.subjects) == 1,
    "two things": lambda one: len(one.stated.subjects) == 2,
}
"""Kinds of clips, by what their captions say."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    model: tyro.conf.Positional[str] = "playground"
    """"playground", a folder, or a hub id; of the playground's world."""
    network: str = "transformer"
    """Sub-folder of the causal network."""
    plans: tuple[str, ...] = ("1", "4")
    guidance: float | None = None
    """w in v = u + w (c - u); the model's own by default."""
    captions: int = 96
    batch: int = 16
    device: str = "auto"
    out: Path | None = None
    """A JSON file for the numbers."""


@torch.inference_mode()
def judged(pipe: CausalVideoPipeline, plan: str, options: Options, *, real: bool) -> list[Verdict]:
    """The verdicts on every caption's clip, begun with its real clip's first chunk or from nothing."""
    found = []
    for first in range(0, options.captions, options.batch):
        rows = range(first, min(first + options.batch, options.captions))
        texts = PLAYGROUND.prompts(CAPTIONS_SEED, rows)
        request = pipe.request(texts, plan, seed=0, samples=[*rows], guidance_scale=options.guidance)
        latents = generate(
            pipe.denoiser(request),
            request.clip.plan,
            shape=request.clip.shape.frame,
            seed=request.seed,
            samples=request.samples,
            device=pipe.network_device,
            given=_first_chunk(pipe, rows, request.clip.plan.lengths[0]) if real else None,
        )
        video = pipe.codec.decode(latents.to(pipe.decoder_device)).float().cpu().clamp(0, 1)
        found += PLAYGROUND.judge(video, texts)
    return found


def _first_chunk(pipe: CausalVideoPipeline, rows: Sequence[int], frames: int) -> Tensor:
    clips = PLAYGROUND.clips(CAPTIONS_SEED, rows, frames=pixel_frames(frames))
    return pipe.codec.encode(clips.to(pipe.decoder_device)).to(pipe.network_device)


def summary(verdicts: Sequence[Verdict], kind: Callable[[Verdict], bool]) -> dict[str, Any]:
    """Means over the clips of a kind."""
    of = [one for one in verdicts if kind(one)]
    parts = {name: [one.agreement[name] for one in of if name in one.agreement] for name in SHOWN}
    return {
        "clips": len(of),
        "total": bounds(mean(_totals(of))),
        "parts": {name: sum(values) / len(values) for name, values in parts.items() if values},
    }


def gain(own: Sequence[Verdict], real: Sequence[Verdict], kind: Callable[[Verdict], bool]) -> Bounds:
    """What real first frames add to the total, clip by clip."""
    first, second = ([one for one in verdicts if kind(one)] for verdicts in (real, own))
    return bounds(paired(_totals(first), _totals(second)))


def _totals(verdicts: Sequence[Verdict]) -> Tensor:
    return torch.tensor([one.total for one in verdicts], dtype=torch.float64)


def rows(plan: str, found: dict[str, Any]) -> list[list[str]]:
    """Of the table."""
    told = []
    for kind, of in found.items():
        for start in (OWN, REAL):
            one, gained = of[start], points(Interval(**of["gain"])) if start == REAL else ""
            parts = [f"{one['parts'][name]:.2f}" if name in one["parts"] else "-" for name in SHOWN]
            told.append([plan, f"{kind}, {one['clips']}", start, points(Interval(**one["total"])), gained, *parts])
    return told


def main(options: Options) -> dict[str, Any]:
    """Measure, print a table, and write what was found."""
    pipe = CausalVideoPipeline.from_pretrained(
        options.model, transformer=options.network, torch_dtype="float32", device=options.device
    )
    heads = ["plan", "clips", "first frames", "total", "real ones add", *SHOWN]
    results: dict[str, Any] = {}
    for plan in options.plans:
        own, real = (judged(pipe, plan, options, real=start == REAL) for start in (OWN, REAL))
        results[plan] = {
            name: {OWN: summary(own, kind), REAL: summary(real, kind), "gain": gain(own, real, kind)}
            for name, kind in KINDS.items()
            if any(map(kind, own))
        }
        print(Table(heads, rows(plan, results[plan])), flush=True)
    if options.out:
        write_json(options.out, {"captions": options.captions, "plans": results}, indent=1)
    return results


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
