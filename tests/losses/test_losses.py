"""Losses against closed forms."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from nearstep.flow.ode import ode_path
from nearstep.flow.path import noised, per_frame, velocity, x0_from_velocity
from nearstep.losses.consistency import causal_consistency
from nearstep.losses.denoising import flow_matching, teacher_forced
from nearstep.losses.trajectory import trajectory_regression

SHAPE = (4, 6, 2, 2, 2)


@pytest.fixture
def drawn():
    x0, eps = torch.randn(2, *SHAPE, dtype=torch.float32).unbind()
    t = torch.rand(4, 3).repeat_interleave(2, dim=1) * 0.9 + 0.05
    return x0, eps, t


def test_flow_matching_is_zero_for_the_true_velocity_and_counts_per_sample(drawn):
    x0, eps, t = drawn
    assert float(flow_matching(lambda x, t: velocity(x0, eps), x0, eps, t).max()) == 0.0
    wrong = velocity(x0, eps).clone()
    wrong[1] += 2.0
    torch.testing.assert_close(flow_matching(lambda x, t: wrong, x0, eps, t), torch.tensor([0.0, 4.0, 0.0, 0.0]))


def test_flow_matching_has_no_loss_where_a_frame_is_given(drawn):
    x0, eps, t = drawn
    wrong = velocity(x0, eps).clone()
    wrong[0, 0] += 5.0
    wrong[1] += 2.0
    t[:2, 0] = 0
    seen = []

    def denoiser(x, times):
        seen.append(x)
        return wrong

    torch.testing.assert_close(flow_matching(denoiser, x0, eps, t), torch.tensor([0.0, 4.0, 0.0, 0.0]))
    assert torch.equal(seen[0][:2, 0], x0[:2, 0])


def test_teacher_forcing_feeds_clean_frames_at_time_zero_and_scores_the_noised_half(drawn):
    x0, eps, t = drawn

    def denoiser(x, times):
        assert torch.equal(x[:, :6], x0)
        assert torch.equal(times[:, :6], torch.zeros(4, 6))
        assert torch.equal(times[:, 6:], t)
        torch.testing.assert_close(x[:, 6:], noised(x0, eps, t))
        return torch.cat([torch.full_like(x0, 100.0), velocity(x0, eps)], dim=1)

    assert float(teacher_forced(denoiser, x0, eps, t).max()) == 0.0


def exact(x0, eps):
    """The denoiser of one known clip: its velocity is right at every time, in both halves."""
    return lambda x, t: velocity(x0, eps).repeat(1, x.shape[1] // x0.shape[1], 1, 1, 1)


def test_consistency_is_zero_for_networks_on_the_straight_path(drawn):
    x0, eps, t = drawn
    true = exact(x0, eps)
    assert float(causal_consistency(true, true, true, x0, eps, t, t / 2).max()) < 1e-10


def test_consistency_at_the_end_of_the_ode_aims_at_the_teachers_step(drawn):
    x0, eps, t = drawn

    def teacher(x, times):
        return torch.zeros_like(x)

    def student(x, times):
        return torch.zeros_like(x, requires_grad=True)

    loss = causal_consistency(student, student, teacher, x0, eps, t, torch.zeros_like(t))
    # The teacher does not move, and at t = 0 the slow student's x0 is x itself: both sides are x_t.
    assert float(loss.detach().max()) == 0.0
    assert loss.requires_grad


def test_trajectory_regression_is_zero_on_a_straight_path(drawn):
    x0, eps, t = drawn
    assert float(trajectory_regression(exact(x0, eps), noised(x0, eps, t), t, x0).max()) < 1e-10


def test_the_ode_path_of_a_straight_flow_ends_in_the_data(drawn):
    x0, eps, _ = drawn
    points = ode_path(exact(x0, eps), eps, [1.0, 0.7, 0.2])
    assert points.shape == (4, *SHAPE)
    for point, time in zip(points, [1.0, 0.7, 0.2, 0.0], strict=True):
        torch.testing.assert_close(point, noised(x0, eps, torch.full((4, 6), time)))


def test_only_the_student_keeps_a_graph(drawn):
    x0, eps, t = drawn
    weights = {name: torch.tensor(0.3, requires_grad=True) for name in ("student", "slow", "teacher")}
    nets = {name: partial(_scaled, weight) for name, weight in weights.items()}
    causal_consistency(**nets, x0=x0, eps=eps, t=t, t_next=t / 2).sum().backward()
    assert weights["student"].grad is not None
    assert weights["slow"].grad is None
    assert weights["teacher"].grad is None


def _scaled(weight, x, t):
    return weight * x


def test_x0_of_a_constant_denoiser_scales_with_time(drawn):
    x0, _, t = drawn
    ones = torch.ones_like(x0)
    torch.testing.assert_close(x0_from_velocity(x0, ones, t), x0 - per_frame(t, x0))
