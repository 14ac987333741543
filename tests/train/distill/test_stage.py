"""The distillation stage: who learns from what, resume, accumulation, and every rival through the same code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nearstep.errors import NearstepError
from nearstep.flow.plan import make_plan
from nearstep.recipes import playground
from nearstep.train.distill.adversary import AdversaryConfig, out_of_graph
from nearstep.train.distill.balance import Balance
from nearstep.train.distill.noise import Noise
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import Turn
from nearstep.train.health import read_metrics
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import NonFiniteError, OptimConfig

RIVALS = ("self_forcing", "distill", "self_forcing_1", "self_forcing_2", "causvid", "one_forcing")


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    loop = LoopConfig(folder=tmp_path / "run", steps=6, log_every=2, save_every=2, preview_every=100, tensorboard=False)
    return model.distillation(loop)


def turn(steps: int) -> Turn:
    return Turn(steps=steps, adversarial=True, heard=True)


def noise(stage: DistillStage) -> Noise:
    return stage._noise("test")


def have_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[bool]:
    return [p.grad is not None and bool(p.grad.any()) for p in parameters]


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_trains_and_its_student_generates(name: str, config: DistillConfig):
    from nearstep import CausalVideoPipeline

    recipe = getattr(playground, name)()
    rates = {"student": config.student, "assistant": config.assistant, "discriminator": config.discriminator}
    small = {"loop": config.loop, "model": config.model, "latents": config.latents, "source": "transformer"}
    small |= {"batch": 2, "ratio": 2, "warmup": 0, "alone": 0}
    folder = replace(recipe, **small, **rates).run()
    before, after = weights(config.model), weights(folder)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert str(config.model) not in (folder / "transformer" / "config.json").read_text()
    pipe = CausalVideoPipeline.from_pretrained(folder)
    assert torch.isfinite(pipe("a red ball slides left", plan="4,1x", seed=0, output_type="pt").frames).all()


def test_resumes_exactly(config: DistillConfig, tmp_path: Path):
    balanced = replace(config, adversary=AdversaryConfig(balance=True, reference="both"))
    whole = balanced.run()
    cut = replace(balanced, loop=replace(balanced.loop, folder=tmp_path / "cut"))
    for _ in range(2):  # lost twice, after steps 1 and 2
        replace(cut, loop=replace(cut.loop, minutes=1e-9, save_every=1)).run()
    resumed = weights(cut.run())
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in weights(whole).items())


_RUN = """
import os, sys, torch
from pathlib import Path
from nearstep.train import checkpoint
torch.set_num_threads(1)
config = torch.load(sys.argv[1], weights_only=False)
moment, written = sys.argv[2], 0
save = checkpoint.dcp.save

def killed_save(content, checkpoint_id, **options):
    global written
    written += 1
    save(content, checkpoint_id=checkpoint_id, **options)
    if written == int(moment):  # the folder is there under its temporary name, and half of it is written
        path = next(Path(checkpoint_id).glob("*.distcp"))
        path.write_bytes(path.read_bytes()[:1000])
        os.kill(os.getpid(), 9)

