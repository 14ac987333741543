"""Wan's recipes, small: release, convert, latents, three stages, two processes, diffusers, a clip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from layouts import small_release
from processes import run_on_two

from nearstep import VideoTransformer
from nearstep.cli.main import main
from nearstep.data.latents import LatentsConfig
from nearstep.data.prompts import PromptsConfig
from nearstep.errors import NearstepError
from nearstep.models.folder import Settings
from nearstep.recipes import wan
from nearstep.train.health import read_metrics
from nearstep.train.loop import LoopConfig
from nearstep.train.optim import OptimConfig

RATE = OptimConfig(lr=1e-3, warmup=1, decay=0.0)
SETTINGS = Settings(num_frames=13, height=32, width=32, fps=16)


def nearstep(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def loop(folder: Path, steps: int) -> LoopConfig:
    return LoopConfig(folder=folder, steps=steps, log_every=1, save_every=1, preview_every=steps, tensorboard=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    (folder / "release").mkdir()
    nearstep("convert", small_release(folder / "release"), folder / "base")
    (folder / "prompts.txt").write_text("a small red ball\na ball slides left\na red ball on snow\nsmall ball\n")
    return folder


@torch.no_grad()
def test_from_a_release_to_a_student_that_diffusers_loads(base: Path):
    size = ("--frames", 13, "--height", 32, "--width", 32)
    teacher = ("--network", "transformer", "--plan", 2, "--guidance", 2)
    nearstep(
        "prepare", "--from-teacher", base / "prompts.txt", base / "latents", "--model", base / "base", *teacher, *size
    )
    small = {"batch": 2, "chunk_frames": 2, "text_cache": base / "text", "settings": SETTINGS}
    causal = {"optim": RATE, "latents": LatentsConfig(folder=base / "latents"), **small}
    with torch.enable_grad():
        forced = replace(wan.forcing(), loop=loop(base / "forcing", 2), model=base / "base", **causal).run()
        start = replace(wan.consistency(), loop=loop(base / "consistency", 1), model=forced, **causal).run()
        prompts = PromptsConfig(files=(base / "prompts.txt",), frames=4, channels=16, height=4, width=4)
        rates = {"student": RATE, "assistant": RATE, "discriminator": RATE}
        run = replace(
            wan.distill(), loop=loop(base / "distill", 3), model=start, latents=prompts,
            ratio=1, warmup=0, adversary_delay=0, **rates, **small,
        )  # fmt: skip
        run_on_two(replace(run, loop=replace(run.loop, minutes=1e-9)))  # one step on two processes
        student = run.run()  # and two on one
    assert [row["step"] for row in read_metrics(base / "distill" / "metrics.jsonl")] == [1, 2, 3]

    nearstep("convert", student, base / "for-diffusers", "--to", "diffusers")
    theirs = WanPipeline.from_pretrained(base / "for-diffusers").transformer.float()
    ours = VideoTransformer.from_pretrained(student / "transformer", chunk_frames=None).float()
    x, t, text = torch.randn(1, 2, 16, 4, 4), torch.tensor([0.9]), torch.randn(1, 12, 24)
    expected = theirs(x.transpose(1, 2), 1000 * t, text, return_dict=False)[0].transpose(1, 2)
    torch.testing.assert_close(ours(x, t, text), expected, atol=3e-4, rtol=0)  # their time sinusoid is float32

    nearstep("generate", "a small red ball", "--model", student, "--plan", "4,1x", "-o", base / "ball.mp4")
    assert (base / "ball.mp4").stat().st_size > 500


def test_adapters_of_one_narrow_backbone_on_two_processes(base: Path):
    """Mixed precision, a bfloat16 base, recomputed blocks, the penalty: all three on one network."""
    prompts = PromptsConfig(files=(base / "prompts.txt",), frames=4, channels=16, height=4, width=4)
    rates = {"student": RATE, "assistant": RATE, "discriminator": RATE}
    small = wan.distill_small()
    assert small.adversary is not None
    run = replace(
        small, loop=loop(base / "small", 2), model=base / "base", network="transformer", teacher="transformer",
        latents=prompts, text_cache=base / "text", settings=SETTINGS, chunk_frames=2, batch=2, ratio=1,
        step_counts=(2,), warmup=0, adversary_delay=0, lora_rank=4, **rates,
        adversary=replace(small.adversary, penalty_every=1),
    )  # fmt: skip
    assert run.on_teacher == ("student", "assistant")
    run_on_two(replace(run, loop=replace(run.loop, minutes=1e-9)))  # one step on two processes
    student = run.run()  # and one on one
    alone = replace(run, loop=replace(run.loop, folder=base / "alone"))
    alone.run()
    one, two = (read_metrics(base / name / "metrics.jsonl") for name in ("alone", "small"))
    for name in ("dmd", "asd", "assistant", "discriminator", "r1", "r2"):
        assert two[0][name] == pytest.approx(one[0][name], rel=0.05, abs=1e-3), name
    assert VideoTransformer.from_pretrained(student / "transformer").config["chunk_frames"] == 2


def test_prompts_alone_are_refused_where_clips_are_needed():
    with pytest.raises(NearstepError, match="prompts alone give no clips"):
        replace(wan.self_forcing(), sampling="data")


def test_the_recipes_are_whole():
    for recipe in (wan.forcing, wan.consistency, wan.trajectory, wan.self_forcing, wan.distill):
        config = recipe()
        assert config.batch == 64
        assert config.shift == 5.0
