"""Causal teachers: what their scores depend on, that matching chunk by chunk matches clips, and a run with one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nearstep.flow.path import noised
from nearstep.losses.denoising import denoise_given_clean
from nearstep.losses.dmd import dmd_gradient
from nearstep.nets.transformer import VideoTransformer
from nearstep.train.distill.adversary import AdversaryConfig
from nearstep.train.distill.noise import Noise
from nearstep.train.distill.scores import denoiser_of, own_chunks
from nearstep.train.distill.stage import DistillConfig, DistillStage
from nearstep.train.loop import LoopConfig

SHAPE = (2, 6, 4, 4, 4)


def network(**causality: int) -> VideoTransformer:
    torch.manual_seed(0)
    return VideoTransformer(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=32, ffn_dim=32, num_layers=2, **causality,
    ).eval()  # fmt: skip


def scores(of: VideoTransformer, x: Tensor, eps: Tensor, *, guidance: float | None = None) -> Tensor:
    torch.manual_seed(1)
    text = torch.randn(2 if guidance is None else 4, 5, 8)
    t = torch.linspace(0.2, 0.9, 6).expand(2, 6)
    t = t if of.config["chunk_frames"] else t[:, :1].expand(2, 6)
    with torch.no_grad():
        return denoiser_of(of, text, x, guidance=guidance)(noised(x, eps, t), t)


@pytest.mark.parametrize("guidance", [None, 1.5])
def test_a_causal_network_whose_chunk_is_the_clip_scores_as_a_bidirectional_one(guidance: float | None):
    x, eps = torch.randn(2, *SHAPE)
    t = torch.full((2, 6), 0.6)
    text = torch.randn(2 if guidance is None else 4, 5, 8)
    found = [
        denoiser_of(network(**causality), text, x, guidance=guidance)(noised(x, eps, t), t)
        for causality in ({}, {"chunk_frames": 6})
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("guidance", [None, 1.5])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_chunk_is_scored_by_its_own_noised_frames_and_the_clean_ones_before(chunk: int, guidance: float | None):
    causal, (x, eps) = network(chunk_frames=chunk), torch.randn(2, *SHAPE)
    score = partial(scores, causal, guidance=guidance)
    usual, own = score(x, eps), slice(chunk, 2 * chunk)

    def changed(*, frames: slice, clean: bool) -> list[bool]:
        """Which frames' scores differ when these frames, or their noise alone, are others."""
        y, noise = x.clone(), eps.clone()
        (y if clean else noise)[:, frames] += 1.0
        return (score(y, noise) - usual).abs().amax((0, 2, 3, 4)).gt(1e-6).tolist()

    of_own = [chunk <= frame < 2 * chunk for frame in range(6)]
    assert changed(frames=own, clean=False) == of_own
    assert changed(frames=own, clean=True) == [frame >= chunk for frame in range(6)]


def test_its_window_holds_for_scores_too():
    near, (x, eps) = network(chunk_frames=1, window_frames=2), torch.randn(2, *SHAPE)
    other = x.clone()
    other[:, 0] += 1.0
    moved = (scores(near, other, eps) - scores(near, x, eps)).abs().amax((0, 2, 3, 4)).gt(1e-6)
    assert moved.tolist() == [True, True, True, False, False, False]  # a frame back in each of two blocks


