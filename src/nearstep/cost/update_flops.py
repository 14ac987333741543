"""Floating-point operations of an update, from shapes: two for each multiply-add, matrix products and attention alone.

Norms, rotations, optimizers, communication and the codec are not counted, so seconds made of these are a floor. A
backward pass takes twice the forward pass of a linear map (once where its weights learn nothing), and two and a half
times that of fused attention, which computes its scores again (Dao 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from nearstep.cost.sizes import Sizes
from nearstep.flow.plan import GRID, chunk_lengths
from nearstep.nets.discriminator import tap_blocks
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.stages.causal import CausalConfig

FUSED_BACKWARD = 2.5
_TIME_WIDTH = 64


@dataclass(frozen=True)
class Flops:
    """Of linear maps, of attention, and of what runs in float32."""

    linear: float = 0.0
    attention: float = 0.0
    single: float = 0.0

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.linear + other.linear, self.attention + other.attention, self.single + other.single)

    def __mul__(self, times: float) -> Flops:
        return Flops(self.linear * times, self.attention * times, self.single * times)

    __rmul__ = __mul__

    @property
    def all(self) -> float:
        """Their sum."""
        return self.linear + self.attention + self.single

    def seconds(self, rate: float, single_rate: float) -> float:
        """At so many operations a second, and so many in float32."""
        return (self.linear + self.attention) / rate + self.single / single_rate

    def in_single(self) -> Flops:
        """The same operations in float32."""
        return Flops(single=self.all)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a transformer's calls cost on frames of one size."""

    config: Mapping[str, Any]
    frame: tuple[int, int, int]
    """[C, H, W] of a latent frame."""
    text: int
    """Text tokens."""
    again: bool = False
    """Blocks are computed again in the backward pass."""

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def tokens(self) -> int:
        """Of a frame."""
        _, height, width = self.frame
        return height * width // prod(self.config["patch_size"])

    def blocks(self, frames: int, seen: float) -> Flops:
        """The blocks on ``frames`` frames that see ``seen`` frames each on average."""
        config, dim, tokens = self.config, self.width, frames * self.tokens
        layers, hidden = config["num_layers"], config["ffn_dim"]
        linear = 2 * layers * tokens * (6 * dim * dim + 2 * dim * hidden)
        attention = 4 * layers * tokens * dim * (seen * self.tokens + self.text)
        return Flops(linear, attention)

    def ends(self, frames: int, times: int | None = None) -> Flops:
        """Patch embedding, output head and the embedding of ``times`` times (one a frame)."""
        config, dim = self.config, self.width
        patch = prod(config["patch_size"])
        tokens = 2 * frames * self.tokens * dim * patch * (config["in_channels"] + config["out_channels"])
        clocks = frames if times is None else times
        return Flops(tokens + 2 * clocks * (config["freq_dim"] * dim + 7 * dim * dim))

    def keys(self) -> Flops:
        """A prompt's embedding, and its keys and values for every block."""
        dim = self.width
        return Flops(2 * self.text * (self.config["text_dim"] * dim + dim * dim * (1 + 2 * self.config["num_layers"])))

    def call(self, frames: int, seen: float, times: int | None = None) -> Flops:
        """One forward pass, the prompt's keys not included."""
        return self.blocks(frames, seen) + self.ends(frames, times)

    def back(self, frames: int, seen: float, *, weights: bool = True, keys: bool = True) -> Flops:
        """The backward pass of ``call`` (and of ``keys``), with what is computed again for it."""
        inside, ends = self.blocks(frames, seen), self.ends(frames)
        outside = ends + (self.keys() if keys else Flops())
        times = 2 if weights else 1
        # What enters at the ends asks for no gradient itself, so they are counted slightly too high.
        found = Flops(times * (inside.linear + outside.linear), FUSED_BACKWARD * inside.attention)
        return found + (inside if self.again else Flops())


def distillation(config: DistillConfig, sizes: Sizes) -> dict[str, Flops]:
    """Per clip of an update, on average over the step counts that are drawn: part -> operations."""
    found: dict[str, Flops] = {}
    for steps in config.counts:
        for name, flops in _turn(config, sizes, steps).items():
            found[name] = found.get(name, Flops()) + flops * (1 / len(config.counts))
    return found


