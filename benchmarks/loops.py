"""The loops that peers.py compares: ours, and others' networks with our weights, noise and times."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from torch import Tensor, nn

from nearstep import rng
from nearstep.errors import NearstepError
from nearstep.flow.path import noised, x0_from_velocity
from nearstep.flow.plan import ChunkPlan
from nearstep.models.wan import to_official
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.transformer import TICKS, VideoTransformer
from nearstep.rollout.chunk import Renoise
from nearstep.rollout.rollout import generate

SHIFT, SEED = 5.0, 7
RESAMPLES = 4000


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
    "playground": Size(
        heads=8, head_dim=32, ffn_dim=640, layers=4, text=(32, 128), chunk=1, chunks=9, grid=(12, 12), even=(16, 16)
    ),
    "tiny": Size(
        heads=2, head_dim=24, ffn_dim=40, layers=2, text=(8, 24), chunk=2, chunks=3, grid=(8, 8), even=(16, 16)
    ),
}  # fmt: skip

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


def build(size: Size, grid: tuple[int, int], device: torch.device) -> Given:
    """Our network with random weights, of an output large enough that differences inside would show."""
    torch.manual_seed(0)
    net = VideoTransformer(**size.network, chunk_frames=size.chunk)
    torch.nn.init.normal_(net.proj_out.weight, std=net.proj_out.in_features**-0.5)
    settle(net, device)
    return Given(size, grid, net, torch.randn(1, *size.text).to(device), device)


def settle(net: nn.Module, device: torch.device) -> None:
    """Ready to be called."""
    net.to(device).eval().requires_grad_(False)


def ratio(own: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians of times that were taken in turn, and its 95 % interval: a bootstrap over rounds."""
    a, b = (torch.tensor(times, dtype=torch.float64) for times in (own, base))
    draw = torch.Generator().manual_seed(0)
    rounds = torch.randint(len(a), (RESAMPLES, len(a)), generator=draw)
    again = a[rounds].quantile(0.5, dim=1) / b[rounds].quantile(0.5, dim=1)
    low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(a.quantile(0.5) / b.quantile(0.5)), low, high


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
    settle(net, given.device)
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
    # Its fallback leaves bfloat16 behind, which float32 weights do not take; its cross-attention never asks for one.
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
    settle(net, given.device)
    unused: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    pipe = AnyFlowFARPipeline(scheduler=FlowMapEulerDiscreteScheduler(shift=SHIFT), transformer=net, **unused)
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
    settle(net, given.device)

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