def test_matching_each_chunk_given_the_student_s_own_past_matches_clips():
    """Two frames, y_1 ~ N(0, 1), y_2 ~ N(a y_1, s^2), with exact scores; the student knows neither 0 nor a at first."""
    a, s = 0.8, 0.5

    def autoregressive(first: float, slope: float):
        def denoiser(both: Tensor, t: Tensor) -> Tensor:
            clean, x_t = both.chunk(2, dim=1)
            t = t[:, 2:, None, None, None]
            mean = torch.cat([torch.full_like(clean[:, :1], first), slope * clean[:, :1]], dim=1)
            std = torch.tensor([1.0, s])[None, :, None, None, None]
            gain = (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2)
            v = (x_t - mean - gain * (x_t - (1 - t) * mean)) / t
            return torch.cat([clean, v], dim=1)

        return denoiser

    learnt = torch.tensor([1.5, -0.5], requires_grad=True)  # the first frame's mean, and the slope
    draws, at_most = torch.Generator().manual_seed(0), []
    for index in range(400):
        noise, eps = torch.randn(2, 512, 2, 1, 1, 1, generator=draws)
        first = learnt[0] + noise[:, :1]
        x = torch.cat([first, learnt[1] * first.detach() + s * noise[:, 1:]], dim=1)
        times = 0.02 + 0.96 * torch.rand(512, 2, generator=draws)
        real, fake = autoregressive(0.0, a), autoregressive(*learnt.tolist())
        given = [partial(denoise_given_clean, each, x.detach()) for each in (real, fake)]
        gradient = dmd_gradient(x.detach(), *given, eps, times, lengths=(1, 1))
        (step,) = torch.autograd.grad(x, learnt, gradient / 512)
        learnt = (learnt - 0.05 * step).detach().requires_grad_()
        at_most.append(float((learnt.detach() - torch.tensor([0.0, a])).abs().max()))
        assert index < 20 or at_most[index] < at_most[index - 20] or at_most[index] < 0.01
    assert at_most[-1] < 0.01


def test_the_scale_of_a_chunk_is_its_own():
    x, eps = torch.randn(2, *SHAPE)
    t = torch.full((2, 6), 0.5)
    real, fake = (lambda x_t, t, v=value: torch.full_like(x_t, v) for value in (0.3, -0.2))
    parts = [
        dmd_gradient(x[:, frames], real, fake, eps[:, frames], t[:, frames])
        for frames in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(dmd_gradient(x, real, fake, eps, t, lengths=(1, 3, 2)), torch.cat(parts, dim=1))


def test_frames_that_fill_no_chunk_stand_first():
    causal = {"chunk_frames": 3}
    assert [own_chunks(causal, frames) for frames in (1, 6, 7)] == [(1,), (3, 3), (1, 3, 3)]
    assert own_chunks({}, 7) == own_chunks({"chunk_frames": None}, 7) == (7,)


def test_times_of_chunks_are_drawn_apart_and_shared_within():
    noise = Noise(names=("test",), rows=range(4), shape=(6, 1, 1, 1), t_min=0.0, t_max=1.0)
    times = noise.chunk_t("match", 1.0, (2, 4))
    assert torch.equal(times, torch.cat([times[:, :1]] * 2 + [times[:, 2:3]] * 4, dim=1))
    assert bool((times[:, 0] != times[:, 2]).all())
    assert torch.equal(noise.chunk_t("match", 1.0, (6,)), noise.t("match", 1.0)[:, None].expand(4, 6))


@pytest.fixture
def config(model, tmp_path: Path) -> DistillConfig:
    loop = LoopConfig(folder=tmp_path / "run", steps=2, log_every=1, preview_every=100, tensorboard=False)
    return replace(model.distillation(loop), teacher="transformer", adversary=AdversaryConfig(penalty_every=1))


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_causal_teacher_teaches_students_of_any_chunk(config: DistillConfig, chunk: int):
    folder = replace(config, chunk_frames=chunk).run()
    before, after = (
        load_file(each / "transformer" / "diffusion_pytorch_model.safetensors") for each in (config.model, folder)
    )
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    made = {name: VideoTransformer.from_pretrained(folder / name).config for name in ("teacher", "transformer")}
    assert (made["teacher"]["chunk_frames"], made["transformer"]["chunk_frames"]) == (3, chunk)


def test_where_the_assistant_is_the_teacher_nothing_moves(config: DistillConfig):
    update = DistillStage(replace(config, adversary=None, guidance=1.0)).update
    batch = update.sample(update.plan(0), 0, update.rows, graph=True)
    metrics = update.student(update.plan(0), batch, update.noise("student", 0))
    assert float(metrics["dmd"].detach()) < 1e-10
