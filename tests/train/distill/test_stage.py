"""The distillation stage: who learns from what, resume, accumulation, and every rival through the same code."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import usual_runs
from safetensors.torch import load_file, save_file

from nearstep.errors import NearstepError
from nearstep.flow.plan import make_plan
from nearstep.train.distill.adversary import AdversaryConfig, out_of_graph
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.distill.steps import StepPlan
from nearstep.train.distill.update import Batch, DistillUpdate
from nearstep.train.health import read_metrics
from nearstep.train.lessons import Lesson
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import NonFiniteError, OptimConfig

RIVALS = ("self_forcing", "distill", "self_forcing_1", "self_forcing_2", "causvid", "one_forcing")


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    loop = LoopConfig(folder=tmp_path / "run", steps=6, log_every=2, save_every=2, preview_every=100, tensorboard=False)
    return model.distillation(loop)


def plan(steps: int) -> StepPlan:
    return StepPlan(steps=steps, discriminator_learns=True, student_listens=True)


def update_of(config: DistillConfig) -> DistillUpdate:
    return DistillStage(config).update


def have_gradients(parameters: Iterable[torch.nn.Parameter]) -> list[bool]:
    return [p.grad is not None and bool(p.grad.any()) for p in parameters]


def weights(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("name", RIVALS)
def test_every_rival_trains_and_its_student_generates(name: str, config: DistillConfig):
    from nearstep import CausalVideoPipeline

    recipe = usual_runs.distillation(name)
    rates = {"student": config.student, "assistant": config.assistant, "discriminator": config.discriminator}
    small = {"loop": config.loop, "model": config.model, "latents": config.latents, "network": "transformer"}
    small |= {"batch": 2, "ratio": 2, "warmup": 0, "adversary_delay": 0}
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
    for name, part in whole.update.networks.state().items():
        if name in ("student", "assistant", "discriminator"):
            other = halves.update.networks.state()[name].state_dict()
            assert all(torch.allclose(tensor, other[key], atol=2e-4) for key, tensor in part.state_dict().items()), name


def test_the_students_update_reaches_the_student_alone(config: DistillConfig):
    update = update_of(config)
    batch, networks = update.sample(plan(2), 0, range(4), graph=True), update.networks
    assert batch.x_n.requires_grad
    assert batch.x_next is not None
    assert not batch.x_next.requires_grad
    update.student(plan(2), batch, update.noise("test"))
    assert all(have_gradients(p for name, p in networks.student.named_parameters() if "blocks" in name))
    for other in (networks.assistant, networks.teacher, networks.adversary.heads):
        assert not any(have_gradients(other.parameters()))


@pytest.mark.parametrize("penalty", ["exact", "finite difference"])
@pytest.mark.parametrize("backbone", ["assistant", "teacher", "joint"])
def test_the_discriminators_update_reaches_the_backbone_only_where_it_is_joint(
    config: DistillConfig, backbone, penalty
):
    adversary = AdversaryConfig(backbone=backbone, penalty=penalty)
    update = update_of(replace(config, adversary=adversary))
    networks = update.networks
    batch = update.sample(plan(2), 0, range(4)).detached()
    update.discriminator(plan(2), batch, update.noise("test"), 0.1)
    rows = networks.adversary.heads.logits.weight.grad.abs().sum(1)
    assert [bool(row) for row in rows] == [False, True, False]  # D_2 alone
    assert any(have_gradients(networks.assistant.parameters())) == (backbone == "joint")
    assert not any(have_gradients([*networks.student.parameters(), *networks.teacher.parameters()]))


def gap(update: DistillUpdate, batch: Batch) -> float:
    adversary = update.networks.adversary
    with torch.no_grad():
        pair = adversary.pair(1, batch.x_n, batch.x_next, batch.text, update.noise("test"))
        d_n = adversary.discriminate(pair.text, pair.less.t, pair.n)
        return float((d_n(pair.less.psi()) - d_n(pair.more.psi())).mean())


def test_a_discriminators_step_lowers_the_gap_and_a_students_step_on_asd_alone_raises_it(config: DistillConfig):
    small = OptimConfig(lr=1e-4, warmup=1, decay=0.0)
    stage = DistillStage(replace(config, student=small, discriminator=small, dmd_on="largest"))
    update, noise = stage.update, stage.update.noise("test")
    batch = update.sample(plan(1), 0, range(4))
    before = gap(update, batch)
    update.discriminator(plan(1), batch, noise, 0.0)
    stage.optimizers["discriminator"].apply(torch.zeros(()), 0)
    lowered = gap(update, batch)
    assert lowered < before
    update.student(plan(1), update.sample(plan(1), 0, range(4), graph=True), noise)  # n = 1 is not the largest: no DMD
    stage.optimizers["student"].apply(torch.zeros(()), 0)
    after = replace(update.sample(plan(1), 0, range(4)), x_next=batch.x_next)
    assert gap(update, after) > lowered


def test_the_largest_n_has_no_reference_unless_the_chain_ends_in_data(config: DistillConfig):
    assert update_of(config).sample(plan(4), 0, range(4)).x_next is None
    chained = update_of(replace(config, adversary=AdversaryConfig(reference="both")))
    batch = chained.sample(plan(4), 0, range(4))
    assert torch.equal(batch.x_next, batch.data)
    assert chained.networks.adversary.heads.pairs == 4


def test_the_discriminator_waits_then_learns_then_the_student_listens(config: DistillConfig):
    stage = DistillStage(replace(config, step_counts=(2,), warmup=1, adversary_delay=1))
    heads = stage.update.networks.adversary.heads
    before = [p.clone() for p in heads.parameters()]
    logged = [stage.step(index).keys() for index in range(3)]
    assert ["dmd" in names for names in logged] == [True, True, True]
    assert ["accuracy_2" in names for names in logged] == [False, True, True]
    assert ["asd" in names for names in logged] == [False, False, True]
    assert not all(torch.equal(a, b) for a, b in zip(before, heads.parameters(), strict=True))


def test_warm_up_leaves_the_discriminator_alone(config: DistillConfig):
    stage = DistillStage(replace(config, step_counts=(2,), warmup=1))
    heads = stage.update.networks.adversary.heads
    before = [p.clone() for p in heads.parameters()]
    stage.step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, heads.parameters(), strict=True))


def test_assistant_and_discriminator_learn_several_times_from_one_rollout_under_new_noise(config: DistillConfig):
    stage = DistillStage(replace(config, step_counts=(1,), ratio=3))
    calls: list[int] = []
    stage.update.networks.student.register_forward_hook(lambda *_: calls.append(1))
    stage.step(0)
    plans = (make_plan(text, frames=9, chunk_frames=3, shift=3.0) for text in ("1", "2"))
    assert len(calls) == sum(plan.calls for plan in plans)  # a rollout of n steps and one of n + 1, and no more
    first, second = stage.update.noise("learners", 0, 0), stage.update.noise("learners", 0, 1)
    assert not torch.equal(first.eps("assistant"), second.eps("assistant"))
    assert not torch.equal(first.t("psi", 1.0), second.t("psi", 1.0))


def test_fresh_samples_are_made_for_every_update_of_assistant_and_discriminator(config: DistillConfig):
    stage = DistillStage(replace(config, step_counts=(1,), ratio=3, fresh=True))
    calls: list[int] = []
    stage.update.networks.student.register_forward_hook(lambda *_: calls.append(1))
    stage.step(0)
    plans = (make_plan(text, frames=9, chunk_frames=3, shift=3.0) for text in ("1", "2"))
    assert len(calls) == (1 + 3) * sum(plan.calls for plan in plans)
    update = stage.update
    draws = [update.draw(index, number) for index in range(5) for number in range(4)]
    assert draws == list(range(20))  # no captions, no noise twice
    student, fresh = (update.sample(plan(1), update.draw(0, number), range(4)) for number in (0, 1))
    assert not torch.equal(student.x_n, fresh.x_n)
    assert not torch.equal(student.text, fresh.text)
    assert not fresh.x_n.requires_grad


def test_the_teacher_is_led_away_from_the_negative_prompt(config: DistillConfig):
    def moves(negative: str) -> torch.Tensor:
        update = update_of(replace(config, adversary=None, negative=negative))
        batch = update.sample(plan(1), 0, range(4), graph=True)
        update.student(plan(1), batch, update.noise("test"))
        return torch.cat([p.grad.flatten() for p in update.networks.student.parameters() if p.grad is not None])

    assert not torch.allclose(moves(""), moves("a red ball"))


def test_a_negative_prompt_that_cannot_act_is_refused_before_the_run(config: DistillConfig):
    with pytest.raises(NearstepError, match="acts through guidance, and there is none"):
        replace(config, guidance=1.0, negative="a red ball")
    with pytest.raises(NearstepError, match="the negative prompt, 'a red zeppelin'"):
        replace(config, negative="a red zeppelin").run()
    assert not (config.loop.folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("shared_time", [True, False])
@pytest.mark.parametrize("shared_noise", [True, False])
def test_psi_shares_what_it_is_told_to(config: DistillConfig, shared_time: bool, shared_noise: bool):
    options = AdversaryConfig(shared_time=shared_time, shared_noise=shared_noise)
    update = update_of(replace(config, adversary=options))
    adversary, noise, x = update.networks.adversary, update.noise("test"), torch.zeros(4, *update.clips.shape)
    text = update.text(["a red ball"] * 4)
    pair = adversary.pair(1, x, x, text, noise)
    assert torch.equal(pair.less.t, pair.more.t) == shared_time
    assert torch.equal(pair.less.eps, pair.more.eps) == shared_noise
    assert torch.equal(pair.less.psi(), pair.more.psi()) == (shared_time and shared_noise)
    # Each sample is judged at its own time, by student and discriminator alike; the same samples under one Psi cannot
    # be told apart.
    for logged in (adversary.student_gradient(pair, x)[1]["asd"], adversary.discriminator_loss(pair, 0.0)[0].mean()):
        assert (float(logged.detach()) == pytest.approx(math.log(2), abs=1e-6)) == (shared_time and shared_noise)


def test_what_is_not_finite_stops_before_any_weight_moves(config: DistillConfig):
    stage = DistillStage(config)
    student, assistant = stage.update.networks.student, stage.update.networks.assistant
    with torch.no_grad():
        assistant.proj_out.bias.fill_(float("nan"))
    before = [p.clone() for p in student.parameters()]
    with pytest.raises(NonFiniteError):
        stage.step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "teacher"])
def test_weights_that_are_not_finite_are_named_before_anything_is_trained(config: DistillConfig, tmp_path: Path, part):
    model = tmp_path / "model"
    shutil.copytree(config.model, model)
    file = next((model / part).glob("*.safetensors"))
    state = load_file(file)
    name = max(state, key=lambda key: state[key].numel())
    state[name].view(-1)[0] = float("nan")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(NearstepError, match=rf"{part} holds weights that are not finite \("):
        replace(config, model=model).run()
    assert not (config.loop.folder / "metrics.jsonl").exists()


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


def test_lessons_that_are_alike_are_one_kind(config: DistillConfig):
    assert config.kinds == (None,)
    pictures, stories = Lesson(latents=config.latents, batch=2), Lesson(latents=config.latents, first_chunk=1)
    several = replace(config, lessons=(pictures, stories, pictures), lesson_every=1)
    assert several.kinds == (None, pictures, stories)


def test_a_model_that_is_not_there_is_named(config: DistillConfig, tmp_path: Path):
    with pytest.raises(NearstepError, match=r"nowhere is no model folder"):
        replace(config, model=tmp_path / "nowhere").run()
    with pytest.raises(NearstepError, match=r"no network at .*/elsewhere"):
        replace(config, network="elsewhere").run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_counts": (1, 5)}, "from 1 to 4"),
        ({"step_counts": ()}, "from 1 to 4"),
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
    learn, network, equal = stage.update.assistant, stage.update.networks.assistant, []

    def assistant(batch, noise):
        with torch.no_grad():
            x, t = batch.x_n, torch.full(batch.x_n.shape[:2], 0.5)
            remembered = network(x, t, batch.text)
            torch.clear_autocast_cache()
            equal.append(torch.equal(remembered, network(x, t, batch.text)))
        return learn(batch, noise)

    stage.update.assistant = assistant
    stage.step(0)
    assert equal == [True] * 3
