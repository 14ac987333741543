"""The adversary's weights: when a penalty is due and what it weighs, and how two gradients are balanced."""

from __future__ import annotations

import pytest
import torch

from nearstep.train.distill.adversary import AdversaryConfig, GradientBalance


def test_rare_penalties_weigh_as_much_as_constant_ones():
    options = AdversaryConfig(gamma=0.5, penalty_every=3)
    weights = torch.tensor([options.penalty_weight(update, progress=0.0, seed=1) for update in range(3_000)])
    assert set(weights.tolist()) == {0.0, 3 * options.gamma_at(0.0)}
    assert weights.mean() == pytest.approx(options.gamma_at(0.0), rel=0.1)


@pytest.mark.parametrize("period", [2, 4, 10])
def test_penalties_fall_into_step_with_no_lesson(period: int):
    options = AdversaryConfig(penalty_every=4)
    ratio, updates = 3, 6_000
    due = torch.tensor([options.penalty_weight(update, progress=0.0) > 0 for update in range(updates * ratio)])
    shares = due.view(updates // period, period, ratio).float().mean(dim=(0, 2))  # of each step of the lessons' round
    assert (shares - 0.25).abs().max() < 0.05


def test_gamma_falls_to_a_tenth():
    config = AdversaryConfig(gamma=2.0)
    assert config.gamma_at(0.0) == 2.0
    assert config.gamma_at(0.5) == pytest.approx(1.1)
    assert config.gamma_at(1.0) == pytest.approx(0.2)


def test_gamma_is_constant_where_all_of_it_is_left():
    config = AdversaryConfig(gamma=3.0, gamma_left=1.0)
    assert [config.gamma_at(progress) for progress in (0.0, 0.3, 1.0)] == pytest.approx([3.0] * 3)


def test_balance_takes_effect_with_the_next_update():
    balance = GradientBalance()
    assert balance.ratio() == 1.0
    balance.add(torch.full((2, 3), 4.0), torch.full((2, 3), 2.0))
    assert balance.ratio() == 1.0
    balance.settle()
    assert balance.ratio() == pytest.approx(2.0)
    again = GradientBalance()
    again.load_state_dict(balance.state_dict())
    assert again.ratio() == balance.ratio()


def test_each_kind_of_clips_has_a_balance_of_its_own():
    balance, ones = GradientBalance(kinds=3), torch.ones(2, 3)
    for _ in range(40):  # by turns
        balance.add(4 * ones, ones, 0)
        balance.settle()
        balance.add(ones, 5 * ones, 2)
        balance.settle()
    assert [balance.ratio(kind) for kind in range(3)] == pytest.approx([4.0, 1.0, 0.2])