def _turn(config: DistillConfig, sizes: Sizes, steps: int) -> dict[str, Flops]:
    """An update whose samples have ``steps`` steps."""
    make = partial(Network, frame=sizes.clip[1:], text=sizes.text_length)
    student = make(config=sizes.student, again=config.checkpointing)
    assistant, teacher = make(config=sizes.teacher, again=config.checkpointing), make(config=sizes.teacher)
    frames = sizes.clip[0]
    whole = teacher.call(frames, frames) + teacher.keys()
    learnt = assistant.back(frames, frames) + whole
    made, back = rollout(student, frames, config, steps)
    found = {"rollout": made, "student backward": back}
    if config.match == "every" or steps == max(config.counts):
        found["scores of teacher and assistant"] = 3 * whole
    found["assistant"] = config.ratio * learnt
    adversary = config.adversary
    if adversary is None or adversary.logit(steps, GRID) is None:
        return found
    if not adversary.against_data(steps, GRID):
        found["rollout of the reference"] = rollout(student, frames, config, steps + 1)[0]
    judge = teacher if adversary.backbone == "teacher" else assistant
    heads = _heads(sizes, adversary)
    found["adversary of the student"] = 2 * whole + judge.back(frames, frames, weights=False, keys=False) + 4 * heads
    joint = 2 * judge.back(frames, frames) if adversary.backbone == "joint" else Flops()
    found["discriminator"] = config.ratio * (2 * whole + joint + 6 * heads)
    if adversary.gamma:
        calls = 4 if adversary.penalty == "finite difference" else 8
        more = 2 * joint if adversary.penalty == "finite difference" else 4 * joint
        once = (calls * whole + more).in_single() + 3 * calls * heads
        found["penalty, in float32"] = config.ratio / adversary.penalty_every * once
    return found


def rollout(student: Network, frames: int, config: DistillConfig, steps: int) -> tuple[Flops, Flops]:
    """Samples of ``steps`` steps with their commits, and the backward pass through each chunk's last step."""
    lengths = chunk_lengths(frames, config.chunk_frames)
    seen = _seen(student.config, lengths)
    if config.sampling == "data":
        average = _average(lengths, seen)
        return student.call(frames, average) + student.keys(), student.back(frames, average)
    made, back = student.keys(), _keys_back(student)
    for index, (length, reach) in enumerate(zip(lengths, seen, strict=True)):
        first = index == 0 and config.first_steps is not None
        calls = config.first_steps if first and config.first_steps else steps
        made += calls * student.call(length, reach)
        made += student.call(length, reach, times=1) * (index + 1 < len(lengths))
        back += student.back(length, reach, keys=False)
    return made, back


def _keys_back(student: Network) -> Flops:
    return 2 * student.keys()


def _seen(config: Mapping[str, Any], lengths: Sequence[int]) -> list[int]:
    """Frames that each chunk's frames see."""
    window, sink, end, seen = config.get("window_frames"), config.get("sink_frames") or 0, 0, []
    for length in lengths:
        end += length
        seen.append(end if window is None else min(end, window + sink))
    return seen


def _average(lengths: Sequence[int], seen: Sequence[int]) -> float:
    return sum(a * b for a, b in zip(lengths, seen, strict=True)) / sum(lengths)


def _heads(sizes: Sizes, adversary: AdversaryConfig) -> Flops:
    """The discriminator's own layers on a clip, in float32; the backbone is not in it."""
    dim = sizes.teacher["num_attention_heads"] * sizes.teacher["attention_head_dim"]
    tokens = sizes.clip[0] * prod(sizes.clip[2:]) // prod(sizes.teacher["patch_size"])
    taps = len(tap_blocks(sizes.teacher["num_layers"]))
    gathers = adversary.pool == "attention"
    tap = tokens * dim * dim * (3 if gathers else 1) + gathers * 2 * dim * (dim + tokens)
    mix = (1 if gathers else tokens) * dim * (dim * (taps + 1) + adversary.pairs(GRID))
    return Flops(single=2 * (taps * tap + mix + _TIME_WIDTH * dim))


def causal(config: CausalConfig, sizes: Sizes) -> dict[str, Flops]:
    """Per clip of an update of a causal run: part -> operations."""
    frames, lengths = sizes.clip[0], chunk_lengths(sizes.clip[0], config.chunk_frames)
    make = partial(Network, config=sizes.student, frame=sizes.clip[1:], text=sizes.text_length)
    network, plain = make(again=config.checkpointing), make()
    average = _average(lengths, _seen(sizes.student, lengths))
    long = plain.call(2 * frames, average) + plain.keys()  # [clean | noised]; both halves see as many frames
    learnt = {"network": long, "network backward": network.back(2 * frames, average)}
    parts: dict[str, Callable[[], dict[str, Flops]]] = {
        "forcing": lambda: learnt,
        "consistency": lambda: {**learnt, "many-step network": 2 * long, "slow copy": long},
        "trajectory": lambda: {
            "network": plain.call(frames, average) + plain.keys(),
            "network backward": network.back(frames, average),
            "teacher's paths": 2 * config.cells * (plain.call(frames, frames) + plain.keys()),
        },
    }
    return parts[config.objective]()
