"""Measures a model: agreement, quality, Fréchet distance and calls of every plan, on a world's held-out captions.

Results are one JSON file, rewritten after each plan; what it already holds is not measured again. A clip is named by
its caption's number and the seed, so the numbers do not depend on the batch size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from nearstep.evaluate.distances import CAPTIONS_SEED, Distances, Looks, looks_of
from nearstep.evaluate.results import PlanResults, Results, open_results, plan_results, write_results
from nearstep.evaluate.tables import table
from nearstep.protocols import Verdict, World

if TYPE_CHECKING:
    from nearstep.stream.pipeline import CausalVideoPipeline

PLANS = ("1", "4,1x", "2", "4,2x", "4")


@runtime_checkable
class Generate(Protocol):
    """Anything that makes clips."""

    def __call__(self, prompts: list[str], plan: str, seed: int, samples: list[int]) -> Tensor:
        """Clips [B, T, 3, H, W] in [0, 1]; ``samples`` number the prompts, so that each has its own noise."""
        ...


def evaluate(
    world: World,
    model: str,
    *,
    plans: Sequence[str] = PLANS,
    transformer: str = "transformer",
    guidance: float | None = None,
    captions: int = 512,
    seed: int = 0,
    batch: int = 16,
    out: Path = Path("evaluation.json"),
    device: str = "auto",
    vgg: Path | None = None,
    told: Callable[[CausalVideoPipeline], None] | None = None,
) -> str:
    """Measure a model folder and return the table of its results.

    Args:
        world: has the captions and judges the clips.
        model: "playground", a folder, or a hub id.
        plans: steps per chunk, one entry for each plan to measure.
        transformer: sub-folder of the network, such as "teacher" for the bidirectional one.
        guidance: w in v = u + w (c - u); by default the model's own, which for a student is 1, none.
        captions: held-out captions, one clip each.
        seed: names the noise.
        batch: clips made at once; does not change the results.
        out: where the results go; plans that it already holds are not measured again.
        device: where the model runs, as for CausalVideoPipeline.from_pretrained.
        vgg: file of VGG16's weights, for a second Fréchet distance (evaluate/vgg.py).
        told: called with the pipeline when it is loaded.
    """
    looks = looks_of(world, vgg)  # a file that cannot be read is found before any work
    from nearstep.stream.pipeline import CausalVideoPipeline  # seconds to import, and measure() does without
    from nearstep.stream.request import plan_clip

    pipe = CausalVideoPipeline.from_pretrained(model, transformer=transformer, device=device)
    pipe.set_progress_bar_config(disable=True)  # ours counts batches of clips
    if told is not None:
        told(pipe)

    def generate(prompts: list[str], plan: str, seed: int, samples: list[int]) -> Tensor:
        video = pipe(prompts, plan, seed=seed, samples=samples, guidance_scale=guidance, output_type="pt")[0]
        return torch.as_tensor(video).cpu()  # where the judge is

    def calls(plan: str) -> int:
        return plan_clip(pipe.configs, plan=plan).plan.calls

    name = f"{model} ({transformer}" + (")" if guidance is None else f", guidance {guidance:g})")
    results = measure(
        world, generate, plans, calls=calls, name=name, captions=captions, seed=seed, batch=batch, out=out, looks=looks
    )
    return table(results)


def measure(
    world: World,
    generate: Generate,
    plans: Sequence[str],
    *,
    calls: Callable[[str], int],
    out: Path,
    name: str = "",
    captions: int = 512,
    seed: int = 0,
    batch: int = 16,
    looks: Looks | None = None,
) -> Results:
    """Measure what ``generate`` makes with each plan, and write it to ``out``.

    Args:
        world: has the captions and judges the clips.
        generate: makes the clips.
        plans: plan strings.
        calls: plan string -> network calls of one clip, commits included.
        out: JSON file; goes on where it stopped.
        name: names the model in reports.
        captions: held-out captions, one clip each.
        seed: names the noise.
        batch: clips made at once.
        looks: features of the Fréchet distances; the world's own by default.

    Returns:
        What the file holds.
    """
    settings = {"name": name, "captions": captions, "captions_seed": CAPTIONS_SEED, "seed": seed, "world": world.name}
    results = open_results(out, settings)
    wanted = {plan: calls(plan) for plan in plans}  # a plan that does not parse is found before any work
    missing = [plan for plan in wanted if plan not in results["plans"]]
    if missing:
        prompts = world.prompts(CAPTIONS_SEED, range(captions))
        distances = Distances(world, looks or looks_of(world), count=captions, batch=batch)
        for plan in missing:
            results["plans"][plan] = _measure_plan(
                world, generate, plan, prompts, distances, calls=wanted[plan], seed=seed, batch=batch
            )
            write_results(out, results)
    return results


def _measure_plan(
    world: World,
    generate: Generate,
    plan: str,
    captions: Sequence[str],
    distances: Distances,
    *,
    calls: int,
    seed: int,
    batch: int,
) -> PlanResults:
    verdicts: list[Verdict] = []
    seen: list[dict[str, Tensor]] = []
    seconds = 0.0
    for first in tqdm(range(0, len(captions), batch), desc=f"plan {plan}", unit="batch"):
        prompts = list(captions[first : first + batch])
        began = time.monotonic()
        video = generate(prompts, plan, seed, list(range(first, first + len(prompts)))).float().cpu()
        seconds += time.monotonic() - began
        verdicts += world.judge(video, prompts)
        seen.append(distances.look(video))
    found = plan_results(verdicts, distances.intervals(seen), calls=calls)
    return {**found, "seconds_per_clip": round(seconds / len(captions), 4)}
