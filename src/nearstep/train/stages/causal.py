"""Stage 3: causal initialisation, in two runs (or in one, to compare with).

``forcing`` turns the teacher into a causal many-step network; ``consistency`` turns that into a few-step student;
``trajectory`` is CausVid's way instead. What each learns by is a file of train/objectives; here is what they share:
which clips and draws a step has, how weights move, and what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nearstep import rng
from nearstep.data.latents import LatentsConfig
from nearstep.errors import NearstepError
from nearstep.flow.plan import GRID, chunk_lengths, make_plan
from nearstep.models.folder import Settings
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import narrowed
from nearstep.protocols import TextEncoder
from nearstep.ranges import check_number
from nearstep.train.adapters import LoraFields, adapt, base, start_from
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.export import check_settings, export_student
from nearstep.train.frozen import Trained, twin, view
from nearstep.train.lessons import Lesson, batches, lessons_of, taught
from nearstep.train.loop import LoopConfig, run
from nearstep.train.objectives.objective import CausalUpdate
from nearstep.train.objectives.table import objective_called
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import Place, ranks
from nearstep.train.recipe import recipe_of
from nearstep.train.stages.shared import (
    Clips,
    check_batch,
    check_schedule,
    dropped,
    load_network,
    located,
    open_lessons,
    open_model,
    own_rows,
    show,
    stratified,
)


@dataclass(frozen=True, kw_only=True)
class CausalConfig(LoraFields):
    """A causal run."""

    objective: str
    """What it learns by: forcing, consistency or trajectory (train/objectives)."""
    loop: LoopConfig
    optim: OptimConfig
    model: Path
    """Model folder to start from, or "playground", the embedded one: its ``network``, codec, text encoder, teacher."""
    network: str
    """Sub-folder of the network to start from: the forced one for consistency, else the teacher's."""
    teacher: str = "teacher"
    """Sub-folder of the bidirectional network, which goes into the model that is exported as ``teacher/``."""
    latents: LatentsConfig
    text_cache: Path | None = None
    """A folder for the features of prompts: the text encoder is loaded for new ones only."""
    lessons: tuple[Lesson, ...] = ()
    """Clips of other kinds, for now and then a step."""
    lesson_every: int = 3
    """Steps of which one takes a lesson; 0: none does."""
    chunk_frames: int = 3
    window_frames: int | None = None
    """Newest frames, its own included, that a chunk sees from now on; None: as the network was made. Clips that are
    longer show it what most of a stream is: windows that do not begin with the video's first frame."""
    batch: int = 16
    """Clips of an update, over all processes."""
    shift: float = 3.0
    caption_dropout: float = 0.1
    """Forcing only; the few-step student is not guided."""
    guidance: float = 2.0
    """w of the many-step network that is followed, v = u + w (c - u)."""
    negative: str = ""
    """The prompt of u."""
    ode_steps: int = 48
    """Steps of the grid on which a many-step network is followed; a multiple of the student's grid."""
    ema: float = 0.995
    seed: int = 0
    autocast: bool = True
    compile: bool = False
    micro: int | None = None
    """Clips at a time in one process; gradients add up to those of the whole batch."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, a third more time."""
    base_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the frozen weights that an adapter stands on; float32 by default."""
    settings: Settings = field(default_factory=Settings)
    """What the model is made for, written into its folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "lessons", lessons_of(self.lessons, self.lesson_every))
        object.__setattr__(self, "model", located(self.model))
        objective_called(self.objective)
        if self.ode_steps < 1 or self.ode_steps % GRID:
            raise NearstepError(
                f"ode_steps={self.ode_steps} is no multiple of {GRID}, the student's grid; use 24 or 48"
            )
        if self.window_frames is not None and self.window_frames < self.chunk_frames:
            raise NearstepError(
                f"window_frames={self.window_frames} is shorter than a chunk of {self.chunk_frames}; give at least that"
            )
        check_schedule(
            chunk_frames=self.chunk_frames,
            shift=self.shift,
            ema=self.ema,
            guidance=self.guidance,
            negative=self.negative,
        )
        check_number("caption_dropout", self.caption_dropout, least=0, most=1)
        check_settings(self.settings)
        for batch in batches(self.batch, self.lessons):
            check_batch(batch, self.micro)

    @property
    def slices(self) -> bool:
        """Whether each of several processes holds a slice of every weight; Muon works on whole matrices."""
        return not self.optim.muon

    def update(
        self,
        *,
        network: VideoTransformer,
        average: VideoTransformer,
        many_step: VideoTransformer,
        text: TextEncoder,
        frames: int,
        first_chunk: int | None = None,
        starts: tuple[int, ...] = (),
    ) -> CausalUpdate:
        """The updates of this run on clips of ``frames`` latent frames, with these networks in their places."""
        return CausalUpdate(
            objective=objective_called(self.objective),
            network=network,
            average=average,
            many_step=many_step,
            text=text,
            lengths=chunk_lengths(frames, self.chunk_frames, first_chunk),
            starts=starts,
            shift=self.shift,
            guidance=self.guidance,
            negative=self.negative,
            ode_steps=self.ode_steps,
        )

    def run(self) -> Path:
        """Train, or go on; returns the model folder."""
        return run(lambda: CausalStage(self), self.loop, recipe_of(self))


@dataclass(frozen=True, kw_only=True)
class _Course:
    """What some of the steps learn from, and how much of it at once."""

    clips: Clips
    update: CausalUpdate
    batch: int
    rows: range
    """Those of this process."""


