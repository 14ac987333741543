"""Distribution matching, the adversarial pair and the penalties against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from nearstep.flow.path import per_frame
from nearstep.losses.asd import accuracy, adversarial_discriminator, adversarial_student, step_logit
from nearstep.losses.dmd import distribution_matching, dmd_gradient
from nearstep.losses.regularisers import exact_penalty, finite_difference_penalty

SHAPE = (4, 6, 2, 3, 3)


def gaussian(mean: float, std: float):
    """The exact denoiser of data drawn from N(mean, std^2) in every number."""

    def denoiser(x, t):
        t = per_frame(t, x)
        gain = (1 - t) * std**2 / ((1 - t) ** 2 * std**2 + t**2)
        x0 = mean + gain * (x - (1 - t) * mean)
        return (x - x0) / t

    return denoiser


@pytest.fixture
def drawn():
    x, eps = torch.randn(2, *SHAPE).unbind()
    t = torch.tensor([0.1, 0.4, 0.7, 0.98])[:, None].expand(-1, SHAPE[1])
    return x, eps, t


def test_where_fake_equals_real_nothing_moves(drawn):
    x, eps, t = drawn
    assert float(dmd_gradient(x, gaussian(0.3, 1.0), gaussian(0.3, 1.0), eps, t).abs().max()) == 0.0


def test_dmd_gradient_on_gaussians_is_the_closed_form(drawn):
    x, eps, t = drawn
    real, fake, std = 0.5, -1.0, 0.8
    got = dmd_gradient(x, gaussian(real, std), gaussian(fake, std), eps, t)
    time = t[:, :1]
    gain = (1 - time) * std**2 / ((1 - time) ** 2 * std**2 + time**2)
    difference = (fake - real) * (1 - gain * (1 - time))  # the same for all numbers of a sample
    noised = (1 - time[..., None, None, None]) * x + time[..., None, None, None] * eps
    x0 = real + gain[..., None, None, None] * (noised - (1 - time[..., None, None, None]) * real)
    scale = (x - x0).abs().flatten(1).mean(1)
    torch.testing.assert_close(got, (difference[:, 0] / scale)[:, None, None, None, None].expand(SHAPE))


def test_a_step_along_the_dmd_gradient_approaches_the_teacher(drawn):
    x, eps, t = drawn
    moved = x - 0.1 * dmd_gradient(x, gaussian(2.0, 1.0), gaussian(0.0, 1.0), eps, t)
    assert bool((moved.flatten(1).mean(1) > x.flatten(1).mean(1)).all())


def test_the_matching_loss_has_the_gradient_that_it_was_given(drawn):
    x, direction, _ = drawn
    x = x.requires_grad_()
    loss = distribution_matching(x, direction)
    (got,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(got, direction / x[0].numel())
    torch.testing.assert_close(loss, 0.5 * direction.square().flatten(1).mean(1))


def test_equal_logits_cost_log_two_on_both_sides():
    d = torch.randn(5)
    for loss in (adversarial_student, adversarial_discriminator):
        torch.testing.assert_close(loss(d, d), torch.full((5,), math.log(2)))


def test_student_raises_and_discriminator_lowers_the_gap():
    d_n, d_next = torch.randn(2, 5).requires_grad_().unbind()
    (student,) = torch.autograd.grad(adversarial_student(d_n, d_next).sum(), d_n, retain_graph=True)
    discriminator = torch.autograd.grad(adversarial_discriminator(d_n, d_next).sum(), (d_n, d_next))
    assert bool((student < 0).all())  # descent raises D_n of the n-step sample
    assert bool((discriminator[0] > 0).all())
    assert bool((discriminator[1] < 0).all())
    assert float(accuracy(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))) == 0.5


def test_only_the_nth_logit_is_seen():
    logits = torch.randn(3, 4, requires_grad=True)
    step_logit(logits, torch.tensor([1, 4, 2])).sum().backward()
    expected = torch.zeros(3, 4)
    expected[0, 0] = expected[1, 3] = expected[2, 1] = 1
    assert torch.equal(logits.grad, expected)


def test_exact_penalty_of_a_quadratic_logit(drawn):
    x, _, _ = drawn
    weight = torch.tensor(0.7, requires_grad=True)
    penalty = exact_penalty(lambda x: weight * x.square().flatten(1).sum(1), x)
    torch.testing.assert_close(penalty, 0.5 * (2 * 0.7 * x).square().flatten(1).sum(1))
    penalty.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad) > 0


def test_finite_difference_tends_to_the_slope_along_its_direction_and_on_average_to_the_exact_penalty():
    x = torch.randn(1, 1, 1, 2, 2).double().float()

    def logit(x):
        return (x.flatten(1).sin() * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum(1)

    direction = torch.randn(1, 1, 1, 2, 2)
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(logit(point).sum(), point)
    along = 0.5 * (slope * direction).sum().square()
    errors = [abs(float(finite_difference_penalty(logit, x, direction, s) - along)) for s in (0.8, 0.2, 0.05)]
    assert errors[0] > errors[1] > errors[2]
    many = x.expand(20_000, -1, -1, -1, -1)
    mean = finite_difference_penalty(logit, many, torch.randn(many.shape), 0.05).mean()
    torch.testing.assert_close(mean, exact_penalty(logit, x)[0], rtol=0.05, atol=0)
