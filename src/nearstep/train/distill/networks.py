"""Who takes part in a distillation: networks in their places on the device, and the adversary where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nearstep import rng
from nearstep.flow.plan import GRID
from nearstep.nets.codec import VideoCodec
from nearstep.nets.compiling import compile_blocks
from nearstep.nets.discriminator import Discriminator, tap_blocks
from nearstep.nets.transformer import VideoTransformer
from nearstep.train.adapters import adapt, base, start_from
from nearstep.train.distill.adversary import Adversary, AdversaryConfig
from nearstep.train.distill.config import DistillFields
from nearstep.train.distill.pictures import BLOCKS, PICTURE_WIDTHS, PictureBackbone
from nearstep.train.ema import Ema
from nearstep.train.frozen import Trained, twin
from nearstep.train.parallel import Place, Ranks
from nearstep.train.stages.shared import load_network

Role = Literal["teacher", "assistant", "student"]
Load = Callable[[Role, torch.dtype], VideoTransformer]
"""(whose, type of the weights) -> a network."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of a distillation; the teacher is frozen, the student's average follows it."""

    student: VideoTransformer
    teacher: VideoTransformer
    assistant: VideoTransformer
    ema: Ema
    adversary: Adversary | None
    """None: distribution matching alone."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of them, by name."""
        parts: dict[str, Any] = {
            "student": Trained(self.student),
            "assistant": Trained(self.assistant),
            "ema": self.ema,
        }
        if self.adversary:
            parts |= {"discriminator": self.adversary.heads, "balance": self.adversary.balance}
        return parts


def load_networks(config: DistillFields, here: Ranks, codec: VideoCodec) -> Networks:
    """Load and place the networks of a run, those that share weights together and the others one by one.

    Args:
        config: the run's.
        here: this process among those that train together.
        codec: decodes what an adversary on pictures sees.
    """

    def load(role: Role, dtype: torch.dtype) -> VideoTransformer:
        return load_network(config.model / (config.network if role == "student" else config.teacher), dtype)

    pictures = None
    if config.adversary and config.adversary.vgg:
        pictures = PictureBackbone.open(codec, config.adversary.vgg, config.adversary.frames).to(here.device)
    return assembled(config, load, here.place, cut=here.mesh is not None, pictures=pictures)


def assembled(
    config: DistillFields, load: Load, place: Place, *, cut: bool, pictures: PictureBackbone | None = None
) -> Networks:
    """The networks of a run, wherever their numbers come from (cost/fake_step.py has none).

    Args:
        config: the run's.
        load: a role's network, frozen or not.
        place: puts a network in its place, its blocks gathered in a type.
        cut: placing cuts networks into slices of their own.
        pictures: what an adversary on pictures reads.
    """
    # The discriminator's penalty may read its backbone in float32, so that one is then gathered in float32.
    narrow, read = torch.bfloat16 if config.autocast else None, config.adversary.wide_role if config.adversary else ""
    teacher = _teacher(config, load)
    # Adapters that stand on the teacher's weights: made before those are placed, while the numbers are there once.
    shared = {role: _adapted(twin(teacher), config, role) for role in config.on_teacher}
    place(_ready(teacher, config), None if read == "teacher" else narrow)

    assistant = shared.get("assistant") or load("assistant", torch.float32)
    place(_ready(assistant, config), None if read in ("assistant", "joint") else narrow)

    student = shared.get("student") or _student(config, load)
    student.register_to_config(chunk_frames=config.chunk_frames)  # whatever it was made for that it starts from
    ema = Ema(student, config.ema, cut=cut)
    place(_ready(student, config), narrow)
    place(ema.module, None)

    adversary = None
    if config.adversary:
        read_from = pictures or (teacher if config.adversary.backbone == "teacher" else assistant)
        heads = make_heads(config.adversary, teacher, config.seed)
        adversary = Adversary(config.adversary, heads, read_from, kinds=len(config.kinds))
        place(adversary.heads, None)
    return Networks(student=student, teacher=teacher, assistant=assistant, ema=ema, adversary=adversary)


def make_heads(config: AdversaryConfig, shape: VideoTransformer, seed: int) -> Discriminator:
    """Fresh heads that fit networks of this shape, or pictures."""
    sizes = shape.config
    heads, width = sizes["num_attention_heads"], sizes["attention_head_dim"]
    taps, widths = (BLOCKS, PICTURE_WIDTHS) if config.of_pictures else (tap_blocks(sizes["num_layers"]), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key("discriminator weights", seed))
        return Discriminator(
            heads * width, heads, taps, config.pairs(GRID), pool=config.pool, timed=config.timed, widths=widths
        )


def _teacher(config: DistillFields, load: Load) -> VideoTransformer:
    dtype = getattr(torch, config.teacher_dtype)
    if config.on_teacher:
        return base(load("teacher", torch.float32), dtype).eval()
    return load("teacher", dtype).eval().requires_grad_(False)


def _student(config: DistillFields, load: Load) -> VideoTransformer:
    """The student on weights of its own."""
    network = load("student", torch.float32)
    if "student" not in config.adapted:
        return network
    return _adapted(base(network, getattr(torch, config.teacher_dtype)), config, "student")


def _adapted(network: VideoTransformer, config: DistillFields, role: str) -> VideoTransformer:
    adapt(network, config, role, config.seed)
    if role == "student":
        start_from(network, config)
    return network


def _ready(network: VideoTransformer, config: DistillFields) -> VideoTransformer:
    if config.compile:
        compile_blocks(network)
    if config.checkpointing:
        network.enable_gradient_checkpointing()
    return network
