"""Measures a model: agreement, quality, Fréchet distance and calls of every plan, on held-out captions.

Results are one JSON file, rewritten after each plan; what it already holds is not measured again. A clip is named by
its caption's number and the seed, so the numbers do not depend on the batch size.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm

from nearstep.errors import NearstepError
from nearstep.evaluate import statistics
from nearstep.evaluate.frechet import gaussian, gaussian_distance
from nearstep.evaluate.tables import table
from nearstep.files import write_json
from nearstep.playground.captions import caption
from nearstep.playground.features import feature_net
from nearstep.playground.judge.judge import ATTRIBUTES, Verdict, judge
from nearstep.playground.judge.quality import FIGURES
from nearstep.playground.world import FRAMES, Scene, render, sample_scenes

CAPTIONS_SEED = 7_000_000
"""Stream of the captions to evaluate with; no training ever draws from it."""


@runtime_checkable
class Generate(Protocol):
    """Anything that makes clips."""

    def __call__(self, prompts: list[str], plan: str, seed: int, samples: list[int]) -> Tensor:
        """Clips [B, T, 3, H, W] in [0, 1]; ``samples`` number the prompts, so that each has its own noise."""
        ...


def held_out(count: int, seed: int = CAPTIONS_SEED) -> list[tuple[Scene, str]]:
    """Scenes and complete captions that no training has seen."""
    scenes = sample_scenes(seed, range(count))
    return [(scene, caption(scene, seed=seed, index=index)) for index, scene in enumerate(scenes)]


def evaluate(
    model: str = "playground",
    *,
    plans: tuple[str, ...] = ("1", "4,1x", "2", "4,2x", "4"),
    transformer: str = "transformer",
    guidance: float | None = None,
    captions: int = 512,
    seed: int = 0,
    batch: int = 16,
    out: Path = Path("evaluation.json"),
) -> str:
    """Measure a model folder and return the table of its results.

    Args:
        model: "playground", a folder, or a hub id.
        plans: steps per chunk, one entry for each plan to measure.
        transformer: sub-folder of the network, such as "teacher" for the bidirectional one.
        guidance: w in v = u + w (c - u); by default the model's own, which for a student is 1, none.
        captions: held-out captions, one clip each.
        seed: names the noise.
        batch: clips made at once; does not change the results.
        out: where the results go; plans that it already holds are not measured again.
    """
    from nearstep.stream.pipeline import CausalVideoPipeline  # seconds to import, and measure() does without
    from nearstep.stream.request import plan_clip

    pipe = CausalVideoPipeline.from_pretrained(model, transformer=transformer)

    def generate(prompts: list[str], plan: str, seed: int, samples: list[int]) -> Tensor:
        wishes = {"seed": seed, "samples": samples, "guidance_scale": guidance}
        return pipe(prompts, plan, output_type="pt", **wishes).frames

    def calls(plan: str) -> int:
        return plan_clip(pipe.configs, plan=plan).plan.calls

    name = f"{model} ({transformer}" + (")" if guidance is None else f", guidance {guidance:g})")
    return table(measure(generate, plans, calls=calls, name=name, captions=captions, seed=seed, batch=batch, out=out))


def measure(
    generate: Generate,
    plans: Sequence[str],
    *,
    calls: Callable[[str], int],
    out: Path,
    name: str = "",
    captions: int = 512,
    seed: int = 0,
    batch: int = 16,
) -> dict[str, Any]:
    """Measure what ``generate`` makes with each plan, and write it to ``out``.

    Args:
        generate: makes the clips.
        plans: plan strings.
        calls: plan string -> network calls of one clip, commits included.
        out: JSON file; goes on where it stopped.
        name: of the model, for reports.
        captions: held-out captions, one clip each.
        seed: names the noise.
        batch: clips made at once.

    Returns:
        What the file holds.
    """
    settings = {"name": name, "captions": captions, "captions_seed": CAPTIONS_SEED, "seed": seed}
    results = _open(out, settings)
    wanted = {plan: calls(plan) for plan in plans}  # a plan that does not parse is found before any work
    missing = [plan for plan in wanted if plan not in results["plans"]]
    if missing:
        truth = held_out(captions)
        real = gaussian(_features([scene for scene, _ in truth], batch))
        for plan in missing:
            found = _measure_plan(generate, plan, truth, real, seed=seed, batch=batch)
            results["plans"][plan] = {"calls": wanted[plan], **found}
            write_json(out, results, indent=1)
    return results


def _open(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not out.exists():
        return {"settings": settings, "plans": {}}
    results = json.loads(out.read_text(encoding="utf-8"))
    if results.get("settings") != settings:
        raise NearstepError(f"{out} holds results of {results.get('settings')}, not {settings}; name another file")
    return results


def _features(scenes: Sequence[Scene], batch: int) -> Tensor:
    parts = [scenes[first : first + batch] for first in range(0, len(scenes), batch)]
    return torch.cat([feature_net().features(render(part, frames=FRAMES)) for part in parts])


def _measure_plan(
    generate: Generate,
    plan: str,
    truth: Sequence[tuple[Scene, str]],
    real: tuple[Tensor, Tensor],
    *,
    seed: int,
    batch: int,
) -> dict[str, Any]:
    verdicts: list[Verdict] = []
    features: list[Tensor] = []
    seconds = 0.0
    for first in tqdm(range(0, len(truth), batch), desc=f"plan {plan}", unit="batch"):
        samples = list(range(first, min(first + batch, len(truth))))
        prompts = [truth[sample][1] for sample in samples]
        began = time.monotonic()
        video = generate(prompts, plan, seed, samples).float().cpu()
        seconds += time.monotonic() - began
        verdicts += judge(video, prompts)
        features.append(feature_net().features(video))
    distance = statistics.statistic(torch.cat(features), lambda rows: gaussian_distance(*gaussian(rows), *real))
    return {**summarise(verdicts), "frechet": asdict(distance), "seconds_per_clip": round(seconds / len(truth), 4)}


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Means of verdicts with their intervals, and the values of each clip for paired differences."""
    columns: dict[str, list[float]] = {
        "total": [verdict.total for verdict in verdicts],
        "quality": [verdict.quality for verdict in verdicts],
        "semantic": [verdict.semantic for verdict in verdicts],
        "correct": [float(verdict.correct) for verdict in verdicts],
    }
    agreement = {name: [float(v.agreement.get(name, torch.nan)) for v in verdicts] for name in ATTRIBUTES}
    stated = {name: marks for name, marks in agreement.items() if any(name in v.agreement for v in verdicts)}
    return {
        **_intervals(columns),
        "agreement": _intervals(stated),
        "figures": _intervals({name: [v.figures[name] for v in verdicts] for name in FIGURES}),
        "course": torch.tensor([v.course for v in verdicts]).mean(dim=0).tolist(),
        "clips": {name: [round(value, 4) for value in values] for name, values in columns.items()},
    }


def _intervals(columns: dict[str, list[float]]) -> dict[str, Any]:
    intervals = statistics.mean_rows(torch.tensor(list(columns.values()), dtype=torch.float64))
    return {name: asdict(interval) for name, interval in zip(columns, intervals, strict=True)}
