"""What the judge of the playground sees: real clips of each kind, and real clips broken in one way.

    python benchmarks/judge.py --clips 512 --out judge.json
    python benchmarks/judge.py --kinds one --breaks "another size" blurred --clips 64

Rows are breaks, columns what is compared or measured, cells the mean over the clips that the break applies to, on
captions of both levels in turns. The row ``none`` is real clips.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import tyro
from torch import Tensor

from nearstep.files import replacing
from nearstep.playground import PLAYGROUND
from nearstep.playground.breaks import BREAKS, spoiled
from nearstep.playground.captions import LEVELS, caption
from nearstep.playground.judge.agreement import ATTRIBUTES
from nearstep.playground.judge.judge import Verdict, judge
from nearstep.playground.judge.quality import FIGURES
from nearstep.playground.relations import OVERLAPS
from nearstep.playground.world import Scene, WorldConfig, render, sample_scenes

KINDS = ("one", "two", "occluded")
BATCH = 8
SEED = 77


def scenes_of(kind: str, config: WorldConfig, count: int) -> list[Scene]:
    """Scenes with one thing, two beside each other, or two of which one covers the other."""
    found: list[Scene] = []
    first = 0
    while len(found) < count:
        for scene in sample_scenes(config, SEED, range(first, first + 64)):
            two, covers = len(scene.actors) == 2, scene.relation in OVERLAPS
            if {"one": not two, "two": two and not covers, "occluded": covers}[kind]:
                found.append(scene)
        first += 64
    return found[:count]


def summary(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Means of everything that is compared or measured."""
    marks: dict[str, list[float]] = defaultdict(list)
    for verdict in verdicts:
        for name, values in verdict.comparison.marks.items():
            marks[name] += values
        for name, value in verdict.figures.items():
            marks[name].append(value)
        marks["dynamic"].append(verdict.dynamic)
        marks["correct"].append(verdict.correct)
    order = [*ATTRIBUTES, *FIGURES, "dynamic", "correct"]
    return {name: sum(marks[name]) / len(marks[name]) for name in order if marks[name]}


def measure(video: Tensor, texts: Sequence[str], config: WorldConfig) -> list[Verdict]:
    """Verdicts, a batch at a time."""
    return judge(video, texts, config)


def main(
    kinds: tuple[str, ...] = KINDS,
    breaks: tuple[str, ...] = ("none", *BREAKS),
    clips: int = 32,
    size: int = PLAYGROUND.size,
    out: Path | None = None,
) -> None:
    """Measure and print one table a kind.

    Args:
        kinds: of clips.
        breaks: names in BREAKS, or "none".
        clips: scenes of each kind.
        size: pixels of a side.
        out: JSON file of all figures.
    """
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for kind in kinds:
        config = WorldConfig(size=size, pairs=0.0 if kind == "one" else 1.0)
        scenes = scenes_of(kind, config, clips)
        texts = [caption(s, seed=SEED, index=i, level=LEVELS[i % len(LEVELS)]) for i, s in enumerate(scenes)]
        results[kind] = {}
        for name in breaks:
            verdicts: list[Verdict] = []
            began = time.process_time()
            for first in range(0, clips, BATCH):
                part = scenes[first : first + BATCH]
                rows, video = (list(range(len(part))), render(config, part))
                if name != "none":
                    rows, video = spoiled(BREAKS[name], config, part)
                if rows:
                    verdicts += measure(video, [texts[first + row] for row in rows], config)
            if not verdicts:
                continue
            seconds = (time.process_time() - began) / len(verdicts)
            results[kind][name] = {"clips": len(verdicts), "seconds": seconds, **summary(verdicts)}
            show(kind, name, results[kind])
        if out:
            with replacing(out) as part:
                part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def show(kind: str, name: str, rows: dict[str, dict[str, float]]) -> None:
    """One line: what the break lowers, by how much, and the rest only where it fell as well."""
    row, real = rows[name], rows.get("none", {})
    wanted = BREAKS[name].lowers if name in BREAKS else tuple(row)[2:]
    said = [f"{key} {row[key]:.3f}" for key in wanted if key in row]
    also = [
        f"{key} {row[key]:.2f}"
        for key in row
        if key in real
        and key not in wanted
        and key not in ("clips", "seconds", "correct")
        and row[key] < real[key] - 0.1
    ]
    line = f"{kind:9}{name:22}{row['clips']:4.0f} clips {row['seconds']:.2f} s  {', '.join(said)}"
    print(line + (f"   | also: {', '.join(also)}" if also and name in BREAKS else ""), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
