"""A stream for a long time: first frame, frames a second against real time, and whether memory stays where it is.

Run it as ``python benchmarks/long.py --chunks 2000``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from nearstep import CausalVideoPipeline
from nearstep.stream.session import Session

PROMPT = "a large red apple slides left slowly on snow"


def first_frame(pipe: CausalVideoPipeline, prompt: str, plan: str) -> float:
    """Seconds from opening a session to its first frames."""
    began = time.perf_counter()
    with pipe.open(prompt, plan, seed=0) as session:
        next(session)
        return time.perf_counter() - began


def speed(session: Session, chunks: int) -> float:
    """Pixel frames a second."""
    began = time.perf_counter()
    frames = sum(next(session).video.shape[1] for _ in range(chunks))
    return frames / (time.perf_counter() - began)


def memory(session: Session, chunks: int, every: int) -> list[float]:
    """Megabytes resident after every so many chunks."""
    process, seen = psutil.Process(), []
    for index in range(1, chunks + 1):
        next(session)
        if index % every == 0:
            seen.append(process.memory_info().rss / 1e6)
    return seen


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="playground")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--plan", default="4,1x", help="of the first frame and of the speed")
    parser.add_argument("--chunks", type=int, default=2000, help="of plan 1, for the memory")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    pipe = CausalVideoPipeline.from_pretrained(asked.model)
    cold, warm = (first_frame(pipe, asked.prompt, asked.plan) for _ in range(2))
    with pipe.open(asked.prompt, asked.plan, seed=0) as session:
        rate = speed(session, min(100, asked.chunks))
    with pipe.open(asked.prompt, "1", seed=0) as session:
        resident = memory(session, asked.chunks, max(1, asked.chunks // 10))
    found = {
        "first_frame_seconds": {"cold": cold, "warm": warm},
        "frames_per_second": rate,
        "times_real_time": rate / pipe.settings.fps,
        "resident_megabytes": resident,
        "threads": asked.threads,
    }
    print(f"first frame {cold:.3f} s after the first opening, {warm:.3f} s after the second")
    print(f"plan {asked.plan}: {rate:.0f} frames a second, {found['times_real_time']:.1f} times real time")
    print(f"memory over {asked.chunks} chunks: {', '.join(f'{size:.0f}' for size in resident)} MB")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
