"""Predicted memory and operations against real steps on the CPU, and against numbers that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import usual_runs
from diffusers import AutoencoderKLWan
from meters import Meter
from torch._subclasses.fake_tensor import FakeTensorMode

from nearstep.cli.main import main
from nearstep.cost import fake_step, update_flops
from nearstep.cost.advice import trials
from nearstep.cost.flops import counter
from nearstep.cost.live_bytes import LiveBytes
from nearstep.cost.memory import estimate, operations, resident
from nearstep.cost.sizes import Sizes, count_network
from nearstep.errors import NearstepError
from nearstep.models.wan import SIZES
from nearstep.nets.cache import KVCache
from nearstep.nets.codec import VideoCodec
from nearstep.nets.kernels import fused
from nearstep.nets.masks import block_causal
from nearstep.nets.transformer import VideoTransformer
from nearstep.precision import Products
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.networks import Role, assembled
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.distill.steps import StepPlan
from nearstep.train.distill.update import DistillUpdate
from nearstep.train.ema import Ema
from nearstep.train.objectives.table import OBJECTIVES
from nearstep.train.parallel import Ranks

GIB = 2**30
LAYERS = 3
NETWORK = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=32, in_channels=4, out_channels=4, text_dim=24,
    freq_dim=64, ffn_dim=192, num_layers=LAYERS,
)  # fmt: skip
CODEC = dict(
    base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], in_channels=12,
    out_channels=12, patch_size=2, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
)  # fmt: skip
ENCODER = dict(vocab_size=30, d_model=24, d_kv=8, d_ff=16, num_heads=2, num_layers=1)
SMALL = Sizes(
    student={**NETWORK, "chunk_frames": 3}, teacher=NETWORK, clip=(6, 4, 16, 16), text_length=12, codec=CODEC,
    encoder=ENCODER,
)  # fmt: skip

CAUSAL_TEACHER = replace(SMALL, teacher={**NETWORK, "chunk_frames": 1})
SHALLOW = replace(SMALL, student={**SMALL.student, "num_layers": 1}, teacher={**NETWORK, "num_layers": 1})


def config(**changes: Any) -> DistillConfig:
    return replace(usual_runs.distill(), **{"batch": 2, "step_counts": (1, 2, 3, 4), **changes})


CONFIGS = {
    "whole batch": config(),
    "checkpointing": config(checkpointing=True),
    "micro-batches": config(micro=1),
    "exact penalty, joint backbone": config(adversary=AdversaryConfig(penalty="exact", backbone="joint")),
    "against data": config(sampling="data", adversary=AdversaryConfig(reference="data", backbone="teacher")),
    "excerpts": config(excerpt_frames=3),
    "replay": config(replay=True),
    "penalty in bfloat16": config(adversary=AdversaryConfig(penalty_products="bfloat16")),
    "adapters": config(lora_rank=4, micro=1),
    "adapters on the teacher's weights": config(
        lora_rank=4, network="teacher", teacher="teacher", teacher_dtype="bfloat16"
    ),
    "an adapter for the student": config(lora_rank=4, lora_only="student"),
    "no adversary": config(adversary=None, micro=1, checkpointing=True),
}

_LATER = {"checkpointing", "excerpts", "penalty in bfloat16", "an adapter for the student", "against data"}
PARAMETERS = [pytest.param(name, marks=pytest.mark.slow if name in _LATER else ()) for name in CONFIGS]
"""A quarter of a minute each: those that others stand for are made by ``make test-slow``."""


def text(captions: list[str]) -> torch.Tensor:
    return torch.randn(len(captions), SMALL.text_length, NETWORK["text_dim"])


def clips(first: int, size: int) -> tuple[torch.Tensor, list[str]]:
    return torch.randn(size, *SMALL.clip), [""] * size


def real_update(config: DistillConfig, sizes: Sizes = SMALL) -> DistillUpdate:
    def load(role: Role, dtype: torch.dtype) -> VideoTransformer:
        return VideoTransformer(**(sizes.student if role == "student" else sizes.teacher)).to(dtype)

    here = Ranks(0, 1, torch.device("cpu"))
    networks = assembled(config, load, here.place, cut=False)
    codec = VideoCodec(AutoencoderKLWan(**SMALL.codec)).eval().requires_grad_(False)
    own = SimpleNamespace(shape=SMALL.clip, batch=clips, starts=())
    return DistillUpdate(config, networks, text=text, clips=own, codec=codec, here=here)


def measured(config: DistillConfig) -> dict[str, int]:
    """One update without the optimizers, micro-batch by micro-batch."""
    update, meter = real_update(config), Meter()
    plan, noise = StepPlan(steps=1, discriminator_learns=True, student_listens=True), update.noise("test")
    size = config.micro or config.batch
    parts = [range(first, first + size) for first in range(0, config.batch, size)]
    for rows in parts:
        batch = None
        with meter.phase("student: rollout"):
            batch = update.sample(plan, 0, rows, graph=True)
        with meter.phase("student: loss, backward"):
            update.student(plan, batch, noise.of(rows))
        with meter.phase("between"):
            batch = batch.detached()
    with meter.phase("between"):
        update.networks.student.zero_grad(set_to_none=True)
    for rows in parts:
        with meter.phase("assistant"):
            update.assistant(batch, noise.of(rows))
    if config.adversary:
        for gamma, name in ((0.0, "discriminator"), (1.0, "discriminator: penalty")):
            for rows in parts if not gamma else parts[-1:]:
                with meter.phase(name):
                    update.discriminator(plan, batch, noise.of(rows), gamma)
    del meter.peaks["between"]
    return meter.peaks


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_phase_takes_what_is_predicted(name: str):
    config = CONFIGS[name]
    found = fake_step.peaks_of(config, SMALL, 1, LAYERS, LAYERS)
    if "student: adversary" in found:  # a part of the student's update
        found["student: loss, backward"] = max(found["student: loss, backward"], found.pop("student: adversary"))
    with fused():
        real = measured(config)
    assert {key for key in found if "optimizer" not in key} == set(real)
    for phase, size in real.items():
        assert found[phase] == pytest.approx(size, rel=0.06), phase  # some 130 kB of 2.6 MB in the rollout are not seen


@pytest.mark.parametrize(
    ("name", "layers"),
    [pytest.param("checkpointing", (5, 5), marks=pytest.mark.slow), ("no adversary", (5, 6))],
)
def test_the_line_through_shallow_networks_meets_deep_ones(name: str, layers: tuple[int, int]):
    measure = partial(fake_step.peaks_of, CONFIGS[name], SMALL, 1)
    # A rollout's peak is the larger of a step's and a commit's, and in networks this small which one depends on depth.
    assert fake_step.by_depth(measure, *layers) == pytest.approx(measure(*layers), rel=2e-2)


@pytest.mark.parametrize(("size", "expected"), [("1.3B", 1_418_996_800), ("14B", 14_288_491_584)])
def test_parameters_of_wan(size: str, expected: int):
    shape = SIZES[size]
    dim = shape["num_attention_heads"] * shape["attention_head_dim"]
    attention = 4 * (dim * dim + dim) + 2 * dim
    block = 2 * attention + 2 * dim * shape["ffn_dim"] + shape["ffn_dim"] + dim + 2 * dim + 6 * dim
    outside = 65 * dim + (256 + dim + 2) * dim + 6 * dim * (dim + 1) + (4096 + dim + 2) * dim + 64 * dim + 64 + 2 * dim
    counted = count_network(shape)
    assert counted.block == block
    assert counted.all == shape["num_layers"] * block + outside == expected


def test_a_clip_of_wan_takes_its_keys_and_values():
    live = LiveBytes()
    with FakeTensorMode(), live:
        cache = KVCache(  # noqa: F841  held while it is counted
            layers=30, batch=1, capacity_frames=21, tokens_per_frame=1560, heads=12, head_dim=128, dtype=torch.bfloat16
        )
        assert live.live / GIB == pytest.approx(5.62, abs=0.01)


def test_operations_of_a_chunk_of_wan():
    network = update_flops.Network(config=SIZES["1.3B"], frame=(16, 60, 104), text=512)
    calls = [network.call(block_causal((3,)).shifted(3 * chunk)).all / 1e12 for chunk in range(7)]
    assert calls[0] == pytest.approx(16.2, abs=0.1)
    assert calls[6] == pytest.approx(40.4, abs=0.1)


@pytest.mark.parametrize(
    ("name", "sizes", "rel"),
    [
        ("whole batch", SMALL, 0.02),
        ("whole batch", CAUSAL_TEACHER, 0.02),
        ("checkpointing", SMALL, 0.02),
        ("replay", SMALL, 0.02),
        ("adapters", SMALL, 0.02),
        ("no adversary", SMALL, 1e-3),
        ("no adversary", CAUSAL_TEACHER, 1e-3),
    ],
)
def test_operations_are_those_that_torch_counts(name: str, sizes: Sizes, rel: float):
    """Rollouts exactly, commits included; backward passes but for a network's ends, and the heads but for their own."""
    config = replace(CONFIGS[name], micro=None, ratio=1, step_counts=(2,))
    if config.adversary:
        config = replace(config, adversary=AdversaryConfig(penalty_every=1))
    update, plan = real_update(config, sizes), StepPlan(steps=2, discriminator_learns=True, student_listens=True)
    noise, rows = update.noise("test"), range(config.batch)
    parts = {part: config.batch * flops.all for part, flops in update_flops.distillation(config, sizes).items()}
    with counter() as count:
        batch = update.sample(plan, 0, rows, graph=True)
        made = count.get_total_flops()
        update.student(plan, batch, noise)
        batch = batch.detached()
        update.assistant(batch, noise)
        if config.adversary:
            update.discriminator(plan, batch, noise, 1.0)
    assert made == parts["rollout"] + parts.get("rollout of the reference", 0)
    assert sum(parts.values()) == pytest.approx(count.get_total_flops(), rel=rel)


