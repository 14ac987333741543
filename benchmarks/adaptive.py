"""What steps chosen by content give: total against mean calls, adaptive plans beside fixed ones.

    python benchmarks/adaptive.py --out adaptive.json --picture adaptive.png

Every clip is a stream of its own, so each decides for itself; captions and noise are those of ``nearstep evaluate``.
Thresholds are calibrated on other captions (evaluate/calibrate.py), once for each closeness asked for. Calls count
steps alone: commits are fused into them, and all plans need as many.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from nearstep import CausalVideoPipeline
from nearstep.evaluate import calibrate
from nearstep.evaluate.calibrate import Agreements, levels, measure_agreement, thresholds
from nearstep.evaluate.distances import CAPTIONS_SEED
from nearstep.evaluate.results import SUMS, summarise
from nearstep.evaluate.statistics import difference, rank_correlation
from nearstep.files import replacing
from nearstep.flow.plan import ADAPTIVE, chunk_lengths
from nearstep.playground import PLAYGROUND
from nearstep.plots import new_figure
from nearstep.shapes import latent_frames

FIXED = ("1", "2,1x", "3,1x", "4,1x", "2", "3,2x", "4,2x", "3", "4")
CLOSENESS = (0.96, 0.97, 0.975, 0.98, 0.985, 0.99)
BATCH = 32


def clips(pipe: CausalVideoPipeline, plan: str, captions: Sequence[str], chunks: int, name: str) -> dict[str, Any]:
    """Judge one stream of each caption; what evaluate.run has of a plan, and the steps of every chunk."""
    steps, videos, verdicts = [], [], []
    for sample, text in enumerate(tqdm(captions, desc=name, unit="clip")):
        with pipe.open(text, plan, seed=0, sample=sample) as session:
            made = list(itertools.islice(session, chunks))
        steps.append([chunk.steps for chunk in made])
        videos.append(torch.cat([chunk.video[0] for chunk in made]))
        if len(videos) == BATCH or sample + 1 == len(captions):
            verdicts += PLAYGROUND.judge(torch.stack(videos), captions[sample + 1 - len(videos) : sample + 1])
            videos.clear()
    taken = torch.tensor(steps, dtype=torch.float64)
    found = summarise(verdicts)
    return {
        "steps": taken.sum(1).mean().item(),
        "by_chunk": taken.mean(0).tolist(),
        **{name: found[name] for name in SUMS},
        "clips": found["clips"]["total"],
    }


def adapted(pipe: CausalVideoPipeline, measured: Agreements, closeness: float) -> tuple[tuple[float, ...], ...]:
    """Calibrate the pipeline; its plan "adaptive" then stops where a chunk is so close to all steps."""
    found = thresholds(levels(measured, closeness))
    pipe.settings = replace(pipe.settings, agreement=found)
    return found


def beside(one: Mapping[str, Any], fixed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """An adaptive result and the cheapest fixed plan that is not surely below it."""
    rows = {name: torch.tensor([plan["clips"]], dtype=torch.float64) for name, plan in fixed.items()}
    mine = torch.tensor([one["clips"]], dtype=torch.float64)
    gaps = {name: difference(mine, row) for name, row in rows.items()}
    equal = min((name for name in fixed if gaps[name].low <= 0), key=lambda name: fixed[name]["steps"], default=None)
    if equal is None:
        return {"equal": None}
    gap = gaps[equal]
    return {
        "equal": equal,
        "fewer_steps": 1 - one["steps"] / fixed[equal]["steps"],
        "total_gained": [gap.value, gap.low, gap.high],
    }


def foretold(pipe: CausalVideoPipeline, texts: Sequence[str], chunks: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What a step that was spared would have gained, and whether the agreement before it tells (rank correlation)."""
    seen = measure_agreement(pipe, texts, chunks=chunks).agreement
    found = {}
    for what, fewer, more, told in (
        ("a third step in the first chunk", "2,1x", "3,1x", -seen[:, 0, 1]),
        ("a second step in later chunks", "3,1x", "3,2x", -seen[:, 1:, 0].mean(1)),
    ):
        if fewer in fixed and more in fixed:
            gain = torch.tensor(fixed[more]["clips"]) - torch.tensor(fixed[fewer]["clips"])
            spread = {"mean": gain.mean().item(), "deviation": gain.std().item()}
            found[what] = {**spread, "correlation": rank_correlation(told, gain)}
    return found