checkpoint.dcp.save = killed_save
config.run()
"""


def test_a_killed_process_resumes_exactly_and_leaves_nothing_half_written(config: DistillConfig, tmp_path: Path):
    whole = replace(config, loop=replace(config.loop, steps=3)).run()
    cut = replace(config, loop=replace(config.loop, steps=3, save_every=1, log_every=1, folder=tmp_path / "cut"))
    torch.save(cut, tmp_path / "config.pt")
    killed = subprocess.run([sys.executable, "-c", _RUN, tmp_path / "config.pt", "2"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(cut.loop.folder.glob(".*.part"))
    with (cut.loop.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "dm')  # killed while it logged
    resumed = cut.run()
    assert not list(cut.loop.folder.glob(".*.part"))
    assert [row["step"] for row in read_metrics(cut.loop.folder / "metrics.jsonl")] == [1, 2, 3]
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())


@pytest.mark.parametrize("penalty", ["exact", "finite difference"])
def test_micro_batches_add_up_to_the_whole_batch(config: DistillConfig, penalty):
    config = replace(config, adversary=AdversaryConfig(penalty=penalty, balance=True))
    whole, halves = DistillStage(config), DistillStage(replace(config, micro=2))
    for index in range(3):
        logged = [stage.step(index) for stage in (whole, halves)]
        for name in logged[0].keys() & {"dmd", "asd", "assistant", "discriminator", "r1"}:
            torch.testing.assert_close(logged[0][name], logged[1][name], rtol=1e-3, atol=1e-5)
    for name in ("student", "assistant", "discriminator"):
        pairs = zip(getattr(whole, name).parameters(), getattr(halves, name).parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=2e-4) for a, b in pairs), name


def test_the_students_turn_reaches_the_student_alone(config: DistillConfig):
    stage = DistillStage(config)
    batch = stage._batch(turn(2), 0, range(4))
    assert batch.fewer.requires_grad
    assert batch.more is not None
    assert not batch.more.requires_grad
    stage._student(turn(2), batch, noise(stage))
    assert all(have_gradients(p for name, p in stage.student.named_parameters() if "blocks" in name))
    for other in (stage.assistant, stage.teacher, stage.discriminator):
        assert not any(have_gradients(other.parameters()))


@pytest.mark.parametrize("penalty", ["exact", "finite difference"])
@pytest.mark.parametrize("backbone", ["assistant", "teacher", "joint"])
def test_the_discriminators_turn_reaches_the_backbone_only_where_it_is_joint(config: DistillConfig, backbone, penalty):
    adversary = AdversaryConfig(backbone=backbone, penalty=penalty)
    stage = DistillStage(replace(config, adversary=adversary))
    batch = stage._batch(turn(2), 0, range(4))
    stage._discriminator(turn(2), replace(batch, fewer=batch.fewer.detach()), noise(stage), 0.1)
    rows = stage.discriminator.logits.weight.grad.abs().sum(1)
    assert [bool(row) for row in rows] == [False, True, False]  # D_2 alone
    assert any(have_gradients(stage.assistant.parameters())) == (backbone == "joint")
    assert not any(have_gradients([*stage.student.parameters(), *stage.teacher.parameters()]))


def gap(stage: DistillStage, batch) -> float:
    with torch.no_grad():
        discriminate, pair = stage._judged(turn(1), batch, noise(stage))
        return float((discriminate(pair.noised(pair.fewer)) - discriminate(pair.noised(pair.more))).mean())


def test_a_discriminators_step_lowers_the_gap_and_a_students_step_on_asd_alone_raises_it(config: DistillConfig):
    small = OptimConfig(lr=1e-4, warmup=1, decay=0.0)
    stage = DistillStage(replace(config, student=small, discriminator=small, match="largest"))
    batch = stage._batch(turn(1), 0, range(4))
    before = gap(stage, batch)
    stage._discriminator(turn(1), batch, noise(stage), 0.0)
    stage._move("discriminator", 0)
    lowered = gap(stage, batch)
    assert lowered < before
    stage._student(turn(1), stage._batch(turn(1), 0, range(4)), noise(stage))  # n = 1 is not the largest: no DMD
    stage._move("student", 0)
    after = replace(stage._batch(turn(1), 0, range(4)), more=batch.more)
    assert gap(stage, after) > lowered


def test_the_largest_n_has_no_reference_unless_the_chain_ends_in_data(config: DistillConfig):
    stage = DistillStage(config)
    assert stage._batch(turn(4), 0, range(4)).more is None
    chained = DistillStage(replace(config, adversary=AdversaryConfig(reference="both")))
    batch = chained._batch(turn(4), 0, range(4))
    assert torch.equal(batch.more, batch.data)
    assert chained.discriminator.pairs == 4


def test_the_discriminator_waits_then_learns_unheard_then_is_heard(config: DistillConfig):
    stage = DistillStage(replace(config, counts=(2,), warmup=1, alone=1))
    before = [p.clone() for p in stage.discriminator.parameters()]
    logged = [stage.step(index).keys() for index in range(3)]
    assert ["dmd" in names for names in logged] == [True, True, True]
    assert ["accuracy_2" in names for names in logged] == [False, True, True]
    assert ["asd" in names for names in logged] == [False, False, True]
    assert not all(torch.equal(a, b) for a, b in zip(before, stage.discriminator.parameters(), strict=True))


def test_warm_up_leaves_the_discriminator_alone(config: DistillConfig):
    stage = DistillStage(replace(config, counts=(2,), warmup=1))
    before = [p.clone() for p in stage.discriminator.parameters()]
    stage.step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, stage.discriminator.parameters(), strict=True))


def test_assistant_and_discriminator_learn_several_times_from_one_rollout_under_new_noise(config: DistillConfig):
    stage = DistillStage(replace(config, counts=(1,), ratio=3))
    calls: list[int] = []
    stage.student.register_forward_hook(lambda *_: calls.append(1))
    stage.step(0)
    plans = (make_plan(text, frames=9, chunk_frames=3, shift=3.0) for text in ("1", "2"))
    assert len(calls) == sum(plan.calls for plan in plans)  # a rollout of n steps and one of n + 1, and no more
    first, second = stage._noise("learners", 0, 0), stage._noise("learners", 0, 1)
    assert not torch.equal(first.eps("assistant"), second.eps("assistant"))
    assert not torch.equal(first.t("psi", 1.0), second.t("psi", 1.0))


def test_rare_penalties_weigh_as_much_as_constant_ones(config: DistillConfig):
    adversary = AdversaryConfig(gamma=0.5, penalty_every=3)
    stage = DistillStage(replace(config, adversary=adversary, ratio=2))
    given = [stage._gamma(index, update) for index in range(3) for update in range(2)]
    assert [weight > 0 for weight in given] == [True, False, False, True, False, False]
    assert given[0] == pytest.approx(3 * adversary.gamma_at(0.0))


def test_what_is_not_finite_stops_before_any_weight_moves(config: DistillConfig):
    stage = DistillStage(config)
    with torch.no_grad():
        stage.assistant.proj_out.bias.fill_(float("nan"))
    before = [p.clone() for p in stage.student.parameters()]
    with pytest.raises(NonFiniteError):
        stage.step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, stage.student.parameters(), strict=True))


def test_out_of_graph_keeps_input_gradients_and_restores(config: DistillConfig):
    layer = torch.nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    x = torch.randn(2, 3, requires_grad=True)
    with out_of_graph(layer):
        layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


def test_gamma_falls_to_a_tenth():
    config = AdversaryConfig(gamma=2.0)
    assert config.gamma_at(0.0) == 2.0
    assert config.gamma_at(0.5) == pytest.approx(1.1)
    assert config.gamma_at(1.0) == pytest.approx(0.2)


def test_balance_takes_effect_with_the_next_update():
    balance = Balance()
    assert balance.ratio == 1.0
    balance.add(torch.full((2, 3), 4.0), torch.full((2, 3), 2.0))
    assert balance.ratio == 1.0
    balance.settle()
    assert balance.ratio == pytest.approx(2.0)
    again = Balance()
    again.load_state_dict(balance.state_dict())
    assert again.ratio == balance.ratio


def test_a_model_that_is_not_there_is_named(config: DistillConfig, tmp_path: Path):
    with pytest.raises(NearstepError, match=r"nowhere is no model folder"):
        replace(config, model=tmp_path / "nowhere").run()
    with pytest.raises(NearstepError, match=r"no network at .*/elsewhere"):
        replace(config, source="elsewhere").run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (1, 5)}, "from 1 to 4"),
        ({"counts": ()}, "from 1 to 4"),
        ({"micro": 3}, "does not divide"),
        ({"ratio": 0}, "at least one update"),
    ],
)
def test_wrong_settings_are_named(config: DistillConfig, change, message: str):
    with pytest.raises(NearstepError, match=message):
        replace(config, **change)


def test_under_autocast_every_update_computes_with_the_weights_as_they_are(config: DistillConfig):
    rate = replace(config.assistant, lr=0.1)
    stage = DistillStage(replace(config, autocast=True, assistant=rate, discriminator=rate, ratio=3))
    learn, seen = stage._assistant, []

    def assistant(batch, noise):
        with torch.no_grad():
            x, t = batch.fewer, torch.full(batch.fewer.shape[:2], 0.5)
            remembered = stage.assistant(x, t, batch.text)
            torch.clear_autocast_cache()
            seen.append(torch.equal(remembered, stage.assistant(x, t, batch.text)))
        return learn(batch, noise)

    stage._assistant = assistant
    stage.step(0)
    assert seen == [True] * 3
