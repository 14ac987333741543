"""Two processes under torchrun (FSDP2, gloo) against one: the same losses, gradients and weights; any resumes any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import usual_runs
from processes import run_on_two
from safetensors.torch import load_file

from nearstep.errors import NearstepError
from nearstep.recipes import playground
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.stage import DistillConfig
from nearstep.train.health import read_metrics
from nearstep.train.loop import LoopConfig
from nearstep.train.parallel import Ranks
from nearstep.train.phases import Phase
from nearstep.train.stages.causal import CausalConfig
from nearstep.train.stages.codec import CodecConfig
from nearstep.train.stages.shared import own_rows
from nearstep.train.stages.teacher import TeacherConfig

COMPARED = (
    "dmd", "dmd_norm", "asd", "asd_norm", "alpha", "cosine", "assistant", "discriminator", "r1", "r2",
    "student_grad_norm", "assistant_grad_norm", "discriminator_grad_norm",
)  # fmt: skip


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    loop = LoopConfig(folder=tmp_path / "one", steps=3, log_every=1, save_every=1, preview_every=3, tensorboard=False)
    adversary = AdversaryConfig(balance=True, penalty_every=1)
    return replace(model.distillation(loop), micro=1, step_counts=(2,), adversary=adversary)


def weights(folder: Path, network: str = "transformer", model: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / model / network / "diffusion_pytorch_model.safetensors")


def test_two_processes_train_as_one_and_one_goes_on_with_their_run(config: DistillConfig, tmp_path: Path):
    config.run()
    two = replace(config, checkpointing=True, loop=replace(config.loop, folder=tmp_path / "two"))
    run_on_two(replace(two, loop=replace(two.loop, minutes=1e-9)))  # time for one step
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in other] == [1]
    for name in COMPARED:
        assert other[0][name] == pytest.approx(one[0][name], rel=1e-3, abs=1e-6), name
    assert (tmp_path / "two" / "previews" / "0000001.png").exists()
    assert not (tmp_path / "two" / "model").exists()
    assert (
        weights(tmp_path / "two", "teacher", model="unfinished").keys() == weights(tmp_path / "one", "teacher").keys()
    )
    two.run()
    assert [row["step"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl")] == [1, 2, 3]
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert a.keys() == b.keys()
    for name in a:  # stored in bfloat16
        torch.testing.assert_close(a[name], b[name], rtol=2e-2, atol=2e-3)


def test_two_processes_replay_rollouts_as_one_keeps_their_graph(config: DistillConfig, tmp_path: Path):
    """Fresh samples and pictures gather weights that no backward pass lets go of, before the average is updated."""
    config = replace(config, fresh=True, loop=replace(config.loop, steps=2, preview_every=1))
    config.run()
    run_on_two(replace(config, replay=True, loop=replace(config.loop, folder=tmp_path / "two")))
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(other) == 2
    for name in COMPARED:
        assert other[0][name] == pytest.approx(one[0][name], rel=1e-3, abs=1e-6), name
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:  # stored in bfloat16
        torch.testing.assert_close(a[name], b[name], rtol=2e-2, atol=2e-3)


def test_two_processes_hold_a_distillation_whole_for_muon_and_train_as_one(config: DistillConfig, tmp_path: Path):
    config = replace(config, student=replace(config.student, muon=True), loop=replace(config.loop, steps=2))
    config.run()
    run_on_two(replace(config, loop=replace(config.loop, folder=tmp_path / "two")))
    one, other = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(other) == 2
    for name in COMPARED:
        assert other[0][name] == pytest.approx(one[0][name], rel=1e-3, abs=1e-6), name
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:  # stored in bfloat16
        torch.testing.assert_close(a[name], b[name], rtol=2e-2, atol=2e-3)


def test_two_processes_train_a_causal_network_as_one(model, tmp_path: Path):
    def recipe(name: str) -> CausalConfig:
        base = usual_runs.forcing()
        loop = LoopConfig(folder=tmp_path / name, steps=3, log_every=1, tensorboard=False)
        return replace(
            base, loop=loop, model=model.folder, network="teacher", latents=model.latents, autocast=False, batch=4,
            micro=1, optim=replace(base.optim, warmup=1),
        )  # fmt: skip

    assert_alike(recipe, ("loss", "grad_norm"), "transformer", tmp_path)


def test_two_processes_train_a_codec_as_one(tmp_path: Path):
    def recipe(name: str) -> CodecConfig:
        base = playground.codec()
        loop = LoopConfig(folder=tmp_path / name, steps=3, log_every=1, tensorboard=False)
        size = replace(base.size, base_dim=4, decoder_base_dim=4, z_dim=4)
        phases = (Phase(2, 1, 4, 32), Phase(1, 5, 2, 32))
        optim = replace(base.optim, warmup=1)
        return replace(base, loop=loop, size=size, phases=phases, optim=optim, autocast=False)

    assert_alike(recipe, ("loss", "absolute", "kl", "grad_norm"), "vae", tmp_path)


def test_two_processes_train_a_teacher_as_one(model, tmp_path: Path):
    def recipe(name: str) -> TeacherConfig:
        base = usual_runs.teacher()
        loop = LoopConfig(folder=tmp_path / name, steps=3, log_every=1, tensorboard=False)
        return replace(
            base, loop=loop, codec=model.folder / "vae", latents=model.latents, autocast=False,
            optim=replace(base.optim, warmup=1),
            phases=(Phase(2, 1, 4, draws=3), Phase(1, 9, 2)),
            network=replace(base.network, num_attention_heads=2, attention_head_dim=12, ffn_dim=16, num_layers=1),
            text=replace(base.text, d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1),
        )  # fmt: skip

    assert_alike(recipe, ("loss", "loss_low", "loss_high", "grad_norm"), "teacher", tmp_path)


def assert_alike(recipe: Callable[[str], Any], logged: Sequence[str], network: str, folder: Path) -> None:
    """One process and two log the same, and make the same weights but for rounding."""
    recipe("one").run()
    run_on_two(recipe("two"))
    one, other = (read_metrics(folder / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(other) == 3
    for a, b in zip(one, other, strict=True):
        for name in (name for name in logged if name in a):
            assert b[name] == pytest.approx(a[name], rel=2e-3, abs=1e-6), name
    a, b = weights(folder / "one", network), weights(folder / "two", network)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-2, atol=4e-3)


def test_a_batch_that_the_processes_do_not_divide_is_named():
    with pytest.raises(NearstepError, match="batch=5 does not divide among 2 processes"):
        Ranks(0, 2, torch.device("cpu")).share(5)
    assert Ranks(1, 2, torch.device("cpu")).share(6) == range(3, 6)


@pytest.mark.parametrize("count", [3, 5, 6, 7, 12])
def test_any_number_of_processes_divides_a_batch_of_its_multiples(count: int):
    here = [Ranks(rank, count, torch.device("cpu")) for rank in range(count)]
    shares = [own_rows(4 * count, 2, ranks) for ranks in here]
    assert [row for share in shares for row in share] == list(range(4 * count))
    with pytest.raises(NearstepError, match=rf"batch={4 * count + 1} does not divide among {count} processes"):
        own_rows(4 * count + 1, 1, here[0])
    with pytest.raises(NearstepError, match=rf"micro=4 does not divide the 2 clips of a process \(batch={2 * count}"):
        own_rows(2 * count, 4, here[0])


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_processes_divide_rows_that_all_of_them_hold(rows: int, monkeypatch: pytest.MonkeyPatch):
    whole, made, seen = torch.randn(rows, 2, 3), {}, []

    def function(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part.square() + 1

    def all_gather(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        made[here.rank] = own.clone()
        for rank, part in enumerate(parts):
            part.copy_(made.get(rank, torch.full_like(part, torch.nan)))

    monkeypatch.setattr("torch.distributed.all_gather", all_gather)
    found = []
    for rank in (0, 1, 2) * 2:  # the second time round, what all of them have sent is there
        here = Ranks(rank, 3, torch.device("cpu"))
        found.append(here.divided(function, whole))
    for each in found[3:]:
        torch.testing.assert_close(each, whole.square() + 1, rtol=0, atol=0)
    assert sum(seen) == 2 * rows and max(seen) == -(-rows // 3)
