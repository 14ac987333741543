"""Floating-point operations of an update, from shapes: two for each multiply-add, matrix products and attention alone.

Forward passes are counted by flops.py; here is which of them an update makes, and what going back costs.

Norms, rotations, optimizers, communication and the codec are not counted, so seconds made of these are a floor. A
backward pass takes twice the forward pass of a linear map (once where its weights learn nothing), and two and a half
times that of fused attention, which computes its scores again (Dao 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from math import prod
from typing import Any

from nearstep.cost.flops import CallFlops, masked_flops, text_keys_flops
from nearstep.cost.sizes import Sizes
from nearstep.flow.plan import GRID, chunk_lengths
from nearstep.nets.discriminator import tap_blocks
from nearstep.nets.masks import Visibility, block_causal
from nearstep.precision import Products
from nearstep.reach import Reach
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.config import DistillFields
from nearstep.train.distill.excerpt import seen_frames
from nearstep.train.distill.scores import reading, scoring
from nearstep.train.distill.steps import opening_chunks
from nearstep.train.objectives.table import objective_called
from nearstep.train.stages.causal import CausalConfig

FUSED_BACKWARD = 2.5
_TIME_WIDTH = 64


@dataclass(frozen=True)
class Flops:
    """Operations of linear maps and of attention in bfloat16, and of what runs in float32 or TF32."""

    linear: float = 0.0
    attention: float = 0.0
    single: float = 0.0
    tf32: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(*(own + more for own, more in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Flops:
        return Flops(*(times * own for own in astuple(self)))

    __rmul__ = __mul__

    @property
    def all(self) -> float:
        """The sum of all kinds."""
        return sum(astuple(self))

    def seconds(self, rates: Mapping[Products, float]) -> float:
        """Time at so many operations a second in each type."""
        narrow = (self.linear + self.attention) / rates["bfloat16"]
        return narrow + self.single / rates["float32"] + self.tf32 / rates["TF32"]

    def made_in(self, products: Products) -> Flops:
        """The same operations in another type than bfloat16."""
        return {"bfloat16": self, "TF32": Flops(tf32=self.all), "float32": Flops(single=self.all)}[products]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a transformer's calls cost on frames of one size."""

    config: Mapping[str, Any]
    frame: tuple[int, int, int]
    """[C, H, W] of a latent frame."""
    text: int
    """Text tokens."""
    recomputes: bool = False
    """Blocks are computed again in the backward pass."""
    rank: int = 0
    """Of adapters, which alone learn; 0 where all of it does."""

    @property
    def reach(self) -> Reach:
        """How far back chunks look."""
        return Reach.of(self.config)

    def call(self, visibility: Visibility, *, commit: int = 0) -> Flops:
        """One forward pass, the prompt's keys not included."""
        return _flops(self._counted(visibility, commit))

    def keys(self) -> Flops:
        """A prompt's embedding, and its keys and values for every block."""
        return Flops(text_keys_flops(self.config, self.text, rank=self.rank))

    def whole(self, visibility: Visibility) -> Flops:
        """One forward pass with a prompt that was not seen before."""
        return self.call(visibility) + self.keys()

    def back(self, visibility: Visibility, *, weights: bool = True, keys: bool = True) -> Flops:
        """The backward pass of ``call`` (and of ``keys``), with what is computed again for it."""
        counted = self._counted(visibility)
        attention, times = counted.text + counted.frames, 2 if weights else 1
        # What enters at the ends asks for no gradient itself, so they are counted slightly too high.
        linear = times * (counted.blocks + counted.ends + (self.keys().linear if keys else 0))
        if self.rank:  # frozen weights pass gradients on, the prompt's not even that
            linear -= (times - 1) * (self._counted(visibility, rank=0).blocks + counted.ends)
            linear -= times * text_keys_flops(self.config, self.text) if keys else 0
        once = Flops(linear, FUSED_BACKWARD * attention)
        return once + (Flops(counted.blocks, attention) if self.recomputes else Flops())

    def _counted(self, visibility: Visibility, commit: int = 0, *, rank: int | None = None) -> CallFlops:
        (_, height, width), rank = self.frame, self.rank if rank is None else rank
        return masked_flops(
            self.config, visibility, commit=commit, height=height, width=width, text=self.text, rank=rank
        )


def _flops(counted: CallFlops) -> Flops:
    return Flops(counted.linear, counted.text + counted.frames)


def distillation(config: DistillFields, sizes: Sizes) -> dict[str, Flops]:
    """Per clip of an update, on average over the step counts that are drawn: part -> operations."""
    mean: dict[str, Flops] = {}
    for steps in config.step_counts:
        for name, flops in _update(config, sizes, steps).items():
            mean[name] = mean.get(name, Flops()) + flops * (1 / len(config.step_counts))
    return mean


