"""Who takes part in a distillation: networks in their places on the device, their optimizers, what a run must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nearstep import rng
from nearstep.flow.plan import GRID
from nearstep.nets.discriminator import Discriminator, tap_blocks
from nearstep.nets.transformer import VideoTransformer
from nearstep.train.adversary import AdversaryConfig
from nearstep.train.balance import Balance
from nearstep.train.checkpoint import TrainState
from nearstep.train.ema import Ema
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import Ranks
from nearstep.train.stages.shared import compile_blocks, load_network

if TYPE_CHECKING:
    from nearstep.train.stages.distill import DistillConfig


@dataclass(frozen=True, kw_only=True)
class Players:
    """Everyone; the teacher is frozen, the student's average follows it."""

    student: VideoTransformer
    teacher: VideoTransformer
    assistant: VideoTransformer
    ema: Ema
    discriminator: Discriminator | None
    optimizers: dict[str, Optimizer]
    balance: Balance

    def state(self) -> TrainState:
        """What a checkpoint holds."""
        parts: dict[str, Any] = {"student": self.student, "assistant": self.assistant, "ema": self.ema}
        if self.discriminator:
            parts["discriminator"] = self.discriminator
        optimizers = {f"{name} optimizer": optimizer for name, optimizer in self.optimizers.items()}
        return TrainState({**parts, "balance": self.balance, **optimizers})


def players(config: DistillConfig, here: Ranks) -> Players:
    """Load and place the networks of a run."""
    student = load_network(config.model / config.source)
    ema = Ema(student, config.ema)
    teacher = load_network(config.model / config.teacher, getattr(torch, config.teacher_dtype))
    teacher.eval().requires_grad_(False)
    assistant = load_network(config.model / config.teacher)
    if config.compile:
        for network in (student, teacher, assistant):
            compile_blocks(network)
    if config.checkpointing:
        student.enable_gradient_checkpointing()
        assistant.enable_gradient_checkpointing()
    # The discriminator's penalty reads its backbone in float32, so that one is gathered in float32.
    narrow, read = torch.bfloat16 if config.autocast else None, config.adversary.backbone if config.adversary else ""
    here.place(student, narrow)
    here.place(ema.module)
    here.place(teacher, None if read == "teacher" else narrow)
    here.place(assistant, None if read in ("assistant", "joint") else narrow)
    discriminator = make_discriminator(config.adversary, teacher, config.seed) if config.adversary else None
    learners: dict[str, tuple[torch.nn.Module, OptimConfig]] = {
        "student": (student, config.student),
        "assistant": (assistant, config.assistant),
    }
    if discriminator:
        here.place(discriminator)
        learners["discriminator"] = (discriminator, config.discriminator)
    return Players(
        student=student,
        teacher=teacher,
        assistant=assistant,
        ema=ema,
        discriminator=discriminator,
        optimizers={name: Optimizer([net], optim, config.loop.steps) for name, (net, optim) in learners.items()},
        balance=Balance(),
    )


def make_discriminator(adversary: AdversaryConfig, teacher: VideoTransformer, seed: int) -> Discriminator:
    """Fresh heads that fit a backbone."""
    shape = teacher.config
    heads, width, taps = shape["num_attention_heads"], shape["attention_head_dim"], tap_blocks(shape["num_layers"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key("discriminator weights", seed))
        return Discriminator(heads * width, heads, taps, adversary.pairs(GRID), pool=adversary.pool)
