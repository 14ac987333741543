"""The playground's runs, in order; any can be resumed.

nearstep train playground.codec
nearstep train playground.decoder
nearstep train playground.text
nearstep train playground.teacher
nearstep train playground.forcing
nearstep train playground.stream_forcing
nearstep train playground.distill

Decoder and teacher take the codec in the package, the last one its many-step network; docs/training.md says how each
takes that of the run before it. Rivals of the last one, each a run of its own: ``self_forcing`` (and retrained for
exactly 1 or 2 steps), ``causvid``, ``one_forcing``. Other ways from a many-step network to a few-step one, without
rollouts, are ``trajectory`` and ``consistency``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nearstep.data.latents import LatentsConfig
from nearstep.flow.plan import GRID
from nearstep.models.folder import EMBEDDED, ModelFolder, Settings
from nearstep.playground import PLAYGROUND
from nearstep.protocols import World
from nearstep.recipes.rivals import rival
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
CODEC = ModelFolder.open(EMBEDDED).path / "vae"
"""The codec that the package holds: what comes after it can begin here. Made by ``codec`` in 2,300 steps without
``coarse`` and another 1,160 with it."""
_LATENTS = LatentsConfig(folder=_RUNS / "latents", clips=12_288, world=PLAYGROUND)
_FEW_LATENTS = replace(_LATENTS, clips=4_096)
_WINDOW = 9
"""Latent frames of a clip of the world."""
_LONG = replace(_LATENTS, folder=_RUNS / "long", clips=384, frames=69)
_LONG_STORIES = replace(_LONG, folder=_RUNS / "long_stories", changes=(_WINDOW,))
_STORIES = tuple(
    replace(_LATENTS, folder=_RUNS / f"stories_{change}", clips=768, changes=(change,)) for change in (3, 6)
)
_PICTURES = replace(_LATENTS, folder=_RUNS / "pictures", clips=32_768, frames=1)
_MANY_PICTURES = Lesson(latents=_PICTURES, batch=96)
TEXT = TextSize(d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=2, length=32)
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
        guidance_scale=1.5,
        recommit=False,  # stories are among the lessons
    )


_SETTINGS = settings_of(PLAYGROUND)


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
        world=PLAYGROUND,
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
        world=PLAYGROUND,
    )


def teacher() -> TeacherConfig:
    """Stage 2: the bidirectional teacher; the text encoder stays as it has learnt. Encodes the clips first."""
    return TeacherConfig(
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
        lessons=tuple(Lesson(latents=replace(stories, clips=3_072)) for stories in _STORIES),
        shift=_SHIFT,
        settings=_SETTINGS,
    )


def forcing() -> CausalConfig:
    """Stage 3: the causal many-step network, by teacher forcing from the teacher's weights, a frame at a time.

    What a frame shows follows from those before it but for little, and that little is what the caption says of motion:
    this is learnt in minutes where a clip as a whole takes hours (docs/training.md). The first frame is a picture, so
    every second step learns from many of those.
    """
    return CausalConfig(
        objective="forcing",
        loop=LoopConfig(folder=_RUNS / "forcing", steps=1_500),
        optim=OptimConfig(lr=1e-3, warmup=30, decay=0.7, muon=True, weight_decay=0.01),
        model=_RUNS / "teacher" / "model",
        network="teacher",
        latents=_LATENTS,
        lessons=(_MANY_PICTURES,),
        lesson_every=2,
        chunk_frames=1,
        window_frames=_WINDOW,
        batch=12,
        shift=_SHIFT,
        ema=0.98,
        settings=_SETTINGS,
    )


def stream_forcing() -> CausalConfig:
    """For streams: the causal many-step network goes on with what they are asked for, to change and to go on."""
    base = forcing()
    return replace(
        base,
        loop=LoopConfig(folder=_RUNS / "stream_forcing", steps=400),
        optim=replace(base.optim, lr=7e-4, warmup=20),
        model=base.loop.folder / "model",
        network="transformer",
        lessons=_among_pictures(_MANY_PICTURES, _streams(base.batch)),
    )


def trajectory() -> CausalConfig:
    """Stage 3, CausVid's way, to compare with: regression on the teacher's ODE paths."""
    return replace(
        forcing(),
        objective="trajectory",
        loop=LoopConfig(folder=_RUNS / "trajectory", steps=1_500),
        optim=OptimConfig(lr=3e-4, warmup=50, muon=True),
    )


def consistency() -> CausalConfig:
    """A few-step student by causal consistency from the causal many-step network, without rollouts."""
    return replace(
        forcing(),
        objective="consistency",
        loop=LoopConfig(folder=_RUNS / "consistency", steps=1_500),
        optim=OptimConfig(lr=3e-4, warmup=50, muon=True),
        model=ModelFolder.open(EMBEDDED).path,
        network="causal",
        guidance=1.5,
    )


def self_forcing() -> DistillConfig:
    """Distribution matching alone, n drawn from 1 to 4 (Self Forcing), with the causal many-step network as teacher.

    That one is far better than the bidirectional one (docs/training.md).
    """
    return DistillConfig(
        loop=LoopConfig(folder=_RUNS / "self_forcing", steps=400, log_every=5, save_every=25, preview_every=100),
        model=ModelFolder.open(EMBEDDED).path,
        network="causal",
        teacher="causal",
        latents=_FEW_LATENTS,
        lessons=(Lesson(latents=replace(_PICTURES, clips=16_384), batch=48),),
        lesson_every=2,
        batch=8,
        chunk_frames=1,
        student=OptimConfig(lr=3e-4, warmup=10, decay=0.0, betas=(0.0, 0.99)),
        assistant=OptimConfig(lr=4.5e-4, warmup=10, decay=0.0, betas=(0.0, 0.99)),
        # Updates with a penalty have gradients some times as long as the others'; clipped to 1, all would weigh alike.
        discriminator=OptimConfig(lr=1e-3, warmup=10, decay=0.0, betas=(0.0, 0.99), clip=10.0),
        ratio=3,
        guidance=1.5,
        shift=_SHIFT,
        autocast=True,
        settings=_SETTINGS,
    )


def distill() -> DistillConfig:
    """Adversarial self-distillation: one student for 1 to 4 steps, for clips and for streams."""
    base = rival(self_forcing(), "distill")
    clips, onward = Lesson(latents=_FEW_LATENTS), Lesson(latents=_FEW_LATENTS, first_chunk=1)  # from a picture
    streams = _streams(base.batch, first_steps=GRID)  # a scene's first frame is what the rest of it rests on
    lessons = _among_pictures(base.lessons[0], (clips, *streams, onward))
    return replace(base, loop=replace(base.loop, steps=600), lessons=lessons, lesson_every=1)


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


def _streams(batch: int, first_steps: int | None = None) -> tuple[Lesson, ...]:
    """What streams are asked for beside clips; of those that are twice as long an update takes half as many."""
    early, late = _STORIES
    half = batch // 2
    lessons = (
        Lesson(latents=early),
        Lesson(latents=_LONG, batch=half),
        Lesson(latents=late),
        Lesson(latents=_LONG_STORIES, batch=half),
    )
    return tuple(replace(lesson, first_steps=first_steps) for lesson in lessons)


def _among_pictures(pictures: Lesson, lessons: tuple[Lesson, ...]) -> tuple[Lesson, ...]:
    """Pictures before every other lesson: a first frame that lacks a thing keeps lacking it."""
    return tuple(each for lesson in lessons for each in (pictures, lesson))