def draw(path: Path, fixed: Mapping[str, Mapping[str, Any]], adaptive: Mapping[str, Mapping[str, Any]]) -> None:
    """Total against steps."""
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    for label, rows, colour in (("fixed plans", fixed, "tab:blue"), ("adaptive, by closeness", adaptive, "tab:orange")):
        x = [row["steps"] for row in rows.values()]
        y = [100 * row["total"]["value"] for row in rows.values()]
        spread = [
            [100 * abs(row["total"]["value"] - row["total"][end]) for row in rows.values()] for end in ("low", "high")
        ]
        line = "-" if rows is adaptive else "none"
        axes.errorbar(x, y, spread, label=label, color=colour, marker="o", linestyle=line, elinewidth=0.6, capsize=2)
        for name, at in zip(rows, zip(x, y, strict=True), strict=True):
            axes.annotate(name, at, xytext=(5, -11 if rows is fixed else 6), textcoords="offset points", fontsize=8)
    axes.set(xlabel="steps a clip, mean", ylabel="total")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=110)


def main(
    model: str = "playground",
    *,
    fixed: tuple[str, ...] = FIXED,
    closeness: tuple[float, ...] = CLOSENESS,
    captions: int = 256,
    calibrate_on: int = 128,
    threads: int = 1,
    out: Path = Path("adaptive.json"),
    picture: Path | None = None,
) -> dict[str, Any]:
    """Measure, print, and write.

    Args:
        model: "playground", a folder, or a hub id; of the playground's world.
        fixed: plan strings.
        closeness: what to calibrate adaptive plans for, one each.
        captions: held-out captions, one clip each.
        calibrate_on: other captions.
        threads: of the CPU.
        out: where the numbers go.
        picture: a plot of them.
    """
    torch.set_num_threads(threads)
    pipe = CausalVideoPipeline.from_pretrained(model)
    chunks = len(chunk_lengths(latent_frames(pipe.settings.num_frames), pipe.transformer.config["chunk_frames"]))
    texts = PLAYGROUND.prompts(CAPTIONS_SEED, range(captions))
    found: dict[str, Any] = {"model": model, "captions": captions, "calibrated_on": calibrate_on}
    found["fixed"] = {plan: clips(pipe, plan, texts, chunks, plan) for plan in fixed}
    found["foretold"] = foretold(pipe, texts, chunks, found["fixed"])
    others = PLAYGROUND.prompts(calibrate.CAPTIONS_SEED, range(calibrate_on))
    measured = measure_agreement(pipe, others, chunks=chunks)
    found["adaptive"] = {}
    for wanted in closeness:
        limits = [[*row] for row in adapted(pipe, measured, wanted)]
        one = clips(pipe, ADAPTIVE, texts, chunks, f"{ADAPTIVE} {wanted}")
        found["adaptive"][str(wanted)] = {**one, "agreement": limits, "beside": beside(one, found["fixed"])}
    for name, row in [*found["fixed"].items(), *found["adaptive"].items()]:
        print(f"{name:>6}  steps {row['steps']:5.2f}  total {100 * row['total']['value']:.2f}  {row.get('beside', '')}")
    for what, row in found["foretold"].items():
        print(f"{what}: {row}")
    with replacing(out) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")
    if picture:
        draw(picture, found["fixed"], found["adaptive"])
    return found


if __name__ == "__main__":
    tyro.cli(main)
