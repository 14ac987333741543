"""Stage 4: distillation. Distribution matching on self-forced rollouts, and adversarial self-distillation beside it.

A step draws one n and rolls the student out with it, chunk by chunk from its own cache. The student is updated first,
through the last step of every chunk: both gradients are taken at the sample, added there and sent through the rollout
once. Then assistant and discriminator learn several times from the same samples, each time under new times and noise: a
rollout costs more than their updates (method.md sections 4 to 7). With other options the same stage is Self Forcing,
CausVid, or DMD2 (recipes/playground.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nearstep import rng
from nearstep.data.latents import LatentsConfig
from nearstep.data.prompts import PromptsConfig
from nearstep.errors import NearstepError
from nearstep.flow.guidance import guided
from nearstep.flow.path import noised, x0_from_velocity
from nearstep.flow.plan import GRID, chunk_lengths, make_plan
from nearstep.losses.denoising import flow_matching
from nearstep.losses.dmd import distribution_matching, dmd_gradient
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.masks import block_causal
from nearstep.nets.transformer import VideoTransformer
from nearstep.rollout.rollout import generate
from nearstep.train.adapters import LoraFields
from nearstep.train.distill.adversary import (
    AdversaryConfig,
    Pair,
    critic,
    discriminator_turn,
    out_of_graph,
    student_turn,
)
from nearstep.train.distill.networks import Players, players
from nearstep.train.distill.noise import Noise
from nearstep.train.distill.steps import ScheduleKind, Turn, training_plan, turn_at
from nearstep.train.export import export_student
from nearstep.train.loop import LoopConfig, recipe_of, run
from nearstep.train.optim import OptimConfig
from nearstep.train.parallel import Ranks, ranks
from nearstep.train.stages.shared import check_micro, check_optimizers, open_model, show

PREVIEW_PLANS = ("1", "4,1x", "2", "4")

Rows = list[dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(LoraFields):
    """A distillation run."""

    loop: LoopConfig
    model: Path
    """Model folder to start from."""
    source: str = "transformer"
    """Its sub-folder of the network that the student starts as."""
    teacher: str = "teacher"
    """Its sub-folder of the teacher, which is also what the assistant starts as."""
    latents: LatentsConfig | PromptsConfig
    """Captions, with clips or without; clips serve the data references alone."""
    text_cache: Path | None = None
    """A folder for the features of prompts: the text encoder is loaded for new ones only."""
    student: OptimConfig
    assistant: OptimConfig
    discriminator: OptimConfig
    adversary: AdversaryConfig | None = None
    """None: distribution matching alone (Self Forcing)."""
    counts: tuple[int, ...] = (1, 2, 3, 4)
    """Step counts n to draw from; one that is named twice comes up twice as often."""
    schedule: ScheduleKind = "prefix"
    first_steps: int | None = None
    """Steps of the first chunk, where it has its own list while training."""
    sampling: Literal["rollout", "data"] = "rollout"
    """``data``: samples come from one call on noised clips in place of a rollout (CausVid)."""
    match: Literal["every", "largest"] = "every"
    """Which n distribution matching acts on."""
    ratio: int = 5
    """Updates of assistant and discriminator per student update."""
    warmup: int = 0
    """Steps before the discriminator starts."""
    alone: int = 0
    """Steps after that in which it learns and the student does not listen yet."""
    guidance: float = 2.0
    """w of the teacher in v = u + w (c - u)."""
    batch: int = 16
    """Clips of an update, over all processes."""
    micro: int | None = None
    """Clips at a time in one process; gradients add up to those of the whole batch."""
    chunk_frames: int = 3
    shift: float = 3.0
    low: float = 0.02
    high: float = 0.98
    """Bounds of the times of distribution matching."""
    ema: float = 0.98
    seed: int = 0
    autocast: bool = False
    """bfloat16; on CPUs without AMX float32 is faster."""
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights: the teacher's, and those that adapters stand on."""
    lora_only: Literal["student", "assistant"] | None = None
    """Which of the two has an adapter and trains it alone, if not both. The assistant's stands on the teacher's own
    weights, and the student's too where ``source`` is the teacher."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, a third more time."""
    compile: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_only and self.lora_rank is None:
            raise NearstepError(f"lora_only={self.lora_only} needs a lora_rank")
        if self.lora_start and "student" not in self.adapted:
            raise NearstepError("lora_start is where the student's adapter starts; lora_only=assistant gives it none")
        if not self.counts or not set(self.counts) <= set(range(1, GRID + 1)):
            raise NearstepError(f"counts={self.counts}; give step counts from 1 to {GRID}")
        if self.ratio < 1:
            raise NearstepError(f"ratio={self.ratio}; the assistant needs at least one update per student update")
        check_micro(self.micro, self.batch)
        reads_data = self.sampling == "data" or (self.adversary and self.adversary.reference != "adjacent")
        if reads_data and isinstance(self.latents, PromptsConfig):
            raise NearstepError("prompts alone give no clips to sample from or to hold samples against; give latents")
        judges = self.adversary is not None and self.adversary.backbone == "teacher"
        if judges and self.teacher_dtype != "float32" and not self.on_teacher:  # a base computes in float32
            raise NearstepError("the discriminator's penalty needs a teacher in float32; set teacher_dtype=float32")

    @property
    def adapted(self) -> tuple[str, ...]:
        """Who has an adapter."""
        if self.lora_rank is None:
            return ()
        return (self.lora_only,) if self.lora_only else ("student", "assistant")

    @property
    def on_teacher(self) -> tuple[str, ...]:
        """Whose adapter stands on the teacher's weights."""
        return tuple(role for role in self.adapted if role == "assistant" or self.source == self.teacher)

    def run(self) -> Path:
        """Train, or go on; returns the model folder."""
        return run(DistillStage(self), self.loop, recipe_of(self))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one micro-batch holds: prompts, clips and samples."""

    text: Tensor
    data: Tensor | None
    """Real clips, where there are any."""
    rows: range
    fewer: Tensor
    """[B, F, C, H, W] the n-step samples; with a graph until the student has moved."""
    more: Tensor | None = None
    """The references, where n has one."""


class DistillStage:
    """The student's, the assistant's and the discriminator's updates; preview and export of the averaged student."""

    def __init__(self, config: DistillConfig) -> None:
        check_optimizers(config.student, config.assistant, config.discriminator)
        here = ranks()
        here.share(config.batch)  # refused before anything is read
        opened = open_model(config.model, config.latents, config.text_cache)
        self.begin(config, here, opened, players(config, here))

    def begin(self, config: DistillConfig, here: Ranks, opened: Any, taking_part: Players) -> None:
        """Everything but the loading of codec, text encoder and clips (rehearsal.py brings shapes in their places)."""
        self.config, self.here, self.rows = config, here, here.share(config.batch)
        self.codec, self.text, self.clips = opened
        self.lengths = chunk_lengths(self.clips.shape[0], config.chunk_frames)
        self.student, self.teacher, self.assistant = taking_part.student, taking_part.teacher, taking_part.assistant
        self.discriminator, self.ema = taking_part.discriminator, taking_part.ema
        self.optimizers, self.balance = taking_part.optimizers, taking_part.balance
        self.state = taking_part.state()

    # --- one step --------------------------------------------------------------------------------------------------

    def step(self, index: int) -> dict[str, Tensor]:
        """One update of the student, then those of assistant and discriminator on its samples."""
        config = self.config
        turn = turn_at(index, seed=config.seed, counts=config.counts, warmup=config.warmup, alone=config.alone)
        size = config.micro or len(self.rows)
        logged: list[dict[str, Tensor]] = []
        batches: list[Batch] = []
        with torch.autocast(self.here.device.type, torch.bfloat16, enabled=config.autocast):
            noise = self._noise("student", index)
            for first in range(self.rows.start, self.rows.stop, size):
                batch = self._batch(turn, index, range(first, first + size))
                logged.append(self._student(turn, batch, noise.of(batch.rows)))
                batches.append(replace(batch, fewer=batch.fewer.detach()))
            moved = self._move("student", index)
            for update in range(config.ratio):
                rows, moves = self._learn(turn, batches, index, update)
                logged += rows
                moved |= moves
        self.balance.settle(self.here.total)
        self.ema.update(self.student)
        seen = {"steps": torch.tensor(float(turn.steps))}
        if config.adversary:
            seen["gamma"] = torch.tensor(config.adversary.gamma_at(index / config.loop.steps))
        return {**_mean(logged), **moved, **seen}

    def _learn(self, turn: Turn, batches: Sequence[Batch], index: int, update: int) -> tuple[Rows, dict[str, Tensor]]:
        """One update of the assistant, and of the discriminator where it is on and n has a reference."""
        noise = self._noise("learners", index, update)
        logged = [self._assistant(batch, noise.of(batch.rows)) for batch in batches]
        moved = {}
        if batches[0].more is not None:
            gamma = self._gamma(index, update)
            logged += [self._discriminator(turn, batch, noise.of(batch.rows), gamma) for batch in batches]
            moved = self._move("discriminator", index)
        return logged, moved | self._move("assistant", index)

    def _move(self, name: str, index: int) -> dict[str, Tensor]:
        # Gradients are there; the loss itself was checked by being part of them.
        moved = self.optimizers[name].apply(torch.zeros(()), index)
        torch.clear_autocast_cache()  # which holds the weights as they were, in bfloat16
        return {f"{name}_{key}": value for key, value in moved.items()}

    def _gamma(self, index: int, update: int) -> float:
        """Weight of the penalties in this update: all of ``penalty_every`` updates at once, then none."""
        adversary = self.config.adversary
        assert adversary is not None
        every = adversary.penalty_every
        due = (index * self.config.ratio + update) % every == 0
        return every * adversary.gamma_at(index / self.config.loop.steps) if due else 0.0

    def _noise(self, *names: str | int) -> Noise:
        config = self.config
        return Noise(
            names=(config.seed, *names),
            rows=self.rows,
            shape=self.clips.shape,
            low=config.low,
            high=config.high,
            device=self.here.device,
        )

    def _batch(self, turn: Turn, index: int, rows: range) -> Batch:
        data, captions = self.clips.batch(index * self.config.batch + rows.start, len(rows))
        data = None if data is None else data.to(self.here.device)
        batch = Batch(text=self.text(captions), data=data, rows=rows, fewer=torch.empty(0))
        fewer = self._samples(turn.steps, batch, index, "fewer", graph=True)
        return replace(batch, fewer=fewer, more=self._reference(turn, batch, index))

    def _samples(self, steps: int, batch: Batch, index: int, name: str, *, graph: bool) -> Tensor:
        """``steps``-step samples of the student [B, F, C, H, W], float32."""
        config = self.config
        draw = rng.generator("schedule", config.seed, index, steps)
        make = partial(training_plan, kind=config.schedule, lengths=self.lengths, shift=config.shift, draw=draw)
        plan = make(steps, first=config.first_steps)
        with torch.set_grad_enabled(graph):
            if config.sampling == "data":
                eps = self._noise("data", name, index).of(batch.rows).eps("data")
                return self._from_data(plan.schedules[0].times[-1], batch, eps)
            denoiser = TextDenoiser(self.student, batch.text)
            size, (frames, *shape) = len(batch.rows), self.clips.shape
            cache = denoiser.new_cache(size, frames, *shape[1:], append_only=True)
            first = index * config.batch
            samples = range(first + batch.rows.start, first + batch.rows.stop)
            seed = rng.key("distill", name, config.seed)
            device = self.here.device
            return generate(
                denoiser, plan, shape=shape, seed=seed, samples=samples, cache=cache, graph=graph, device=device
            )

    def _from_data(self, time: float, batch: Batch, eps: Tensor) -> Tensor:
        assert batch.data is not None
        t = torch.full(batch.data.shape[:2], time, device=batch.data.device)
        x_t = noised(batch.data, eps, t)
        v = self.student(x_t, t, batch.text, visibility=block_causal(self.lengths))
        return x0_from_velocity(x_t, v, t)

    def _reference(self, turn: Turn, batch: Batch, index: int) -> Tensor | None:
        adversary = self.config.adversary
        if adversary is None or not turn.adversarial or adversary.logit(turn.steps, GRID) is None:
            return None
        if adversary.against_data(turn.steps, GRID):
            return batch.data
        return self._samples(turn.steps + 1, batch, index, "more", graph=False)

    # --- turns -----------------------------------------------------------------------------------------------------

    def _student(self, turn: Turn, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        config = self.config
        x = batch.fewer.detach().requires_grad_()
        total, seen = torch.zeros_like(x), {}
        if config.match == "every" or turn.steps == max(config.counts):
            both = partial(self.teacher, text=torch.cat([batch.text, self.text([""] * len(batch.rows))]))
            assistant = partial(self.assistant, text=batch.text)
            t = _per_frame(noise.t("match", config.shift), x)
            direction = dmd_gradient(x, guided(both, config.guidance), assistant, noise.eps("match"), t)
            loss = distribution_matching(x, direction)
            (dmd,) = torch.autograd.grad(loss.sum(), x)
            total = total + dmd
            seen = {"dmd": loss.mean(), "dmd_norm": dmd.flatten(1).norm(dim=1).mean()}
        if config.adversary and batch.more is not None and turn.heard:
            seen |= self._add_adversarial(turn, batch, noise, total, config.adversary)
        batch.fewer.backward(total / len(self.rows))
        for name, clips in ((str(turn.steps), x.detach()), ("data", batch.data)):
            if clips is None:
                continue
            seen |= {f"std_{name}": clips.std(), f"motion_{name}": clips.diff(dim=1).abs().mean()}
        return seen

    def _add_adversarial(
        self, turn: Turn, batch: Batch, noise: Noise, total: Tensor, config: AdversaryConfig
    ) -> dict[str, Tensor]:
        assert self.discriminator is not None
        with out_of_graph(self._backbone, self.discriminator):
            asd, seen = student_turn(*self._judged(turn, batch, noise))
        cosine = torch.cosine_similarity(total.flatten(1), asd.flatten(1)).mean()
        self.balance.add(total, asd)
        weight = config.weight * (self.balance.ratio if config.balance else 1.0)
        seen |= {"asd_norm": asd.flatten(1).norm(dim=1).mean(), "cosine": cosine, "alpha": torch.tensor(weight)}
        total += weight * asd
        return seen

    def _assistant(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        t = _per_frame(noise.t("assistant", self.config.shift), batch.fewer)
        losses = flow_matching(partial(self.assistant, text=batch.text), batch.fewer, noise.eps("assistant"), t)
        (losses.sum() / len(self.rows)).backward()
        return {"assistant": losses.mean()}

    def _discriminator(self, turn: Turn, batch: Batch, noise: Noise, gamma: float) -> dict[str, Tensor]:
        config = self.config.adversary
        assert config is not None
        joint = config.backbone == "joint"
        with nullcontext() if joint else out_of_graph(self._backbone):
            losses, seen = discriminator_turn(*self._judged(turn, batch, noise), config.penalty, gamma)
        ((config.joint_weight if joint else 1.0) * losses.sum() / len(self.rows)).backward()
        by_steps = {f"{name}_{turn.steps}": seen[name] for name in ("d_fewer", "d_more", "gap", "accuracy")}
        return {**seen, **by_steps}

    @property
    def _backbone(self) -> VideoTransformer:
        config = self.config.adversary
        return self.teacher if config and config.backbone == "teacher" else self.assistant

    def _judged(self, turn: Turn, batch: Batch, noise: Noise) -> tuple[Callable[[Tensor], Tensor], Pair]:
        """D_n at Psi's times, and the pair it judges."""
        adversary = self.config.adversary
        assert self.discriminator is not None
        assert adversary is not None
        assert batch.more is not None
        n, t = adversary.logit(turn.steps, GRID), noise.t("psi", adversary.shift)
        assert n is not None
        eps, direction = noise.eps("psi"), noise.eps("direction")
        pair = Pair(fewer=batch.fewer, more=batch.more, eps=eps, t=t, direction=direction)
        return critic(self._backbone, self.discriminator, batch.text, t, n), pair

    # --- results ---------------------------------------------------------------------------------------------------

    def preview(self, path: Path) -> None:
        """Fixed captions and noise along every preview plan, a row of clips each."""
        make = partial(
            make_plan, frames=sum(self.lengths), chunk_frames=self.config.chunk_frames, shift=self.config.shift
        )
        plans = [make(plan) for plan in PREVIEW_PLANS]
        network: Any = self.ema.module
        show(path, network, self.text, self.codec, plans, self.clips)

    def export(self, folder: Path) -> None:
        """Write a model folder with the averaged student as ``transformer/``, the rest as it was."""
        config = self.config
        network: Any = self.ema.module
        state = self.here.whole(network)
        if not self.here.main:
            return
        export_student(
            folder,
            model=config.model,
            kept={"teacher": config.teacher},
            networks={"transformer": (network.config, state)},
            fields=config,
            shift=config.shift,
            settings=config.settings,
        )


def _per_frame(t: Tensor, like: Tensor) -> Tensor:
    return t[:, None].expand(-1, like.shape[1])


def _mean(rows: Rows) -> dict[str, Tensor]:
    # Micro-batches log the same names; their mean is the batch's.
    names = {name: None for row in rows for name in row}
    return {name: torch.stack([row[name].detach().float() for row in rows if name in row]).mean() for name in names}
