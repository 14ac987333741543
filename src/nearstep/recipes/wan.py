"""The complete runs for Wan2.1, from a bidirectional model folder to a few-step causal student (docs/wan.md).

Nothing here is another code path: the stages are the playground's, the sizes are in the model folder, and the same
command runs under torchrun on many GPUs. Rates are those that Self-Forcing published for a batch of 64.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nearstep.data.latents import LatentsConfig
from nearstep.data.prompts import PromptsConfig
from nearstep.models.folder import Settings
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.stages.causal import CausalConfig

_RUNS = Path("runs")
_BASE = Path("wan-1.3b")
"""What `nearstep convert Wan2.1-T2V-1.3B wan-1.3b` makes, or diffusers' folder of it."""
_SHIFT = 5.0
_GUIDANCE = 4.0
"""Self-Forcing's c + 3 (c - u), written u + w (c - u)."""
_LATENTS = LatentsConfig(folder=_RUNS / "wan-latents")
_PROMPTS = PromptsConfig(files=(Path("prompts.txt"),), frames=21, channels=16, height=60, width=104)
_CACHE = _RUNS / "wan-text"
_SETTINGS = Settings(num_frames=81, height=480, width=832, fps=16)
_CAUSAL_LOOP = LoopConfig(folder=_RUNS / "wan-forcing", steps=5_000, save_every=250, preview_every=1_000)


def forcing() -> CausalConfig:
    """Wan stage 1: the causal many-step network, by teacher forcing on prepared clips."""
    return CausalConfig(
        objective="forcing",
        loop=_CAUSAL_LOOP,
        optim=OptimConfig(lr=2e-5, warmup=200, betas=(0.9, 0.95), weight_decay=0.01, clip=10.0),
        model=_BASE,
        network="transformer",
        teacher="transformer",
        latents=_LATENTS,
        text_cache=_CACHE,
        batch=64,
        micro=1,
        shift=_SHIFT,
        guidance=_GUIDANCE,
        ema=0.99,
        autocast=True,
        checkpointing=True,
        settings=_SETTINGS,
    )


def consistency() -> CausalConfig:
    """Wan stage 2: the few-step initialisation, by causal consistency from the many-step network."""
    return replace(
        forcing(),
        objective="consistency",
        loop=replace(_CAUSAL_LOOP, folder=_RUNS / "wan-consistency", steps=2_000),
        optim=OptimConfig(lr=1e-5, warmup=100, betas=(0.9, 0.95), weight_decay=0.01, clip=10.0),
        model=_RUNS / "wan-forcing" / "model",
        teacher="teacher",
    )


def trajectory() -> CausalConfig:
    """Wan stages 1 and 2 in CausVid's way: regression on the teacher's ODE paths, made as it goes."""
    return replace(
        forcing(), objective="trajectory", loop=replace(_CAUSAL_LOOP, folder=_RUNS / "wan-trajectory", steps=3_000)
    )


def self_forcing() -> DistillConfig:
    """Wan stage 3 without an adversary: distribution matching alone, from prompts (Self Forcing)."""
    adam = OptimConfig(lr=2e-6, warmup=0, decay=0.0, betas=(0.0, 0.999), weight_decay=0.01, clip=10.0)
    return DistillConfig(
        loop=LoopConfig(folder=_RUNS / "wan-self-forcing", steps=600, log_every=1, save_every=25, preview_every=50),
        model=_RUNS / "wan-consistency" / "model",
        network="transformer",
        latents=_PROMPTS,
        text_cache=_CACHE,
        student=adam,
        assistant=replace(adam, lr=4e-7),
        discriminator=replace(adam, lr=8e-7),
        ratio=5,
        guidance=_GUIDANCE,
        batch=64,
        micro=1,
        shift=_SHIFT,
        ema=0.99,
        autocast=True,
        teacher_dtype="bfloat16",
        checkpointing=True,
        settings=_SETTINGS,
    )


def distill() -> DistillConfig:
    """Wan stage 3: adversarial self-distillation, one student for 1 to 4 steps a chunk, from prompts."""
    base = self_forcing()
    return replace(
        base,
        loop=replace(base.loop, folder=_RUNS / "wan-distill"),
        adversary=AdversaryConfig(gamma=2.0),
        warmup=60,
        adversary_delay=20,
    )


def distill_small() -> DistillConfig:
    """Wan stage 3 on one GPU: adapters (LoRA) for student and assistant, whose frozen weights are the teacher's."""
    base = distill()
    # Rates of LongLive's adapters, five times Self-Forcing's for whole networks (train/adapters.py names the file).
    return replace(
        base,
        loop=replace(base.loop, folder=_RUNS / "wan-distill-small"),
        lora_rank=64,
        student=replace(base.student, lr=1e-5, weight_decay=0.0),
        assistant=replace(base.assistant, lr=2e-6, weight_decay=0.0),
    )
