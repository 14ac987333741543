"""The same work on our network and on what a user would pick instead, in one run: outputs compared, then times.

    python benchmarks/peers.py --self-forcing ../Self-Forcing      # a checkout of guandeh17/Self-Forcing
    python benchmarks/peers.py --size tiny                         # in seconds: that the script itself works

ours          one network call per step, commits fused into them ("fused") or calls of their own ("separate");
              with --compile also fused with its blocks compiled ("compiled").
self-forcing  a published checkout's CausalWanModel and scheduler, called in the order of its pipeline. What a machine
              without flash-attn lacks is put in its place from outside: the checkout's own fallback, in float32.
anyflow       diffusers' AnyFlowFARPipeline over its causal transformer, latents out. "whole past" keeps every chunk at
              full resolution, as ours does; "released" compresses all but the newest, as the published models do: less
              work, other outputs. Neither takes a plan whose chunks differ in steps, and both use flex attention
              uncompiled, as the pipeline does by itself.
recompute     diffusers' WanTransformer3DModel with per-token times and no cache, all past frames in every call. It has
              no causal mask, so that its outputs are ours in the first chunk alone.

All have the same weights, text features, noise and times, in float32. Rounds go through everything in turn, so that
what else the machine does meets all alike; a ratio is one of medians, its interval a bootstrap over rounds.
"""

from __future__ import annotations

import copy
import json as jsons
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from loops import SHIFT, SIZES, Given, Run, Size, anyflow, build, ours, ratio, recompute, self_forcing
from torch import Tensor

from nearstep.cost.clock import machine, synchronise
from nearstep.errors import NearstepError
from nearstep.evaluate.tables import markdown
from nearstep.files import replacing
from nearstep.flow.plan import ChunkPlan, make_plan
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.denoiser import fuses

BASE = ("ours, fused", "4")
"""What every other time is divided by."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    size: Literal["small", "tiny"] = "small"
    self_forcing: Path | None = None
    """A checkout of guandeh17/Self-Forcing; left out without one."""
    plans: tuple[str, ...] = ("4", "4,2x", "4,1x", "1")
    """Of ours; every peer runs those of "4" and "4,1x" among them that it can."""
    rounds: int = 5
    skip: tuple[Literal["anyflow", "recompute"], ...] = ()
    compile: bool = False
    """Also ours with its blocks compiled, which takes minutes first. No peer is."""
    threads: int = 1
    """Of torch."""
    device: str | None = None
    json: Path = Path("peers.json")


def main(options: Options) -> int:
    """Check, measure, write, and say where; 1 where outputs differ, 2 where the checkout is none."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = SIZES[options.size]
    given = build(size, size.grid, device)
    try:
        with torch.inference_mode():
            peers = make_peers(given, options)
            checks = compare(given, peers, options)
            for one in checks:
                verdict = "ok " if one["passed"] else "NOT"
                print(f"{verdict} {one['error']:.1e} (allowed {one['allowed']:.0e}) {one['name']}", flush=True)
            seconds = measure(size, peers, options, device)
    except NearstepError as error:
        print(error, file=sys.stderr)
        return 2
    times = [{**told(key, seconds), "calls": calls(given, *key)} for key in seconds]
    found = {
        "machine": machine(device),
        "size": {"name": options.size, **asdict(size)},
        "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "rounds": options.rounds,
        "checks": checks,
        "times": times,
    }
    with replacing(options.json) as part:
        part.write_text(jsons.dumps(found, indent=2) + "\n")
    rows = [
        [
            one["peer"],
            one["plan"],
            one["calls"],
            f"{one['median']:.3f}",
            "{:.2f} [{:.2f}, {:.2f}]".format(*one["ratio"]),
        ]
        for one in times
    ]
    print(markdown(["", "plan", "calls", "seconds", f"times {BASE[0]}, {BASE[1]}"], rows), options.json, sep="\n")
    return int(not all(one["passed"] for one in checks))


def plan_of(size: Size, text: str) -> ChunkPlan:
    """A plan of the whole clip."""
    return make_plan(text, frames=size.chunk * size.chunks, chunk_frames=size.chunk, shift=SHIFT)


