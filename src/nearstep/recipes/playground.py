"""The playground's runs, in order; each starts from the result of the one before, and any can be resumed.

nearstep train playground.codec
nearstep train playground.teacher
nearstep train playground.forcing
nearstep train playground.consistency
nearstep train playground.distill

Rivals of the last, each a run of its own from the same student: ``self_forcing`` (and retrained for exactly 1 or 2
steps), ``causvid``, ``one_forcing``. Consistency alone is the third run's result.

For streams whose objects keep moving: ``stream_forcing``, then ``stream_student``, from what is in the package.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nearstep.data.latents import LatentsConfig
from nearstep.models.folder import EMBEDDED, ModelFolder, Settings
from nearstep.playground import PLAYGROUND
from nearstep.playground.train_features import FeaturesConfig
from nearstep.protocols import World
from nearstep.recipes.rivals import rival
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.phases import Phase
from nearstep.train.stages.causal import CausalConfig
from nearstep.train.stages.codec import CodecConfig, CodecSize
from nearstep.train.stages.graft import GraftConfig
from nearstep.train.stages.teacher import NetworkSize, TeacherConfig
from nearstep.train.stages.text import TextSize

_RUNS = Path("runs")
_LATENTS = LatentsConfig(folder=_RUNS / "latents", clips=12_288, world=PLAYGROUND)
_FEW_LATENTS = replace(_LATENTS, clips=4_096)
_WINDOW = 9
"""Latent frames of a clip of the world."""
_LONG_LATENTS = LatentsConfig(folder=_RUNS / "long-latents", clips=1_536, world=PLAYGROUND, frames=69)
_SHIFT = 3.0


def settings_of(world: World) -> Settings:
    """What a model of a world's clips is made for."""
    return Settings(
        fps=world.fps,
        num_frames=world.frames,
        height=world.size,
        width=world.size,
        default_plan="4",
        teacher_plan="20",
        guidance_scale=2.0,
    )


_SETTINGS = settings_of(PLAYGROUND)


def codec() -> CodecConfig:
    """Stage 1: the codec, from nothing (25 minutes on 2 cores)."""
    return CodecConfig(
        loop=LoopConfig(folder=_RUNS / "codec", steps=3700),
        optim=OptimConfig(lr=2e-3, warmup=20, decay=0.35, muon=True),
        phases=(
            Phase(500, 1, 48, 32),
            Phase(700, 5, 10, 32),
            Phase(600, 13, 4, 32),
            Phase(400, 33, 2, 32),
            Phase(1100, 17, 4, 32),
            Phase(400, 33, 1),
        ),
        world=PLAYGROUND,
        size=CodecSize(
            base_dim=32,
            decoder_base_dim=32,
            z_dim=8,
            dim_mult=(1, 2, 2),
            num_res_blocks=1,
            temperal_downsample=(True, True),
            patch_size=2,
        ),
    )


def teacher() -> TeacherConfig:
    """Stage 2: text encoder and bidirectional teacher; encodes the clips first."""
    return TeacherConfig(
        loop=LoopConfig(folder=_RUNS / "teacher", steps=11_000),
        optim=OptimConfig(lr=2e-3, warmup=200, muon=True, weight_decay=0.01),
        phases=(Phase(2_000, 1, 224), Phase(3_000, 9, 128), Phase(6_000, 33, 40)),
        network=NetworkSize(num_attention_heads=5, attention_head_dim=32, ffn_dim=480, num_layers=5),
        text=TextSize(d_model=96, d_kv=24, d_ff=192, num_heads=4, num_layers=2, length=24),
        codec=_RUNS / "codec" / "model" / "vae",
        latents=_LATENTS,
        shift=_SHIFT,
        settings=_SETTINGS,
    )


def forcing() -> CausalConfig:
    """Stage 3a: the causal many-step network, by teacher forcing from the teacher's weights."""
    return CausalConfig(
        objective="forcing",
        loop=LoopConfig(folder=_RUNS / "forcing", steps=3_000),
        optim=OptimConfig(lr=1e-3, warmup=100, muon=True, weight_decay=0.01),
        model=_RUNS / "teacher" / "model",
        network="teacher",
        latents=_LATENTS,
        shift=_SHIFT,
        settings=_SETTINGS,
    )


