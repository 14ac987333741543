"""Who takes part in a distillation: networks in their places on the device, their optimizers, what a run must keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nearstep import rng
from nearstep.flow.plan import GRID
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.discriminator import Discriminator, tap_blocks
from nearstep.nets.transformer import VideoTransformer
from nearstep.train.adapters import adapt, base, start_from
from nearstep.train.checkpoint import TrainState
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.balance import Balance
from nearstep.train.ema import Ema
from nearstep.train.frozen import Trained, twin
from nearstep.train.optim import OptimConfig, Optimizer
from nearstep.train.parallel import Ranks
from nearstep.train.stages.shared import load_network

if TYPE_CHECKING:
    from nearstep.train.distill.stage import DistillConfig


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
        parts: dict[str, Any] = {
            "student": Trained(self.student),
            "assistant": Trained(self.assistant),
            "ema": self.ema,
        }
        if self.discriminator:
            parts["discriminator"] = self.discriminator
        optimizers = {f"{name} optimizer": optimizer for name, optimizer in self.optimizers.items()}
        return TrainState({**parts, "balance": self.balance, **optimizers})


def players(config: DistillConfig, here: Ranks) -> Players:
    """Load and place the networks of a run, those that share weights together and the others one by one."""
    # The discriminator's penalty reads its backbone in float32, so that one is gathered in float32.
    narrow, read = torch.bfloat16 if config.autocast else None, config.adversary.backbone if config.adversary else ""
    teacher = _teacher(config)
    shared = {role: _adapted(twin(teacher), config, role) for role in config.on_teacher}
    here.place(_ready(teacher, config), None if read == "teacher" else narrow)

    assistant = shared.get("assistant") or load_network(config.model / config.teacher)
    here.place(_ready(assistant, config), None if read in ("assistant", "joint") else narrow)

    student = shared.get("student") or _student(config)
    ema = Ema(student, config.ema, cut=here.mesh is not None)
    here.place(_ready(student, config), narrow)
    here.place(ema.module)
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


def _teacher(config: DistillConfig) -> VideoTransformer:
    dtype = getattr(torch, config.teacher_dtype)
    if config.on_teacher:
        return base(load_network(config.model / config.teacher), dtype).eval()
    return load_network(config.model / config.teacher, dtype).eval().requires_grad_(False)


def _student(config: DistillConfig) -> VideoTransformer:
    """The student on weights of its own."""
    network = load_network(config.model / config.source)
    if "student" not in config.adapted:
        return network
    return _adapted(base(network, getattr(torch, config.teacher_dtype)), config, "student")


def _adapted(network: VideoTransformer, config: DistillConfig, role: str) -> VideoTransformer:
    adapt(network, config, role, config.seed)
    if role == "student":
        start_from(network, config)
        if network.config["chunk_frames"] is None:  # on the teacher's weights
            network.register_to_config(chunk_frames=config.chunk_frames)
    return network


def _ready(network: VideoTransformer, config: DistillConfig) -> VideoTransformer:
    if config.compile:
        compile_blocks(network)
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    return network