@pytest.mark.parametrize("products", ["float32", "TF32", "bfloat16"])
def test_a_penalty_takes_the_time_of_its_products(products: Products):
    rates: dict[Products, float] = {"float32": 1.0, "TF32": 10.0, "bfloat16": 100.0}
    options = AdversaryConfig(penalty_products=products)
    parts = update_flops.distillation(config(adversary=options), SMALL)
    usual = update_flops.distillation(config(), SMALL)["penalty, in TF32"]
    part = parts[f"penalty, in {products}"]
    assert part.all == usual.all
    assert part.seconds(rates) == pytest.approx(usual.tf32 / rates[products] + usual.single)


def test_fresh_samples_cost_a_rollout_for_every_update():
    usual, fresh = (update_flops.distillation(config(ratio=4, fresh=fresh), SMALL) for fresh in (False, True))
    rollouts = {"rollout", "rollout of the reference"}
    assert {name for name in usual if fresh[name].all != usual[name].all} == rollouts
    assert all(fresh[name].all == pytest.approx(5 * usual[name].all) for name in rollouts)


def test_who_sees_excerpts_computes_as_on_clips_of_their_length():
    of_excerpts = update_flops.distillation(CONFIGS["excerpts"], SMALL)
    of_clips = update_flops.distillation(config(), replace(SMALL, clip=(3, *SMALL.clip[1:])))
    for part in of_clips.keys() - {"rollout", "student backward", "rollout of the reference"}:
        assert of_excerpts[part] == of_clips[part], part


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_operations_of_a_causal_run_are_those_that_torch_counts(objective: str):
    causal = replace(usual_runs.forcing(), objective=objective, ode_steps=4, autocast=False)
    network, many_step = (VideoTransformer(**SMALL.student) for _ in range(2))
    average = Ema(network, 0.9).module
    update = causal.update(network=network, average=average, many_step=many_step.eval(), text=text, frames=6)
    with counter() as count:
        loss = update.losses(torch.randn(1, *SMALL.clip), torch.randn(1, *SMALL.clip), [""], torch.rand(1, 2)).sum()
        forward = count.get_total_flops()
        loss.backward()
    parts = {part: flops.all for part, flops in update_flops.causal(causal, SMALL).items()}
    assert sum(cost for part, cost in parts.items() if "backward" not in part) == forward
    assert sum(parts.values()) == pytest.approx(count.get_total_flops(), rel=2e-3)