def features() -> FeaturesConfig:
    """The feature network of the Fréchet distance (two minutes)."""
    return FeaturesConfig(path=_RUNS / "features" / "features.safetensors")


def trajectory() -> CausalConfig:
    """Stage 3, CausVid's way, to compare with: regression on the teacher's ODE paths."""
    return replace(
        forcing(),
        objective="trajectory",
        loop=LoopConfig(folder=_RUNS / "trajectory", steps=1_500),
        optim=OptimConfig(lr=3e-4, warmup=50, muon=True),
    )


def consistency() -> CausalConfig:
    """Stage 3b: the few-step student, by causal consistency from the causal many-step network."""
    return CausalConfig(
        objective="consistency",
        loop=LoopConfig(folder=_RUNS / "consistency", steps=1_500),
        optim=OptimConfig(lr=3e-4, warmup=50, muon=True),
        model=_RUNS / "forcing" / "model",
        network="transformer",
        latents=_LATENTS,
        shift=_SHIFT,
        ema=0.99,
        settings=_SETTINGS,
    )


def self_forcing() -> DistillConfig:
    """Distribution matching alone, n drawn from 1 to 4 (Self Forcing)."""
    return DistillConfig(
        loop=LoopConfig(folder=_RUNS / "self_forcing", steps=200, log_every=5, save_every=25, preview_every=50),
        model=ModelFolder.open(EMBEDDED).path,
        network="causal",
        latents=_FEW_LATENTS,
        student=OptimConfig(lr=2e-4, warmup=10, decay=0.0, betas=(0.0, 0.99)),
        assistant=OptimConfig(lr=3e-4, warmup=10, decay=0.0, betas=(0.0, 0.99)),
        discriminator=OptimConfig(lr=1e-3, warmup=10, decay=0.0, betas=(0.0, 0.99)),
        ratio=3,
        guidance=1.5,
        shift=_SHIFT,
        settings=_SETTINGS,
    )


def distill() -> DistillConfig:
    """Adversarial self-distillation: one student for 1 to 4 steps, half of its updates at one step."""
    return rival(self_forcing(), "distill")


def distill_1() -> DistillConfig:
    """Adversarial self-distillation with every update at one step, against the student's own two steps."""
    return rival(self_forcing(), "distill_1")


def self_forcing_1() -> DistillConfig:
    """Self Forcing retrained for exactly one step."""
    return rival(self_forcing(), "self_forcing_1")


def self_forcing_2() -> DistillConfig:
    """Self Forcing retrained for exactly two steps: on their own list, whose two times are trained in turn."""
    return rival(self_forcing(), "self_forcing_2")


def causvid() -> DistillConfig:
    """Distribution matching without rollouts: samples are made from noised clips (CausVid)."""
    return rival(self_forcing(), "causvid")


def one_forcing() -> DistillConfig:
    """An adversary against clips in place of adjacent steps (One-Forcing, DMD2)."""
    return rival(self_forcing(), "one_forcing")


def stream_forcing() -> CausalConfig:
    """For streams 1: the causal many-step network goes on with clips twice as long as the window it is to see."""
    return replace(
        forcing(),
        loop=LoopConfig(folder=_RUNS / "stream_forcing", steps=800),
        optim=OptimConfig(lr=6e-4, warmup=20, muon=True, weight_decay=0.01),
        model=ModelFolder.open(EMBEDDED).path,
        network="causal",
        latents=_LONG_LATENTS,
        window_frames=_WINDOW,
        batch=8,
        ema=0.985,
    )


def stream_student() -> GraftConfig:
    """For streams 2: what ``stream_forcing`` learnt, given to the shipped student (seconds)."""
    recipe = stream_forcing()
    return GraftConfig(
        folder=_RUNS / "stream_student",
        model=recipe.model,
        before=recipe.network,
        after=recipe.loop.folder / "model" / "transformer",
        shift=_SHIFT,
        settings=_SETTINGS,
    )
