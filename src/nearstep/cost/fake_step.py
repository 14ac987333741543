"""A step of training without a number in it: the stage's own code on tensors that have shapes alone.

What a step keeps, for how long, and what it computes again is decided in some ten files; a formula for it would be a
second copy of them. So the stages themselves run, micro-batch by micro-batch as they do in training, on torch's fake
tensors, and a ledger (cost/live_bytes.py) counts what lives. Depth costs the same again with each layer, so two shallow
networks are run and the line through them is followed.

Slices of sharded networks are counted as slices; what FSDP gathers beside is cost/memory.py's. Attention keeps what
fused kernels keep.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nearstep.cost.live_bytes import Ledger, without_numbers
from nearstep.cost.sizes import SINGLE, Sizes
from nearstep.data.prompts import PromptsConfig
from nearstep.flow.guidance import Guided
from nearstep.flow.plan import GRID, make_plan
from nearstep.models.empty import empty_codec, empty_network
from nearstep.nets.attention import fused
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.rope import forget_tables
from nearstep.nets.transformer import VideoTransformer
from nearstep.rollout.rollout import generate
from nearstep.train.distill.balance import Balance
from nearstep.train.distill.networks import Players, make_discriminator
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import Turn
from nearstep.train.ema import Ema
from nearstep.train.parallel import Ranks
from nearstep.train.stages.causal import CausalConfig, CausalStage

Peaks = dict[str, float]
"""Phase -> most bytes at once, without weights, moments and averages."""
_DEPTHS = (3, 4)  # at least one block for each place that a discriminator reads (discriminator.py DEPTHS)
_CPU = torch.device("cpu")


def peaks(config: DistillConfig | CausalConfig, sizes: Sizes, count: int) -> Peaks:
    """The phases of a step on one of ``count`` processes."""
    step = _distillation if isinstance(config, DistillConfig) else _causal
    layers = sizes.student["num_layers"], sizes.teacher["num_layers"]
    return _by_depth(partial(step, config, sizes, count), *layers)


def preview(config: DistillConfig | CausalConfig, sizes: Sizes) -> Peaks:
    """A preview, which options and the number of processes do not change."""
    layers = sizes.student["num_layers"]
    return _by_depth(partial(_preview, config, sizes), layers, layers)


def _by_depth(measure: Callable[[int, int], Peaks], student: int, teacher: int) -> Peaks:
    """``measure`` of so many layers, from shallow networks: what a layer adds, it adds at every depth."""
    low, high = _DEPTHS
    (s, more_s), (t, more_t) = ((low, high - low) if n > high else (n, 0) for n in (student, teacher))
    base = measure(s, t)
    steps = [(more_s, more_t)] if student == teacher else [(more_s, 0), (0, more_t)]
    total = dict(base)
    for add_s, add_t in steps:
        if not add_s and not add_t:
            continue
        deeper = measure(s + add_s, t + add_t)
        times = (student - s) / add_s if add_s else (teacher - t) / add_t
        total = {name: value + times * (deeper[name] - base[name]) for name, value in total.items()}
    return total


@contextmanager
def _no_numbers() -> Iterator[None]:
    # Rotary tables are remembered: those without numbers must not stay behind, nor others be found.
    forget_tables()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), fused(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by deepcopy
            yield
    finally:
        forget_tables()


@dataclass(frozen=True)
class _Scene:
    """Makes what a stage needs, and enters it in the ledger as it is held on one of ``count`` processes."""

    sizes: Sizes
    count: int
    ledger: Ledger

    def network(self, config: Mapping[str, Any], layers: int, *, narrow: bool, frozen: bool = False) -> Any:
        """A transformer; ``narrow``: blocks are gathered in bfloat16."""
        network = cast(VideoTransformer, without_numbers(empty_network(config, layers), torch.float32))
        if narrow and self.count > 1:
            without_numbers(network.blocks, torch.bfloat16)
        return self.counted(network.eval().requires_grad_(False) if frozen else network.train())

    def counted(self, module: torch.nn.Module) -> Any:
        """Weights are counted elsewhere; a gradient that has arrived is a slice of it, in float32."""
        for p in module.parameters():
            self.ledger.recount(p, 0)
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._slice)
        return module

    def fill(self, module: torch.nn.Module) -> None:
        """Give it the gradients of an earlier micro-batch."""
        for p in module.parameters():
            if p.requires_grad:
                p.grad = torch.empty_like(p)
                self._slice(p)

    def move(self, module: torch.nn.Module) -> None:
        """What an update of the weights takes: AdamW's square roots are as many as the weights (foreach, on CUDA)."""
        roots = [torch.empty_like(p) for p in module.parameters()]
        for root in roots:
            self.ledger.recount(root, SINGLE * root.numel() / self.count)
        del roots
        torch.clear_autocast_cache()
        for p in module.parameters():
            p.grad = None

    def _slice(self, p: Tensor) -> None:
        assert p.grad is not None
        self.ledger.recount(p.grad, SINGLE * p.numel() / self.count)

    def text(self, captions: list[str]) -> Tensor:
        """Features in the place of the text encoder's."""
        return torch.empty(len(captions), self.sizes.text_length, self.sizes.student["text_dim"])