def _update(config: DistillFields, sizes: Sizes, steps: int) -> dict[str, Flops]:
    """An update whose samples have ``steps`` steps."""
    make = partial(Network, frame=sizes.clip[1:], text=sizes.text_length)
    ranks = {role: config.lora_rank or 0 for role in config.adapted}
    student = make(config=sizes.student, recomputes=config.checkpointing, rank=ranks.get("student", 0))
    assistant = make(config=sizes.teacher, recomputes=config.checkpointing, rank=ranks.get("assistant", 0))
    teacher = make(config=sizes.teacher)
    # What teacher, assistant and discriminator see of a sample; they see all of that.
    seen = replace(sizes, clip=(seen_frames(sizes.clip[0], config.excerpt_frames), *sizes.clip[1:]))
    frames = seen.clip[0]
    scored, read = scoring(sizes.teacher, frames), reading(sizes.teacher, frames)
    judge = teacher if config.adversary and config.adversary.backbone == "teacher" else assistant
    whole = judge.whole(read)
    forward, backward = rollout(student, sizes, config, steps)
    draws = 1 + config.ratio * config.fresh
    parts = {"rollout": draws * forward, "student backward": backward}
    if config.dmd_on == "every" or steps == max(config.step_counts):
        parts["scores of teacher and assistant"] = 2 * teacher.whole(scored) + assistant.whole(scored)
    parts["assistant"] = config.ratio * (assistant.back(scored) + assistant.whole(scored))
    adversary = config.adversary
    if adversary is None or adversary.logit(steps, GRID) is None:
        return parts
    if not adversary.against_data(steps, GRID):
        parts["rollout of the reference"] = draws * rollout(student, sizes, config, steps + 1)[0]
    heads = _heads(seen, adversary)
    parts["adversary of the student"] = 2 * whole + judge.back(read, weights=False, keys=False) + 4 * heads
    joint = 2 * judge.back(read) if adversary.backbone == "joint" else Flops()
    parts["discriminator"] = config.ratio * (2 * whole + joint + 6 * heads)
    if adversary.gamma:
        calls = 4 if adversary.penalty == "finite difference" else 8
        more = 2 * joint if adversary.penalty == "finite difference" else 4 * joint
        once = (calls * whole + more).made_in(adversary.penalty_products) + 3 * calls * heads
        parts[f"penalty, in {adversary.penalty_products}"] = config.ratio / adversary.penalty_every * once
    return parts


def rollout(student: Network, sizes: Sizes, config: DistillFields, steps: int) -> tuple[Flops, Flops]:
    """Samples of ``steps`` steps with their commits, and the backward pass through each chunk's last step."""
    lengths = chunk_lengths(sizes.clip[0], config.chunk_frames, sizes.first_chunk)
    if config.sampling == "data":
        at_once = block_causal(lengths)
        return student.whole(at_once), student.back(at_once)
    forward, backward = student.keys(), 2 * student.keys()
    opening, start = opening_chunks(lengths, sizes.starts), 0
    for index, length in enumerate(lengths):
        chunk = block_causal((length,), student.reach).shifted(start)
        own = config.first_steps if index in opening else None
        given = index == 0 and sizes.first_chunk is not None  # it is read, and not made
        forward += (0 if given else own or steps) * student.call(chunk)
        if index + 1 < len(lengths):  # nothing reads the last chunk
            forward += student.call(chunk, commit=length)
        if not given:
            backward += student.back(chunk, keys=False)
        if config.replay and not given:
            backward += student.call(chunk)
        start += length
    return forward, backward


def _heads(sizes: Sizes, adversary: AdversaryConfig) -> Flops:
    """The discriminator's own layers on a clip, in float32; the backbone is not in it."""
    dim = sizes.teacher["num_attention_heads"] * sizes.teacher["attention_head_dim"]
    tokens = sizes.clip[0] * prod(sizes.clip[2:]) // prod(sizes.teacher["patch_size"])
    taps = len(tap_blocks(sizes.teacher["num_layers"]))
    gathers = adversary.pool == "attention"
    tap = tokens * dim * dim * (3 if gathers else 1) + gathers * 2 * dim * (dim + tokens)
    mix = (1 if gathers else tokens) * dim * (dim * (taps + adversary.timed) + adversary.pairs(GRID))
    return Flops(single=2 * (taps * tap + mix + adversary.timed * _TIME_WIDTH * dim))


def causal(config: CausalConfig, sizes: Sizes) -> dict[str, Flops]:
    """Per clip of an update of a causal run: part -> operations, as the objective says what it calls."""
    network = Network(
        config=sizes.student,
        frame=sizes.clip[1:],
        text=sizes.text_length,
        recomputes=config.checkpointing,
        rank=config.lora_rank or 0,
    )
    lengths = chunk_lengths(sizes.clip[0], config.chunk_frames, sizes.first_chunk)
    parts: dict[str, Flops] = {}
    for calls in objective_called(config.objective).calls(lengths, network.reach, config.ode_steps):
        parts[calls.part] = calls.times * network.whole(calls.visibility)
        if calls.learns:
            parts[f"{calls.part} backward"] = calls.times * network.back(calls.visibility)
    return parts
