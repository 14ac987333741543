"""A step of training without a number in it: the stage's own code on tensors that have shapes alone.

What a step keeps, for how long, and what it computes again is decided in some ten files; a formula for it would be a
second copy of them. So the updates themselves are made (train/distill/update.py, train/objectives), micro-batch by
micro-batch as in training, on torch's fake tensors, and cost/live_bytes.py counts what lives. Depth costs the same
again with each layer, so two shallow networks are run and the line through them is followed.

Slices of sharded networks are counted as slices; what FSDP gathers beside is cost/memory.py's. Attention keeps what
fused kernels keep.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nearstep.cost.live_bytes import LiveBytes, Module, without_numbers
from nearstep.cost.sizes import SINGLE, Sizes
from nearstep.data.prompts import PromptsConfig
from nearstep.flow.guidance import Guided
from nearstep.flow.plan import GRID, make_plan
from nearstep.models.empty import empty_codec, empty_network
from nearstep.nets.cache import KVCache
from nearstep.nets.codec import VideoCodec
from nearstep.nets.denoiser import TextDenoiser
from nearstep.nets.discriminator import Discriminator
from nearstep.nets.kernels import fused
from nearstep.nets.rope import forget_tables
from nearstep.nets.transformer import VideoTransformer
from nearstep.protocols import CausalDenoiser
from nearstep.rollout.rollout import generate
from nearstep.train.distill.adversary import Adversary, AdversaryConfig, Backbone, Metrics, Pair
from nearstep.train.distill.config import DistillFields
from nearstep.train.distill.networks import Networks, Role, assembled
from nearstep.train.distill.steps import StepPlan
from nearstep.train.distill.update import DistillUpdate
from nearstep.train.objectives.table import objective_called
from nearstep.train.parallel import Ranks
from nearstep.train.stages.causal import CausalConfig, in_place

Config = DistillFields | CausalConfig

Run = TypeVar("Run", bound=Config)
Placed = tuple[nn.Module, torch.dtype | None]
"""What was put in its place, and what its blocks are gathered in."""
Peaks = dict[str, float]
"""Phase -> most bytes at once, without weights, moments and averages."""
_DEPTHS = (3, 4)  # at least one block for each place that a discriminator reads (discriminator.py DEPTHS)
_CPU = torch.device("cpu")


def slices_of(config: Config, count: int) -> int:
    """Into how many slices ``count`` processes cut what a run learns: one is the whole of it."""
    return count if config.slices else 1


def peaks(config: Config, sizes: Sizes, count: int) -> Peaks:
    """The phases of a step on one of ``count`` processes."""
    layers = sizes.student["num_layers"], sizes.teacher["num_layers"]
    return by_depth(partial(peaks_of, config, sizes, count), *layers)


def peaks_of(config: Config, sizes: Sizes, count: int, student: int, teacher: int) -> Peaks:
    """The same for networks of so many layers, measured at that depth."""
    if isinstance(config, CausalConfig):
        return _causal(config, sizes, count, student)
    return _distillation(config, sizes, count, student, teacher)


def preview(config: Config, sizes: Sizes) -> Peaks:
    """A preview, which options and the number of processes do not change."""
    layers = sizes.student["num_layers"]
    return by_depth(lambda student, _: _preview(config, sizes, student), layers, layers)


def by_depth(measure: Callable[[int, int], Peaks], student: int, teacher: int) -> Peaks:
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
def no_numbers() -> Iterator[None]:
    """Inside, tensors are made without numbers, and attention keeps what it keeps on an accelerator."""
    # Rotary tables are remembered: those without numbers must not stay behind, nor others be met.
    forget_tables()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), fused(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # by deepcopy
            yield
    finally:
        forget_tables()


@dataclass(frozen=True)
class _FakeStep:
    """Makes what an update needs, and counts it as it is held in one of so many ``slices``."""

    sizes: Sizes
    slices: int
    live: LiveBytes

    def give(self, placed: Iterable[Placed]) -> None:
        """Put networks in their places, as Ranks.place does: where they are cut, blocks are gathered in a type."""
        for module, dtype in placed:
            without_numbers(module)
            if dtype is not None and self.slices > 1 and isinstance(module, VideoTransformer):
                without_numbers(module.blocks, dtype)
            self.counted(module)

    def counted(self, module: Module) -> Module:
        """Weights are counted elsewhere; a gradient that has arrived is a slice of it, in float32."""
        for p in module.parameters():
            self.live.recount(p, 0)
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._slice)
        return module

    def fill(self, module: nn.Module) -> None:
        """Give it the gradients of an earlier micro-batch."""
        for p in module.parameters():
            if p.requires_grad:
                p.grad = torch.empty_like(p)
                self._slice(p)

    def move(self, module: nn.Module) -> None:
        """What an update of the weights takes: AdamW's square roots are as many as the weights (foreach, on CUDA)."""
        roots = [torch.empty_like(p) for p in module.parameters() if p.requires_grad]
        for root in roots:
            self.live.recount(root, SINGLE * root.numel() / self.slices)
        del roots
        torch.clear_autocast_cache()
        for p in module.parameters():
            p.grad = None

    def _slice(self, p: Tensor) -> None:
        if p.grad is not None:
            self.live.recount(p.grad, SINGLE * p.numel() / self.slices)

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Features in the place of the text encoder's."""
        return torch.empty(len(prompts), self.sizes.text_length, self.sizes.student["text_dim"])


