"""Stage 4: distillation. Distribution matching on self-forced rollouts, and adversarial self-distillation beside it.

A step draws one n and rolls the student out with it, chunk by chunk from its own cache. The student is updated first,
then assistant and discriminator, several times from the same samples or from fresh ones. What each learns is in
update.py, and the adversary's part of it in adversary.py; here networks are loaded, weights moved, and results written.
With other options the same stage is Self Forcing, CausVid, or DMD2 (recipes/playground.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nearstep.flow.plan import make_plan
from nearstep.precision import narrowed
from nearstep.train.checkpoint import TrainState
from nearstep.train.distill.adversary import Metrics
from nearstep.train.distill.config import DistillFields
from nearstep.train.distill.networks import Networks, load_networks
from nearstep.train.distill.steps import StepPlan
from nearstep.train.distill.update import Batch, DistillUpdate
from nearstep.train.export import export_student
from nearstep.train.lessons import batches, taught
from nearstep.train.loop import run
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import ranks
from nearstep.train.recipe import recipe_of
from nearstep.train.stages.shared import open_lessons, open_model, own_rows, show

PREVIEW_PLANS = ("1", "4,1x", "2", "4")


@dataclass(frozen=True, kw_only=True)
class DistillConfig(DistillFields):
    """A distillation run."""

    def run(self) -> Path:
        """Train, or go on; returns the model folder."""
        return run(lambda: DistillStage(self), self.loop, recipe_of(self))


class DistillStage:
    """Step, preview and export of a distillation."""

    def __init__(self, config: DistillConfig) -> None:
        here = ranks().holding(slices=config.slices)
        for batch in batches(config.batch, config.lessons):
            own_rows(batch, config.micro, here)  # refused before anything is read
        self.codec, text, clips = open_model(config.model, config.latents, config.text_cache, config.negative)
        networks = load_networks(config, here, self.codec)
        self.config, self.here, self.text, self.clips = config, here, text, clips
        make = partial(DistillUpdate, config, networks, text=text, codec=self.codec, here=here)
        self.update = make(clips=clips)
        opened = open_lessons(config.lessons, self.codec, clips.shape)
        self.lessons = [
            make(
                clips=own,
                first_chunk=lesson.first_chunk,
                batch=lesson.batch,
                kind=config.kinds.index(lesson),
                first_steps=lesson.first_steps,
            )
            for lesson, own in zip(config.lessons, opened, strict=True)
        ]
        self.optimizers = _optimizers(config, networks)
        saved = {f"{name} optimizer": optimizer for name, optimizer in self.optimizers.items()}
        self.state = TrainState({**networks.state(), **saved})

    def step(self, index: int) -> Metrics:
        """One update of the student, then those of assistant and discriminator on its samples."""
        config, update = self.config, taught(index, self.update, self.lessons, self.config.lesson_every)
        networks, plan, size = update.networks, update.plan(index), config.micro or len(update.rows)
        logged: list[Metrics] = []
        batches: list[Batch] = []
        with narrowed(self.here.device.type, config.autocast):
            noise = update.noise("student", index)
            for first in range(update.rows.start, update.rows.stop, size):
                batch = update.sample(plan, update.draw(index), range(first, first + size), graph=True)
                logged.append(update.student(plan, batch, noise.of(batch.rows)))
                batches.append(batch.detached())
            rates = self._move("student", index)
            for number in range(config.ratio):
                if config.fresh:
                    rows = [batch.rows for batch in batches]
                    batches = [update.sample(plan, update.draw(index, number + 1), part) for part in rows]
                learnt, more = self._learn(update, plan, batches, index, number)
                logged += learnt
                rates |= more
        networks.ema.update(networks.student)
        metrics = {"steps": torch.tensor(float(plan.steps))}
        if networks.adversary:
            networks.adversary.balance.settle(self.here.total)
            metrics["gamma"] = torch.tensor(networks.adversary.config.gamma_at(index / config.loop.steps))
        return {**_mean(logged), **rates, **metrics}

    def _learn(
        self, update: DistillUpdate, plan: StepPlan, batches: Sequence[Batch], index: int, number: int
    ) -> tuple[list[Metrics], Metrics]:
        """One update of the assistant, and of the discriminator where it is on and n has a reference."""
        adversary = update.networks.adversary
        noise = update.noise("learners", index, number)
        logged, rates = [update.assistant(batch, noise.of(batch.rows)) for batch in batches], {}
        if adversary and batches[0].x_next is not None:
            done = index * self.config.ratio + number
            gamma = adversary.config.penalty_weight(done, index / self.config.loop.steps, self.config.seed)
            logged += [update.discriminator(plan, batch, noise.of(batch.rows), gamma) for batch in batches]
            rates = self._move("discriminator", index)
        return logged, rates | self._move("assistant", index)

    def _move(self, name: str, index: int) -> Metrics:
        # Gradients are there; the loss itself was checked by being part of them.
        rates = self.optimizers[name].apply(torch.zeros(()), index)
        torch.clear_autocast_cache()  # which holds the weights as they were, in bfloat16
        return {f"{name}_{key}": value for key, value in rates.items()}

    def preview(self, path: Path) -> None:
        """Fixed captions and noise along every preview plan, a row of clips each."""
        config = self.config
        make = partial(make_plan, frames=sum(self.update.lengths), chunk_frames=config.chunk_frames, shift=config.shift)
        plans = [make(plan) for plan in PREVIEW_PLANS]
        show(path, self.update.networks.ema.module, self.text, self.codec, plans, self.clips)

    def export(self, folder: Path) -> None:
        """Write a model folder with the averaged student as ``transformer/``, the rest as it was."""
        config, network = self.config, self.update.networks.ema.module
        state = self.here.whole(network)
        if not self.here.main:
            return
        export_student(
            folder,
            model=config.model,
            unchanged={"teacher": config.teacher},
            networks={"transformer": (network.config, state)},
            fields=config,
            shift=config.shift,
            settings=config.settings,
        )


def _optimizers(config: DistillFields, networks: Networks) -> dict[str, Optimizer]:
    learners: dict[str, tuple[nn.Module, OptimConfig]] = {
        "student": (networks.student, config.student),
        "assistant": (networks.assistant, config.assistant),
    }
    if networks.adversary:
        learners["discriminator"] = (networks.adversary.heads, config.discriminator)
    return {name: Optimizer([net], optim, config.loop.steps) for name, (net, optim) in learners.items()}


def _mean(rows: Sequence[Metrics]) -> Metrics:
    # Micro-batches log the same names; their mean is the batch's.
    names = {name: None for row in rows for name in row}
    return {name: torch.stack([row[name].detach().float() for row in rows if name in row]).mean() for name in names}
