"""Measures a model: agreement, quality, Fréchet distance and calls of every plan, on a world's held-out captions.

Results are one JSON file, rewritten after each plan; what it already holds is not measured again. A clip is named by
its caption's number and the seed, so the numbers do not depend on the batch size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from nearstep.cluster import Cluster, each
from nearstep.evaluate.distances import CAPTIONS_SEED, Distances, Looks, looks_of
from nearstep.evaluate.results import (
    CONTENT,
    EvaluationSettings,
    PlanResults,
    Results,
    open_results,
    plan_results,
    write_results,
)
from nearstep.evaluate.tables import table
from nearstep.files import check_writable
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
    cluster: Cluster | None = None,
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
        cluster: makes and judges batches beside each other; None is this process.
    """
    looks = looks_of(world, vgg)  # a file that cannot be read is found before any work
    player = _Player(model=model, transformer=transformer, device=device, guidance=guidance, told=told)
    name = f"{model} ({transformer}" + (")" if guidance is None else f", guidance {guidance:g})")
    results = measure(
        world,
        player,
        plans,
        calls=player.calls,
        name=name,
        content=player.content,
        captions=captions,
        seed=seed,
        batch=batch,
        out=out,
        looks=looks,
        cluster=cluster,
    )
    return str(table(results))


@dataclass(frozen=True, kw_only=True)
class _Player:
    """A model that makes clips; loaded with the first, wherever that is."""

    model: str
    transformer: str
    device: str
    guidance: float | None
    told: Callable[[CausalVideoPipeline], None] | None

    @cached_property
    def pipe(self) -> CausalVideoPipeline:
        from nearstep.stream.pipeline import CausalVideoPipeline  # seconds to import, and measure() does without

        pipe = CausalVideoPipeline.from_pretrained(self.model, transformer=self.transformer, device=self.device)
        pipe.set_progress_bar_config(disable=True)  # ours counts batches of clips
        if self.told is not None:
            self.told(pipe)
        return pipe

    def __call__(self, prompts: list[str], plan: str, seed: int, samples: list[int]) -> Tensor:
        video = self.pipe(prompts, plan, seed=seed, samples=samples, guidance_scale=self.guidance, output_type="pt")[0]
        return torch.as_tensor(video).cpu()  # where the judge is

    @property
    def content(self) -> str:
        """Names the files that it reads."""
        from nearstep.models.folder import ModelFolder

        return ModelFolder.open(self.model).content(self.transformer)

    def calls(self, plan: str) -> int:
        from nearstep.models.configs import ModelConfigs
        from nearstep.stream.request import plan_clip

        return plan_clip(ModelConfigs.open(self.model, self.transformer), plan=plan).plan.calls


def measure(
    world: World,
    generate: Generate,
    plans: Sequence[str],
    *,
    calls: Callable[[str], int],
    out: Path,
    name: str = "",
    content: str | None = None,
    captions: int = 512,
    seed: int = 0,
    batch: int = 16,
    looks: Looks | None = None,
    cluster: Cluster | None = None,
) -> Results:
    """Measure what ``generate`` makes with each plan, and write it to ``out``.

    Args:
        world: has the captions and judges the clips.
        generate: makes the clips.
        plans: plan strings.
        calls: plan string -> network calls of one clip, commits included.
        out: JSON file; goes on where it stopped.
        name: names the model in reports.
        content: names what it is made of, so that another model of the same name is not taken for it.
        captions: held-out captions, one clip each.
        seed: names the noise.
        batch: clips made at once.
        looks: features of the Fréchet distances; the world's own by default.
        cluster: makes and judges batches beside each other; None is this process.

    Returns:
        What the file holds.
    """
    settings: EvaluationSettings = {"name": name, "captions": captions, "captions_seed": CAPTIONS_SEED, "seed": seed}
    settings["world"] = world.name
    if content is not None:
        settings[CONTENT] = content
    results = open_results(out, settings)
    wanted = {plan: calls(plan) for plan in plans}  # a plan that does not parse is found before any work
    missing = [plan for plan in wanted if plan not in results["plans"]]
    if missing:
        check_writable(out)
        prompts = world.prompts(CAPTIONS_SEED, range(captions))
        distances = Distances(world, looks, count=captions, batch=batch)
        make = _Judged(world=world, generate=generate, seed=seed, looks=distances.looks)
        for plan in missing:
            ranges = (range(first, min(first + batch, captions)) for first in range(0, captions, batch))
            batches = [Batch(plan=plan, prompts=prompts[rows.start : rows.stop], samples=[*rows]) for rows in ranges]
            seen = [*tqdm(each(make, batches, cluster), desc=f"plan {plan}", unit="batch", total=len(batches))]
            found = results_of(world, seen, distances, calls=wanted[plan])
            seconds = round(sum(part.seconds for part in seen) / captions, 4)
            results["plans"][plan] = {**found, "seconds_per_clip": seconds}
            write_results(out, results)
    return results


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips that are made together."""

    plan: str
    prompts: list[str]
    samples: list[int]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a world says of some clips, and what their features are."""

    verdicts: Sequence[Verdict]
    features: Mapping[str, Tensor]
    seconds: float = 0.0
    """That their making took, where they were made."""


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """Makes a batch and judges it."""

    world: World
    generate: Generate
    seed: int
    looks: Looks

    def __call__(self, batch: Batch) -> Seen:
        began = time.monotonic()
        video = self.generate(batch.prompts, batch.plan, self.seed, batch.samples).float().cpu()
        seconds = time.monotonic() - began
        return replace(seen_of(self.world, self.looks, video, batch.prompts), seconds=seconds)


def seen_of(world: World, looks: Looks, video: Tensor, prompts: Sequence[str]) -> Seen:
    """Judge clips [B, T, 3, H, W] in [0, 1] of these prompts."""
    return Seen(verdicts=world.judge(video, prompts), features={name: look(video) for name, look in looks.items()})


def results_of(world: World, seen: Sequence[Seen], distances: Distances, *, calls: int | None) -> PlanResults:
    """The results of a world's clips that were judged batch by batch."""
    verdicts = [verdict for part in seen for verdict in part.verdicts]
    return plan_results(world, verdicts, distances.intervals([part.features for part in seen]), calls=calls)