class CausalStage:
    """Step, preview and export of a causal run, whatever its objective."""

    def __init__(self, config: CausalConfig) -> None:
        here, sizes = ranks().holding(slices=config.slices), batches(config.batch, config.lessons)
        # Refused before anything is read.
        if not (config.model / config.teacher).is_dir():
            raise NearstepError(
                f"{config.model} holds no {config.teacher}/, which the new model would hold as its teacher/; name its "
                "bidirectional network (teacher=)"
            )
        rows = [own_rows(batch, config.micro, here) for batch in sizes]
        self.codec, self.text, self.clips = open_model(config.model, config.latents, config.text_cache, config.negative)
        loaded, cut = load_network(config.model / config.network), here.mesh is not None
        network, self.ema, many_step = in_place(config, loaded, here.place, cut=cut)
        self.config, self.here = config, here
        self.update = config.update(
            network=network,
            average=self.ema.module,
            many_step=many_step,
            text=self.text,
            frames=self.clips.shape[0],
            starts=self.clips.starts,
        )
        self.usual = _Course(clips=self.clips, update=self.update, batch=config.batch, rows=rows[0])
        opened = open_lessons(config.lessons, self.codec, self.clips.shape)
        self.lessons = [
            _Course(
                clips=clips,
                update=replace(self.update, lengths=lengths, starts=clips.starts),
                batch=batch,
                rows=own,
            )
            for lesson, clips, batch, own in zip(config.lessons, opened, sizes[1:], rows[1:], strict=True)
            for lengths in [chunk_lengths(clips.shape[0], config.chunk_frames, lesson.first_chunk)]
        ]
        self.optimizer = Optimizer([network], config.optim, config.loop.steps)
        self.state = TrainState({"network": Trained(network), "optimizer": self.optimizer, "ema": self.ema})

    def step(self, index: int) -> dict[str, Tensor]:
        """One update."""
        config, here = self.config, self.here
        course = taught(index, self.usual, self.lessons, config.lesson_every)
        update, batch, rows = course.update, course.batch, course.rows
        draw = rng.generator(config.objective, config.seed, index)
        # Small draws are made for the whole batch, so that every rank and micro-batch sees the same ones.
        u = stratified(batch * len(update.lengths), draw).view(batch, -1)
        silent = torch.rand(batch, generator=draw) < config.caption_dropout
        size = config.micro or len(rows)
        loss = torch.zeros((), device=here.device)
        for first in range(rows.start, rows.stop, size):
            part, place = slice(first, first + size), index * batch + first
            x0, captions = course.clips.batch(place, size)
            if x0 is None:
                raise NearstepError("a causal run learns from clips, and these are prompts alone; give latents")
            if update.objective.drops_captions:
                captions = dropped(captions, silent[part])
            eps = self._noise(x0.shape[1:], range(place, place + size))
            with narrowed(here.device.type, config.autocast):
                losses = update.losses(x0.to(here.device), eps, captions, u[part].to(here.device))
            share = losses.sum() / len(rows)
            share.backward()
            loss += share.detach()
        rates = self.optimizer.apply(loss, index)
        self.ema.update(update.network)
        return {"loss": loss, **rates}

    def _noise(self, shape: Sequence[int], samples: range) -> Tensor:
        seed, purpose = self.config.seed, self.config.objective
        return rng.noise(shape, seed=seed, samples=samples, chunk=0, step=0, purpose=purpose, device=self.here.device)

    def preview(self, path: Path) -> None:
        """Fixed captions and noise, rolled out by the averaged network along the objective's plan."""
        config, objective = self.config, self.update.objective
        frames = sum(self.update.lengths)
        plan = make_plan(objective.preview_plan, frames=frames, chunk_frames=config.chunk_frames, shift=config.shift)
        weight = config.guidance if objective.preview_guided else 1.0
        show(path, self.ema.module, self.text, self.codec, [plan], self.clips, weight=weight)

    def export(self, folder: Path) -> None:
        """Write a model folder: the ``transformer/``, the ``teacher/``, and the many-step ``causal/`` between them."""
        config = self.config
        changed = {"transformer": self.ema.module}
        if self.update.objective.keeps:
            changed["causal"] = self.update.many_step
        networks = {name: (network.config, self.here.whole(network)) for name, network in changed.items()}
        if not self.here.main:
            return
        export_student(
            folder,
            model=config.model,
            unchanged={"teacher": config.teacher},
            networks=networks,
            fields=config,
            shift=config.shift,
            settings=config.settings,
        )


def in_place(
    config: CausalConfig, network: VideoTransformer, place: Place, *, cut: bool
) -> tuple[VideoTransformer, Ema[VideoTransformer], VideoTransformer]:
    """What learns, its average, and the many-step network that it follows: itself, where its objective follows none.

    Args:
        config: the run's.
        network: as it was loaded.
        place: puts a network in its place, its blocks gathered in a type.
        cut: placing cuts networks into slices of their own.
    """
    network = _learner(config, network)
    ema, follows = Ema(network, config.ema, cut=cut), objective_called(config.objective).follows
    many_step = (view if cut else twin)(network).eval().requires_grad_(False) if follows else network
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    for each in (network, ema.module, *([many_step] if follows else [])):
        if config.compile:
            compile_blocks(each)
        place(each, torch.bfloat16 if config.autocast else None)
    return network, ema, many_step


def _learner(config: CausalConfig, network: VideoTransformer) -> VideoTransformer:
    network.register_to_config(chunk_frames=config.chunk_frames)
    if config.window_frames is not None:
        network.register_to_config(window_frames=config.window_frames)
    if config.lora_rank is None:
        return network
    base(network, getattr(torch, config.base_dtype or "float32"))
    return start_from(adapt(network, config, config.seed), config)