@dataclass(frozen=True)
class _Clips:
    """Clips that have a shape alone, or captions without clips."""

    shape: tuple[int, ...]
    real: bool
    starts: tuple[int, ...] = ()

    def batch(self, first: int, size: int) -> tuple[Tensor | None, list[str]]:
        return (torch.empty(size, *self.shape) if self.real else None), [""] * size


class _PhasedAdversary(Adversary):
    """Says when the student listens to it: that peak grows with other networks' depth than the rest of the update's."""

    def __init__(self, config: AdversaryConfig, heads: Discriminator, backbone: Backbone, live: LiveBytes) -> None:
        super().__init__(config, heads, backbone)
        self.live = live

    def student_gradient(self, pair: Pair, dmd: Tensor, kind: int = 0) -> tuple[Tensor, Metrics]:
        with self.live.phase("student: adversary"):
            return super().student_gradient(pair, dmd, kind)


def _distillation(config: DistillFields, sizes: Sizes, count: int, student: int, teacher: int) -> Peaks:
    live, here = LiveBytes(), Ranks(0, count, _CPU)
    # The schedule's kind and the balance ask for numbers, and change no shape.
    config = replace(config, schedule="prefix", adversary=config.adversary and replace(config.adversary, balance=False))
    slices = slices_of(config, count)
    networks, placed = _networks(config, sizes, student, teacher, live, cut=slices > 1)
    with no_numbers():
        fake = _FakeStep(sizes, slices, live)
        fake.give(placed)
        clips = _Clips(sizes.clip, real=not isinstance(config.latents, PromptsConfig))
        codec = VideoCodec(without_numbers(empty_codec(sizes.codec))).eval().requires_grad_(False)
        update = DistillUpdate(
            config, networks, text=fake.text, clips=clips, codec=codec, here=here, first_chunk=sizes.first_chunk
        )
        with live, torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
            _learn(update, fake)
    return live.peaks


def _networks(
    config: DistillFields, sizes: Sizes, student: int, teacher: int, live: LiveBytes, *, cut: bool
) -> tuple[Networks, list[Placed]]:
    """What load_networks gives, to be placed: on the meta device, for peft moves layers, which fake tensors refuse."""
    placed: list[Placed] = []

    def load(role: Role, dtype: torch.dtype) -> VideoTransformer:
        learns = role == "student"
        network = empty_network(sizes.student if learns else sizes.teacher, student if learns else teacher)
        network.blocks.to(dtype)
        return network

    with torch.device("meta"):
        made = assembled(_at_once(config), load, lambda *each: placed.append(each), cut=cut)
    if made.adversary is None:
        return made, placed
    heads, backbone = made.adversary.heads, made.adversary.backbone
    return replace(made, adversary=_PhasedAdversary(made.adversary.config, heads, backbone, live)), placed


