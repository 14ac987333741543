"""The path: ends, ways back and forth, and the law of training times."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.flow.ode import euler_step
from nearstep.flow.path import eps_from_velocity, noised, velocity, x0_from_velocity
from nearstep.flow.times import shifted, training_times, unshifted

SHAPE = (2, 3, 4, 2, 2)


def draw(*times: float):
    x0, eps = torch.randn(2, *SHAPE, dtype=torch.float64).unbind()
    t = torch.tensor(times, dtype=torch.float64).expand(2, 3)
    return x0, eps, t


def test_the_path_ends_in_data_and_in_noise():
    x0, eps, t = draw(0.0, 0.5, 1.0)
    x_t = noised(x0, eps, t)
    torch.testing.assert_close(x_t[:, 0], x0[:, 0])
    torch.testing.assert_close(x_t[:, 1], (x0[:, 1] + eps[:, 1]) / 2)
    torch.testing.assert_close(x_t[:, 2], eps[:, 2])


def test_velocity_gives_back_both_ends():
    x0, eps, t = draw(0.1, 0.5, 1.0)
    x_t, v = noised(x0, eps, t), velocity(x0, eps)
    torch.testing.assert_close(x0_from_velocity(x_t, v, t), x0)
    torch.testing.assert_close(eps_from_velocity(x_t, v, t), eps)


def test_renoising_at_one_forgets_the_data():
    x0, eps, _ = draw(1.0, 1.0, 1.0)
    one = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(noised(x0, eps, one), noised(2 * x0, eps, one))


def test_an_euler_step_follows_the_straight_path_exactly():
    x0, eps, t = draw(0.9, 0.6, 0.3)
    there = euler_step(noised(x0, eps, t), velocity(x0, eps), t, t / 3)
    torch.testing.assert_close(there, noised(x0, eps, t / 3))


@given(st.floats(0, 1), st.floats(0.2, 12))
def test_the_shift_has_an_inverse_and_keeps_the_ends(t: float, k: float):
    assert unshifted(shifted(t, k), k) == pytest.approx(t, abs=1e-9)
    assert shifted(0.0, k) == 0.0
    assert shifted(1.0, k) == pytest.approx(1.0)


def test_the_shift_of_wan_at_480p():
    assert [round(shifted(t, 5.0), 4) for t in (1, 0.75, 0.5, 0.25)] == [1.0, 0.9375, 0.8333, 0.625]


def test_training_times_are_clamped_after_the_shift():
    u = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(training_times(u, shift=5.0, low=0.02, high=0.98), torch.tensor([0.02, 5 / 6, 0.98]))
