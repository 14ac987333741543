"""A server under load, over loopback: streams that are steered, viewers that watch, and what its memory does.

    python benchmarks/serve.py --seconds 600 --sessions 8 --viewers 50 --out docs/results/serve.json

Starts ``nearstep serve`` in a process of its own. Each session is shown at the world's frame rate by one who steers (a
chunk is acknowledged when it would be shown) and changes its prompt every few seconds; the other viewers are spread
over the sessions and only watch. ``--pace made`` acknowledges at once: the machine is then the limit, and turns have to
be fair. It prints, and writes: chunks a second of each session, the slowest against the mean, times from a change to
its receipts, chunks that were skipped, and the server's memory over time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from websockets.asyncio.client import ClientConnection, connect

from nearstep.cli.text import note

PROMPTS = (
    "a large red apple slides left slowly on snow",
    "a small green frog drifts up quickly on a meadow",
    "a small yellow banana bounces sideways at night",
)
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Options:
    """How much load, and for how long."""

    seconds: float = 600
    sessions: int = 8
    viewers: int = 50
    """All connections: those who steer, and those who watch."""
    plan: str = "1"
    change_every: float = 5
    """Seconds between a session's changes of prompt."""
    pace: Literal["shown", "made"] = "shown"
    """Acknowledge a chunk when it would be shown, or at once."""
    undo: int | None = None
    """As for ``nearstep serve``."""
    model: str = "playground"
    out: Path | None = None


@dataclass
class Counts:
    """What one connection saw."""

    chunks: int = 0
    bytes: int = 0
    missed: int = 0
    """Chunks that were skipped."""
    accepted: list[float] = field(default_factory=list)
    """Seconds from a change to its first receipt."""
    applied: list[float] = field(default_factory=list)
    """To the second."""