@pytest.mark.parametrize("name", ["whole batch", *(name for name in CONFIGS if "adapter" in name)])
def test_weights_and_moments_are_those_of_the_networks(name: str):
    found, networks = resident(CONFIGS[name], SMALL), real_update(CONFIGS[name]).networks
    teacher = next(key for key in found if key.startswith("teacher, "))
    parts = {"student": networks.student, "assistant": networks.assistant, "student's average": networks.ema.module}
    held = {
        p.untyped_storage().data_ptr(): p.nbytes
        for part in (networks.teacher, *parts.values())
        for p in part.parameters()
    }
    assert sum(held.values()) == sum(found[key] for key in (teacher, *parts))
    for role in ("student", "assistant"):
        learns = sum(p.nbytes for p in parts[role].parameters() if p.requires_grad)
        assert found[f"{role}'s moments"] == 2 * learns


@pytest.mark.parametrize("kind", ["distillation", "causal run"])
def test_two_processes_hold_whole_what_muon_moves(kind: str):
    run = replace(usual_runs.forcing(), batch=4, micro=1)
    if kind == "distillation":
        run = CONFIGS["micro-batches"]
        run = replace(run, student=replace(run.student, muon=True))
    one, two = (resident(run, SHALLOW, count) for count in (1, 2))
    assert two.keys() == one.keys()
    assert {name for name in one if one[name] != two[name]} <= {"other micro-batches"}
    moved = estimate(run, SHALLOW, 2).phases
    assert moved["optimizer" if kind == "causal run" else "student: optimizer"] > 0
    whole, half = (sum(part.all for part in operations(run, SHALLOW, count).values()) for count in (1, 2))
    assert half == whole / 2


