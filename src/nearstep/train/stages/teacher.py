"""Stage 2: the bidirectional many-step teacher, and the text encoder with it.

Flow matching on the latents of pictures, then of ever longer clips (``phases``): a step of many pictures sees many more
objects than one of few clips at the same cost. The same time for all frames, captions dropped now and then so that
guidance has an unconditional side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nearstep import rng
from nearstep.data.ahead import Ahead
from nearstep.data.crops import cropped
from nearstep.data.latents import LatentClips, LatentsConfig, load_latents
from nearstep.errors import NearstepError
from nearstep.flow.plan import make_plan
from nearstep.flow.times import training_times
from nearstep.losses.denoising import flow_matching
from nearstep.models.folder import Settings
from nearstep.nets.codec import VideoCodec
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.script import encoded
from nearstep.nets.text import PromptEncoder
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import narrowed
from nearstep.protocols import Caption
from nearstep.ranges import check_number
from nearstep.shapes import latent_frames
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.export import check_settings, export_model
from nearstep.train.growth import deepened
from nearstep.train.lessons import Lesson, lessons_of, taught
from nearstep.train.loop import LoopConfig, run
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import Ranks, ranks
from nearstep.train.phases import Phase, check_phases, phase_at
from nearstep.train.recipe import recipe_of
from nearstep.train.stages.shared import (
    check_finite,
    check_schedule,
    check_sizes,
    codec_name,
    dropped,
    load_network,
    open_lessons,
    show,
    stratified,
)
from nearstep.train.stages.text import TextSize, take_text


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """VideoTransformer's own names; channels and text width follow from codec and encoder."""

    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    num_layers: int
    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latents of a token: frames, rows, columns."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A teacher run."""

    loop: LoopConfig
    optim: OptimConfig
    network: NetworkSize
    text: TextSize
    codec: Path
    """Folder of the trained AutoencoderKLWan."""
    start: Path | None = None
    """A model folder, made with the same codec, whose ``teacher/`` and text encoder are gone on from; None: from
    nothing. Where ``network`` has more layers, the new ones add nothing at first (growth.py)."""
    words: Path | None = None
    """Folder of a text encoder that has learnt to read by itself (stages/text.py); None: from nothing, or as ``start``
    has it."""
    text_learns: bool = True
    """Whether the text encoder learns with the teacher. One that has learnt by itself should not: it forgets the words
    of what pictures do not show, and clips then come too late."""
    latents: LatentsConfig
    """Clips of a world, whose words the text encoder learns."""
    pictures: LatentsConfig | None = None
    """More clips of the same world, of one frame, for the phases of pictures; None: first frames of ``latents``."""
    phases: tuple[Phase, ...]
    """Short clips are the first frames of long ones: the codec is causal, so their latents are too."""
    lessons: tuple[Lesson, ...] = ()
    """Clips of other kinds, for now and then a step of the phases of clips."""
    lesson_every: int = 4
    """Steps of which one takes a lesson; 0: none does."""
    given: float = 0.0
    """Share of the draws of clips whose first frame is given as it is. What moves, and where, is then known, and what
    the caption says of its motion explains part of the rest."""
    caption_dropout: float = 0.1
    shift: float = 3.0
    """Shift of the training times, and of the schedules of the model that is exported."""
    ema: float = 0.999
    seed: int = 0
    autocast: bool = True
    """Matrix products in bfloat16."""
    compile: bool = False
    settings: Settings = field(default_factory=Settings)
    """What the model is made for, written into its folder; pictures of a run are made with its plan and guidance."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lessons", lessons_of(self.lessons, self.lesson_every, chunks=False, batches=False))
        check_settings(self.settings)
        check_phases(self.phases, self.loop.steps)
        check_schedule(shift=self.shift, ema=self.ema)
        for name in ("caption_dropout", "given"):
            check_number(name, getattr(self, name), least=0, most=1)
        _vocabulary(self.latents)
        if not self.text_learns and self.start is None and self.words is None:
            raise NearstepError(
                "text_learns=False keeps a text encoder that knows nothing; give words=DIR or start=DIR"
            )
        if self.pictures and (self.pictures.world, self.pictures.frames) != (self.latents.world, 1):
            raise NearstepError(
                f"pictures of {self.pictures.frames} frames of {self.pictures.world}; give them frames=1 and the world "
                f"of the clips, {self.latents.world}"
            )

    def run(self) -> Path:
        """Train, or go on; returns the model folder."""
        return run(lambda: TeacherStage(self), self.loop, recipe_of(self))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step sees: the draws of a clip lie next to each other, and its caption is there once."""

    x0: Tensor
    """Clean latents [B, F, C, H, W]."""
    eps: Tensor
    t: Tensor
    """Times [B, F]: one for all frames, but for a first frame that is given, whose is 0."""
    prompts: Sequence[Caption]
    starts: tuple[int, ...]
    """Latent frames from which the second caption of a clip holds, the third and so on."""

    def share(self, here: Ranks) -> tuple[Batch, slice]:
        """This process's draws, on its device, and where they lie; the whole is the same however many share it."""
        clips = here.share(len(self.prompts))
        draws = len(self.x0) // len(self.prompts)
        place = slice(clips.start * draws, clips.stop * draws)
        x0, eps, t = (whole[place].to(here.device, non_blocking=True) for whole in (self.x0, self.eps, self.t))
        return replace(self, x0=x0, eps=eps, t=t, prompts=self.prompts[clips.start : clips.stop]), place


