"""What a process of a run will hold at most, and what an update costs, before anything is loaded.

Weights, moments and averages are counted from shapes (cost/sizes.py) and shared out among processes; what a step keeps
beside them comes from a step without numbers (cost/fake_step.py); operations from formulas (cost/update_flops.py).
Tests hold both against real steps on a CPU. Not measured: what FSDP gathers, what CUDA and its allocator take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from nearstep.cost import fake_step, update_flops
from nearstep.cost.courses import Course, courses
from nearstep.cost.fake_step import Config
from nearstep.cost.sizes import (
    SINGLE,
    Count,
    Sizes,
    count_encoder,
    count_network,
    parameters,
)
from nearstep.errors import NearstepError
from nearstep.models.empty import empty_codec, empty_network
from nearstep.nets.transformer import linear_layers
from nearstep.train.distill.config import DistillFields
from nearstep.train.distill.networks import make_heads
from nearstep.train.objectives.table import objective_called
from nearstep.train.optim import OptimConfig, is_hidden_matrix
from nearstep.train.stages.causal import CausalConfig

SHARE = 0.92
"""Share of an accelerator's memory that tensors may fill: the rest is CUDA's and lost between blocks. Unmeasured."""
_HALF = 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One process of a run."""

    resident: Mapping[str, float]
    """Component -> bytes that stay from the first step to the last."""
    phases: Mapping[str, float]
    """Phase of a step -> most bytes at once, all that is held included."""
    flops: Mapping[str, update_flops.Flops]
    """Part of an update -> operations of this process."""

    @property
    def peak(self) -> float:
        """Bytes at the worst moment."""
        return max(self.phases.values())

    @property
    def worst(self) -> str:
        """The phase it falls in."""
        return max(self.phases, key=lambda name: self.phases[name])


def estimate(config: Config, sizes: Sizes, processes: int = 1, preview: fake_step.Peaks | None = None) -> Estimate:
    """What a run takes on each of ``processes`` that share it.

    Args:
        config: a distillation, or a causal run.
        sizes: those of its networks and clips.
        processes: how many share it, with one accelerator each.
        preview: fake_step.preview of them, where it has been made.

    Raises:
        NearstepError: if batch or micro-batch do not divide.
    """
    held = resident(config, sizes, processes)
    base = sum(held.values())
    peaks: dict[str, float] = {}
    for course in courses(config, sizes):
        for name, size in fake_step.peaks(course.config, course.sizes, processes).items():
            peaks[name] = max(size, peaks.get(name, 0.0))
    peaks |= preview or fake_step.preview(config, sizes)
    phases = {name: base + size for name, size in peaks.items()}
    return Estimate(resident=held, phases=phases, flops=operations(config, sizes, processes))


def resident(config: Config, sizes: Sizes, processes: int = 1) -> dict[str, float]:
    """Component -> bytes that each of ``processes`` holds from the first step to the last.

    Raises:
        NearstepError: for an adversary on pictures, whose decoded frames nobody has counted.
    """
    if isinstance(config, DistillFields) and config.adversary and config.adversary.of_pictures:
        raise NearstepError("the planner does not count an adversary on pictures; plan with adversary.backbone=teacher")
    slices = fake_step.slices_of(config, processes)
    held = _causal(config, sizes, slices) if isinstance(config, CausalConfig) else _distillation(config, sizes, slices)
    held |= {"codec": SINGLE * parameters(empty_codec(sizes.codec)), "text encoder": _encoder(config, sizes)}
    if slices > 1:
        held["gathered by FSDP"] = _gathered(config, sizes)
    if isinstance(config, DistillFields):
        held["other micro-batches"] = max(_waiting(each, processes) for each in courses(config, sizes))
    return held


def operations(config: Config, sizes: Sizes, processes: int = 1) -> dict[str, update_flops.Flops]:
    """Part of an update -> operations of each of ``processes``, on average over updates of all kinds."""
    total: dict[str, update_flops.Flops] = {}
    for course in courses(config, sizes):
        own, clips = course.config, course.share * course.config.batch / processes
        causal = isinstance(own, CausalConfig)
        parts = update_flops.causal(own, course.sizes) if causal else update_flops.distillation(own, course.sizes)
        for name, part in parts.items():
            total[name] = total.get(name, update_flops.Flops()) + clips * part
    return total


def _distillation(config: DistillFields, sizes: Sizes, slices: int) -> dict[str, float]:
    roles = {"student": (sizes.student, config.student), "assistant": (sizes.teacher, config.assistant)}
    resident: dict[str, float] = {}
    for role, (network, optim) in roles.items():
        learner = _Learner(
            network=network,
            rank=config.lora_rank if role in config.adapted else None,
            dtype=config.teacher_dtype if role in config.adapted else "float32",
            # Networks that stand on the teacher's weights hold none of their own, unless they are cut into slices.
            shares=role in config.on_teacher and slices == 1,
        )
        resident |= {role: learner.weights / slices, f"{role}'s moments": learner.moments(optim) / slices}
        if role == "student":
            resident["student's average"] = learner.average(cut=slices > 1) / slices
    resident[f"teacher, {config.teacher_dtype}"] = _teacher(config, sizes) / slices
    if config.adversary:
        heads = make_heads(config.adversary, empty_network(sizes.teacher), config.seed)
        resident["discriminator, moments"] = 3 * SINGLE * parameters(heads) / slices
    return resident