@dataclass(frozen=True)
class _Clips:
    shape: tuple[int, ...]
    real: bool

    def batch(self, first: int, size: int) -> tuple[Tensor | None, list[str]]:
        return (torch.empty(size, *self.shape) if self.real else None), [""] * size


def _distillation(config: DistillConfig, sizes: Sizes, count: int, student: int, teacher: int) -> Peaks:
    ledger, here = Ledger(), Ranks(0, count, _CPU)
    scene, read = _Scene(sizes, count, ledger), config.adversary.backbone if config.adversary else ""
    # The schedule's kind and the balance ask for numbers, and change no shape.
    config = replace(config, schedule="prefix", adversary=config.adversary and replace(config.adversary, balance=False))
    with _no_numbers():
        narrow = config.autocast
        learner = scene.network(sizes.student, student, narrow=narrow)
        taking_part = Players(
            student=learner,
            teacher=scene.network(sizes.teacher, teacher, narrow=narrow and read != "teacher", frozen=True),
            assistant=scene.network(sizes.teacher, teacher, narrow=narrow and read not in ("assistant", "joint")),
            ema=Ema(learner, config.ema),
            discriminator=None,
            optimizers={},
            balance=Balance(),
        )
        if config.teacher_dtype == "bfloat16":
            scene.counted(without_numbers(taking_part.teacher.blocks, torch.bfloat16).requires_grad_(False))
        if config.adversary:
            judge = scene.counted(make_discriminator(config.adversary, taking_part.teacher, 0))
            taking_part = replace(taking_part, discriminator=judge)
        if config.checkpointing:
            taking_part.student.enable_gradient_checkpointing()
            taking_part.assistant.enable_gradient_checkpointing()
        stage = _Rehearsal.__new__(_Rehearsal)
        stage.ledger = ledger
        clips = _Clips(sizes.clip, real=not isinstance(config.latents, PromptsConfig))
        stage.begin(config, here, (None, scene.text, clips), taking_part)
        with ledger, torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
            _learn(stage, scene)
    return ledger.peaks


class _Rehearsal(DistillStage):
    """Tells the ledger when the student listens to the discriminator: its peak grows with other networks' depth."""

    ledger: Ledger

    def _add_adversarial(self, *arguments: Any) -> dict[str, Tensor]:
        with self.ledger.phase("student: adversary"):
            return super()._add_adversarial(*arguments)


