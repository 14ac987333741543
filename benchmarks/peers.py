"""The same work on our network and on what a user would pick instead, in one run: outputs compared, then times.

    python benchmarks/peers.py --self-forcing ../Self-Forcing      # a checkout of guandeh17/Self-Forcing
    python benchmarks/peers.py --size tiny                         # in seconds: that the script itself works

ours          one network call per step, commits fused into them ("fused") or calls of their own ("separate").
self-forcing  a published checkout's CausalWanModel and scheduler, called in the order of its pipeline. What a machine
              without flash-attn lacks is put in its place from outside: the checkout's own fallback, in float32.
anyflow       diffusers' AnyFlowFARPipeline over its causal transformer, latents out. "whole past" keeps every chunk at
              full resolution, as ours does; "released" compresses all but the newest, as the published models do: less
              work, other outputs. Neither takes a plan whose chunks differ in steps.
recompute     diffusers' WanTransformer3DModel with per-token times and no cache, all past frames in every call. It has
              no causal mask, so that its outputs are ours in the first chunk alone.

All have the same weights, text features, noise and times, in float32. Rounds go through everything in turn, so that
what else the machine does meets all alike; a ratio is one of medians, its interval a bootstrap over rounds.
"""

from __future__ import annotations

import importlib
import importlib.util
import json as jsons
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import tyro
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from torch import Tensor

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.evaluate.report import markdown
from nearstep.files import replacing
from nearstep.flow.path import noised, x0_from_velocity
from nearstep.flow.plan import ChunkPlan, make_plan
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.transformer import VideoTransformer
from nearstep.nets.wan import TICKS, to_official
from nearstep.rollout.chunk import Renoise
from nearstep.rollout.rollout import generate
from nearstep.stream.timing import machine, synchronise

SHIFT, SEED, RESAMPLES = 5.0, 7, 4000
BASE = ("ours, fused", "4")
"""What every other time is divided by."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is built and made."""

    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    text: tuple[int, int]
    """Tokens and their width."""
    chunk: int
    chunks: int
    grid: tuple[int, int]
    """Latent rows and columns."""
    even: tuple[int, int]
    """The same where AnyFlow's outputs are checked: its cached calls fill a chunk up to a multiple of 128 tokens with
    keys of zeros that it then attends, so that they equal anything only where a chunk is such a multiple."""

    @property
    def network(self) -> dict[str, Any]:
        """Arguments of a Wan transformer."""
        return dict(
            num_attention_heads=self.heads, attention_head_dim=self.head_dim, ffn_dim=self.ffn_dim,
            num_layers=self.layers, text_dim=self.text[1], freq_dim=256,
        )  # fmt: skip


SIZES = {
    "small": Size(
        heads=4, head_dim=64, ffn_dim=1536, layers=6, text=(512, 768), chunk=3, chunks=7, grid=(20, 32), even=(16, 32)
    ),
    "tiny": Size(heads=2, head_dim=24, ffn_dim=40, layers=2, text=(8, 24), chunk=2, chunks=3, grid=(8, 8), even=(16, 16)),
}  # fmt: skip


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
    threads: int = 1
    """Of torch."""
    device: str | None = None
    json: Path = Path("peers.json")


Run = Callable[[ChunkPlan], Tensor]
"""Plan -> latents [1, F, C, H, W], text work included."""