def make_peers(given: Given, options: Options) -> dict[str, Run]:
    """Everything that can run here, by name; what cannot is said."""
    peers: dict[str, Run] = {f"ours, {way}": ours(given, fused=way == "fused") for way in ("fused", "separate")}
    if options.compile:
        net = copy.deepcopy(given.net)
        compile_blocks(net)
        peers["ours, compiled"] = ours(replace(given, net=net), fused=True)
    if options.self_forcing is None:
        print("self-forcing is left out: name a checkout of guandeh17/Self-Forcing with --self-forcing")
    else:
        peers["self-forcing"] = self_forcing(given, options.self_forcing)
    if "anyflow" not in options.skip:
        peers["anyflow, whole past"] = anyflow(given, limit=given.size.chunks + 1)
        peers["anyflow, released"] = anyflow(given, limit=3)
    if "recompute" not in options.skip:
        peers["recompute"] = recompute(given)
    return peers


# --- outputs ---------------------------------------------------------------------------------------------------------


def compare(given: Given, peers: Mapping[str, Run], options: Options) -> list[dict[str, Any]]:
    """Largest difference from ours in the largest of ours, peer by peer."""
    size, checks, first = given.size, [], slice(0, given.size.chunk)
    for text in ("4", "4,1x"):
        plan = plan_of(size, text)
        expected = peers["ours, separate"](plan)
        checks.append(check(f"ours, fused = separate, plan {text}", peers["ours, fused"](plan), expected, 1e-5))
        if "ours, compiled" in peers:
            checks.append(check(f"ours, compiled, plan {text}", peers["ours, compiled"](plan), expected, 1e-4))
        if "self-forcing" in peers:
            checks.append(check(f"self-forcing, plan {text}", peers["self-forcing"](plan), expected, 1e-5))
    if "recompute" in peers:
        plan = make_plan("4", frames=size.chunk, chunk_frames=size.chunk, shift=SHIFT)
        made, expected = (peers[name](plan) for name in ("recompute", "ours, separate"))
        checks.append(check("recompute, first chunk, plan 4", made[:, first], expected, 1e-5))
    if "anyflow" not in options.skip:
        even = build(size, size.even, given.device)
        made = anyflow(even, limit=size.chunks + 1)(plan_of(size, "4"))
        expected = ours(even, fused=False, renoise="implied")(plan_of(size, "4"))
        rows, columns = size.even
        checks.append(check(f"anyflow, whole past, plan 4 of Euler steps, at {rows} x {columns}", made, expected, 1e-5))
    return checks


def check(name: str, made: Tensor, expected: Tensor, allowed: float) -> dict[str, Any]:
    """Whether the largest difference, in the largest value expected, is allowed."""
    error = float((made - expected).abs().max() / expected.abs().max())
    return {"name": name, "error": error, "allowed": allowed, "passed": error <= allowed}


# --- times -----------------------------------------------------------------------------------------------------------

Key = tuple[str, str]
"""(peer, plan)."""


def measure(size: Size, peers: Mapping[str, Run], options: Options, device: torch.device) -> dict[Key, list[float]]:
    """Seconds of every peer and plan, round by round; all but AnyFlow at this size have run before."""
    seconds: dict[Key, list[float]] = {key: [] for key in keys(peers, options.plans)}
    for number in range(options.rounds):
        for name, text in seconds:
            synchronise(device)
            began = time.perf_counter()
            peers[name](plan_of(size, text))
            synchronise(device)
            seconds[name, text].append(time.perf_counter() - began)
        print(f"round {number + 1} of {options.rounds}", flush=True)
    return seconds


def keys(peers: Mapping[str, Run], plans: Sequence[str]) -> list[Key]:
    """What is timed: ours at every plan, a peer at those of two that it can run."""
    pairs = [BASE]
    for name in peers:
        can = plans if name.startswith("ours") else [p for p in ("4", "4,1x") if p in plans]
        pairs += [(name, text) for text in can if text == "4" or not name.startswith("anyflow")]
    return list(dict.fromkeys(pairs))


def told(key: Key, seconds: Mapping[Key, Sequence[float]]) -> dict[str, Any]:
    """One row: every time, the median, and the ratio of medians to the base's with its 95 % interval."""
    own = seconds[key]
    row = {"peer": key[0], "plan": key[1], "seconds": [*own], "median": statistics.median(own)}
    return {**row, "ratio": ratio(own, seconds[BASE])}


def calls(given: Given, peer: str, text: str) -> int:
    """Network calls: steps, and commits where they are calls."""
    plan = plan_of(given.size, text)
    own = 0 if fuses(given.size.chunk * given.tokens, given.device) else plan.commits
    commits = {"ours, fused": own, "ours, compiled": own, "recompute": 0, "self-forcing": len(plan.lengths)}
    return plan.steps + commits.get(peer, plan.commits)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
