"""Stage 3: causal initialisation, in two runs (or in one, to compare with).

``forcing`` turns the teacher into a causal many-step network: flow matching of every chunk given the clean chunks
before it, each chunk at its own time. ``consistency`` turns that into a few-step student by causal consistency on the
many-step network's own ODE. Both see [clean | noised] sequences under the teacher-forcing visibility (method.md
section 8 b and c; Causal-Forcing++, Causal-rCM). ``trajectory`` is CausVid's way instead: regression on the
bidirectional teacher's own ODE paths, made as it goes (section 8 a).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nearstep import rng
from nearstep.data.latents import LatentsConfig
from nearstep.errors import NearstepError
from nearstep.flow.guidance import guided
from nearstep.flow.ode import ode_path
from nearstep.flow.plan import GRID, chunk_lengths, make_plan, respaced
from nearstep.flow.times import shifted, training_times
from nearstep.losses.consistency import causal_consistency
from nearstep.losses.denoising import teacher_forced
from nearstep.losses.trajectory import trajectory_regression
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.masks import Visibility, block_causal, teacher_forcing
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import Denoiser
from nearstep.train.adapters import LoraFields, adapt, base, start_from
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.export import export_student
from nearstep.train.frozen import Trained, twin, view
from nearstep.train.loop import LoopConfig, recipe_of, run
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import Ranks, ranks
from nearstep.train.stages.shared import (
    check_micro,
    check_optimizers,
    dropped,
    load_network,
    open_model,
    show,
    stratified,
)


@dataclass(frozen=True, kw_only=True)
class CausalConfig(LoraFields):
    """A causal run."""

    objective: Literal["forcing", "consistency", "trajectory"]
    loop: LoopConfig
    optim: OptimConfig
    model: Path
    """Model folder to start from: its ``source`` network, codec, text encoder and teacher."""
    source: str
    """Sub-folder of the network to start from: the forced one for consistency, else the teacher's."""
    teacher: str = "teacher"
    """Sub-folder of the bidirectional network, which goes into the model that is exported as ``teacher/``."""
    latents: LatentsConfig
    text_cache: Path | None = None
    """A folder for the features of prompts: the text encoder is loaded for new ones only."""
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
    """Of the many-step network that is followed."""
    cells: int = 48
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
    """Of the frozen weights that an adapter stands on; float32 by default."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells % GRID:
            raise NearstepError(f"cells={self.cells} is no multiple of {GRID}, the student's grid; use 24 or 48")
        if self.window_frames is not None and self.window_frames < self.chunk_frames:
            raise NearstepError(
                f"window_frames={self.window_frames} is shorter than a chunk of {self.chunk_frames}; give at least that"
            )
        check_micro(self.micro, self.batch)

    def run(self) -> Path:
        """Train, or go on; returns the model folder."""
        return run(CausalStage(self), self.loop, recipe_of(self))


class CausalStage:
    """Step, preview and export of both causal runs."""

    def __init__(self, config: CausalConfig) -> None:
        check_optimizers(config.optim)
        here = ranks()
        here.share(config.batch)  # refused before anything is read
        opened = open_model(config.model, config.latents, config.text_cache)
        network, cut = _network(config), here.mesh is not None
        ema, many_step = Ema(network, config.ema, cut=cut), None
        if config.objective != "forcing":  # which follows clips
            many_step = (view if cut else twin)(network).eval().requires_grad_(False)
        if config.checkpointing:
            network.enable_gradient_checkpointing()
        for each in filter(None, (network, ema.module, many_step)):
            if config.compile:
                compile_blocks(each)  # pyright: ignore[reportArgumentType]
            here.place(each, torch.bfloat16 if config.autocast else None)
        self.begin(config, here, opened, network, many_step, ema)
        self.optimizer = Optimizer([self.network], config.optim, config.loop.steps)
        self.state = TrainState({"network": Trained(self.network), "optimizer": self.optimizer, "ema": self.ema})

    def begin(
        self,
        config: CausalConfig,
        here: Ranks,
        opened: Any,
        network: VideoTransformer,
        many_step: VideoTransformer | None,
        ema: Ema,
    ) -> None:
        """Everything but the loading of codec, text encoder and clips (rehearsal.py brings shapes in their places)."""
        self.config, self.here, self.rows = config, here, here.share(config.batch)
        self.codec, self.text, self.clips = opened
        self.lengths = chunk_lengths(self.clips.shape[0], config.chunk_frames)
        self.reach = network.reach
        self.visibility = teacher_forcing(self.lengths, self.reach)
        self.network, self.ema = network, ema
        self.many_step: Any = many_step  # None for forcing, which follows clips

    def step(self, index: int) -> dict[str, Tensor]:
        """One update."""
        config, here = self.config, self.here
        draw = rng.generator(config.objective, config.seed, index)
        # Small draws are made for the whole batch, so that every rank and micro-batch sees the same ones.
        u = stratified(config.batch * len(self.lengths), draw).view(config.batch, -1)
        silent = torch.rand(config.batch, generator=draw) < config.caption_dropout
        objectives = {"forcing": self._forcing, "consistency": self._consistency, "trajectory": self._trajectory}
        size = config.micro or len(self.rows)
        loss = torch.zeros((), device=here.device)
        for first in range(self.rows.start, self.rows.stop, size):
            rows, place = slice(first, first + size), index * config.batch + first
            x0, captions = self.clips.batch(place, size)
            assert x0 is not None  # prompts alone are not taken
            if config.objective == "forcing":
                captions = dropped(captions, silent[rows])
            eps = self._noise(x0.shape[1:], range(place, place + size))
            with torch.autocast(here.device.type, torch.bfloat16, enabled=config.autocast):
                losses = objectives[config.objective](x0.to(here.device), eps, captions, u[rows].to(here.device))
            part = losses.sum() / len(self.rows)
            part.backward()
            loss += part.detach()
        moved = self.optimizer.apply(loss, index)
        self.ema.update(self.network)
        return {"loss": loss, **moved}

    def _noise(self, shape: Sequence[int], samples: range) -> Tensor:
        seed, purpose = self.config.seed, self.config.objective
        return rng.noise(shape, seed=seed, samples=samples, chunk=0, step=0, purpose=purpose, device=self.here.device)

    def _forcing(self, x0: Tensor, eps: Tensor, captions: list[str], u: Tensor) -> Tensor:
        t = self._per_frame(training_times(u, shift=self.config.shift))
        return teacher_forced(_denoiser(self.network, self.text(captions), self.visibility), x0, eps, t)

    def _consistency(self, x0: Tensor, eps: Tensor, captions: list[str], u: Tensor) -> Tensor:
        cells = self.config.cells
        cell = _cell(u, cells)
        t, t_next = (self._per_frame(shifted(1 - (cell + k) / cells, self.config.shift)) for k in (0, 1))
        text = self.text(captions)
        both = torch.cat([text, self.text([""] * len(captions))])
        return causal_consistency(
            student=_denoiser(self.network, text, self.visibility),
            slow=_denoiser(self.ema.module, text, self.visibility),
            teacher=guided(_denoiser(self.many_step, both, self.visibility), self.config.guidance),
            x0=x0,
            eps=eps,
            t=t,
            t_next=t_next,
        )

    def _trajectory(self, x0: Tensor, eps: Tensor, captions: list[str], u: Tensor) -> Tensor:
        text = self.text(captions)
        both = torch.cat([text, self.text([""] * len(captions))])
        teacher = guided(partial(self.many_step, text=both), self.config.guidance)
        grid = respaced(self.config.cells, shift=self.config.shift).times
        points = ode_path(teacher, eps, grid)
        # Each chunk at one of the times that the few-step student will be called at.
        cell = self._per_frame(_cell(u, GRID) * (self.config.cells // GRID))
        rows, frames = torch.meshgrid(torch.arange(x0.shape[0]), torch.arange(x0.shape[1]), indexing="ij")
        student = _denoiser(self.network, text, block_causal(self.lengths, self.reach))
        return trajectory_regression(
            student, points[cell, rows, frames], torch.tensor(grid, device=x0.device)[cell], points[-1]
        )

    def _per_frame(self, per_chunk: Tensor) -> Tensor:
        lengths = torch.tensor(self.lengths, device=per_chunk.device)
        return per_chunk.repeat_interleave(lengths, dim=1, output_size=sum(self.lengths))

    def preview(self, path: Path) -> None:
        """Fixed captions and noise, rolled out by the averaged network: few steps, or many guided ones for forcing."""
        few = self.config.objective != "forcing"
        plan = make_plan(
            "4" if few else "16",
            frames=sum(self.lengths),
            chunk_frames=self.config.chunk_frames,
            shift=self.config.shift,
        )
        weight = 1.0 if few else self.config.guidance
        network: Any = self.ema.module
        show(path, network, self.text, self.codec, [plan], self.clips, weight=weight)

    def export(self, folder: Path) -> None:
        """Write a model folder: the ``transformer/``, the ``teacher/``, and the many-step ``causal/`` between them."""
        config = self.config
        changed: dict[str, Any] = {"transformer": self.ema.module}
        if config.objective == "consistency":
            changed["causal"] = self.many_step
        networks = {name: (network.config, self.here.whole(network)) for name, network in changed.items()}
        if not self.here.main:
            return
        export_student(
            folder,
            model=config.model,
            kept={"teacher": config.teacher},
            networks=networks,
            fields=config,
            shift=config.shift,
            settings=config.settings,
        )


def _network(config: CausalConfig) -> VideoTransformer:
    network = load_network(config.model / config.source)
    network.register_to_config(chunk_frames=config.chunk_frames)
    if config.window_frames is not None:
        network.register_to_config(window_frames=config.window_frames)
    if config.lora_rank is None:
        return network
    base(network, getattr(torch, config.base_dtype or "float32"))
    return start_from(adapt(network, config, config.seed), config)


def _cell(u: Tensor, cells: int) -> Tensor:
    """Which of ``cells`` equal parts of [0, 1] each number lies in."""
    return (u * cells).long().clamp(max=cells - 1)


def _denoiser(network: Any, text: Tensor, visibility: Visibility) -> Denoiser:
    return partial(network, text=text, visibility=visibility)