@dataclass(frozen=True)
class Given:
    """What all have in common."""

    size: Size
    grid: tuple[int, int]
    net: VideoTransformer
    text: Tensor
    device: torch.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent frame."""
        return (16, *self.grid)

    @property
    def tokens(self) -> int:
        """Of a frame."""
        return self.grid[0] * self.grid[1] // 4

    def noise(self, chunk: int, step: int) -> Tensor:
        """The noise that our rollout draws by these names."""
        shape = (self.size.chunk, *self.shape)
        return rng.noise(shape, seed=SEED, samples=[0], chunk=chunk, step=step, device=self.device)


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
                print(
                    f"{'ok ' if one['passed'] else 'NOT'} {one['error']:.1e} (allowed {one['allowed']:.0e}) {one['name']}"
                )
            seconds = measure(size, peers, options)
    except NearstepError as error:
        print(error, file=sys.stderr)
        return 2
    times = [told(key, seconds) for key in seconds]
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
        for one in with_calls(times, size)
    ]
    print(markdown(["", "plan", "calls", "seconds", f"times {BASE[0]}, {BASE[1]}"], rows), options.json, sep="\n")
    return int(not all(one["passed"] for one in checks))


def build(size: Size, grid: tuple[int, int], device: torch.device) -> Given:
    """Our network with random weights, of an output large enough that differences inside would show."""
    torch.manual_seed(0)
    net = VideoTransformer(**size.network, chunk_frames=size.chunk)
    torch.nn.init.normal_(net.proj_out.weight, std=net.proj_out.in_features**-0.5)
    net = net.to(device).eval().requires_grad_(False)
    return Given(size, grid, net, torch.randn(1, *size.text).to(device), device)


def plan_of(size: Size, text: str) -> ChunkPlan:
    """A plan of the whole clip."""
    return make_plan(text, frames=size.chunk * size.chunks, chunk_frames=size.chunk, shift=SHIFT)


# --- ours and the peers ------------------------------------------------------------------------------------------------


def make_peers(given: Given, options: Options) -> dict[str, Run]:
    """Everything that can run here, by name; what cannot is said."""
    peers: dict[str, Run] = {f"ours, {way}": ours(given, fused=way == "fused") for way in ("fused", "separate")}
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


def ours(given: Given, *, fused: bool, renoise: Renoise = "fresh") -> Run:
    """The rollout that training and pipeline use."""

    def run(plan: ChunkPlan) -> Tensor:
        denoiser = TextDenoiser(given.net, given.text)
        return generate(
            denoiser, plan, shape=given.shape, seed=SEED, samples=[0], device=given.device, fused=fused, renoise=renoise
        )

    return run


def self_forcing(given: Given, checkout: Path) -> Run:
    """The checkout's network and scheduler, in the order of its pipeline: all steps, then a commit, for every chunk.

    Its cache is allocated once and used again, as there. Differences from it: a schedule for each chunk, noise by name,
    and no more cache than the clip fills.
    """
    causal, scheduler = published(checkout)
    sizes, config = given.size, given.net.config
    net = causal.CausalWanModel(
        text_len=sizes.text[0], text_dim=sizes.text[1], dim=sizes.heads * sizes.head_dim, ffn_dim=sizes.ffn_dim,
        freq_dim=config["freq_dim"], num_heads=sizes.heads, num_layers=sizes.layers,
    )  # fmt: skip
    net.load_state_dict(to_official(given.net.state_dict()))
    net = net.to(given.device).eval().requires_grad_(False)
    net.num_frame_per_block = sizes.chunk
    slots = (1, sizes.chunk * sizes.chunks * given.tokens, sizes.heads, sizes.head_dim)
    cache = [{part: torch.zeros(slots, device=given.device) for part in "kv"} for _ in range(sizes.layers)]
    text_cache: list[dict[str, Any]] = [{} for _ in range(sizes.layers)]

    def call(x: Tensor, ticks: float, start: int) -> Tensor:
        t = torch.full(x.shape[:2], ticks, device=x.device)
        v = net(
            x.transpose(1, 2), t=t, context=given.text, seq_len=slots[1], kv_cache=cache, crossattn_cache=text_cache,
            current_start=start * given.tokens,
        ).transpose(1, 2)  # fmt: skip
        sigma = scheduler.sigmas[(scheduler.timesteps - ticks).abs().argmin()].double()
        return (x.double() - sigma * v.double()).to(x.dtype)

    def run(plan: ChunkPlan) -> Tensor:
        for block, text in zip(cache, text_cache, strict=True):
            text["is_init"] = False
            for end in ("global_end_index", "local_end_index"):
                block[end] = torch.zeros(1, dtype=torch.long, device=given.device)
        made: list[Tensor] = []
        for index, schedule in enumerate(plan.schedules):
            x, start = given.noise(index, 0), index * sizes.chunk
            for step, now in enumerate(schedule.times):
                x0 = call(x, now * TICKS, start)
                if step + 1 < len(schedule):
                    after = torch.full(x0.shape[1:2], schedule.times[step + 1] * TICKS, device=x0.device)
                    x = scheduler.add_noise(x0.flatten(0, 1), given.noise(index, step + 1).flatten(0, 1), after)
                    x = x.unflatten(0, x0.shape[:2])
            call(x0, 0.0, start)
            made.append(x0)
        return torch.cat(made, dim=1)

    return run


def published(checkout: Path) -> tuple[ModuleType, Any]:
    """A Self-Forcing checkout's causal network module, able to run here, and its scheduler."""
    files = ("wan/modules/causal_model.py", "wan/modules/attention.py", "utils/scheduler.py")
    if missing := [name for name in files if not (checkout / name).is_file()]:
        raise NearstepError(f"{checkout} is no checkout of guandeh17/Self-Forcing: {missing[0]} is missing there")
    for name in ("wan", "wan.modules"):  # without what their __init__ imports: text encoder, VAE, distributed
        package = ModuleType(name)
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = package
    causal, network, attention = (
        importlib.import_module(f"wan.modules.{n}") for n in ("causal_model", "model", "attention")
    )
    if not (attention.FLASH_ATTN_2_AVAILABLE or attention.FLASH_ATTN_3_AVAILABLE):
        fallback = partial(attention.attention, dtype=torch.float32)
        causal.attention = network.flash_attention = fallback  # pyright: ignore[reportAttributeAccessIssue]
    spec = importlib.util.spec_from_file_location("self_forcing_scheduler", checkout / files[2])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    scheduler = module.FlowMatchScheduler(shift=SHIFT, sigma_min=0.0, extra_one_step=True)
    scheduler.set_timesteps(1000, training=True)
    return causal, scheduler