def _learn(stage: _Rehearsal, scene: _Scene) -> None:
    """The last micro-batch of an update of each player, as DistillStage.step makes it."""
    config, phase = stage.config, scene.ledger.phase
    size = config.micro or len(stage.rows)
    again, rows = len(stage.rows) > size, range(size)
    steps = min(config.counts)  # fewer steps keep as much as more do, and take less time
    noise, turn = stage._noise("rehearsal"), Turn(steps=steps, adversarial=True, heard=True)
    if config.match == "largest":
        turn = replace(turn, steps=max(config.counts))
    with phase("student: rollout"):
        if again:
            scene.fill(stage.student)
        batch = stage._batch(turn, 0, rows)
    with phase("student: loss, backward"):
        stage._student(turn, batch, noise.of(rows))
    batch = replace(batch, fewer=batch.fewer.detach())
    with phase("student: optimizer"):
        scene.move(stage.student)
    with phase("assistant"):
        if again:
            scene.fill(stage.assistant)
        stage._assistant(batch, noise.of(rows))
    if batch.more is not None and stage.discriminator is not None and config.adversary is not None:
        if again:
            scene.fill(stage.discriminator)
        with phase("discriminator"):
            stage._discriminator(turn, batch, noise.of(rows), 0.0)
        if config.adversary.gamma:
            with phase("discriminator: penalty"):
                stage._discriminator(turn, batch, noise.of(rows), 1.0)
    with phase("assistant: optimizer"):
        scene.move(stage.assistant)


def _causal(config: CausalConfig, sizes: Sizes, count: int, layers: int, _: int) -> Peaks:
    ledger, here = Ledger(), Ranks(0, count, _CPU)
    scene = _Scene(sizes, count, ledger)
    with _no_numbers():
        make = partial(scene.network, {**sizes.student, "chunk_frames": config.chunk_frames}, layers)
        network = make(narrow=config.autocast, frozen=False)
        many_step = None if config.objective == "forcing" else make(narrow=config.autocast, frozen=True)
        ema = Ema(network, config.ema)
        scene.counted(ema.module)
        if config.checkpointing:
            network.enable_gradient_checkpointing()
        stage = CausalStage.__new__(CausalStage)
        stage.begin(config, here, (None, scene.text, _Clips(sizes.clip, real=True)), network, many_step, ema)
        objectives = {
            "forcing": stage._forcing,
            "consistency": stage._consistency,
            "trajectory": stage._trajectory,
        }
        size = config.micro or len(stage.rows)
        with ledger:
            if len(stage.rows) > size:
                scene.fill(network)
            x0, eps, u = (torch.empty(size, *shape) for shape in (sizes.clip, sizes.clip, (len(stage.lengths),)))
            with ledger.phase("loss"), torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
                loss = objectives[config.objective](x0, eps, [""] * size, u).sum()
            with ledger.phase("backward"):
                loss.backward()
            with ledger.phase("optimizer"):
                scene.move(network)
    return ledger.peaks


@torch.no_grad()
def _preview(config: DistillConfig | CausalConfig, sizes: Sizes, layers: int, _: int) -> Peaks:
    """The averaged network makes clips and the codec decodes them (stages/shared.py show)."""
    ledger = Ledger()
    scene = _Scene(sizes, 1, ledger)
    guided = isinstance(config, CausalConfig) and config.objective == "forcing" and config.guidance != 1
    with _no_numbers():
        network = scene.network(sizes.student, layers, narrow=False, frozen=True)
        codec = VideoCodec(scene.counted(without_numbers(empty_codec(sizes.codec), torch.float32)).eval())
        plan = make_plan("1", frames=sizes.clip[0], chunk_frames=config.chunk_frames, shift=config.shift, grid=GRID)
        with ledger, torch.autocast("cpu", torch.bfloat16), ledger.phase("preview"):
            denoiser: Any = TextDenoiser(network, scene.text([""] * (1 + guided)))
            if guided:
                denoiser = Guided(denoiser, config.guidance)
            latents = generate(denoiser, plan, shape=sizes.clip[1:], seed=0, samples=[0])
            codec.decode(latents).float()
    return ledger.peaks
