"""Stage 3: causal initialisation, in two runs (or in one, to compare with).

``forcing`` turns the teacher into a causal many-step network: flow matching of every chunk given the clean chunks
before it, each chunk at its own time. ``consistency`` turns that into a few-step student by causal consistency on the
many-step network's own ODE. Both see [clean | noised] sequences under the teacher-forcing visibility (method.md
section 8 b and c; Causal-Forcing++, Causal-rCM). ``trajectory`` is CausVid's way instead: regression on the
bidirectional teacher's own ODE paths, made as it goes (section 8 a).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
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
from nearstep.nets.masks import Visibility, block_causal, teacher_forcing
from nearstep.protocols import Denoiser
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.export import export_model
from nearstep.train.loop import LoopConfig, recipe_of, run
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.stages.shared import compile_blocks, dropped, load_network, open_model, show, stratified


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """A causal run."""

    objective: Literal["forcing", "consistency", "trajectory"]
    loop: LoopConfig
    optim: OptimConfig
    model: Path
    """Model folder to start from: its ``source`` network, codec, text encoder and teacher."""
    source: str
    """Sub-folder of the network to start from: the forced one for consistency, else ``teacher``."""
    latents: LatentsConfig
    text_cache: Path | None = None
    """A folder for the features of prompts: the text encoder is loaded for new ones only."""
    chunk_frames: int = 3
    batch: int = 16
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
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cells % GRID:
            raise NearstepError(f"cells={self.cells} is no multiple of {GRID}, the student's grid; use 24 or 48")

    def run(self) -> Path:
        """Train, or go on; returns the model folder."""
        return run(CausalStage(self), self.loop, recipe_of(self))


class CausalStage:
    """Step, preview and export of both causal runs."""

    def __init__(self, config: CausalConfig) -> None:
        self.config = config
        self.codec, self.text, self.clips = open_model(config.model, config.latents, config.text_cache)
        frames = self.clips.latents.shape[1]
        self.lengths = chunk_lengths(frames, config.chunk_frames)
        self.visibility = teacher_forcing(self.lengths)
        self.network = load_network(config.model / config.source)
        self.network.register_to_config(chunk_frames=config.chunk_frames)
        self.many_step = deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = Optimizer([self.network], config.optim, config.loop.steps)
        self.ema = Ema(self.network, config.ema)
        self.state = TrainState({"network": self.network, "optimizer": self.optimizer, "ema": self.ema})
        if config.compile:
            for network in (self.network, self.many_step, self.ema.module):
                compile_blocks(network)  # pyright: ignore[reportArgumentType]

    def step(self, index: int) -> dict[str, Tensor]:
        """One update."""
        config = self.config
        x0, captions = self.clips.batch(index * config.batch, config.batch)
        draw = rng.generator(config.objective, config.seed, index)
        eps = torch.randn(x0.shape, generator=draw)
        objectives = {"forcing": self._forcing, "consistency": self._consistency, "trajectory": self._trajectory}
        with torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
            losses = objectives[config.objective](x0, eps, captions, draw)
        loss = losses.mean()
        moved = self.optimizer.step(loss, index)
        self.ema.update(self.network)
        return {"loss": loss, **moved}

    def _forcing(self, x0: Tensor, eps: Tensor, captions: list[str], draw: torch.Generator) -> Tensor:
        u = stratified(x0.shape[0] * len(self.lengths), draw).view(x0.shape[0], -1)
        t = self._per_frame(training_times(u, shift=self.config.shift))
        text = self.text(dropped(captions, self.config.caption_dropout, draw))
        return teacher_forced(_denoiser(self.network, text, self.visibility), x0, eps, t)

    def _consistency(self, x0: Tensor, eps: Tensor, captions: list[str], draw: torch.Generator) -> Tensor:
        cells = self.config.cells
        cell = torch.randint(cells, (x0.shape[0], len(self.lengths)), generator=draw)
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

    def _trajectory(self, x0: Tensor, eps: Tensor, captions: list[str], draw: torch.Generator) -> Tensor:
        text = self.text(captions)
        both = torch.cat([text, self.text([""] * len(captions))])
        teacher = guided(partial(self.many_step, text=both), self.config.guidance)
        grid = respaced(self.config.cells, shift=self.config.shift).times
        points = ode_path(teacher, eps, grid)
        # Each chunk at one of the times that the few-step student will be called at.
        step = torch.randint(GRID, (x0.shape[0], len(self.lengths)), generator=draw)
        cell = self._per_frame(step * (self.config.cells // GRID))
        rows, frames = torch.meshgrid(torch.arange(x0.shape[0]), torch.arange(x0.shape[1]), indexing="ij")
        student = _denoiser(self.network, text, block_causal(self.lengths))
        return trajectory_regression(student, points[cell, rows, frames], torch.tensor(grid)[cell], points[-1])

    def _per_frame(self, per_chunk: Tensor) -> Tensor:
        return per_chunk.repeat_interleave(torch.tensor(self.lengths), dim=1)

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
        show(path, network, self.text, self.codec, [plan], shape=self.clips.latents.shape[2:], weight=weight)

    def export(self, folder: Path) -> None:
        """Write a model folder: the ``transformer/``, the ``teacher/``, and the many-step ``causal/`` between them."""
        network: Any = self.ema.module
        networks = {"transformer": network, "teacher": load_network(self.config.model / "teacher")}
        if self.config.objective == "consistency":
            networks["causal"] = self.many_step
        export_model(
            folder,
            networks=networks,
            text=self.text,
            codec=self.codec,
            shift=self.config.shift,
            settings=self.config.settings,
        )


def _denoiser(network: Any, text: Tensor, visibility: Visibility) -> Denoiser:
    return partial(network, text=text, visibility=visibility)