def anyflow(given: Given, *, limit: int) -> Run:
    """Diffusers' pipeline. With target times equal to source times and one embedder for both, its network is Wan's."""
    net = AnyFlowFARTransformer3DModel(**given.size.network, full_chunk_limit=limit)
    own = ("far_patch_embedding.", "condition_embedder.delta_embedder.")
    missing, unexpected = net.load_state_dict(given.net.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(own) for name in missing), (missing, unexpected)
    embedder = net.condition_embedder
    embedder.delta_embedder.load_state_dict(embedder.time_embedder.state_dict())
    pipe = AnyFlowFARPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMapEulerDiscreteScheduler(shift=SHIFT),
        transformer=net.to(given.device).eval().requires_grad_(False),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)

    def run(plan: ChunkPlan) -> Tensor:
        steps = len(plan.schedules[0])
        noise = torch.cat([given.noise(chunk, 0) for chunk in range(len(plan.lengths))], dim=1)
        made = pipe(
            prompt_embeds=given.text, latents=noise.transpose(1, 2), height=8 * given.grid[0], width=8 * given.grid[1],
            num_frames=4 * plan.frames - 3, sigmas=[1 - k / steps for k in range(steps)], use_mean_velocity=False,
            chunk_partition=list(plan.lengths), output_type="latent", return_dict=False,
        )  # fmt: skip
        return made[0].transpose(1, 2)

    return run


def recompute(given: Given) -> Run:
    """Every call sees all clean frames so far, at t = 0, and the chunk; nothing is kept."""
    net = WanTransformer3DModel(**given.size.network)
    net.load_state_dict(given.net.state_dict())
    net = net.to(given.device).eval().requires_grad_(False)

    def run(plan: ChunkPlan) -> Tensor:
        past = given.noise(0, 0)[:, :0]
        for index, schedule in enumerate(plan.schedules):
            x = given.noise(index, 0)
            for step, now in enumerate(schedule.times):
                frames = torch.cat([past, x], dim=1)
                ticks = torch.zeros(1, frames.shape[1], device=x.device)
                ticks[:, past.shape[1] :] = now * TICKS
                v = net(
                    frames.transpose(1, 2), ticks.repeat_interleave(given.tokens, dim=1), given.text, return_dict=False
                )[0].transpose(1, 2)[:, past.shape[1] :]
                t = torch.full(x.shape[:2], now, device=x.device)
                x0 = x0_from_velocity(x, v, t)
                if step + 1 < len(schedule):
                    x = noised(x0, given.noise(index, step + 1), torch.full_like(t, schedule.times[step + 1]))
            past = torch.cat([past, x0], dim=1)
        return past

    return run


# --- outputs -----------------------------------------------------------------------------------------------------------


def compare(given: Given, peers: Mapping[str, Run], options: Options) -> list[dict[str, Any]]:
    """Largest difference from ours in the largest of ours, peer by peer."""
    size, checks, first = given.size, [], slice(0, given.size.chunk)
    for text in ("4", "4,1x"):
        plan = plan_of(size, text)
        expected = peers["ours, separate"](plan)
        checks.append(check(f"ours, fused = separate, plan {text}", peers["ours, fused"](plan), expected, 1e-5))
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


# --- times -------------------------------------------------------------------------------------------------------------

Key = tuple[str, str]
"""(peer, plan)."""


def measure(size: Size, peers: Mapping[str, Run], options: Options) -> dict[Key, list[float]]:
    """Seconds of every peer and plan, round by round; each has run once before."""
    seconds: dict[Key, list[float]] = {key: [] for key in keys(peers, options.plans)}
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
    own, base = (torch.tensor(seconds[one], dtype=torch.float64) for one in (key, BASE))
    draw = torch.Generator().manual_seed(0)
    rounds = torch.randint(len(own), (RESAMPLES, len(own)), generator=draw)
    again = own[rounds].quantile(0.5, dim=1) / base[rounds].quantile(0.5, dim=1)
    low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    median = float(own.quantile(0.5))
    ratio = median / float(base.quantile(0.5))
    return {"peer": key[0], "plan": key[1], "seconds": own.tolist(), "median": median, "ratio": [ratio, low, high]}


def with_calls(times: Sequence[dict[str, Any]], size: Size) -> list[dict[str, Any]]:
    """The rows with network calls: steps, and commits where they are calls."""
    rows = []
    for one in times:
        plan, peer = plan_of(size, one["plan"]), one["peer"]
        commits = {"ours, fused": 0, "recompute": 0, "self-forcing": len(plan.lengths)}.get(peer, plan.commits)
        rows.append({**one, "calls": plan.steps + commits})
    return rows


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