def test_two_processes_hold_half_of_what_is_sharded():
    run = CONFIGS["micro-batches"]
    one, two = (resident(run, SHALLOW, count) for count in (1, 2))
    shared = {
        "student",
        "student's moments",
        "student's average",
        "assistant",
        "assistant's moments",
        "teacher, float32",
    }
    assert shared | {"discriminator, moments"} <= one.keys()
    for name in shared | {"discriminator, moments"}:
        assert two[name] == one[name] / 2
    assert two["codec"] == one["codec"] > 0
    whole, half = (sum(part.all for part in operations(run, SHALLOW, count).values()) for count in (1, 2))
    assert half == whole / 2


def test_an_adversary_on_pictures_is_not_counted():
    pictures = AdversaryConfig(backbone="pictures", vgg=Path("vgg.whl"))
    with pytest.raises(NearstepError, match="does not count an adversary on pictures"):
        estimate(config(adversary=pictures), SMALL)


def test_options_are_turned_until_it_fits():
    tried = trials(config(batch=4, adversary=None), SMALL, 1, room := 25 * 2**20)
    first, *_, last = found = [*tried]
    assert first.words == () and "--micro 1" in last.words
    assert last.estimate.peak <= 0.5 * first.estimate.peak
    assert last.estimate.peak <= room and all(trial.estimate.peak > room for trial in found[:-1])


def test_processes_are_the_last_thing_that_is_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fake_step, "peaks", lambda *_: {"a step": 1.0})  # in no case will it fit
    least = [*trials(config(batch=4, adversary=None, micro=1, checkpointing=True), SMALL, 1, 1.0)]
    assert [trial.processes for trial in least][-3:] == [1, 2, 4]  # as far as the batch divides


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_causal_run_takes_what_is_predicted(objective: str):
    causal = replace(usual_runs.forcing(), objective=objective, batch=1, ode_steps=4, autocast=False)
    found = fake_step.peaks_of(causal, SMALL, 1, LAYERS, LAYERS)
    network, many_step = (VideoTransformer(**SMALL.student) for _ in range(2))
    many_step.eval().requires_grad_(False)
    average, meter = Ema(network, 0.9).module, Meter()
    update = causal.update(network=network, average=average, many_step=many_step, text=text, frames=SMALL.clip[0])
    with meter.phase("loss"):
        x0, eps, u = torch.randn(1, *SMALL.clip), torch.randn(1, *SMALL.clip), torch.rand(1, 2)
        loss = update.losses(x0, eps, [""], u).sum()
    with meter.phase("backward"):
        loss.backward()
    for phase, size in meter.peaks.items():
        assert found[phase] == pytest.approx(size, rel=0.06), phase  # some 130 kB of 2.6 MB in the rollout are not seen


def test_the_command_writes_tables_and_json(tmp_path, capsys: pytest.CaptureFixture):
    options = ["--memory", "8G", "--batch", "2", "--adversary.gamma", "0", "--lesson-every", "0"]
    options += ["--json", str(tmp_path / "plan.json")]
    assert main(["plan-memory", "playground.distill", *options]) == 0
    out = capsys.readouterr().out
    assert "fits in 7.4 GiB" in out and "text encoder" in out
    (plan,) = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"] and plan["peak_bytes"] == max(plan["phase_bytes"].values())
    assert "discriminator: penalty" not in plan["phase_bytes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["playground.distil"], "did you mean playground.distill?"),
        (["playground.codec"], "no distillation and no causal run"),
        (["playground.distill", "--memory", "lots"], "give GiB of one accelerator"),
        (["playground.distill", "--gpus", "3"], "does not divide among 3 processes"),
        (["wan.distill", "--gpus", "16", "--micro", "8"], "micro=8 does not divide the 4 clips"),
        (["playground.stream_forcing"], "there is no runs/forcing/model/transformer yet"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(arguments, message, capsys: pytest.CaptureFixture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan-memory", *arguments]) == 2
    assert message in capsys.readouterr().err