@contextlib.contextmanager
def served(model: str, state: Path, *options: str) -> Iterator[tuple[int, str]]:
    """``nearstep serve`` in a process of its own: its number and its address."""
    command = [
        sys.executable,
        "-m",
        "nearstep.cli.main",
        "serve",
        model,
        "--port",
        "0",
        "--state",
        str(state),
        *options,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "http://" in line:
                break
        else:
            raise SystemExit("the server did not start")
        address = line.split("http://")[1].split("/")[0]
        threading.Thread(target=process.stderr.read, daemon=True).start()  # what it writes later is not kept
        yield process.pid, address
    finally:
        process.terminate()
        process.wait(30)


def opened(address: str, prompt: str, plan: str, seed: int) -> dict[str, Any]:
    """A new take."""
    body = json.dumps({"prompt": prompt, "plan": plan, "seed": seed}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://{address}/api/takes", body), timeout=60) as answer:
        return json.load(answer)


async def watch(address: str, path: str, options: Options, ends: float, *, steers: bool, seed: int) -> Counts:
    """One connection, until the time is over."""
    counts, draw, asked = Counts(), random.Random(seed), {}
    clock: float | None = None
    async with connect(f"ws://{address}/api/{path}/live", compression=None, max_size=2**24) as socket:
        changing = asyncio.create_task(_change(socket, asked, options, draw)) if steers else None
        newest, starts, fps = -1, {}, 1.0
        try:
            while (left := ends - time.monotonic()) > 0:
                try:
                    message = await asyncio.wait_for(socket.recv(), left)
                except TimeoutError:
                    break
                if isinstance(message, bytes):
                    chunk = int.from_bytes(message[8:12], "big")
                    counts.chunks, counts.bytes = counts.chunks + 1, counts.bytes + len(message)
                    counts.missed += max(0, chunk - newest - 1) if newest >= 0 else 0
                    newest = chunk
                    if clock is None:
                        clock = time.monotonic() - starts[chunk] / fps
                    due = clock + starts.pop(chunk) / fps if options.pace == "shown" else 0.0
                    asyncio.get_running_loop().create_task(_acknowledge(socket, chunk, due))
                    continue
                event = json.loads(message)
                if event["type"] == "hello":
                    fps = event["take"]["fps"]
                elif event["type"] == "chunk":
                    starts[event["index"]] = event["start"]
                elif event["type"] in ("accepted", "applied") and event["ref"] in asked:
                    getattr(counts, event["type"]).append(time.monotonic() - asked[event["ref"]])
        finally:
            if changing:
                changing.cancel()
    return counts


async def _acknowledge(socket: ClientConnection, chunk: int, due: float) -> None:
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    with contextlib.suppress(Exception):
        await socket.send(json.dumps({"type": "ack", "epoch": 0, "chunk": chunk}))


async def _change(socket: ClientConnection, asked: dict[str, float], options: Options, draw: random.Random) -> None:
    await asyncio.sleep(draw.random() * options.change_every)
    for number in range(10**6):
        ref = str(number)
        asked[ref] = time.monotonic()
        await socket.send(json.dumps({"type": "change", "ref": ref, "prompt": draw.choice(PROMPTS)}))
        await asyncio.sleep(options.change_every)


async def _memory(process: int, ends: float, every: float) -> list[tuple[float, float]]:
    """Seconds and MiB of the process, over time."""
    began, found = time.monotonic(), []
    while time.monotonic() < ends:
        found.append((round(time.monotonic() - began, 1), round(resident(process), 1)))
        await asyncio.sleep(min(every, max(0.01, ends - time.monotonic())))
    return found


def resident(process: int) -> float:
    """MiB that a process holds (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def quantile(values: list[float], share: float) -> float:
    """A quantile; nothing of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


async def load(process: int, address: str, options: Options) -> dict[str, Any]:
    """All of it at once."""
    takes = [opened(address, PROMPTS[n % len(PROMPTS)], options.plan, n) for n in range(options.sessions)]
    ends = time.monotonic() + options.seconds
    steering = [
        watch(address, f"takes/{take['id']}", options, ends, steers=True, seed=n) for n, take in enumerate(takes)
    ]
    watching = [
        watch(address, f"watch/{takes[n % len(takes)]['watch']}", options, ends, steers=False, seed=n)
        for n in range(max(0, options.viewers - options.sessions))
    ]
    memory = asyncio.create_task(_memory(process, ends, max(0.2, options.seconds / 60)))
    found = await asyncio.gather(*steering, *watching)
    own, others = found[: len(steering)], found[len(steering) :]
    rates = [counts.chunks / options.seconds for counts in own]
    accepted = [value for counts in own for value in counts.accepted]
    applied = [value for counts in own for value in counts.applied]
    course = await memory
    settled = [held for at, held in course if at >= options.seconds / 4] or [course[-1][1]]
    return {
        "options": {**asdict(options), "out": None},
        "chunks_a_second": [round(rate, 3) for rate in rates],
        "slowest_of_mean": round(min(rates) / (sum(rates) / len(rates)), 3),
        "changes": len(accepted),
        "accepted_seconds": {"median": quantile(accepted, 0.5), "p95": quantile(accepted, 0.95)},
        "applied_seconds": {"median": quantile(applied, 0.5), "p95": quantile(applied, 0.95)},
        "watchers_chunks": sum(counts.chunks for counts in others),
        "watchers_missed": sum(counts.missed for counts in others),
        "mib_sent": round(sum(counts.bytes for counts in found) / MIB, 1),
        "memory_mib": {"first": course[0][1], "after_a_quarter": settled[0], "last": settled[-1], "most": max(settled)},
        "memory_course": course,
    }


def main(options: Options) -> dict[str, Any]:
    """Start a server, load it, and say what came of it."""
    limits = ("--sessions", str(options.sessions), "--viewers", str(options.viewers))
    limits += () if options.undo is None else ("--undo", str(options.undo))
    with tempfile.TemporaryDirectory() as state, served(options.model, Path(state), *limits) as (process, address):
        found = asyncio.run(load(process, address, options))
    print(json.dumps({name: value for name, value in found.items() if name != "memory_course"}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        note(str(options.out))
    return found


if __name__ == "__main__":
    main(tyro.cli(Options))
