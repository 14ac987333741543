"""Adapters in the stages: parity with whole networks and with separate copies, resume, processes, results."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import run_on_two
from safetensors.torch import load_file

from nearstep import CausalVideoPipeline, VideoTransformer
from nearstep.cli.main import main
from nearstep.errors import NearstepError
from nearstep.nets.transformer import linear_layers
from nearstep.recipes import wan
from nearstep.train import adapters as lora
from nearstep.train import checkpoint
from nearstep.train.distill import networks
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import StepPlan
from nearstep.train.health import read_metrics
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig
from nearstep.train.recipe import recipe_of
from nearstep.train.stages.causal import CausalConfig, CausalStage

LOSSES = ("dmd", "dmd_norm", "asd", "asd_norm", "assistant", "discriminator", "r1", "r2", "motion_2")


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    loop = LoopConfig(folder=tmp_path / "run", steps=3, log_every=1, save_every=1, preview_every=9, tensorboard=False)
    adversary = AdversaryConfig(penalty_every=1)
    return replace(model.distillation(loop), step_counts=(2,), ratio=1, adversary=adversary, lora_rank=4)


def weights(folder: Path, name: str = "transformer") -> dict[str, torch.Tensor]:
    return load_file(folder / name / "diffusion_pytorch_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("only", [None, "student", "assistant"])
def test_the_first_losses_are_those_of_whole_networks(config: DistillConfig, only):
    whole = DistillStage(replace(config, lora_rank=None)).step(0)
    adapted = DistillStage(replace(config, lora_only=only)).step(0)
    for name in LOSSES:
        torch.testing.assert_close(adapted[name], whole[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("backbone", ["assistant", "joint", "teacher"])
def test_shared_weights_train_as_separate_copies(config: DistillConfig, backbone, monkeypatch: pytest.MonkeyPatch):
    config = replace(config, adversary=AdversaryConfig(penalty_every=1, backbone=backbone))
    together = DistillStage(config)
    monkeypatch.setattr(networks, "twin", copy.deepcopy)
    separate = DistillStage(config)
    teacher = {p.data_ptr() for p in together.update.networks.teacher.parameters()}
    assert teacher < {p.data_ptr() for p in together.update.networks.assistant.parameters()}
    assert not teacher & {p.data_ptr() for p in separate.update.networks.assistant.parameters()}
    for index in range(2):
        one, other = together.step(index), separate.step(index)
        for name in LOSSES:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-7, msg=name)


def test_adapters_alone_move(config: DistillConfig):
    stage = DistillStage(config)
    own = stage.update.networks
    nets = {"student": own.student, "assistant": own.assistant, "teacher": own.teacher, "ema": own.ema.module}
    before = {who: {name: value.clone() for name, value in net.state_dict().items()} for who, net in nets.items()}
    for index in range(2):
        stage.step(index)
    for who, net in nets.items():
        moved = [name for name, value in net.state_dict().items() if not torch.equal(value, before[who][name])]
        assert all(".lora_" in name for name in moved)
        assert len(moved) == (0 if who == "teacher" else 2 * 20)
    assert sum(p.numel() for p in stage.optimizers["student"].parameters) == sum(
        4 * (layer.in_features + layer.out_features)
        for layer in (own.teacher.get_submodule(name) for name in linear_layers(own.teacher))
    )


@pytest.mark.parametrize("backbone", ["assistant", "teacher", "joint"])
def test_the_discriminators_update_reaches_adapters_only_where_the_backbone_is_joint(config: DistillConfig, backbone):
    stage = DistillStage(replace(config, adversary=AdversaryConfig(backbone=backbone, penalty="exact")))
    for index in range(2):  # adapters that are not zero any more
        stage.step(index)
    plan, update = StepPlan(steps=2, discriminator_learns=True, student_listens=True), stage.update
    update.discriminator(plan, update.sample(plan, 0, range(4)).detached(), update.noise("test"), 0.1)
    assistant = dict(update.networks.assistant.named_parameters())
    graded = [name for name, p in assistant.items() if p.grad is not None and p.grad.any()]
    assert bool(graded) == (backbone == "joint")
    assert all(".lora_" in name for name in graded)
    assert all(p.requires_grad == (".lora_" in name) for name, p in assistant.items())


def test_a_run_resumes_exactly_from_adapters_and_gives_both_results(config: DistillConfig, model, tmp_path: Path):
    config = replace(config, lora_alpha=8.0, student=OptimConfig(lr=0.02, warmup=1, decay=0.0))
    folder = config.run()
    cut = replace(config, loop=replace(config.loop, folder=tmp_path / "cut"))
    for _ in range(2):
        replace(cut, loop=replace(cut.loop, minutes=1e-9)).run()
    assert same(weights(cut.run()), weights(folder))
    assert same(load_file(folder / "lora" / lora.FILE), load_file(tmp_path / "cut" / "model" / "lora" / lora.FILE))

    saved = checkpoint.latest(config.loop.folder)
    assert saved is not None
    assert sum(file.stat().st_size for file in saved.iterdir()) < 2**21  # heads, adapters, their moments

    stage = DistillStage(config)
    checkpoint.load(stage.state, recipe_of(config), saved, stage.here)
    state = lora.merged(stage.update.networks.ema.module.state_dict(), config)
    assert same({name: value.bfloat16() for name, value in state.items()}, weights(folder))

    start, end = (CausalVideoPipeline.from_pretrained(path) for path in (model.folder, folder))
    start.transformer.float(), end.transformer.float()
    size = dict(num_frames=21, height=48, width=48)
    prompt = dict(prompt="a red ball slides left", plan="4,1x", seed=0, output_type="latent", **size)
    plain = start(**prompt).frames
    start.load_lora_weights(folder / "lora")
    tuned, merged = start(**prompt).frames, end(**prompt).frames
    assert (tuned - plain).abs().max() > 10 * (tuned - merged).abs().max()  # merged weights are stored in bfloat16
    end.transformer.load_state_dict(state)
    torch.testing.assert_close(end(**prompt).frames, tuned, atol=1e-4, rtol=1e-4)


def test_two_processes_train_adapters_as_one(config: DistillConfig, tmp_path: Path):
    config = replace(config, micro=1)
    config.run()
    two = replace(config, checkpointing=True, loop=replace(config.loop, folder=tmp_path / "two"))
    run_on_two(replace(two, loop=replace(two.loop, minutes=1e-9)))  # time for one step
    two.run()
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "two"))
    assert [row["step"] for row in other] == [1, 2, 3]
    for row, expected in zip(other, one, strict=True):
        for name in (*LOSSES, "student_grad_norm", "assistant_grad_norm"):
            assert row[name] == pytest.approx(expected[name], rel=2e-3, abs=1e-6), name
    a, b = (load_file(tmp_path / name / "model" / "lora" / lora.FILE) for name in ("run", "two"))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-4)


def test_one_backbone_from_the_teacher_to_the_student(model, config: DistillConfig, tmp_path: Path):
    """Forcing, consistency and distillation as adapters of one network: the last holds it once for all three."""
    loop = replace(config.loop, steps=2)
    rate = OptimConfig(lr=1e-2, warmup=1, decay=0.0)
    causal = CausalConfig(
        objective="forcing", loop=replace(loop, folder=tmp_path / "forcing"), optim=rate, model=model.folder,
        network="teacher", latents=model.latents, batch=4, lora_rank=4, base_dtype="bfloat16",
    )  # fmt: skip
    forced = causal.run()
    start = dict(lora_start=forced / "lora", base_dtype="float32")
    causal = replace(causal, objective="consistency", loop=replace(loop, folder=tmp_path / "consistency"), **start)
    stage = CausalStage(causal)
    base = {p.data_ptr() for name, p in stage.update.network.named_parameters() if ".lora_" not in name}
    for other in (stage.update.many_step, stage.ema.module):
        assert {p.data_ptr() for name, p in other.named_parameters() if ".lora_" not in name} == base
    few = causal.run()
    assert {path.name for path in few.iterdir() if path.is_dir()} > {"transformer", "causal", "teacher", "lora"}
    torch.testing.assert_close(
        torch.cat([value.flatten() for value in weights(few, "causal").values()]),
        torch.cat([value.flatten() for value in weights(forced).values()]),
        atol=1e-2, rtol=1e-2,
    )  # fmt: skip

    config = replace(config, model=few, network="teacher", lora_start=few / "lora")
    own = DistillStage(config).update.networks
    base = {p.data_ptr() for p in own.teacher.parameters()}
    for other in (own.student, own.assistant, own.ema.module):
        assert {p.data_ptr() for name, p in other.named_parameters() if ".lora_" not in name} == base
    merged = lora.merged(own.student.state_dict(), config)
    stored = weights(few)
    for name, value in merged.items():
        torch.testing.assert_close(value.bfloat16(), stored[name], atol=1e-3, rtol=1e-2)
    folder = config.run()
    network = VideoTransformer.from_pretrained(folder / "transformer")
    assert network.config["chunk_frames"] == 3
    assert VideoTransformer.from_pretrained(folder / "teacher").config["chunk_frames"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_rank": None, "lora_only": "student"}, "needs a lora_rank"),
        ({"lora_only": "assistant", "lora_start": Path("x")}, "no adapter x/pytorch"),
        ({"lora_rank": 0}, "lora_rank=0; give at least 1"),
    ],
)
def test_wrong_settings_are_named(config: DistillConfig, change, message: str):
    with pytest.raises(NearstepError, match=message):
        replace(config, **change)


def test_an_adapter_for_the_assistant_alone_has_no_start(config: DistillConfig, tmp_path: Path):
    stage = DistillStage(config)
    lora.write_adapter(stage.update.networks.student.state_dict(), config, tmp_path)
    with pytest.raises(NearstepError, match="lora_only=assistant gives it none"):
        replace(config, lora_only="assistant", lora_start=tmp_path)


def test_the_command_line_takes_a_rank(model, tmp_path: Path):
    size = ["--batch", 2, "--ratio", 1, "--adversary-delay", 0, "--loop.steps", 1, "--loop.folder", tmp_path / "run"]
    source = ["--model", model.folder, "--network", "transformer", "--latents.folder", model.latents.folder]
    source += ["--teacher", "teacher", "--chunk-frames", 3, "--lesson-every", 0]
    command = ["train", "playground.distill", "--lora-rank", 4, *size, *source, "--latents.clips", 8]
    assert main([str(part) for part in command]) == 0
    assert {value.dtype for value in load_file(tmp_path / "run" / "model" / "lora" / lora.FILE).values()} == {
        torch.float32
    }


def test_the_small_recipe_is_whole():
    config = wan.distill_small()
    assert (config.batch, config.shift, config.teacher_dtype) == (64, 5.0, "bfloat16")
    assert config.on_teacher == ("assistant",)