def _teacher(config: DistillFields, sizes: Sizes) -> float:
    """Bytes of the teacher's weights; adapters that stand on them have the linear layers of blocks alone narrow."""
    if config.on_teacher:
        base = _Learner(network=sizes.teacher, rank=config.lora_rank, dtype=config.teacher_dtype)
        return base.frozen
    return count_network(sizes.teacher).bytes(config.teacher_dtype)


def _causal(config: CausalConfig, sizes: Sizes, slices: int) -> dict[str, float]:
    dtype = config.base_dtype or "float32"
    network, cut = _Learner(network=sizes.student, rank=config.lora_rank, dtype=dtype), slices > 1
    resident = {
        "network": network.weights / slices,
        "network's moments": network.moments(config.optim) / slices,
        "network's average": network.average(cut=cut) / slices,
    }
    if not objective_called(config.objective).follows:
        return resident
    return resident | {"many-step network": network.average(cut=cut) / slices}


@dataclass(frozen=True, kw_only=True)
class _Learner:
    """What a network that trains holds, whole or by an adapter."""

    network: Mapping[str, Any]
    rank: int | None = None
    dtype: str = "float32"
    """Of the linear layers that an adapter stands on."""
    shares: bool = False
    """Whether what is frozen is held by another."""

    @property
    def weights(self) -> float:
        """Bytes of its weights."""
        if self.rank is None:
            return SINGLE * count_network(self.network).all
        return (0 if self.shares else self.frozen) + SINGLE * sum(map(prod, self._adapter))

    @property
    def frozen(self) -> float:
        """Bytes of what an adapter stands on."""
        numbers, _ = (count := count_network(self.network)).linear
        return SINGLE * (count.all - numbers) + getattr(torch, self.dtype).itemsize * numbers

    def average(self, *, cut: bool) -> float:
        """Bytes of a copy that follows it: of what trains, and where networks are cut of what is frozen, too."""
        if self.rank is None or cut:
            return replace(self, shares=False).weights
        return SINGLE * sum(map(prod, self._adapter))

    def moments(self, optim: OptimConfig) -> float:
        """Bytes of an optimizer's moments: AdamW keeps two, Muon one where it has the matrix."""
        named = [*empty_network(self.network).named_parameters()]
        if self.rank is not None:
            named = [("blocks.", torch.empty(shape, device="meta")) for shape in self._adapter]
        return sum(SINGLE * p.numel() * (1 if optim.muon and is_hidden_matrix(name, p) else 2) for name, p in named)

    @property
    def _adapter(self) -> list[torch.Size]:
        """Shapes of its two matrices, A and B, of every layer."""
        assert self.rank is not None
        empty = empty_network(self.network)
        layers = [empty.get_parameter(f"{name}.weight").shape for name in linear_layers(empty)]
        return [torch.Size(each) for out, into in layers for each in ((self.rank, into), (out, self.rank))]


def _encoder(config: Config, sizes: Sizes) -> float:
    # With a cache on disk the encoder is loaded for new prompts only, and stays on the CPU.
    return 0 if config.text_cache else SINGLE * count_encoder(sizes.encoder)


def _waiting(course: Course, processes: int) -> float:
    """Text and both samples of the micro-batches that wait for the learners, while another is at work."""
    share = course.config.batch // processes
    return (share - (course.config.micro or share)) * (course.sizes.text_bytes + 2 * course.sizes.clip_bytes)


def _gathered(config: Config, sizes: Sizes) -> float:
    """The block at work, the next one and the buffer that it arrives in; a gradient on its way; what is in no block.

    FSDP2 keeps the parameters of the root gathered between calls.
    """
    narrow = _HALF if config.autocast else SINGLE
    if isinstance(config, CausalConfig):
        network = count_network(sizes.student)
        return _block(network, narrow) + 3 * _outside(network, sizes.student)
    read = config.adversary.wide_role if config.adversary else ""
    wide = SINGLE if read in ("assistant", "joint") else narrow
    student, teacher = count_network(sizes.student), count_network(sizes.teacher)
    largest = max(_block(student, narrow), _block(teacher, wide))
    return largest + 2 * _outside(student, sizes.student) + 2 * _outside(teacher, sizes.teacher)


def _block(network: Count, size: int) -> float:
    return network.block * (3 * size + size + 2 * SINGLE)


def _outside(network: Count, config: Mapping[str, Any]) -> float:
    return SINGLE * (network.all - config["num_layers"] * network.block)