def _at_once(config: Run) -> Run:
    """The run without what takes long and changes nothing that lives."""
    return replace(config, compile=False, lora_start=None)


def _learn(update: DistillUpdate, fake: _FakeStep) -> None:
    """The last micro-batch of an update of each network, in the order of DistillStage.step."""
    config, networks, phase = update.config, update.networks, fake.live.phase
    size = config.micro or len(update.rows)
    again, rows = len(update.rows) > size, range(size)
    # Fewer steps keep as much as more do, and take less time; but distribution matching may act on the largest alone.
    steps = min(config.step_counts) if config.dmd_on == "every" else max(config.step_counts)
    noise, plan = update.noise("fake"), StepPlan(steps=steps, discriminator_learns=True, student_listens=True)
    with phase("student: rollout"):
        if again:
            fake.fill(networks.student)
        batch = update.sample(plan, 0, rows, graph=True)
    with phase("student: loss, backward"):
        update.student(plan, batch, noise.of(rows))
    batch = batch.detached()
    with phase("student: optimizer"):
        fake.move(networks.student)
    with phase("assistant"):
        if again:
            fake.fill(networks.assistant)
        update.assistant(batch, noise.of(rows))
    if networks.adversary and batch.x_next is not None:
        if again:
            fake.fill(networks.adversary.heads)
        with phase("discriminator"):
            update.discriminator(plan, batch, noise.of(rows), 0.0)
        if networks.adversary.config.gamma:
            with phase("discriminator: penalty"):
                update.discriminator(plan, batch, noise.of(rows), 1.0)
    with phase("assistant: optimizer"):
        fake.move(networks.assistant)


def _causal(config: CausalConfig, sizes: Sizes, count: int, layers: int) -> Peaks:
    live, here = LiveBytes(), Ranks(0, count, _CPU)
    slices = slices_of(config, count)
    fake, placed = _FakeStep(sizes, slices, live), list[Placed]()
    with torch.device("meta"):
        network, average, many_step = in_place(
            _at_once(config), empty_network(sizes.student, layers), lambda *each: placed.append(each), cut=slices > 1
        )
    with no_numbers():
        fake.give(placed)
        update = config.update(
            network=network,
            average=average.module,
            many_step=many_step,
            text=fake.text,
            frames=sizes.clip[0],
            first_chunk=sizes.first_chunk,
        )
        share = len(here.share(config.batch))
        size = config.micro or share
        with live:
            if share > size:
                fake.fill(network)
            x0, eps, u = (torch.empty(size, *shape) for shape in (sizes.clip, sizes.clip, (len(update.lengths),)))
            with live.phase("loss"), torch.autocast("cpu", torch.bfloat16, enabled=config.autocast):
                loss = update.losses(x0, eps, [""] * size, u).sum()
            with live.phase("backward"):
                loss.backward()
            with live.phase("optimizer"):
                fake.move(network)
    return live.peaks


@torch.no_grad()
def _preview(config: Config, sizes: Sizes, layers: int) -> Peaks:
    """The averaged network makes clips and the codec decodes them (stages/shared.py show)."""
    live = LiveBytes()
    fake, weight = _FakeStep(sizes, 1, live), 1.0
    if isinstance(config, CausalConfig) and objective_called(config.objective).preview_guided:
        weight = config.guidance
    with no_numbers():
        network = fake.counted(without_numbers(empty_network(sizes.student, layers)).eval().requires_grad_(False))
        codec = VideoCodec(fake.counted(without_numbers(empty_codec(sizes.codec))).eval())
        plan = make_plan("1", frames=sizes.clip[0], chunk_frames=config.chunk_frames, shift=config.shift, grid=GRID)
        with live, torch.autocast("cpu", torch.bfloat16), live.phase("preview"):
            denoiser: CausalDenoiser[KVCache] = TextDenoiser(network, fake.text([""] * (1 if weight == 1 else 2)))
            if weight != 1:
                denoiser = Guided(denoiser, weight)
            latents = generate(denoiser, plan, shape=sizes.clip[1:], seed=0, samples=[0])
            codec.decode(latents).float()
    return live.peaks