class TeacherStage:
    """The teacher's step, preview and export."""

    def __init__(self, config: TeacherConfig) -> None:
        self.config, self.here = config, ranks()
        for phase in config.phases:
            self.here.share(phase.clips)  # refused before anything is read
        self.codec = VideoCodec.from_pretrained(config.codec).eval().requires_grad_(False).to(self.here.device)
        check_finite(self.codec, config.codec)
        self.network, self.text = _networks(config, self.codec.channels)
        token = self.codec.spatial_stride * max(config.network.patch_size[1:])
        if odd := [phase.side for phase in config.phases if phase.side is not None and phase.side % token]:
            raise NearstepError(f"windows of {odd[0]} pixels are no whole number of tokens of {token}; use a multiple")
        source = codec_name(self.codec)
        with self.here.main_first():  # which makes what is missing
            makers = config.loop.workers
            self.clips = load_latents(config.latents, self.codec, source, makers)
            self.pictures = self.clips
            if config.pictures:
                self.pictures = load_latents(config.pictures, self.codec, source, makers)
        self.lessons = open_lessons(config.lessons, self.codec, self.clips.shape, makers)
        self.both = torch.nn.ModuleDict({"network": self.network, "text": self.text}).to(self.here.device)
        self.batches = Ahead(self.batch, config.loop.workers)
        self.optimizer = Optimizer([self.both], config.optim, config.loop.steps)
        self.ema = Ema(self.both, config.ema)
        self.state = TrainState({"model": self.both, "optimizer": self.optimizer, "ema": self.ema})
        if config.compile:
            compile_blocks(self.network)

    def batch(self, index: int) -> Batch:
        """What step ``index`` sees, of all processes together."""
        config = self.config
        phase, taken = phase_at(config.phases, index)
        clips = self._clips(phase, index)
        x0, captions = clips.batch(taken, phase.clips)
        x0 = x0[:, : latent_frames(phase.frames)].repeat_interleave(phase.draws, dim=0)
        if phase.side is not None:
            focus = clips.focus(taken, phase.clips, phase.frames).repeat_interleave(phase.draws, dim=0)
            x0 = self._cropped(x0, focus, phase.side, index)
        draw = rng.generator("teacher", config.seed, index)
        eps = torch.randn(x0.shape, generator=draw)
        # Each draw of a clip has a part of [0, 1] of its own: times that meet by chance tell less of it.
        cells = [(part + stratified(phase.clips, draw)) / phase.draws for part in range(phase.draws)]
        t = training_times(torch.stack(cells, dim=1).flatten(), shift=config.shift)
        t = t[:, None].repeat(1, x0.shape[1])
        prompts = dropped(captions, torch.rand(len(captions), generator=draw) < config.caption_dropout)
        if x0.shape[1] > 1:
            t[torch.rand(len(t), generator=draw) < config.given, 0] = 0
        return Batch(x0=x0, eps=eps, t=t, prompts=prompts, starts=clips.starts)

    def step(self, index: int) -> dict[str, Tensor]:
        """Make one update; each process has its share of the clips."""
        here, batch = self.here, self.batches(index)
        own, place = batch.share(here)
        losses = self._losses(own)
        losses.mean().backward()
        everyone = torch.zeros(len(batch.x0))
        everyone[place] = losses.detach().cpu()
        everyone = here.total(everyone)
        moved = self.optimizer.apply(everyone.mean(), index)
        self.ema.update(self.both)
        return {"loss": everyone.mean(), **_by_time(everyone, batch.t[:, -1]), **moved}

    def _losses(self, batch: Batch) -> Tensor:
        """Velocity error of each draw [B]."""
        with narrowed(self.here.device.type, self.config.autocast):
            text = self.network.text_keys(encoded(self.text, batch.prompts, batch.starts, batch.x0.shape[1]))
            velocity = partial(self.network, text=text.repeated(len(batch.x0) // len(batch.prompts)))
            return flow_matching(velocity, batch.x0, batch.eps, batch.t)

    def _clips(self, phase: Phase, index: int) -> LatentClips:
        if phase.frames == 1:
            return self.pictures
        # Windows belong to the usual clips: where to look in a lesson's is not known.
        return taught(index, self.clips, self.lessons if phase.side is None else (), self.config.lesson_every)

    def _cropped(self, x0: Tensor, focus: Tensor, side: int, index: int) -> Tensor:
        """Windows [B, F, C, side, side] of latents, a whole number of tokens away from the frame's corner."""
        stride, (_, rows, columns) = self.codec.spatial_stride, self.config.network.patch_size
        draw = rng.generator("teacher window", self.config.seed, index)
        return cropped(x0, focus / stride, side // stride, draw, grid=max(rows, columns))

    def preview(self, path: Path) -> None:
        """Fixed captions and noise, through the averaged weights."""
        network, text = self._averaged()
        settings = self.config.settings
        phase, _ = phase_at(self.config.phases, max(0, self.state.step - 1))
        plan = make_plan(
            settings.teacher_plan,
            frames=latent_frames(phase.frames),
            chunk_frames=None,
            shift=self.config.shift,
        )
        renoise, weight = settings.teacher_renoise, settings.guidance_scale
        show(path, network, text, self.codec, [plan], self.clips, weight=weight, renoise=renoise)

    def export(self, folder: Path) -> None:
        """Write a model folder whose only network is ``teacher/``."""
        if not self.here.main:
            return
        network, text = self._averaged()
        export_model(
            folder,
            networks={"teacher": network},
            text=text,
            codec=self.codec,
            shift=self.config.shift,
            settings=self.config.settings,
        )

    def _averaged(self) -> tuple[VideoTransformer, PromptEncoder]:
        return self.ema.module["network"], self.ema.module["text"]  # pyright: ignore[reportIndexIssue, reportReturnType]


def _networks(config: TeacherConfig, channels: int) -> tuple[VideoTransformer, PromptEncoder]:
    """Both as they begin: from nothing, or from what the recipe names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key("teacher weights", config.seed))
        text = config.text.build(_vocabulary(config.latents))
        sizes = {**asdict(config.network), "in_channels": channels, "out_channels": channels}
        network = VideoTransformer(**sizes, text_dim=config.text.d_model)
    if config.start is not None:
        _take_network(network, config.start)
    if (words := config.start or config.words) is not None:
        take_text(text, words)
    text.requires_grad_(config.text_learns)
    return network, text


def _take_network(network: VideoTransformer, start: Path) -> None:
    own, whose = load_network(start / "teacher"), f"start={start} has a teacher"
    for name in ("num_attention_heads", "attention_head_dim"):  # whose product is all that shapes tell
        if own.config[name] != network.config[name]:
            raise NearstepError(
                f"{whose} of {name}={own.config[name]}, and the recipe says {network.config[name]}; give it that size"
            )
    state = deepened(own.state_dict(), network.config["num_layers"])
    check_sizes(state, network.state_dict(), whose)
    network.load_state_dict(state)


def _vocabulary(latents: LatentsConfig) -> tuple[str, ...]:
    if latents.world is None:
        raise NearstepError("a teacher's text encoder learns the words of a world; set latents.world in the recipe")
    return latents.world.vocabulary()


def _by_time(losses: Tensor, t: Tensor) -> dict[str, Tensor]:
    # The loss at small, middle and large t: they level off at different heights and different moments.
    thirds = {"loss_low": t < 1 / 3, "loss_mid": (t >= 1 / 3) & (t < 2 / 3), "loss_high": t >= 2 / 3}
    return {name: losses[rows].mean() for name, rows in thirds.items() if bool(rows.any())}
