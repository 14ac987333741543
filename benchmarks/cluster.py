"""What a cluster's workers gain on one machine, and what they cost: the same clips by one process, one worker and more.

    OMP_NUM_THREADS=1 python benchmarks/cluster.py --prompts 40 --workers 1 2

Makes clips of the playground's captions with ``nearstep sample``, in this process and with ``--cluster auto`` on a Ray
cluster of so many cores, each in a folder of its own, and checks that all made the same pixels. Seconds are the whole
command's: workers begin, import torch and load the model in them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import ray  # pyright: ignore[reportMissingImports]  # an extra, which development does without
import tyro

from nearstep.cli.main import main as nearstep
from nearstep.playground import PLAYGROUND

SEED = 7_000_000
"""Of captions that no training has seen."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much work, and for whom."""

    prompts: int = 40
    samples: int = 5
    """Clips of each prompt."""
    plan: str = "4"
    workers: tuple[int, ...] = (1, 2)


def sampled(options: Options, prompts: Path, output: Path, more: Sequence[str]) -> float:
    """Seconds that the command took."""
    began = time.perf_counter()
    line = ["sample", str(prompts), "-o", str(output), "--plan", options.plan, "--samples", str(options.samples)]
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):  # it names every clip
        if code := nearstep([*line, *more]):
            raise SystemExit(code)
    return time.perf_counter() - began


def digests(output: Path) -> dict[str, str]:
    """Of the pixels of each clip."""
    rows = [json.loads(line) for line in (output / "clips.jsonl").read_text().splitlines()]
    return {row["name"]: row["digest"] for row in rows}


def main(options: Options) -> None:
    """Measure, and print a table."""
    clips = options.prompts * options.samples
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prompts = folder / "prompts.txt"
        prompts.write_text("".join(f"{text}\n" for text in PLAYGROUND.prompts(SEED, range(options.prompts))))
        alone = sampled(options, prompts, folder / "alone", ())
        print(f"| {clips} clips by | seconds | clips a second | against one process |\n|---|---|---|---|")
        print(f"| one process | {alone:.1f} | {clips / alone:.2f} | 1 |", flush=True)
        for workers in options.workers:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
            seconds = sampled(options, prompts, folder / f"by-{workers}", ("--cluster", "auto"))
            ray.shutdown()
            same = digests(folder / f"by-{workers}") == digests(folder / "alone")
            row = f"| {workers} worker{'s' * (workers > 1)} | {seconds:.1f} | {clips / seconds:.2f} "
            print(f"{row}| {alone / seconds:.2f}{'' if same else ', OTHER PIXELS'} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
