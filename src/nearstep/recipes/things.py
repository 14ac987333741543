"""The world of things: its runs, in order; each starts from the result of the one before, and any can be resumed.

nearstep train things.codec
nearstep train things.decoder
nearstep train things.text
nearstep train things.teacher
nearstep train things.forcing
nearstep train things.stream_forcing
nearstep train things.self_forcing
nearstep train things.distill

The last but one is distribution matching alone, from which a student's margin over one step is seen before anything
longer; the last starts where that one does.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

from nearstep.data.latents import LatentsConfig
from nearstep.recipes import playground
from nearstep.recipes.rivals import rival
from nearstep.things import THINGS_WORLD
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.lessons import Lesson
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.phases import Phase
from nearstep.train.stages.causal import CausalConfig
from nearstep.train.stages.codec import CodecConfig, CodecSize
from nearstep.train.stages.teacher import NetworkSize, TeacherConfig
from nearstep.train.stages.text import TextConfig, TextSize

_RUNS = Path("runs")
CODEC = Path(str(resources.files("nearstep"))) / "assets" / "things" / "vae"
"""The codec of this world that the package holds: what comes after it can begin here. Made by ``things.codec`` in 2,300
steps without ``coarse`` and another 1,160 with it."""
_LATENTS = LatentsConfig(folder=_RUNS / "latents", clips=12_288, world=THINGS_WORLD)
_WINDOW = 9
"""Latent frames of a clip of the world."""
_LONG = replace(_LATENTS, folder=_RUNS / "long", clips=1_024, frames=69)
_STORIES = tuple(
    Lesson(latents=replace(_LATENTS, folder=_RUNS / f"stories_{change}", clips=3_072, changes=(change,)))
    for change in (3, 6)
)
_STREAMS = (
    *_STORIES,
    Lesson(latents=replace(_LATENTS, folder=_RUNS / "from_pictures", clips=2_048, frames=37), first_chunk=1),
    Lesson(latents=_LONG),
    Lesson(latents=replace(_LONG, folder=_RUNS / "long_stories", changes=(_WINDOW,))),
)
"""What a stream is asked for beside clips: to change, to go on from a picture, and to go on."""
_PICTURES = replace(_LATENTS, folder=_RUNS / "pictures", clips=32_768, frames=1)
_MANY_PICTURES = Lesson(latents=_PICTURES, batch=96)
TEXT = TextSize(d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2, length=32)
_SETTINGS = playground.settings_of(THINGS_WORLD)


def codec() -> CodecConfig:
    """Stage 1: the codec, from nothing."""
    return CodecConfig(
        loop=LoopConfig(folder=_RUNS / "codec", steps=2_300, save_every=100, preview_every=250),
        optim=OptimConfig(lr=4e-3, warmup=20, decay=0.6, muon=True),
        phases=(
            Phase(500, 1, 40, 32),
            Phase(700, 9, 6, 32),
            Phase(1_000, 17, 4, 32),
            Phase(100, 33, 2),
        ),
        size=CodecSize(
            base_dim=24,
            decoder_base_dim=16,
            z_dim=8,
            dim_mult=(1, 2, 2),
            num_res_blocks=1,
            temperal_downsample=(True, True),
            patch_size=1,  # four pixels a latent along each side: at eight, things of 16 to 25 pixels stay soft
        ),
        world=THINGS_WORLD,
        first_weight=2.0,
        foreground_weight=4.0,
        coarse=1.0,
    )


def decoder() -> CodecConfig:
    """The codec's decoder goes on by itself; latents, and whatever learns from them, need not wait for it."""
    base = codec()
    return replace(
        base,
        loop=replace(base.loop, folder=_RUNS / "decoder", steps=3_000),
        optim=replace(base.optim, lr=2e-3),
        start=CODEC,
        coarse=0.0,  # of no use to latents that stay as they are
        phases=(Phase(2_600, 17, 4, 32), Phase(400, 33, 1)),
    )


def text() -> TextConfig:
    """The text encoder by itself: captions that say the same lie near each other (two minutes)."""
    return TextConfig(
        loop=LoopConfig(folder=_RUNS / "text", steps=100, save_every=100, preview_every=100),
        optim=OptimConfig(lr=2e-3, warmup=10, decay=0.9),
        text=TEXT,
        world=THINGS_WORLD,
    )


def teacher() -> TeacherConfig:
    """Stage 2: the bidirectional teacher; the text encoder stays as it has learnt. Encodes the clips first."""
    return replace(
        playground.teacher(),
        loop=LoopConfig(folder=_RUNS / "teacher", steps=10_000),
        optim=OptimConfig(lr=3e-3, warmup=200, muon=True, weight_decay=0.01),
        phases=(Phase(3_000, 1, 40, draws=4), Phase(1_000, 9, 24, draws=3), Phase(6_000, 33, 12, draws=2)),
        # Tokens of 8 pixels: of 16, each held as many numbers of latents as half its width, and learning levelled off.
        network=NetworkSize(
            num_attention_heads=8, attention_head_dim=32, ffn_dim=640, num_layers=4, patch_size=(1, 2, 2)
        ),
        codec=CODEC,
        text=TEXT,
        words=_RUNS / "text" / "model",
        text_learns=False,
        given=0.5,
        latents=_LATENTS,
        pictures=_PICTURES,
        lessons=_STORIES,
        compile=True,
        settings=_SETTINGS,
    )


def forcing() -> CausalConfig:
    """Stage 3: the causal many-step network, by teacher forcing from the teacher's weights, a frame at a time.

    What a frame shows follows from those before it but for little, and that little is what the caption says of motion:
    this is learnt in minutes where a clip as a whole takes hours (docs/training.md). The first frame is a picture, so
    every second step learns from many of those.
    """
    return replace(
        playground.forcing(),
        loop=LoopConfig(folder=_RUNS / "forcing", steps=1_500),
        optim=OptimConfig(lr=1e-3, warmup=30, decay=0.7, muon=True, weight_decay=0.01),
        latents=_LATENTS,
        lessons=(_MANY_PICTURES,),
        lesson_every=2,
        chunk_frames=1,
        window_frames=_WINDOW,
        batch=12,
        ema=0.98,
        compile=True,
        settings=_SETTINGS,
    )


def stream_forcing() -> CausalConfig:
    """For streams: the causal many-step network goes on with all that a stream is asked for."""
    return replace(
        forcing(),
        loop=LoopConfig(folder=_RUNS / "stream_forcing", steps=1_500),
        model=_RUNS / "forcing" / "model",
        network="transformer",
        lessons=(_MANY_PICTURES, *_STREAMS),
    )


def self_forcing() -> DistillConfig:
    """Distribution matching alone, n drawn from 1 to 4 (Self Forcing), with the causal many-step network as teacher.

    That one is far better than the bidirectional one (docs/training.md).
    """
    base = playground.self_forcing()
    return replace(
        base,
        loop=replace(base.loop, steps=400, preview_every=100),
        student=replace(base.student, lr=3e-4),
        assistant=replace(base.assistant, lr=4.5e-4),
        model=_RUNS / "forcing" / "model",
        network="transformer",
        teacher="transformer",
        latents=replace(_LATENTS, clips=4_096),
        lessons=(replace(_MANY_PICTURES, batch=48),),
        lesson_every=2,
        batch=8,
        chunk_frames=1,
        settings=_SETTINGS,
    )


def distill() -> DistillConfig:
    """Adversarial self-distillation: one student for 1 to 4 steps, half of its updates at one step."""
    return rival(self_forcing(), "distill")
